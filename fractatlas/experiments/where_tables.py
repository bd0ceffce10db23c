"""Where recipes and variants find fractures: pointing game by box size and body part, FROC, AP at an IoU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fractatlas.data.sources.fracatlas import BODY_PARTS
from fractatlas.evaluation import detection
from fractatlas.evaluation.localisation import BOX_SIZES, summarise
from fractatlas.evaluation.markdown import format_fraction, format_percent, to_markdown
from fractatlas.experiments.pooling import Folds, Pooled, pool
from fractatlas.experiments.result_tables import count_folds, detection_scores, interval_columns, is_partial
from fractatlas.io import atomic_path, write_csv, write_text
from fractatlas.report.figures import STYLE

COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#6e7781")
LINES = ("-", "--", ":")  # of curves beyond the number of colours
MOST_BANDS = 4  # more bands hide each other
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
    """Write ``where.csv``, ``where.md`` and, if there are curves, ``froc.png``.

    The latter two show the test subset of recipes and the validation subset of variants.

    Args:
        out: the folder.
        located: of each recipe and variant.
        note: a paragraph for the Markdown.
    """
    table = pd.DataFrame([row for one in located for row in one.rows])
    write_csv(out / "where.csv", table)
    shown = [[row for row in one.rows if row["subset"] == one.rows[-1]["subset"]] for one in located]
    write_text(out / "where.md", _markdown(pd.DataFrame([row for rows in shown for row in rows])) + note)
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    for one in located:
        if one.curves:
            subset, curve = list(one.curves.items())[-1]
            row = one.rows[-1]
            label = row["recipe"] + (f" ({row['folds']} folds)" if is_partial(row["folds"]) else "")
            curves.setdefault(subset, {})[label] = curve
    if curves:
        _draw_froc(out / "froc.png", curves)


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


def _draw_froc(path: Path, curves: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> None:
    """Draw the FROC curves, with pointwise 95 % bands if they are few, in one panel for each subset."""
    with matplotlib.rc_context(STYLE):
        most = max(map(len, curves.values()))
        figure = Figure(figsize=(5 * len(curves) + 1, 4 + 0.24 * most), layout="constrained")
        for axes, (subset, several) in zip(np.atleast_1d(figure.subplots(1, len(curves))), curves.items(), strict=True):
            for number, (label, curve) in enumerate(several.items()):
                colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
                if len(several) <= MOST_BANDS:
                    ends = (curve[name] for name in ("false_alarms", "low", "high"))
                    axes.fill_between(*ends, color=colour, alpha=0.12, linewidth=0)
                points = (curve[name] for name in ("false_alarms", "sensitivity"))
                axes.step(*points, line, where="post", color=colour, label=label)
            axes.set(xscale="log", xlim=(detection.CURVE[0], detection.CURVE[-1]), ylim=(0, None), title=subset)
            axes.set(xlabel="false alarms per image", ylabel="sensitivity over boxes")
            axes.set_xticks([*detection.FALSE_ALARMS.values()], [*detection.FALSE_ALARMS], minor=False)
            axes.set_xticks([], minor=True)
            axes.grid(color="#eaeef2")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130)
