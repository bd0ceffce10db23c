"""Controls: gradient boosting on properties of the file and the record, without pixels, over the folds of a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from threadpoolctl import threadpool_limits

from fractatlas.evaluation import metrics
from fractatlas.evaluation.bootstrap import bootstrap_weights, interval
from fractatlas.evaluation.markdown import METRIC_TITLES, to_markdown
from fractatlas.evaluation.strata import FILE_COLUMNS, RECORD_COLUMNS, shortcut_model
from fractatlas.experiments.pooling import Folds, pool
from fractatlas.experiments.result_tables import count_folds, format_difference, format_score, interval_columns
from fractatlas.io import write_csv, write_text

SUBSET = "test"
NUMBER = "number"  # the column with the number in ``image_id``
CONTROLS: dict[str, tuple[str, ...]] = {
    "id": (NUMBER,),
    "size": ("width", "height"),
    "file": FILE_COLUMNS,
    "hardware": ("hardware",),
    "record": RECORD_COLUMNS,
    "file and record": (*FILE_COLUMNS, *RECORD_COLUMNS),
}
SCORES = ("auroc", "average_precision")
# One number, and an extension that can contain a digit, such as .jp2.
ONE_NUMBER = r"^\D*(\d+)\D*(?:\.[A-Za-z]\w*)?$"
NOTE = (
    "Controls: gradient boosting without pixels. Each image of a test fold is predicted by a model that was fitted on "
    "the images of all other folds. `id`: the number in `image_id`; `size`: width and height; `file`: also bytes, "
    "junk, orientation and mode; `hardware`: whether there is any; `record`: body part, several scans and view. For a "
    "random order, AUROC is 0.5, and average precision the share of fractured images. A control without information "
    "can have an AUROC below 0.5, because a fold with more fractures leaves fewer in the other folds. Brackets: 95 % "
    "intervals over groups of images.\n"
)
DIFFERENCES = (
    "Differences: recipe minus control, on the images that both have, as means over the seeds of the recipe.\n"
)


@dataclass
class Controls:
    """The controls of a plan.

    Attributes:
        tables: for each control, ``image_id, group, label, fold, probability``, sorted by ``image_id``.
        rows: for each control: ``control, recipe`` (empty), ``seeds`` (missing), ``folds, n, positives``, and each of
            ``SCORES`` with ``_low, _high``.
    """

    tables: dict[str, pd.DataFrame]
    rows: list[dict[str, Any]]


def fit_controls(folds: Folds, images: pd.DataFrame | None) -> Controls:
    """Cross-fit the controls over folds, and score them on the images of all folds together.

    Args:
        folds: the runs of one recipe and seed, one for each fold of the plan. Their test images have the labels, groups
            and folds.
        images: from ``run_records.read_images``.

    Returns:
        The controls whose columns are known and not constant; none if the images of all other folds of a fold have one
        class only.
    """
    found = Controls({}, [])
    tables = [record.tables[SUBSET][["image_id", "group", "label"]].assign(fold=record.fold) for record in folds]
    table = pd.concat(tables).sort_values("image_id", ignore_index=True)
    if any(table.loc[table["fold"] != record.fold, "label"].nunique() < 2 for record in folds):
        return found
    inputs = table if images is None else table.merge(images, on="image_id", how="left")
    numbers = table["image_id"].str.extract(ONE_NUMBER, expand=False)
    if numbers.notna().all():
        inputs = inputs.assign(**{NUMBER: numbers.astype(float)})
    weights = bootstrap_weights(table["group"])
    for name, columns in CONTROLS.items():
        if not {*columns} <= {*inputs} or (inputs[list(columns)].nunique() < 2).all():
            continue
        model = shortcut_model([one for one in columns if not pd.api.types.is_numeric_dtype(inputs[one])])
        splits = PredefinedSplit(table["fold"])
        # Several threads wait for each other for minutes when other processes use the cores, such as running trainings.
        with threadpool_limits(1, "openmp"):
            predicted = cross_val_predict(
                model, inputs[list(columns)], table["label"], cv=splits, method="predict_proba"
            )  # fmt: skip
        found.tables[name] = table.assign(probability=predicted[:, 1])
        scores = metrics.evaluate(found.tables[name], weights=weights)
        row: dict[str, Any] = {"control": name, "recipe": "", "seeds": None, "folds": count_folds(folds)}
        row |= {key: scores[key] for key in ("n", "positives")}
        for score in SCORES:
            row |= interval_columns(score, scores[score])
        found.rows.append(row)
    return found


def compare_with_controls(
    name: str, seeds: Sequence[Folds], controls: Mapping[str, pd.DataFrame]
) -> list[dict[str, Any]]:
    """Compare a recipe with each control on the images that both have, as the mean over its seeds.

    Args:
        name: of the recipe.
        seeds: as for ``result_tables.recipe_rows``, with all folds of the plan.
        controls: ``Controls.tables``, whose labels and groups are used.

    Returns:
        A row for each control: ``control, recipe, seeds, folds, n, positives``, and for each of ``SCORES``
        ``<score>_difference`` (recipe minus control) with ``_low, _high``.
    """
    tables = [pool(folds, SUBSET).table[["image_id", "probability"]] for folds in seeds]
    images = next(iter(controls.values()))[["image_id", "label", "group"]]
    for table in tables:
        images = images[images["image_id"].isin(table["image_id"])]
    if images.empty:
        return []
    labels, weights = images["label"].to_numpy(), bootstrap_weights(images["group"])

    def resampled(table: pd.DataFrame) -> dict[str, np.ndarray]:
        predicted = images.merge(table[["image_id", "probability"]], on="image_id")["probability"]
        return metrics.ranking_metrics(labels, predicted.to_numpy(), weights)

    each = [resampled(table) for table in tables]
    rows = []
    for control, table in controls.items():
        other = resampled(table)
        row = {"control": control, "recipe": name, "seeds": len(seeds), "folds": count_folds(seeds[0])}
        row |= {"n": len(images), "positives": int(labels.sum())}
        for score in SCORES:
            mean = np.mean([values[score] for values in each], axis=0)
            row |= interval_columns(f"{score}_difference", interval(mean - other[score]))
        rows.append(row)
    return rows


def write_controls(out: Path, rows: Sequence[Mapping[str, Any]], note: str = "") -> None:
    """Write ``controls.csv`` and ``controls.md``.

    Args:
        out: the folder.
        rows: ``Controls.rows``, and those of ``compare_with_controls``.
        note: a paragraph for the Markdown.
    """
    table = pd.DataFrame(rows).astype({"seeds": "Int64"})
    write_csv(out / "controls.csv", table)
    scored, compared = [], []
    for row in table.to_dict("records"):
        counts = {"folds": row["folds"], "n (fractured)": f"{row['n']} ({row['positives']})"}
        if row["recipe"]:
            cells = {"recipe": row["recipe"], "minus control": row["control"], "seeds": row["seeds"], **counts}
            compared.append(cells | {METRIC_TITLES[score]: format_difference(row, score) for score in SCORES})
        else:
            cells = {"control": row["control"], **counts}
            scored.append(cells | {METRIC_TITLES[score]: format_score(row, score) for score in SCORES})
    tables = [f"{to_markdown(pd.DataFrame(several))}\n" for several in (scored, compared)]
    write_text(out / "controls.md", f"{tables[0]}{NOTE}\n{tables[1]}{DIFFERENCES}{note}")
