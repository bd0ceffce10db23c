import pandas as pd
import pytest

from fractatlas.data.splits import PARTS, random_split, recorded_split
from fractatlas.errors import InputError

RATIOS = (0.70, 0.15, 0.15)


def images(count: int) -> pd.DataFrame:
    """A catalogue as unbalanced as FracAtlas."""
    return pd.DataFrame(
        {"image_id": [f"IMG{n:07d}.jpg" for n in range(count)], "label": [n % 57 < 10 for n in range(count)]}
    ).assign(label=lambda table: table["label"].astype(int), excluded="")


def moved(before: pd.DataFrame, after: pd.DataFrame) -> float:
    both = before.merge(after, on="image_id")
    return (both["split_x"] != both["split_y"]).mean()


@pytest.mark.parametrize("count", [60, 101, 4083])
@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_in_each_part_by_its_ratio_to_within_one_image(count, seed):
    split = random_split(images(count), ratios=RATIOS, seed=seed)
    for _, rows in split.groupby("label"):
        for part, ratio in zip(PARTS, RATIOS, strict=True):
            assert abs((rows["split"] == part).sum() - ratio * len(rows)) < 1


def test_a_seed_decides_the_split():
    one, same, other = (random_split(images(500), ratios=RATIOS, seed=seed) for seed in (1, 1, 2))
    assert one.equals(same)
    assert moved(one, other) > 0.3


@pytest.mark.parametrize("seed", range(5))
def test_five_percent_more_or_fewer_images_move_few_of_the_others(seed):
    whole = images(4083)
    fewer = whole.sample(frac=0.95, random_state=seed)
    before, after = (random_split(table, ratios=RATIOS, seed=seed) for table in (whole, fewer))
    assert moved(before, after) <= 0.02


@pytest.mark.parametrize("seed", range(5))
def test_no_image_of_an_earlier_split_moves(seed, tmp_path):
    whole = images(4083)
    before = random_split(whole.sample(frac=0.95, random_state=seed), ratios=RATIOS, seed=seed)
    before.to_csv(tmp_path / "split.csv", index=False)
    after = random_split(whole, ratios=RATIOS, seed=seed + 1, previous=str(tmp_path / "split.csv"))
    assert moved(before, after) == 0
    for part, ratio in zip(PARTS, RATIOS, strict=True):
        assert abs((after["split"] == part).mean() - ratio) < 0.001

    fewer = random_split(
        whole.sample(frac=0.5, random_state=seed), ratios=RATIOS, seed=0, previous=str(tmp_path / "split.csv")
    )
    assert moved(before, fewer) == 0


def test_an_earlier_split_of_other_images_is_refused(tmp_path):
    (tmp_path / "split.csv").write_text("image_id,split\nother.jpg,train\n")
    with pytest.raises(InputError, match="shares no image with the data"):
        random_split(images(500), ratios=RATIOS, seed=0, previous=str(tmp_path / "split.csv"))


def test_excluded_images_are_in_no_part():
    table = images(500)
    table.loc[::7, "excluded"] = "truncated"
    split = random_split(table, ratios=RATIOS, seed=0)
    assert set(split["image_id"]) == set(table.loc[table["excluded"] == "", "image_id"])


def test_a_recorded_split_is_read_back(tmp_path):
    split = random_split(images(500), ratios=RATIOS, seed=0)
    split.to_csv(tmp_path / "split.csv", index=False)
    assert recorded_split(images(500), path=str(tmp_path / "split.csv")).equals(split)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is not a readable split"),
        ("image_id\nIMG0000000.jpg\n", "lacks the column split"),
        ("image_id,split\nIMG0000000.jpg,Train\n", "has a split called 'Train'"),
        ("image_id,split\nIMG0000000.jpg,train\nIMG0000000.jpg,val\n", "lists IMG0000000.jpg more than once"),
        ("image_id,split\nIMG0000000.jpg,train\n", "train lacks an image that is not fractured"),
    ],
)
def test_what_is_no_split_is_refused(tmp_path, content, says):
    file = tmp_path / "split.csv"
    if content:
        file.write_text(content)
    with pytest.raises(InputError, match=says):
        recorded_split(images(500), path=str(file))


def test_ratios_that_do_not_add_up_are_refused():
    with pytest.raises(InputError, match="add up to 1.1, should be 1"):
        random_split(images(500), ratios=(0.7, 0.2, 0.2), seed=0)


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="lacks"):
        random_split(images(8), ratios=RATIOS, seed=0)
