"""Where recipes and variants find fractures: pointing game by box size and body part, FROC, AP at an IoU."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fractatlas.data.sources.fracatlas import BODY_PARTS
from fractatlas.evaluation import detection
from fractatlas.evaluation.localisation import BOX_SIZES, summarise
from fractatlas.evaluation.markdown import format_fraction, format_percent, to_markdown
from fractatlas.experiments.pooling import Folds, Pooled, pool
from fractatlas.experiments.result_tables import count_folds, detection_scores, interval_columns, is_partial
from fractatlas.io import atomic_path, write_csv, write_text
from fractatlas.report.figures import STYLE

# Colours that are distinct for all kinds of colour vision (Okabe and Ito, Color Universal Design, 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000")
LINES = ("-", (0, (4, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (1.2, 1)), (0, (9, 2)), (0, (4, 1, 1, 1, 1, 1)))
MOST_BANDS = 4  # more bands hide each other
BAND_ALPHA = 0.14
GRID_COLOUR = "#eaeef2"
FROC = {f"froc_{rate}": f"FROC {rate}" for rate in detection.FALSE_ALARMS}
AP = {"ap_30": "AP at IoU 0.3", "ap_50": "AP at IoU 0.5"}
DETECTION = "FROC: sensitivity over boxes at so many false alarms per image. AP: average precision.\n"
POINTING = (
    "Pointing game: per cent of the fractured images in which this point is in a box of the radiologists. Box sizes "
    "are those of the largest box of an image whose shorter side is 256 px.\n"
)
NOTE = (
    "Means over seeds. Brackets: 95 % intervals over groups of images. `where.csv` also has the validation subset of "
    "recipes.\n"
)


@dataclass
class Located:
    """The scores of the heatmaps of a recipe or variant.

    Attributes:
        rows: for each subset whose heatmaps were scored and each stratum: ``recipe, subset, seeds, folds, stratum``
            (``all``, a box size or a body part), ``n`` (fractured images with a box), ``hit, hit_centre`` with
            intervals, and ``hit_chance``. In the row ``all``, if all images have heatmaps, also ``images, boxes``, the
            sensitivity over boxes at each rate of false alarms (``froc_1/8`` to ``froc_4``), ``ap_30`` and ``ap_50``,
            with intervals.
        curves: the FROC curve of each subset, as ``curve`` of ``detection.score``.
    """

    rows: list[dict[str, Any]]
    curves: dict[str, dict[str, list[float]]]


def score_located(
    name: str, seeds: Sequence[Folds], subsets: Sequence[str], images: pd.DataFrame | None = None
) -> Located:
    """Score the heatmaps of a recipe or variant, as the mean over its seeds.

    Args:
        name: of the recipe or variant.
        seeds: as for ``result_tables.recipe_rows``.
        subsets: to score.
        images: body parts, from ``run_records.read_images``; without them, there are no strata by body part.
    """
    found = Located([], {})
    for subset in subsets:
        pooled = [pool(folds, subset) for folds in seeds]
        if any(one.boxes.empty for one in pooled):
            continue
        key = {"recipe": name, "subset": subset, "seeds": len(seeds), "folds": count_folds(seeds[0])}
        for stratum, row in summarise_located(pooled, images).items():
            if not row["n"]:
                continue
            cells = key | {"stratum": stratum, "n": row["n"]}
            cells |= interval_columns("hit", row["hit"]) | interval_columns("hit_centre", row["hit_centre"])
            cells["hit_chance"] = row["hit_chance"]["value"]
            if stratum == "all" and (scores := detection_scores(pooled)):
                cells |= {"images": scores["n"], "boxes": scores["boxes"]}
                for rate in detection.FALSE_ALARMS:
                    cells |= interval_columns(f"froc_{rate}", scores["froc"][rate])
                for score in AP:
                    cells |= interval_columns(score, scores[score])
                found.curves[subset] = scores["curve"]
            found.rows.append(cells)
    return found


def summarise_located(pooled: Sequence[Pooled], images: pd.DataFrame | None) -> dict[str, dict[str, Any]]:
    """Return the result of ``localisation.summarise`` for the mean over seeds of the scores of each image.

    Args:
        pooled: for each seed, with boxes.
        images: as for ``score_located``.
    """
    located = pd.concat([one.located() for one in pooled]).groupby("image_id", as_index=False).mean()
    if images is not None:
        parts = images[["image_id", *(part for part in BODY_PARTS if part in images)]]
        located = located.merge(parts, on="image_id", how="left")
    return summarise(located, pooled[0].table.set_index("image_id")["group"])


def write_located(out: Path, located: Sequence[Located], note: str = "") -> None:
    """Write ``where.csv`` and ``where.md``.

    The latter shows the test subset of recipes and the validation subset of variants.

    Args:
        out: the folder.
        located: of each recipe and variant.
        note: a paragraph for the Markdown.
    """
    table = pd.DataFrame([row for one in located for row in one.rows])
    write_csv(out / "where.csv", table)
    shown = [[row for row in one.rows if row["subset"] == one.rows[-1]["subset"]] for one in located]
    write_text(out / "where.md", _markdown(pd.DataFrame([row for rows in shown for row in rows])) + note)


def write_froc(out: Path, located: Sequence[Located]) -> None:
    """Write ``froc.png``, with a panel for the test subset of recipes and one for the validation subset of variants.

    Args:
        out: the folder. Without curves, an earlier ``froc.png`` in it is removed.
        located: of each recipe and variant to draw.
    """
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    for one in located:
        if one.curves:
            subset, curve = list(one.curves.items())[-1]
            row = one.rows[-1]
            curves.setdefault(subset, {})[curve_label(row["recipe"], row["folds"])] = curve
    path = out / "froc.png"
    if not curves:
        path.unlink(missing_ok=True)
        return
    with matplotlib.rc_context(STYLE):
        most = max(map(len, curves.values()))
        figure = Figure(figsize=(5 * len(curves) + 1, 4 + 0.24 * most), layout="constrained")
        for axes, (subset, several) in zip(np.atleast_1d(figure.subplots(1, len(curves))), curves.items(), strict=True):
            draw_froc(axes, several.values(), len(several) <= MOST_BANDS)
            axes.set_title(subset)
            axes.legend(axes.get_lines(), several, loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130)


def curve_label(name: str, folds: str) -> str:
    """Return the label of the curve of a recipe or variant, with the folds if they are some of several."""
    return f"{name} ({folds} folds)" if is_partial(folds) else name


def curve_style(number: int) -> dict[str, Any]:
    """Return colour and line style of curve ``number``; the first 36 are distinct, the first six also in grey."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[(number + number // len(COLOURS)) % len(LINES)],
    }


def draw_froc(axes: Axes, curves: Iterable[Mapping[str, list[float]] | None], bands: bool) -> None:
    """Draw FROC curves in the order of their styles.

    Args:
        axes: to draw into.
        curves: each as ``curve`` of ``detection.score``; ``None`` leaves out a style.
        bands: whether to draw pointwise 95 % bands.
    """
    for number, curve in enumerate(curves):
        if curve is None:
            continue
        x, style = curve["false_alarms"], curve_style(number)
        if bands:
            axes.fill_between(x, curve["low"], curve["high"], color=style["color"], alpha=BAND_ALPHA, linewidth=0)
        axes.step(x, curve["sensitivity"], where="post", **style)
    axes.set(xscale="log", xlim=(detection.CURVE[0], detection.CURVE[-1]), ylim=(0, None))
    axes.set(xlabel="false alarms per image", ylabel="sensitivity over boxes")
    axes.set_xticks([*detection.FALSE_ALARMS.values()], [*detection.FALSE_ALARMS], minor=False)
    axes.set_xticks([], minor=True)
    axes.grid(color=GRID_COLOUR)


def _markdown(table: pd.DataFrame) -> str:
    """Return one table of the detection scores, if there are any, and one of the pointing game by stratum."""
    parts = []
    if "images" in table:
        rows = []
        for row in table[table["images"].notna()].to_dict("records"):
            cells = _key(row) | {"images (boxes)": f"{row['images']:.0f} ({row['boxes']:.0f})"}
            rows.append(cells | {title: _fraction(row, name) for name, title in (FROC | AP).items()})
        parts += [DETECTION, _to_markdown(rows)]
    order = ["all", *BOX_SIZES, *BODY_PARTS]
    ordered = table.assign(order=table["stratum"].map(order.index)).sort_values("order", kind="stable")
    rows = []
    for row in ordered.to_dict("records"):
        hit, centre = (format_percent(*(row[f"{name}{end}"] for end in ("", "_low", "_high")))
                       for name in ("hit", "hit_centre"))  # fmt: skip
        cells = {"stratum": row["stratum"], **_key(row), "n": row["n"], "maximum of the heatmap": hit}
        rows.append(cells | {"centre of the image": centre, "random point": f"{100 * row['hit_chance']:.2f}"})
    parts += [POINTING, _to_markdown(rows), NOTE]
    return "\n".join(parts)


def _key(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("recipe", "folds", "seeds", "subset")}


def _fraction(row: Mapping[str, Any], name: str) -> str:
    return format_fraction(*(row[f"{name}{end}"] for end in ("", "_low", "_high")))


def _to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    table = pd.DataFrame(rows)
    return to_markdown(table.drop(columns=["folds"] if (table["folds"] == "").all() else []))
