"""The figures of the page, each as SVG text; drawn with matplotlib, without a display."""

import functools
import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fractatlas.evaluation.bootstrap import CONFIDENCE
from fractatlas.evaluation.metrics import BINS, by_score

TAIL = (1 - CONFIDENCE) / 2
COLOURS = {"val": "#8250df", "test": "#0969da", "train": "#6e7781"}
GRID = np.linspace(0, 1, 101)
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "fractatlas", "font.family": "sans-serif", "font.size": 10,
         "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}  # fmt: skip


def _as_svg(draw: Callable[..., Figure]) -> Callable[..., str]:
    """Have a function that draws a figure give it as SVG text, the same for the same data."""

    @functools.wraps(draw)
    def drawn(*arguments: Any) -> str:
        with matplotlib.rc_context(STYLE):
            text = io.StringIO()
            draw(*arguments).savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()

    return drawn


@_as_svg
def roc(parts: dict[str, pd.DataFrame], weights: dict[str, np.ndarray]) -> Figure:
    """Sensitivity against 1 - specificity, with pointwise 95 % bands over ``weights`` (b, n).

    Args:
        parts: predictions (``label, probability``) by the part's name.
        weights: of ``bootstrap.draws``, likewise.
    """
    figure, axes = _axes("1 - specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], color="#d0d7de", linewidth=1)
    for name, table in parts.items():
        found, false = _rates(table, weights[name])
        curves = np.array([np.interp(GRID, x, y) for x, y in zip(false, found, strict=True)])
        _band(axes, name, curves)
        axes.step(np.r_[0, false[0]], np.r_[0, found[0]], where="post", color=COLOURS[name], label=name)
    axes.legend(loc="lower right")
    return figure


@_as_svg
def precision_recall(parts: dict[str, pd.DataFrame], weights: dict[str, np.ndarray]) -> Figure:
    """PPV against sensitivity, with bands; a line for the share of fractures, which answering at random gets."""
    figure, axes = _axes("sensitivity (recall)", "PPV (precision)")
    for name, table in parts.items():
        labels, scores = table["label"].to_numpy(), table["probability"].to_numpy()
        positives, negatives = by_score(labels, scores, weights[name])
        found, drawn = np.cumsum(positives, axis=1), np.cumsum(positives + negatives, axis=1)
        recall, precision = found / np.maximum(found[:, -1:], 1e-12), found / np.maximum(drawn, 1e-12)
        rows = zip(recall, precision, strict=True)
        # The precision at the first score that reaches a recall.
        curves = np.array([y[np.minimum(np.searchsorted(x, GRID[1:] - 1e-12), len(y) - 1)] for x, y in rows])
        _band(axes, name, np.c_[curves[:, :1], curves])
        axes.step(recall[0], precision[0], where="pre", color=COLOURS[name], label=name)
        axes.axhline(labels.mean(), color=COLOURS[name], linewidth=0.8, linestyle=":")
    axes.legend(loc="lower left")
    return figure


@_as_svg
def reliability(table: pd.DataFrame) -> Figure:
    """Share of fractures against mean probability in equal bins, raw and calibrated, with the images of each bin."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axes.plot([0, 1], [0, 1], color="#d0d7de", linewidth=1)
    edges = np.linspace(0, 1, BINS + 1)
    for column, colour, label in (
        ("probability", "#6e7781", "raw"),
        ("probability_calibrated", "#0969da", "calibrated"),
    ):
        if column not in table:
            continue
        bins = np.minimum((table[column] * BINS).astype(int), BINS - 1)
        grouped = table.groupby(bins)
        axes.plot(grouped[column].mean(), grouped["label"].mean(), "o-", color=colour, label=label, markersize=4)
        counts.hist(table[column], bins=edges, histtype="step", color=colour)
    axes.set(ylabel="share of fractures", xlim=(0, 1), ylim=(0, 1))
    counts.set(xlabel="probability of a fracture", ylabel="images", yscale="log")
    axes.legend(loc="upper left")
    return figure


@_as_svg
def history(epochs: list[dict[str, float]], monitor: str, chosen: int) -> Figure:
    """Loss, accuracy and AUROC of training and validation by epoch; a line at the epoch that ``monitor`` chose."""
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    table = pd.DataFrame(epochs)
    for axes, name in zip(figure.subplots(1, 3), ("loss", "accuracy", "auroc"), strict=True):
        for part in ("train", "val"):
            if f"{part}/{name}" in table:
                axes.plot(table["epoch"], table[f"{part}/{name}"], "o-", color=COLOURS[part], label=part, markersize=4)
        if name == "accuracy" and "val/majority_rate" in table:
            axes.axhline(
                table["val/majority_rate"].iloc[-1], color="#bc4c00", linestyle=":", label="majority rate (val)"
            )
        axes.axvline(chosen, color="#d0d7de", linewidth=4, zorder=0)
        axes.set(xlabel=f"epoch (chosen by {monitor}: {chosen})", title=name.replace("auroc", "AUROC"))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return figure


@_as_svg
def forest(strata: pd.DataFrame, names: dict[str, str]) -> Figure:
    """The metrics ``names`` (with their titles) of every stratum with its interval; few images are drawn pale."""
    figure = Figure(figsize=(9, 0.8 + 0.24 * len(strata)), layout="constrained")
    rows = np.arange(len(strata))[::-1]
    columns = figure.subplots(1, len(names), sharey=True)
    for axes, (name, title) in zip(np.atleast_1d(columns), names.items(), strict=True):
        for row, (_, stratum) in zip(rows, strata.iterrows(), strict=True):
            if not np.isfinite(stratum[name]):
                continue
            alpha = 0.35 if stratum["few"] else 1.0
            axes.plot([stratum[f"{name}_low"], stratum[f"{name}_high"]], [row, row], color="#0969da", alpha=alpha)
            axes.plot(stratum[name], row, "o", color="#0969da", alpha=alpha, markersize=4)
        axes.axvline(strata.iloc[0][name], color="#d0d7de", linewidth=1, zorder=0)
        axes.set(title=title, xlim=(0, 1.02), ylim=(-0.7, len(strata) - 0.3))
    labels = [f"{row.attribute}: {row.stratum} ({row.n}, {row.positives})" for row in strata.itertuples()]
    np.atleast_1d(columns)[0].set_yticks(rows, labels)
    return figure


def _rates(table: pd.DataFrame, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivity and 1 - specificity at each distinct score, descending: two (b, k)."""
    positives, negatives = by_score(table["label"].to_numpy(), table["probability"].to_numpy(), weights)
    found, false = np.cumsum(positives, axis=1), np.cumsum(negatives, axis=1)
    return found / np.maximum(found[:, -1:], 1e-12), false / np.maximum(false[:, -1:], 1e-12)


def _band(axes: Axes, name: str, curves: np.ndarray) -> None:
    low, high = np.quantile(curves[1:], [TAIL, 1 - TAIL], axis=0)
    axes.fill_between(GRID, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
    return figure, axes
