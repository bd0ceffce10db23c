import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.evaluation.strata import box_sizes, shortcuts, stratify
from fractatlas.evaluation.subset_assessment import assess


@pytest.fixture
def table():
    generator = np.random.default_rng(0)
    n = 300
    label = (generator.random(n) < 0.3).astype(int)
    hand = generator.random(n) < 0.5
    return pd.DataFrame({
        "image_id": np.arange(n).astype(str), "group": np.arange(n), "label": label,
        "probability": 1 / (1 + np.exp(-(generator.normal(size=n) + 2 * label - 1))),
        "hand": hand.astype(int), "leg": (~hand).astype(int), "hip": 0, "shoulder": 0, "mixed": 0, "multiscan": 0,
        "frontal": 1, "lateral": (generator.random(n) < 0.1).astype(int), "oblique": 0,
        "hardware": (np.arange(n) < 5).astype(int), "width": np.where(hand, 373, 2304), "height": 454,
        "bytes": generator.integers(1000, 9000, n), "junk": 0, "orientation": 1, "mode": "L",
        "box_size": np.where(label == 1, generator.choice([10.0, 20.0, 50.0], n), np.nan),
    })  # fmt: skip


def test_every_stratum_is_scored_separately(table):
    rows = stratify(table, 0.5, bootstrap_weights(table["group"], resamples=50)).set_index(["attribute", "stratum"])
    hands = table[table["hand"] == 1]
    row = rows.loc[("body part", "hand")]
    assert (row["n"], row["positives"]) == (len(hands), hands["label"].sum())
    assert row["auroc"] == pytest.approx(roc_auc_score(hands["label"], hands["probability"]))
    assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
    assert set(rows.loc["view"].index) == {"frontal", "several"}
    for attribute in ("body part", "view", "hardware", "several scans", "image size"):
        assert rows.loc[attribute]["n"].sum() == len(table)


def test_strata_with_few_images_are_marked(table):
    rows = stratify(table, 0.5, bootstrap_weights(table["group"], resamples=10)).set_index(["attribute", "stratum"])
    assert rows.loc[("hardware", "yes"), "low_count"]
    assert not rows.loc[("hardware", "no"), "low_count"]


def test_each_box_size_is_scored_against_all_images_without_a_fracture(table):
    rows = stratify(table, 0.5, bootstrap_weights(table["group"], resamples=10)).set_index(["attribute", "stratum"])
    sizes = rows.loc["box size"]
    assert list(sizes.index) == ["below 16 px", "16 to 32 px", "32 px and more"]
    assert sizes["positives"].sum() == table["label"].sum()
    assert (sizes["n"] - sizes["positives"] == (table["label"] == 0).sum()).all()


def test_box_size_is_the_longest_side_at_a_shorter_side_of_256():
    table = pd.DataFrame({"image_id": ["a", "b"], "width": [512, 100], "height": [1024, 100]})
    sizes = box_sizes(table, {"a": np.array([[0, 0, 10, 40], [5, 5, 65, 6]], dtype=np.float32)})
    assert sizes[0] == 30
    assert np.isnan(sizes[1])


def test_a_label_that_correlates_with_the_file_size_is_detected(table):
    leak = table.assign(bytes=np.where(table["label"] == 1, 9000, 1000))
    train = leak.assign(image_id=[f"train_{name}" for name in leak["image_id"]])
    scores = shortcuts(train, leak.assign(probability=0.5))
    assert scores["file"]["auroc"]["value"] == 1
    assert scores["file"]["classifier_above"]["value"] == pytest.approx(-0.5)
    assert scores["record"]["auroc"]["value"] < 0.9


def test_the_shortcut_baseline_of_training_images_is_cross_fitted_by_group(table):
    generator = np.random.default_rng(1)
    # Two images of each group with equal properties that do not predict the label.
    group, properties = np.arange(300) // 2, generator.integers(1000, 9_000_000, 150)[np.arange(300) // 2]
    label = (generator.random(150) < 0.3).astype(int)[group]
    noise = table.assign(label=label, group=group, bytes=properties, width=properties, multiscan=0)
    in_sample = shortcuts(noise.assign(image_id=[f"other_{name}" for name in noise["image_id"]]), noise)
    cross_fitted = shortcuts(noise, noise)
    assert in_sample["file"]["auroc"]["value"] > 0.8
    assert cross_fitted["file"]["auroc"]["low"] < 0.5 < cross_fitted["file"]["auroc"]["high"]
    assert cross_fitted["file"]["classifier_above"] is None


def test_without_the_columns_there_are_no_shortcut_scores(table):
    bare = table[["image_id", "group", "label", "probability"]]
    assert shortcuts(bare, bare) == {}


def test_the_strata_of_both_subsets_are_those_of_all_usable_images():
    ids, label = [f"i{number}" for number in range(80)], [0, 1] * 40
    predictions = pd.DataFrame({"image_id": ids[:40], "group": ids[:40], "split": ["val"] * 20 + ["test"] * 20,
                                "label": label[:40], "probability": 0.3})  # fmt: skip
    catalogue = pd.DataFrame({"image_id": ids, "age": range(80), "excluded": [""] * 60 + ["truncated"] * 20})
    subsets = {one.name: one.strata.query("attribute == 'age'") for one in assess(predictions, 0.5, catalogue)}
    assert subsets["val"]["stratum"].tolist() == ["0 to 14.75", "above 14.75 to 29.5"]
    assert subsets["test"]["stratum"].tolist() == ["above 14.75 to 29.5", "above 29.5 to 44.25"]
