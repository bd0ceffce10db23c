import contextlib
import io
import json

import numpy as np
import pandas as pd
import pytest
from pycocotools.cocoeval import COCOeval

from fractatlas.evaluation import detection
from fractatlas.evaluation.candidates import COLUMNS, CORNERS, MOST
from fractatlas.evaluation.localisation import Heatmaps
from fractatlas.evaluation.subset_assessment import assess, choose_box_threshold, write


def candidate(image: str, score: float, x: float, y: float, side: float = 10) -> dict:
    corners = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    return dict(zip(COLUMNS, (image, *corners, score, x, y), strict=True))


def table_of(labels: dict[str, int], **groups: str) -> pd.DataFrame:
    rows = [(name, label, groups.get(name, name)) for name, label in labels.items()]
    return pd.DataFrame(rows, columns=["image_id", "label", "group"])


# Three boxes in two fractured images, and two images without a fracture.
IMAGES = table_of({"a": 1, "b": 1, "c": 0, "d": 0})
BOXES = {"a": np.array([[0, 0, 20, 20], [40, 40, 60, 60]]), "b": np.array([[10, 10, 30, 30]]),
         "c": np.array([[0, 0, 99, 99]])}  # fmt: skip
FOUND = pd.DataFrame([
    candidate("a", 0.9, 10, 10),  # in the first box
    candidate("c", 0.8, 50, 50),  # a false alarm: boxes of images without a fracture do not count
    candidate("a", 0.7, 15, 15),  # in a box that is found already: neither
    candidate("b", 0.6, 20, 20),
    candidate("b", 0.5, 80, 80),
    candidate("d", 0.4, 5, 5),
    candidate("d", 0.3, 50, 50),
    candidate("a", 0.2, 50, 50),
    candidate("elsewhere", 1.0, 50, 50),
])  # fmt: skip


@pytest.fixture
def detections() -> detection.Detections:
    return detection.match(IMAGES, FOUND, BOXES)


def test_a_box_is_found_at_the_highest_score_of_a_peak_in_it(detections):
    assert detections.boxes["score"].tolist() == [0.9, 0.2, 0.6]
    assert detections.candidates["in_box"].tolist() == [True, False, True, True, False, False, False, True]


def test_sensitivity_and_false_alarms_of_a_hand_computed_case(detections):
    scores, sensitivity, alarms = detections.by_score(np.ones((1, 4)))
    # The candidate of 0.7 is in a box that is found already.
    assert scores.tolist() == [0.9, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2]
    assert (3 * sensitivity[0]).tolist() == pytest.approx([1, 1, 2, 2, 2, 2, 3])
    assert (4 * alarms[0]).tolist() == [0, 1, 1, 2, 3, 4, 4]
    froc = detection.score(detections)["froc"]
    assert [round(3 * froc[rate]["value"]) for rate in detection.FALSE_ALARMS] == [1, 2, 2, 3, 3, 3]


def test_weights_count_images_as_often_as_they_are_drawn(detections):
    twice = detection.match(
        table_of({"a": 1, "a2": 1, "c": 0, "d": 0}),
        pd.concat([FOUND, FOUND[FOUND["image_id"] == "a"].assign(image_id="a2")]),
        BOXES | {"a2": BOXES["a"]},
    )
    expected = twice.by_score(np.ones((1, 4)))
    scores, sensitivity, alarms = detections.by_score(np.array([[2.0, 0, 1, 1]]))
    kept = np.isin(scores, expected[0])
    np.testing.assert_allclose(sensitivity[:, kept], expected[1])
    np.testing.assert_allclose(alarms[:, kept], expected[2])


def test_the_box_threshold_has_the_highest_f1_and_changes_no_decision_by_rounding(detections):
    # F1 at the scores: 2/4, 2/5, 4/6, 4/7, 4/8, 4/9, 6/10. The next lower score than 0.6 is 0.5.
    assert detection.choose_box_threshold(detections) == pytest.approx(0.55)
    missed = detection.match(IMAGES, FOUND[FOUND["image_id"] == "d"], BOXES)
    assert detection.choose_box_threshold(missed) is None
    assert detection.choose_box_threshold(detection.match(IMAGES, FOUND[:0], BOXES)) is None


def test_alarms_on_negatives_count_candidates_at_or_above_the_threshold(detections):
    scores = detection.score(detections, 0.3)
    assert (scores["negatives"], scores["boxes"], scores["box_threshold"]) == (2, 3, 0.3)
    assert scores["alarm_rate"]["value"] == 1.0
    assert scores["alarms_per_negative"]["value"] == 1.5
    assert scores["sensitivity"]["value"] == pytest.approx(2 / 3)
    scores = detection.score(detections, 0.35)
    assert scores["alarms_per_negative"]["value"] == 1.0
    assert detection.score(detections, 0.41)["alarm_rate"]["value"] == 0.5
    assert "alarm_rate" not in detection.score(detections)


def test_fractured_images_without_a_box_are_omitted():
    images = table_of({"a": 1, "b": 1, "c": 0, "d": 0, "e": 1})
    found = pd.concat([FOUND, pd.DataFrame([candidate("e", 0.95, 5, 5)])])
    scores = detection.score(detection.match(images, found, BOXES | {"e": np.zeros((0, 4))}))
    assert scores == detection.score(detection.match(IMAGES, FOUND, BOXES))


def test_without_candidates_nothing_is_found():
    scores = detection.score(detection.match(IMAGES, FOUND[:0], BOXES), 0.5)
    assert all(scores["froc"][rate]["value"] == 0 for rate in detection.FALSE_ALARMS)
    assert (scores["ap_50"]["value"], scores["ap_30"]["value"], scores["alarm_rate"]["value"]) == (0, 0, 0)
    assert set(scores["curve"]["sensitivity"]) == {0.0}
    json.dumps(scores, allow_nan=False)


def test_ap_of_a_hand_computed_case():
    boxes = {"a": np.array([[0, 0, 10, 10], [20, 20, 30, 30]])}
    found = pd.DataFrame([
        candidate("a", 0.9, 5, 5),  # the first box, exactly
        candidate("a", 0.8, 50, 50),
        candidate("a", 0.7, 25, 25, side=8),  # IoU 0.64 with the second
    ])  # fmt: skip
    scores = detection.score(detection.match(table_of({"a": 1, "b": 0}), found, boxes))
    # Precision 1 at the 51 recalls up to 0.5, then 2/3 at the other 50.
    assert scores["ap_50"]["value"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert scores["ap_50"]["reason"] == "1 group with a fracture, fewer than 20"
    halves = detection.match(table_of({"a": 1}), pd.DataFrame([candidate("a", 0.9, 5, 5, side=6.5)]), boxes)
    scores = detection.score(halves)  # IoU 0.42
    assert (scores["ap_50"]["value"], scores["ap_30"]["value"]) == (0, pytest.approx(51 / 101))


def made_up(images: int, seed: int, per_group: int = 1) -> detection.Detections:
    """Candidates near the boxes and elsewhere; the scores of one group are similar."""
    generator = np.random.default_rng(seed)
    table = pd.DataFrame({"image_id": [f"i{n:04}" for n in range(images)]})
    number = np.arange(images) // per_group
    table = table.assign(label=(number % 3 == 0).astype(int), group=number)
    boxes, rows = {}, []
    skill = generator.random(images)[number]
    for name, label, of_group in zip(table["image_id"], table["label"], skill, strict=True):
        corners = generator.uniform(0, 200, (generator.integers(1, 4), 2))
        if label:
            boxes[name] = np.c_[corners, corners + generator.uniform(20, 60, corners.shape)]
        for corner in corners if label else ():
            if generator.random() < of_group:
                rows.append(candidate(name, of_group + generator.random(), *(corner + 20), side=40))
        for _ in range(generator.integers(0, 4)):
            rows.append(candidate(name, generator.random() * 1.2, *generator.uniform(0, 250, 2), side=30))
    found = pd.DataFrame(rows).sort_values(["image_id", "score"], ascending=[True, False])
    return detection.match(table, found, boxes)


@pytest.mark.parametrize("seed", range(3))
def test_ap_equals_that_of_cocoeval(seed):
    detections = made_up(90, seed)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCOeval(*detection.to_coco(detections), iouType="bbox")
        theirs.params.iouThrs, theirs.params.maxDets = np.array([0.3, 0.5]), [1, MOST, 100]
        theirs.evaluate()
        theirs.accumulate()
    scores = detection.score(detections)
    for name, index in (("ap_30", 0), ("ap_50", 1)):
        expected = theirs.eval["precision"][index, :, 0, 0, -1].mean()
        assert 0.05 < expected < 0.95
        assert scores[name]["value"] == pytest.approx(expected, abs=1e-9)
        assert scores[name]["low"] < expected < scores[name]["high"]


def test_scores_need_no_corners_when_the_matches_are_known():
    detections = made_up(60, 1)
    expected = detection.score(detections)
    known = detection.match_by_iou(detections).drop(columns=[*CORNERS, "x", "y"])
    boxes = detections.boxes.drop(columns=CORNERS)
    assert detection.score(detection.Detections(detections.images, known, boxes)) == expected
    assert known["ap_30"].sum() > known["ap_50"].sum() > 0


def test_intervals_draw_the_images_of_a_group_together():
    detections = made_up(600, 0, per_group=6)
    single = detection.Detections(
        detections.images.assign(group=detections.images["image_id"]), detections.candidates, detections.boxes
    )
    grouped, independent = detection.score(detections, 0.8), detection.score(single, 0.8)

    def width(score: dict) -> float:
        return score["high"] - score["low"]

    for name in ("ap_30", "sensitivity"):
        assert grouped[name]["value"] == independent[name]["value"]
        assert width(grouped[name]) > 1.3 * width(independent[name])
    assert width(grouped["froc"]["1"]) > 1.3 * width(independent["froc"]["1"])
    assert grouped["froc"]["1"]["low"] < grouped["froc"]["1"]["value"] < grouped["froc"]["1"]["high"]


def test_a_small_block_of_resamples_changes_nothing(monkeypatch):
    expected = detection.score(made_up(60, 1), 0.7)
    monkeypatch.setattr(detection, "BLOCK", 1000)
    assert detection.score(made_up(60, 1), 0.7) == expected


def test_the_bootstrap_of_one_seed_is_computed_once(monkeypatch):
    detections = made_up(60, 1)
    first, other = detection.score(detections), detection.score(detections, seed=1)
    assert first["froc"] != other["froc"]
    monkeypatch.setattr(detection, "_resample", None)
    assert detection.mean_score([detections]) == first
    assert detection.mean_score([detections], seed=1) == other


def test_the_curve_agrees_with_the_sensitivities_and_increases():
    scores = detection.score(made_up(300, 2))
    curve = {name: np.array(values) for name, values in scores["curve"].items()}
    assert (np.diff(curve["sensitivity"]) >= 0).all()
    assert (curve["low"] <= curve["sensitivity"]).all()
    assert (curve["sensitivity"] <= curve["high"]).all()
    at_half = np.interp(0.5, curve["false_alarms"], curve["sensitivity"])
    assert at_half == pytest.approx(scores["froc"]["1/2"]["value"], abs=0.02)


@pytest.fixture
def subset() -> tuple[pd.DataFrame, pd.DataFrame, dict[str, np.ndarray], Heatmaps]:
    """Predictions, catalogue, boxes and heatmaps of 40 images; every fracture is in the hot cell of its image."""
    ids = [f"i{n:02}.jpg" for n in range(40)]
    predictions = pd.DataFrame({"image_id": ids, "group": ids, "split": ["val"] * 20 + ["test"] * 20})
    predictions = predictions.assign(label=[1, 0] * 20, probability=[0.8, 0.2] * 20)
    catalogue = pd.DataFrame({"image_id": ids, "width": 80, "height": 80, "hand": [1, 1, 0, 0] * 10,
                              "leg": [0, 0, 1, 1] * 10})  # fmt: skip
    boxes = {name: np.array([[20.0, 20, 40, 40]]) for name in ids[::2]}
    heat = np.full((40, 4, 4), 0.01, dtype=np.float16)
    heat[::2, 1, 1] = 0.9
    heat[1::8, 3, 3] = 0.3
    heat[3::8, 3, 3] = 0.95
    return predictions, catalogue, boxes, Heatmaps(np.array(ids), heat, np.tile(np.float32([0, 0, 80, 80]), (40, 1)))


def test_the_box_threshold_is_chosen_on_the_validation_subset_only(subset):
    predictions, catalogue, boxes, heatmaps = subset
    chosen = choose_box_threshold(predictions, catalogue, boxes, heatmaps)
    assert 0.3 < chosen["box_threshold"] < 0.9
    heatmaps.heat[20:] = 0  # of the test images
    assert choose_box_threshold(predictions, catalogue, boxes, heatmaps) == chosen
    assert choose_box_threshold(predictions, catalogue, {}, heatmaps) == {}
    assert choose_box_threshold(predictions[20:], catalogue, boxes, heatmaps) == {}
    assert choose_box_threshold(predictions, None, boxes, heatmaps) == {}


def test_subsets_are_scored_and_their_candidates_written(subset, tmp_path):
    predictions, catalogue, boxes, heatmaps = subset
    assessed = assess(predictions, 0.5, catalogue, None, boxes, heatmaps, 0.6)
    record = write(tmp_path, assessed)
    scores = record["detection"]["test"]
    assert (scores["n"], scores["boxes"], scores["negatives"]) == (20, 10, 10)
    assert scores["sensitivity"]["value"] == 1.0
    assert scores["alarm_rate"]["value"] == np.mean(heatmaps.heat[21::2, 3, 3] > 0.6)
    table = pd.read_csv(tmp_path / "candidates.csv")
    assert list(table) == [*COLUMNS, "in_box", "split"]
    assert set(table["split"]) == {"val", "test"}
    assert (table.loc[table["score"] == table["score"].max(), "in_box"] == 0).all()
    assert table["in_box"].sum() == 20
    by_part = record["localisation"]["test"]
    assert (by_part["hand"]["n"], by_part["leg"]["n"], by_part["all"]["n"]) == (5, 5, 10)
    assert by_part["hand"]["hit"]["value"] == 1.0


def test_without_a_heatmap_of_every_image_nothing_is_detected_and_old_candidates_are_removed(subset, tmp_path):
    predictions, catalogue, boxes, heatmaps = subset
    (tmp_path / "candidates.csv").write_text("of an earlier evaluation")
    fractured = Heatmaps(heatmaps.image_id[::2], heatmaps.heat[::2], heatmaps.view[::2])
    record = write(tmp_path, assess(predictions, 0.5, catalogue, None, boxes, fractured, 0.6))
    assert record["detection"] == {}
    assert record["localisation"]["test"]["all"]["n"] == 10
    assert not (tmp_path / "candidates.csv").exists()
