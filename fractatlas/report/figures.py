"""Figures of the report page as SVG text, drawn with matplotlib without a display."""

import functools
import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from scipy.stats import binomtest

from fractatlas.evaluation import detection
from fractatlas.evaluation.bootstrap import CONFIDENCE, Score
from fractatlas.evaluation.markdown import format_fraction
from fractatlas.evaluation.metrics import BINS, weights_above

TAIL = (1 - CONFIDENCE) / 2
COLOURS = {"val": "#8250df", "test": "#0969da", "train": "#6e7781", "all": "#0969da"}
GRID = np.linspace(0, 1, 101)
MIN_BIN = 10  # images of a point of the reliability diagram
Scores = dict[str, Score]  # by name of the subset
STYLE: dict[Any, Any] = {  # matplotlib's rcParams
    "svg.fonttype": "none",
    "svg.hashsalt": "fractatlas",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def _as_svg(draw: Callable[..., Figure]) -> Callable[..., str]:
    """Decorate a function that draws a figure: it returns SVG text, which is equal for equal data."""

    @functools.wraps(draw)
    def drawn(*arguments: Any) -> str:
        with matplotlib.rc_context(STYLE):
            text = io.StringIO()
            draw(*arguments).savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()

    return drawn


@_as_svg
def roc(tables: dict[str, pd.DataFrame], weights: dict[str, np.ndarray], scores: Scores) -> Figure:
    """Draw ROC curves with pointwise 95 % bands, and the diagonal of a random classifier.

    Args:
        tables: predictions (``label, probability``) by name of the subset.
        weights: (b, n) from ``bootstrap_weights``, by name of the subset.
        scores: AUROC with its interval, for the legend.
    """
    figure, axes = _axes("1 - specificity", "sensitivity")
    for name, table in tables.items():
        _band(axes, name, roc_curves(table, weights[name]))
        (y,), (x,) = (np.c_[np.zeros(1), values] for values in _rates(table, weights[name][:1]))
        axes.step(x, y, where="post", color=COLOURS[name], label=f"{name}: AUROC {format_fraction(**scores[name])}")
    axes.plot([0, 1], [0, 1], color="#24292f", linewidth=1.2, linestyle=":", label="chance: AUROC 0.5")
    figure.legend(loc="outside lower center")
    return figure


@_as_svg
def precision_recall(tables: dict[str, pd.DataFrame], weights: dict[str, np.ndarray], scores: Scores) -> Figure:
    """Draw precision-recall curves with bands, and the precision of a random classifier, which is the prevalence.

    Arguments are those of ``roc``; ``scores`` has the average precision.
    """
    figure, axes = _axes("sensitivity (recall)", "PPV (precision)")
    for name, table in tables.items():
        _band(axes, name, precision_recall_curves(table, weights[name]))
        (precision,), (recall,) = _precision_and_recall(table, weights[name][:1])
        label = f"{name}: average precision {format_fraction(**scores[name])}"
        axes.step(recall, precision, where="pre", color=COLOURS[name], label=label)
        prevalence = table["label"].mean()
        chance = f"{name}: chance, prevalence {prevalence:.3f}"
        axes.axhline(prevalence, color=COLOURS[name], linewidth=1.2, linestyle=":", label=chance)
    figure.legend(loc="outside lower center")
    return figure


def calibration_points(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Return the fraction of fractures in bins of the probability with at least ``MIN_BIN`` images each.

    ``BINS`` bins of equal width; one with fewer images is merged with the next one, the last with the one before.

    Args:
        probabilities: (n,), 0 to 1.
        labels: 0 or 1, (n,).

    Returns:
        For each bin ``n``, ``probability`` (the mean), ``fraction``, and ``low, high``: the 95 % interval of the
        fraction (Wilson, Journal of the American Statistical Association 22:209, 1927).
    """
    bins = np.minimum((np.asarray(probabilities) * BINS).astype(int), BINS - 1)
    counts, merged, images = np.bincount(bins, minlength=BINS), np.zeros(BINS, dtype=int), 0
    for index in range(BINS - 1):
        images += counts[index]
        merged[index + 1] = merged[index] + (images >= MIN_BIN)
        images *= images < MIN_BIN
    if images + counts[-1] < MIN_BIN:
        merged[merged == merged[-1]] = max(merged[-1] - 1, 0)
    rows = []
    for _, table in pd.DataFrame({"probability": probabilities, "label": labels}).groupby(merged[bins]):
        fractured, n = int(table["label"].sum()), len(table)
        low, high = binomtest(fractured, n).proportion_ci(CONFIDENCE, method="wilson")
        rows.append((n, table["probability"].mean(), fractured / n, low, high))
    return pd.DataFrame(rows, columns=["n", "probability", "fraction", "low", "high"])


@_as_svg
def reliability(table: pd.DataFrame) -> Figure:
    """Draw the points of ``calibration_points`` with their intervals and numbers of images."""
    figure, axes = _axes("mean predicted probability", "fraction of fractures")
    axes.plot([0, 1], [0, 1], color="#24292f", linewidth=1.2, linestyle=":", label="perfect calibration")
    styles = {
        "probability": ("#6e7781", "uncalibrated", "right"),
        "probability_calibrated": ("#0969da", "calibrated", "left"),
    }
    for column in [name for name in styles if name in table]:
        colour, label, side = styles[column]
        points = calibration_points(table[column].to_numpy(), table["label"].to_numpy())
        x, y = points["probability"], points["fraction"]
        errors = [y - points["low"], points["high"] - y]
        axes.errorbar(x, y, errors, fmt="o-", color=colour, label=label, markersize=4, elinewidth=1, capsize=2)
        for point in points.itertuples():
            space = " " * 2  # between the number and its point
            text = f"{point.n}{space}" if side == "right" else f"{space}{point.n}"
            axes.text(point.probability, point.fraction, text, ha=side, va="center", fontsize=7, color=colour)
    figure.legend(loc="outside lower center")
    return figure


@_as_svg
def history(epochs: list[dict[str, float]], monitor: str, chosen: int) -> Figure:
    """Draw loss, accuracy and AUROC of training and validation by epoch; a grey bar marks the epoch ``chosen``.

    Args:
        epochs: for each epoch, ``epoch`` and metrics such as ``val/loss``.
        monitor: the metric that the checkpoint was selected by.
        chosen: the epoch of the selected checkpoint.
    """
    figure = Figure(figsize=(10.5, 3), layout="constrained")
    table = pd.DataFrame(epochs)
    for axes, name in zip(figure.subplots(1, 3), ("loss", "accuracy", "auroc"), strict=True):
        for subset in ("train", "val"):
            if f"{subset}/{name}" in table:
                style = {"color": COLOURS[subset], "label": subset, "markersize": 4}
                axes.plot(table["epoch"], table[f"{subset}/{name}"], "o-", **style)
        if name == "accuracy" and "val/majority_rate" in table:
            rate = table["val/majority_rate"].iloc[-1]
            axes.axhline(rate, color="#bc4c00", linestyle=":", label="majority rate (val)")
        axes.axvline(chosen, color="#d0d7de", linewidth=4, zorder=0)
        axes.set(xlabel=f"epoch (selected by {monitor}: {chosen})", title=name.replace("auroc", "AUROC"))
        axes.set_xlim(0.5, table["epoch"].max() + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()
    return figure


@_as_svg
def forest(strata: pd.DataFrame, titles: dict[str, str]) -> Figure:
    """Draw metrics of every stratum with their intervals; strata with few images are pale.

    Args:
        strata: from ``strata.stratify``.
        titles: the title of each metric to draw.
    """
    figure = Figure(figsize=(10.5, 0.8 + 0.24 * len(strata)), layout="constrained")
    rows = np.arange(len(strata))[::-1]
    columns = np.atleast_1d(figure.subplots(1, len(titles), sharey=True))
    for axes, (name, title) in zip(columns, titles.items(), strict=True):
        for row, (_, stratum) in zip(rows, strata.iterrows(), strict=True):
            if not np.isfinite(stratum[name]):
                continue
            alpha = 0.35 if stratum["low_count"] else 1.0
            axes.plot([stratum[f"{name}_low"], stratum[f"{name}_high"]], [row, row], color="#0969da", alpha=alpha)
            axes.plot(stratum[name], row, "o", color="#0969da", alpha=alpha, markersize=4)
        axes.axvline(strata.iloc[0][name], color="#d0d7de", linewidth=1, zorder=0)
        axes.set(title=title, xlim=(0, 1.02), ylim=(-0.7, len(strata) - 0.3))
    labels = [f"{row.attribute}: {row.stratum} ({row.n}, {row.positives})" for row in strata.itertuples()]
    columns[0].set_yticks(rows, labels)
    return figure


@_as_svg
def froc(scores: dict[str, dict[str, Any]]) -> Figure:
    """Draw FROC curves with pointwise 95 % bands.

    Args:
        scores: the result of ``detection.score`` by name of the subset.
    """
    figure, axes = _axes("false alarms per image", "sensitivity over boxes")
    for name, score in scores.items():
        curve = score["curve"]
        label = f"{name}: {format_fraction(**score['froc']['1'] or {'value': None})} at 1 false alarm per image"
        axes.fill_between(
            curve["false_alarms"], curve["low"], curve["high"], color=COLOURS[name], alpha=0.15, linewidth=0
        )
        axes.step(curve["false_alarms"], curve["sensitivity"], where="post", color=COLOURS[name], label=label)
    axes.set(xscale="log", xlim=(detection.CURVE[0], detection.CURVE[-1]))
    axes.set_xticks([*detection.FALSE_ALARMS.values()], [*detection.FALSE_ALARMS], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    figure.legend(loc="outside lower center")
    return figure


def roc_curves(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """Return the sensitivity at each false positive rate of ``GRID``, linear between the scores.

    Args:
        table: ``label, probability`` of n images.
        weights: (b, n), how often each image counts.

    Returns:
        float64 (b, 101).
    """
    rows = zip(*_rates(table, weights), strict=True)
    return np.array([np.interp(GRID, np.r_[0, x], np.r_[0, y]) for y, x in rows])


def precision_recall_curves(table: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """Return the precision at each recall of ``GRID``, which is that at the first score that reaches this recall.

    Arguments and result are those of ``roc_curves``. The first value repeats the second, because the precision is
    undefined at recall 0.
    """
    rows = zip(*_precision_and_recall(table, weights), strict=True)
    curves = np.array([y[np.minimum(np.searchsorted(x, GRID[1:] - 1e-12), len(y) - 1)] for y, x in rows])
    return np.c_[curves[:, :1], curves]


def pointwise_band(curves: np.ndarray) -> np.ndarray:
    """Return the ends of the pointwise 95 % band of a curve: float64 (2, k).

    Args:
        curves: (b, k), the curve itself, then its values in the bootstrap samples.
    """
    return np.quantile(curves[1:], [TAIL, 1 - TAIL], axis=0)


def _rates(table: pd.DataFrame, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sensitivity and 1 - specificity at each distinct score, descending: two (b, k)."""
    tp, fp, _ = weights_above(table["label"].to_numpy(), table["probability"].to_numpy(), weights)
    return tp / np.maximum(tp[:, -1:], 1e-12), fp / np.maximum(fp[:, -1:], 1e-12)


def _precision_and_recall(table: pd.DataFrame, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall at each distinct score, descending: two (b, k)."""
    tp, fp, _ = weights_above(table["label"].to_numpy(), table["probability"].to_numpy(), weights)
    return tp / np.maximum(tp + fp, 1e-12), tp / np.maximum(tp[:, -1:], 1e-12)


def _band(axes: Axes, name: str, curves: np.ndarray) -> None:
    axes.fill_between(GRID, *pointwise_band(curves), color=COLOURS[name], alpha=0.15, linewidth=0)


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 4.9), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
    return figure, axes
