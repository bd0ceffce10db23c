"""Draw the results of the recipes of a plan on the test subset, in one figure at the width of a printed page."""

import functools
import io
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.evaluation.localisation import BOX_SIZES
from fractatlas.experiments.pooling import Folds, pool
from fractatlas.experiments.result_tables import count_folds
from fractatlas.experiments.where_tables import (
    BAND_ALPHA,
    GRID_COLOUR,
    Located,
    curve_label,
    curve_style,
    draw_froc,
)
from fractatlas.io import atomic_path, write_text
from fractatlas.report.figures import GRID, STYLE, pointwise_band, precision_recall_curves, roc_curves
from fractatlas.wording import plural

SUBSET = "test"
FIGURE, CAPTION = FILES = ("results.png", "results.md")
MOST_RECIPES = 6  # each has a line style and a marker of its own, which are distinct in grey
MARKERS = "osD^vP"
LETTERS = "abcd"  # of the panels
WIDTH, ROW_HEIGHT = 7.0, 2.55  # inches; two columns of a journal
DOTS = 300  # per inch
LABEL_WIDTH = 48  # characters of a line of the legend
PRINTED: dict[Any, Any] = STYLE | {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.fontsize": 8,
    "legend.handlelength": 4,
}


@dataclass
class RecipeCurves:
    """The curves of a recipe on the test subset, as means over its seeds.

    Attributes:
        label: of the recipe, with the folds if some are not finished.
        seeds: their number.
        images: number of images.
        fractured: of these.
        roc: float64 (1 or 3, 101): the sensitivity at the false positive rates ``figures.GRID``, then, if there is one,
            its pointwise 95 % band.
        precision_recall: likewise, the precision at the recalls ``figures.GRID``.
    """

    label: str
    seeds: int
    images: int
    fractured: int
    roc: np.ndarray
    precision_recall: np.ndarray


@dataclass
class Panel:
    """A panel of the figure.

    Attributes:
        caption: what it shows.
        draw: draws it into axes.
        is_curve: whether it shows curves.
    """

    caption: str
    draw: Callable[[Axes], None]
    is_curve: bool = True


def score_curves(name: str, seeds: Sequence[Folds], bands: bool) -> RecipeCurves | None:
    """Compute the ROC curve and the precision-recall curve of a recipe on the test subset.

    The curve of several seeds is their vertical average: the mean of the sensitivities at each false positive rate, and
    of the precisions at each recall (Fawcett, Pattern Recognition Letters 27:861, 2006, section 8.1). Each bootstrap
    sample draws the same groups for all seeds.

    Args:
        name: of the recipe.
        seeds: as for ``result_tables.recipe_rows``.
        bands: whether to compute bands.

    Returns:
        ``None`` if all images have the same label, because the curves are undefined.
    """
    tables = [pool(folds, SUBSET).table for folds in seeds]
    first = tables[0]
    if first["label"].nunique() < 2:
        return None
    weights = bootstrap_weights(first["group"]) if bands else np.ones((1, len(first)))
    curves = []
    for compute in (roc_curves, precision_recall_curves):
        mean = np.mean([compute(table, weights) for table in tables], axis=0)
        curves.append(np.vstack([mean[:1], pointwise_band(mean)]) if bands else mean)
    label = curve_label(name, count_folds(seeds[0]))
    return RecipeCurves(label, len(seeds), len(first), int(first["label"].sum()), *curves)


def write_results(
    out: Path, curves: Mapping[str, RecipeCurves | None], located: Mapping[str, Located], bands: bool, note: str = ""
) -> None:
    """Write ``results.png`` and its caption, ``results.md``; nothing without curves.

    Args:
        out: the folder.
        curves: from ``score_curves``, by name of the recipe; at most ``MOST_RECIPES``.
        located: from ``where_tables.score_located``, for each of these recipes.
        bands: as for ``draw_results``.
        note: a paragraph for the caption.
    """
    recipes = {name: one for name, one in curves.items() if one}
    if not recipes:
        return
    pixels = io.BytesIO()
    with matplotlib.rc_context(PRINTED):
        draw_results(recipes, located, bands).savefig(pixels, format="png", dpi=DOTS)
    # 256 colours make the file less than half as large.
    picture = Image.open(pixels).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with atomic_path(out / FIGURE) as temporary:
        picture.save(temporary, format="png", dpi=(DOTS, DOTS), optimize=True)
    write_text(out / CAPTION, _caption(recipes, located, bands) + note)


def draw_results(recipes: Mapping[str, RecipeCurves], located: Mapping[str, Located], bands: bool) -> Figure:
    """Draw ROC curves, precision-recall curves, FROC curves and the pointing game by box size.

    Args:
        recipes: from ``score_curves``, by name; at most ``MOST_RECIPES``.
        located: from ``where_tables.score_located``, for each of these recipes. A panel whose scores no recipe has is
            left out.
        bands: whether to draw the bands of the FROC curves; those of the other curves are drawn if there are any.

    Returns:
        The figure, ``WIDTH`` inches wide.
    """
    panels = _panels(recipes, located, bands)
    columns = 2 if len(panels) in (2, 4) else len(panels)
    rows = len(panels) // columns
    figure = Figure(figsize=(WIDTH, ROW_HEIGHT * rows), dpi=DOTS, layout="constrained")
    for letter, axes, panel in zip(LETTERS, figure.subplots(rows, columns).flat, panels, strict=False):
        panel.draw(axes)
        axes.set_title(letter, loc="left")
    labels = [textwrap.fill(one.label, LABEL_WIDTH) for one in recipes.values()]
    handles = [Line2D([], [], **curve_style(number), **_marker(number)) for number in range(len(recipes))]
    for count in range(len(recipes), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=count)
        extent = legend.get_window_extent()
        if extent.width <= WIDTH * DOTS:
            break
        legend.remove()
    figure.set_figheight(ROW_HEIGHT * rows + extent.height / DOTS)
    return figure


def _panels(recipes: Mapping[str, RecipeCurves], located: Mapping[str, Located], bands: bool) -> list[Panel]:
    curves = [*recipes.values()]
    froc = [located[name].curves.get(SUBSET) for name in recipes]
    pointing = [_by_box_size(located[name]) for name in recipes]
    panels = [
        Panel("ROC curves; dotted: a random classifier", functools.partial(_draw_roc, recipes=curves)),
        Panel(
            "Precision-recall curves; dotted: a random classifier, whose precision is the prevalence",
            functools.partial(_draw_precision_recall, recipes=curves),
        ),
    ]
    if any(froc):
        panels.append(Panel("FROC curves", functools.partial(draw_froc, curves=froc, bands=bands)))
    if any(pointing):
        text = (
            "Pointing game: the share of the fractured images in which the maximum of the heatmap is in a box of the "
            "radiologists, by the size (longest side) of the largest box in an image whose shorter side is 256 px"
        )
        panels.append(Panel(text, functools.partial(_draw_pointing, several=pointing), is_curve=False))
    return panels


def _by_box_size(located: Located) -> dict[str, dict[str, Any]]:
    """Return the rows of the test subset by box size."""
    return {row["stratum"]: row for row in located.rows if row["subset"] == SUBSET and row["stratum"] in BOX_SIZES}


def _marker(number: int) -> dict[str, Any]:
    return {"marker": MARKERS[number], "markersize": 4}


def _draw_roc(axes: Axes, recipes: Sequence[RecipeCurves]) -> None:
    axes.plot([0, 1], [0, 1], color="#6e7781", linewidth=0.8, linestyle=":")
    _draw_curves(axes, [one.roc for one in recipes])
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")


def _draw_precision_recall(axes: Axes, recipes: Sequence[RecipeCurves]) -> None:
    for prevalence in sorted({one.fractured / one.images for one in recipes}):
        axes.axhline(prevalence, color="#24292f", linewidth=0.8, linestyle=":")
    _draw_curves(axes, [one.precision_recall for one in recipes])
    axes.set(xlabel="sensitivity (recall)", ylabel="PPV (precision)")


def _draw_curves(axes: Axes, several: Sequence[np.ndarray]) -> None:
    for number, (curve, *band) in enumerate(several):
        style = curve_style(number)
        if band:
            axes.fill_between(GRID, *band, color=style["color"], alpha=BAND_ALPHA, linewidth=0)
        axes.plot(GRID, curve, **style)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(color=GRID_COLOUR)


def _draw_pointing(axes: Axes, several: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Draw the pointing game by box size; the labels state the number of images, or the numbers if recipes differ."""
    shown = [size for size in BOX_SIZES if any(size in rows for rows in several)]
    for number, rows in enumerate(several):
        x = [place + 0.6 * (number - (len(several) - 1) / 2) / len(several) for place in range(len(shown))]
        y, low, high = (
            np.array([rows[size][f"hit{end}"] if size in rows else np.nan for size in shown])
            for end in ("", "_low", "_high")
        )
        colour = curve_style(number)["color"]
        axes.errorbar(x, (low + high) / 2, (high - low) / 2, fmt="none", color=colour, elinewidth=1, capsize=2)
        axes.plot(x, y, linestyle="none", color=colour, clip_on=False, **_marker(number))
    labels = []
    for size in shown:
        counts = sorted({rows[size]["n"] for rows in several if size in rows})
        ends = dict.fromkeys(f"{count:,}" for count in (counts[0], counts[-1]))
        labels.append(f"{size.replace(' px', '')}\nn = " + "\nto ".join(ends))
    axes.set_xticks(range(len(shown)), labels)
    axes.set(xlim=(-0.5, len(shown) - 0.5), ylim=(0, 1.02), ylabel="pointing game")
    axes.set_xlabel("size of the largest box (px)")
    axes.grid(axis="y", color=GRID_COLOUR)


def _caption(recipes: Mapping[str, RecipeCurves], located: Mapping[str, Located], bands: bool) -> str:
    """Return the caption of the figure; arguments are those of ``draw_results``."""
    panels = _panels(recipes, located, bands)
    parts = ["Test subset."]
    parts += [f"({letter}) {panel.caption}." for letter, panel in zip(LETTERS, panels, strict=False)]
    if any(one.seeds > 1 for one in recipes.values()):
        parts.append(
            "Curves are means over seeds (vertical averages): of the sensitivity at each false positive rate or number "
            "of false alarms, and of the precision at each recall."
        )
    shown = ["pointwise bands"] if bands else []
    shown += [] if all(panel.is_curve for panel in panels) else ["error bars"]
    if shown:
        parts.append(
            f"{' and '.join(shown).capitalize()}: 95 % intervals from the bootstrap over groups of images. They do not "
            "include the variation between seeds."
        )

    def count(one: RecipeCurves) -> str:
        return f"{plural(one.images, 'image')}, {one.fractured:,} with a fracture, {plural(one.seeds, 'seed')}"

    for text, several in itertools.groupby(recipes.values(), count):
        parts.append(f"{', '.join(one.label for one in several)}: {text}.")
    return " ".join(parts) + "\n"
