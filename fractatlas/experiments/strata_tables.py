"""Scores of recipes with folds by stratum: body part, view, hardware, several scans."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fractatlas.data.attributes import FLAGS, YES_NO, strata_of
from fractatlas.evaluation import metrics
from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.evaluation.markdown import METRIC_TITLES, format_percent, to_markdown
from fractatlas.evaluation.paired_comparison import seed_means
from fractatlas.evaluation.strata import MIN_COUNT
from fractatlas.experiments.pooling import Folds, pool
from fractatlas.experiments.result_tables import count_folds, format_score, interval_columns
from fractatlas.io import write_csv, write_text

SUBSET = "test"
ATTRIBUTES = (*FLAGS, *YES_NO.values())
SCORES = ("accuracy", "auroc", "average_precision", "sensitivity", "specificity")
LOW_COUNT = " ‡"
LOW_COUNT_NOTE = f"{LOW_COUNT.strip()} Fewer than {MIN_COUNT} images with, or without, a fracture.\n"
NOTE = (
    "Test subset. Each image is predicted once for each seed, by the network that was trained without its group. "
    "Means over seeds. Brackets: 95 % intervals over groups of images, at least as wide as those for small counts; "
    "a score without brackets has too few groups for an interval. Majority rate: the accuracy of always giving the "
    "more frequent answer of the stratum.\n"
)


def score_strata(name: str, seeds: Sequence[Folds], images: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Score a recipe with folds on each stratum of its test images, as the mean over its seeds.

    Args:
        name: of the recipe.
        seeds: as for ``result_tables.recipe_rows``, with predictions of the test subset.
        images: from ``run_records.read_images``.

    Returns:
        A row for all images, and for each stratum of ``ATTRIBUTES`` whose columns are known: ``recipe, seeds, folds,
        attribute, stratum, n, positives, low_count`` (fewer than ``MIN_COUNT`` images of a class), ``majority_rate``,
        and each of ``SCORES`` with ``_low, _high``, NaN if it is undefined. Bootstrap samples are those of all images.
        Empty without any of the columns.
    """
    pooled = [pool(folds, SUBSET) for folds in seeds]
    table = pooled[0].table
    attributes = {} if images is None else strata_of(table[["image_id"]].merge(images, on="image_id", how="left"))
    strata: list[tuple[str, str, pd.Series]] = [
        (attribute, stratum, attributes[attribute] == stratum)
        for attribute in ATTRIBUTES
        if attribute in attributes
        for stratum in attributes[attribute].cat.categories
    ]
    if not strata:
        return []
    weights, thresholds = bootstrap_weights(table["group"]), [one.threshold for one in pooled]
    rows = []
    for attribute, stratum, chosen in [("all", "all", table["label"].notna()), *strata]:
        if not chosen.any():
            continue
        tables = [one.table[chosen] for one in pooled]
        counts = metrics.count(tables[0])
        row = {"recipe": name, "seeds": len(seeds), "folds": count_folds(seeds[0])}
        row |= {"attribute": attribute, "stratum": stratum, "n": counts["n"], "positives": counts["positives"]}
        row |= {"low_count": min(counts["positives"], counts["n"] - counts["positives"]) < MIN_COUNT}
        row |= {"majority_rate": counts["majority_rate"]}
        means = seed_means(tables, thresholds, weights[:, chosen])
        scores = metrics.intervals_of(means, tables[0], thresholds[0])
        for score in SCORES:
            row |= interval_columns(score, scores[score])
        rows.append(row)
    return rows


def write_strata(out: Path, rows: Sequence[Mapping[str, Any]], note: str = "") -> None:
    """Write ``strata.csv`` and ``strata.md``.

    Args:
        out: the folder.
        rows: of all recipes, from ``score_strata``.
        note: a paragraph for the Markdown.
    """
    table = pd.DataFrame(rows)
    write_csv(out / "strata.csv", table)
    of_stratum = table.groupby(["attribute", "stratum"], sort=False).ngroup()
    places = table["attribute"].map(["all", *ATTRIBUTES].index)
    ordered = table.assign(place=places, of_stratum=of_stratum).sort_values(["place", "of_stratum"], kind="stable")
    shown = []
    for row in ordered.to_dict("records"):
        mark = LOW_COUNT if row["low_count"] else ""
        cells = {name: row[name] for name in ("attribute", "stratum", "recipe", "folds", "seeds")}
        cells |= {"n (fractured)": f"{row['n']} ({row['positives']}){mark}"}
        cells |= {"majority rate": format_percent(row["majority_rate"])}
        shown.append(cells | {METRIC_TITLES[score]: format_score(row, score) for score in SCORES})
    low = f"\n{LOW_COUNT_NOTE}" if table["low_count"].any() else ""
    write_text(out / "strata.md", f"{to_markdown(pd.DataFrame(shown))}\n{NOTE}{low}{note}")
