import numpy as np
import pandas as pd
import pytest

from fractatlas.evaluation.elsewhere import compare_with_own, describe_difference, recalibrate
from fractatlas.evaluation.metrics import evaluate


def predictions(seed: int, skill: float, n: int = 200, sharpness: float = 1.0) -> pd.DataFrame:
    """Return predictions in groups of two images; ``sharpness`` multiplies the logits."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.4).astype(int)
    logits = generator.normal(size=n) + skill * (labels - 0.5)
    table = pd.DataFrame(
        {"group": np.arange(n) // 2, "label": labels, "probability": 1 / (1 + np.exp(-sharpness * logits))}
    )
    return table.assign(probability_calibrated=table["probability"])


def test_the_difference_is_other_minus_own_with_an_interval_wider_than_those_of_both():
    own, other = predictions(0, 3), predictions(1, 1)
    rows = compare_with_own(own, other, 0.5)
    auroc = rows["auroc"]
    # One score has one interval, here and in the other tables.
    assert (auroc["own"], auroc["other"]) == (evaluate(own, 0.5)["auroc"], evaluate(other, 0.5)["auroc"])
    assert auroc["difference"]["value"] == pytest.approx(auroc["other"]["value"] - auroc["own"]["value"])
    assert auroc["difference"]["high"] < 0  # the scores are worse, and significantly
    widths = [score["high"] - score["low"] for score in (auroc["own"], auroc["other"])]
    width = auroc["difference"]["high"] - auroc["difference"]["low"]
    assert max(widths) < width < sum(widths)
    assert describe_difference("AUROC", auroc).startswith("AUROC 0.98")


def test_equal_samples_differ_by_zero_and_the_interval_contains_it():
    rows = compare_with_own(predictions(0, 1), predictions(0, 1), 0.5)
    assert all(row["difference"]["value"] == 0 for row in rows.values())
    ends = [(row["difference"]["low"], row["difference"]["high"]) for row in rows.values()]
    assert all(low is None or low < 0 < high for low, high in ends)
    assert rows["calibration_error"]["difference"]["low"] is None  # its bias differs between samples


def test_the_interval_of_the_difference_has_a_width_where_all_images_are_right():
    own = predictions(0, 0, 100)
    own["probability"] = own["label"].astype(float)
    difference = compare_with_own(own, own, 0.5)["sensitivity"]["difference"]
    assert difference["low"] < -0.02
    assert difference["high"] > 0.02


def test_a_metric_that_one_sample_does_not_have_is_omitted():
    other = predictions(1, 1).assign(label=1)
    rows = compare_with_own(predictions(0, 1), other, 0.5)
    assert "auroc" not in rows
    assert "sensitivity" in rows


def test_a_new_temperature_is_chosen_on_a_share_of_the_groups_and_scored_on_the_rest():
    table = predictions(2, 1, n=600, sharpness=5)
    result = recalibrate(table, 0.3, frozen=1.0)
    assert 180 <= result["n"] <= 182
    assert result["n"] + result["n_rest"] == 600
    assert 3 < result["temperature"] < 8
    assert result["after"]["calibration_error"]["value"] < result["before"]["calibration_error"]["value"] / 2
    assert result["brier_change"]["high"] < 0
    assert result["before"] == result["uncalibrated"]
    assert recalibrate(table, 0.3, frozen=1.0) == result


def test_a_brier_score_of_too_few_groups_has_no_interval_after_recalibration():
    table = predictions(2, 1, n=600)
    table.loc[table["label"] == 1, "group"] = table["group"] % 12 + 1000
    result = recalibrate(table, 0.3, frozen=1.0)
    for score in (result["before"]["brier"], result["after"]["brier"], result["brier_change"]):
        assert score["low"] is None
        assert "with a fracture, fewer than 20" in score["reason"]
    assert recalibrate(predictions(2, 1, n=600), 0.3, frozen=1.0)["before"]["brier"]["low"] is not None


def test_a_new_temperature_at_the_limit_of_the_search_is_marked():
    table = predictions(2, 1, n=600)
    assert not recalibrate(table, 0.3, frozen=1.0)["at_limit"]
    assert recalibrate(table.assign(label=1 - table["label"]), 0.3, frozen=1.0)["at_limit"]


@pytest.mark.filterwarnings("error")
def test_bootstrap_samples_of_one_class_give_no_warning():
    own = predictions(0, 1, 4).assign(label=[1, 1, 0, 0])  # two groups, often the same one twice
    rows = compare_with_own(own, own, 0.5)
    assert np.isfinite(rows["average_precision"]["difference"]["value"])


def test_no_temperature_is_chosen_where_a_part_has_one_class():
    table = predictions(2, 1, n=40).sort_values("label")
    table["group"] = table["label"].astype(str)
    assert "one of the parts has images of one class only" in recalibrate(table, 0.3, 1.0)["reason"]
