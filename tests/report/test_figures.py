"""The figures of the report page: what their legends, points and axes state."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve, roc_curve

from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.report import figures

SCORES = {"test": {"value": 0.75, "low": 0.5, "high": 0.875}}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [90, 30])
    probability = np.clip(generator.normal(0.3 + 0.3 * labels, 0.2), 0, 1)
    return pd.DataFrame({"label": labels, "probability": probability, "group": range(120)})


def texts(svg: str) -> list[str]:
    """Return the texts of a figure."""
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]+)</text>", svg)]


def test_the_roc_legend_has_the_auroc_with_its_interval_and_chance(table):
    svg = figures.roc({"test": table}, {"test": bootstrap_weights(table["group"], resamples=20)}, SCORES)
    assert {"test: AUROC 0.750 [0.500, 0.875]", "chance: AUROC 0.5"} <= {*texts(svg)}


def test_the_precision_recall_legend_has_the_average_precision_and_the_prevalence(table):
    weights = {"test": bootstrap_weights(table["group"], resamples=20)}
    svg = figures.precision_recall({"test": table}, weights, SCORES)
    assert {"test: average precision 0.750 [0.500, 0.875]", "test: chance, prevalence 0.250"} <= {*texts(svg)}


def test_curves_at_fixed_rates_and_recalls_follow_from_those_of_scikit_learn(table):
    table = table.round({"probability": 2})  # ties
    weights = np.vstack([np.ones(120), np.arange(120) % 3])
    for row, found, precisions in zip(
        weights, figures.roc_curves(table, weights), figures.precision_recall_curves(table, weights), strict=True
    ):
        data = (table["label"], table["probability"])
        x, y, _ = roc_curve(*data, sample_weight=row, drop_intermediate=False)
        assert found == pytest.approx(np.interp(figures.GRID, x, y))
        precision, recall, _ = precision_recall_curve(*data, sample_weight=row)
        reached = [precision[recall >= at - 1e-9][-1] for at in figures.GRID[1:]]
        assert precisions == pytest.approx([reached[0], *reached])


def test_the_band_has_95_percent_of_the_samples_at_each_point():
    curves = np.vstack([np.full(2, 99.0), np.arange(2001)[:, None] / 2000 * [1, 2]])
    assert figures.pointwise_band(curves) == pytest.approx(np.array([[0.025, 0.05], [0.975, 1.95]]))


@pytest.mark.parametrize("images", [3, 10, 25, 120, 1000])
@pytest.mark.parametrize("shape", [(1, 1), (0.5, 8), (8, 0.5)])
def test_each_point_of_the_reliability_diagram_has_at_least_ten_images(images, shape):
    generator = np.random.default_rng(images)
    probabilities, labels = generator.beta(*shape, images), generator.integers(0, 2, images)
    points = figures.calibration_points(probabilities, labels)
    assert points["n"].sum() == images
    assert (points["n"] >= min(10, images)).all()
    assert points["probability"].is_monotonic_increasing
    assert (points["n"] * points["fraction"]).sum() == pytest.approx(labels.sum())


def test_the_error_bars_are_wilson_intervals():
    # All images are in one bin: 4 of 20 are fractured.
    (point,) = figures.calibration_points(np.full(20, 0.5), np.repeat([1, 0], [4, 16])).itertuples()
    expected = binomtest(4, 20).proportion_ci(0.95, method="wilson")
    assert (point.n, point.fraction) == (20, 0.2)
    assert (point.low, point.high) == (expected.low, expected.high)
    assert (point.low, point.high) == pytest.approx((0.0807, 0.4160), abs=1e-4)


def test_full_bins_are_not_merged():
    probabilities = np.repeat((np.arange(15) + 0.5) / 15, 10)
    assert len(figures.calibration_points(probabilities, np.zeros(150))) == 15


def test_the_reliability_diagram_states_the_number_of_images_of_each_point(table):
    points = figures.calibration_points(table["probability"].to_numpy(), table["label"].to_numpy())
    shown = texts(figures.reliability(table))
    assert {str(n) for n in points["n"]} <= {*shown}
    assert "perfect calibration" in shown


@pytest.mark.parametrize("epochs", [1, 2, 3, 40])
def test_the_axis_of_epochs_has_whole_numbers_only(epochs):
    rows = [
        {"epoch": epoch, "val/loss": 1000.0, "val/accuracy": 0.5, "val/auroc": 0.5} for epoch in range(1, epochs + 1)
    ]
    svg = figures.history(rows, "val/loss", 1)
    shown = texts(svg)
    labels = shown[: shown.index("epoch (selected by val/loss: 1)")]
    assert labels
    assert all(label.isdigit() and 1 <= int(label) <= epochs for label in labels)
