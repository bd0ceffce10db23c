import re
from functools import cache

import numpy as np
import pandas as pd
import pytest

from fractatlas.data.groups import GIVEN, add_given, add_groups
from fractatlas.data.leaks import COLUMNS, crossings, describe_groups, describe_leaks, find_leaks
from fractatlas.data.sources.fracatlas import BODY_PARTS, VIEWS, infer_exams
from fractatlas.data.splits import (
    SUBSETS,
    grouped_split,
    kfold_split,
    manifest_split,
    random_split,
    recorded_split,
)
from fractatlas.errors import InputError

RATIOS = (0.70, 0.15, 0.15)


def make_catalogue(count: int) -> pd.DataFrame:
    """Return a catalogue with the class balance of FracAtlas, in which each image is a group."""
    return pd.DataFrame(
        {"image_id": [f"IMG{n:07d}.jpg" for n in range(count)], "label": [n % 57 < 10 for n in range(count)]}
    ).assign(
        label=lambda table: table["label"].astype(int),
        excluded="",
        duplicates="",
        exam=lambda table: table["image_id"],
        group=lambda table: table["image_id"],
    )


@cache
def catalogue_with_exams(count: int, seed: int) -> pd.DataFrame:
    """Return a catalogue of exams of 1 to 7 images with gaps between ids, clustered fractures and distant copies."""
    generator = np.random.default_rng(seed)
    rows, number = [], 0
    while len(rows) < count:
        body_part = BODY_PARTS[generator.integers(4)]
        fractured = int(generator.random() < (0.5 if count * 0.4 < len(rows) < count * 0.6 else 0.1))
        for view in range(generator.choice([1, 2, 2, 2, 3, 7], p=[0.3, 0.3, 0.2, 0.1, 0.09, 0.01])):
            rows.append({"number": number, "label": fractured, body_part: 1, VIEWS[min(view, 1)]: 1})
            number += 1 if generator.random() < 0.95 else 2
        number += generator.random() < 0.1
    table = pd.DataFrame(rows[:count]).reindex(columns=["number", "label", *BODY_PARTS, *VIEWS]).fillna(0).astype(int)
    table["image_id"] = [f"IMG{n:07d}.jpg" for n in table.pop("number")]
    table["dhash"] = ""
    for _ in range(count // 40):  # clusters of two or three copies
        copies = generator.choice(count, generator.integers(2, 4), replace=False)
        table.loc[copies, "dhash"] = generator.bytes(32).hex()
    return add_groups(infer_exams(table.assign(excluded="")))


def sample(table: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Return a share of the images with new groups."""
    kept = np.random.default_rng(seed).random(len(table)) < share
    rest = table[kept].drop(columns=["duplicates", "exam", "group"]).reset_index(drop=True)
    return add_groups(infer_exams(rest))


def moved(before: pd.DataFrame, after: pd.DataFrame) -> float:
    both = before.merge(after, on="image_id")
    return (both["split_x"] != both["split_y"]).mean()


def assert_grouped(split: pd.DataFrame, ratios=RATIOS) -> None:
    """Check that no group is in two subsets, and sizes and classes to one percentage point."""
    assert (split.groupby("group")["split"].nunique() == 1).all()
    for subset, ratio in zip(SUBSETS, ratios, strict=True):
        rows = split[split["split"] == subset]
        assert abs(len(rows) / len(split) - ratio) <= 0.01
        assert abs(rows["label"].mean() - split["label"].mean()) <= 0.01


@pytest.mark.parametrize("seed", range(20))
def test_no_group_is_in_two_subsets_and_subsets_are_balanced(seed):
    catalogue = catalogue_with_exams(4083, seed)
    split = grouped_split(catalogue, ratios=RATIOS, seed=seed)
    assert_grouped(split)
    assert not any(crossings(split, catalogue)["groups"].values())


@pytest.mark.parametrize("seed", range(20))
def test_five_percent_more_images_move_few_other_images(seed):
    complete = catalogue_with_exams(4083, seed)
    before = grouped_split(sample(complete, 0.95, seed), ratios=RATIOS, seed=seed)
    assert moved(before, grouped_split(complete, ratios=RATIOS, seed=seed)) <= 0.02


@pytest.mark.parametrize("split", [grouped_split, random_split])
@pytest.mark.parametrize("seed", range(5))
def test_images_of_an_earlier_split_keep_their_subset(split, seed, tmp_path):
    complete = catalogue_with_exams(4083, seed)
    before = split(sample(complete, 0.95, seed), ratios=RATIOS, seed=seed)
    before.to_csv(tmp_path / "split.csv", index=False)
    after = split(complete, ratios=RATIOS, seed=seed + 1, previous=str(tmp_path / "split.csv"))
    assert moved(before, after) == 0
    for subset, ratio in zip(SUBSETS, RATIOS, strict=True):
        assert abs((after["split"] == subset).mean() - ratio) < 0.01
    half = split(sample(complete, 0.5, seed), ratios=RATIOS, seed=0, previous=str(tmp_path / "split.csv"))
    assert moved(before, half) == 0


def test_new_images_follow_their_group_in_an_earlier_split(tmp_path):
    complete = catalogue_with_exams(4083, 0)
    # Not the first image of an exam, so that the other images remain one exam.
    new = complete[complete["image_id"] != complete["exam"]].sample(100, random_state=0)["image_id"]
    old = complete[~complete["image_id"].isin(new)]
    grouped_split(old, ratios=RATIOS, seed=0).to_csv(tmp_path / "split.csv", index=False)
    assert_grouped(grouped_split(complete, ratios=RATIOS, seed=1, previous=str(tmp_path / "split.csv")))


def test_an_earlier_split_that_divides_groups_is_kept_and_completed(tmp_path):
    catalogue = catalogue_with_exams(4083, 0)
    before = random_split(catalogue, ratios=RATIOS, seed=0).head(3000)
    before.to_csv(tmp_path / "split.csv", index=False)
    after = grouped_split(catalogue, ratios=RATIOS, seed=0, previous=str(tmp_path / "split.csv"))
    assert moved(before, after) == 0
    for subset, ratio in zip(SUBSETS, RATIOS, strict=True):
        assert abs((after["split"] == subset).mean() - ratio) < 0.02


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_each_image_is_tested_in_one_fold(folds):
    catalogue = catalogue_with_exams(4083, 0)
    splits = [kfold_split(catalogue, folds=folds, fold=fold, seed=0) for fold in range(folds)]
    for split in splits:
        assert_grouped(split, (1 - 2 / folds, 1 / folds, 1 / folds))
    tested = pd.concat([split.loc[split["split"] == "test", "image_id"] for split in splits])
    assert sorted(tested) == sorted(catalogue["image_id"])
    for fold, split in enumerate(splits):
        after = splits[(fold + 1) % folds]
        assert set(split.loc[split["split"] == "val", "image_id"]) == set(
            after.loc[after["split"] == "test", "image_id"]
        )


def test_a_fold_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"split.fold=5 should be less than split.folds=5"):
        kfold_split(make_catalogue(500), folds=5, fold=5, seed=0)


def test_crossings_count_images_with_a_link_to_another_subset():
    catalogue = make_catalogue(6).assign(
        duplicates=["a", "a", "", "", "", ""],
        exam=["s", "t", "t", "t", "u", "v"],
        group=["s", "s", "s", "s", "u", "v"],
    )
    split = catalogue[["image_id", "label", "group"]].assign(split=["train", "val", "val", "train", "test", "test"])
    assert crossings(split, catalogue) == {
        "duplicates": {"train": 1, "val": 1, "test": 0},
        "exams": {"train": 1, "val": 2, "test": 0},
        "groups": {"train": 2, "val": 2, "test": 0},
    }


def write_manifest(folder, split: pd.DataFrame, **columns) -> str:
    split[["image_id", "split"]].assign(**columns).to_csv(folder / "mine.csv", index=False)
    return str(folder / "mine.csv")


@pytest.mark.parametrize("name", ["patient", "group"])
def test_patients_and_groups_of_a_manifest_are_grouped_and_their_leaks_counted(tmp_path, name):
    catalogue = make_catalogue(500)
    split = random_split(catalogue, ratios=RATIOS, seed=0)
    patients = [f"{number // 5:03}" for number in range(500)]
    listed = manifest_split(catalogue, path=write_manifest(tmp_path, split, **{name: patients}))
    assert listed.groupby("group").size().tolist() == [5] * 100
    column = GIVEN[name]
    assert listed[column].tolist() == patients
    (leak,) = (find_leaks(listed, add_given(catalogue, listed))[kind] for kind in COLUMNS if COLUMNS[kind] == column)
    divided = listed.groupby(column)["split"].nunique() > 1
    names = divided[divided].index.tolist()
    assert (leak["groups"], leak["divided"], leak["names"]) == (100, len(names), names[:5])
    assert sum(leak["images"].values()) == 5 * len(names)


def test_a_split_recorded_with_patients_restores_them(tmp_path):
    catalogue = make_catalogue(500)
    split = random_split(catalogue, ratios=RATIOS, seed=0)
    path = write_manifest(tmp_path, split, patient=[f"p{number // 5}" for number in range(500)])
    listed = manifest_split(catalogue, path=path)
    listed.to_csv(tmp_path / "split.csv", index=False)
    assert recorded_split(catalogue, path=str(tmp_path / "split.csv")).equals(listed)


def test_grouped_splits_keep_patients_of_the_data_set_together():
    catalogue = add_given(
        make_catalogue(500),
        pd.DataFrame({"image_id": make_catalogue(500)["image_id"], "patient": [f"p{n % 100}" for n in range(500)]}),
    )
    for split in (
        grouped_split(catalogue, ratios=RATIOS, seed=0), kfold_split(catalogue, folds=5, fold=1, seed=0),
    ):  # fmt: skip
        assert find_leaks(split, catalogue)["patients"]["divided"] == 0
        assert (split.groupby("patient")["split"].nunique() == 1).all()
    assert find_leaks(random_split(catalogue, ratios=RATIOS, seed=0), catalogue)["patients"]["divided"] > 0


def test_an_inferred_exam_with_two_patients_is_divided():
    catalogue = make_catalogue(5).assign(exam=["a", "a", "a", "b", "b"])
    given = catalogue[["image_id"]].assign(patient=["1", "2", "1", "", "3"])
    linked = add_given(catalogue, given)
    assert (linked["group"].factorize()[0]).tolist() == [0, 1, 0, 2, 2]


def test_a_relation_that_was_not_checked_is_stated_as_such():
    catalogue = make_catalogue(6)
    split = catalogue[["image_id", "label"]].assign(split=["train", "val", "val", "train", "test", "test"])
    assert describe_leaks(find_leaks(split, catalogue)) == [
        "patients: not checked: there is no column patient",
        "exams inferred from neighbouring ids: every image is an exam of its own",
        "near-duplicates: no image has one",
    ]
    assert "resample single images" in describe_groups(find_leaks(split, catalogue))
    catalogue = add_given(catalogue, split[["image_id"]].assign(patient=["p", "p", "q", "q", "r", ""]))
    leaks = find_leaks(split, catalogue)
    assert describe_leaks(leaks)[0] == (
        "patients (column patient): 2 of 3 are in several subsets (p, q); images: train 2, val 2; "
        "known for 5 of 6 images"
    )
    assert describe_groups(leaks) == (
        "Intervals resample groups of images: patients (column patient). The patient of 1 of 6 images is not known."
    )


def test_a_manifest_is_used_without_changes(tmp_path):
    catalogue = make_catalogue(500)
    split = random_split(catalogue, ratios=RATIOS, seed=3)
    split[["split", "image_id"]].sample(frac=0.9, random_state=0).to_csv(tmp_path / "mine.csv", index=False)
    listed = manifest_split(catalogue, path=str(tmp_path / "mine.csv"))
    assert moved(split, listed) == 0
    assert len(listed) == 450


def test_a_manifest_with_unknown_images_is_refused(tmp_path):
    (tmp_path / "mine.csv").write_text("image_id,split\nother.jpg,train\n")
    with pytest.raises(InputError, match=re.escape("1 images are not in the data folder (other.jpg)")):
        manifest_split(make_catalogue(500), path=str(tmp_path / "mine.csv"))


@pytest.mark.parametrize("seed", range(20))
def test_fracatlas_is_split_without_leaks(real_catalogue, seed):
    split = grouped_split(real_catalogue, ratios=RATIOS, seed=seed)
    assert_grouped(split)
    assert not any(crossings(split, real_catalogue)["groups"].values())
    assert moved(grouped_split(sample(real_catalogue, 0.95, seed), ratios=RATIOS, seed=seed), split) <= 0.02


@pytest.mark.parametrize("count", [60, 101, 4083])
@pytest.mark.parametrize("seed", range(5))
def test_a_random_split_has_the_ratios_in_each_class_to_one_image(count, seed):
    split = random_split(make_catalogue(count), ratios=RATIOS, seed=seed)
    for _, rows in split.groupby("label"):
        for subset, ratio in zip(SUBSETS, RATIOS, strict=True):
            assert abs((rows["split"] == subset).sum() - ratio * len(rows)) < 1


@pytest.mark.parametrize("split", [grouped_split, random_split])
def test_the_split_depends_on_the_seed(split):
    one, same, other = (split(make_catalogue(500), ratios=RATIOS, seed=seed) for seed in (1, 1, 2))
    assert one.equals(same)
    assert moved(one, other) > 0.3


def test_an_earlier_split_of_other_images_is_refused(tmp_path):
    (tmp_path / "split.csv").write_text("image_id,split\nother.jpg,train\n")
    with pytest.raises(InputError, match="no image is in the data folder"):
        random_split(make_catalogue(500), ratios=RATIOS, seed=0, previous=str(tmp_path / "split.csv"))


def test_excluded_images_are_in_no_subset():
    table = make_catalogue(500)
    table.loc[::7, "excluded"] = "truncated"
    split = random_split(table, ratios=RATIOS, seed=0)
    assert set(split["image_id"]) == set(table.loc[table["excluded"] == "", "image_id"])


def test_a_recorded_split_is_read(tmp_path):
    split = random_split(make_catalogue(500), ratios=RATIOS, seed=0)
    split.to_csv(tmp_path / "split.csv", index=False)
    assert recorded_split(make_catalogue(500), path=str(tmp_path / "split.csv")).equals(split)


@pytest.mark.fault("damaged split file", "refused; the error names the place")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "split.csv: No such file or directory; correct the path"),
        ("image_id\nIMG0000000.jpg\n", "column split is missing"),
        ("image_id,split\nIMG0000000.jpg,Train\n", "split.csv, line 2: split is 'Train', should be train, val or test"),
        ("image_id,split\nIMG0000000.jpg,train\nIMG0000000.jpg,val\n", "image_id IMG0000000.jpg occurs more than once"),
        ("image_id,split\nIMG0000000.jpg,train\n", "train has no non-fractured images"),
    ],
)
def test_a_file_that_is_not_a_split_is_refused(tmp_path, content, message):
    file = tmp_path / "split.csv"
    if content:
        file.write_text(content)
    with pytest.raises(InputError, match=message):
        recorded_split(make_catalogue(500), path=str(file))


def test_ratios_whose_sum_is_not_1_are_refused():
    with pytest.raises(InputError, match="the sum is 1.1, should be 1"):
        random_split(make_catalogue(500), ratios=(0.7, 0.2, 0.2), seed=0)


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="has no .*fractured images"):
        random_split(make_catalogue(8), ratios=RATIOS, seed=0)
