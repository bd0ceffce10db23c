"""Write a folder like a run folder for the predictions of a recipe that are pooled over its folds and seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fractatlas.evaluation import detection, metrics, strata, subset_assessment
from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.evaluation.predictions_table import join
from fractatlas.evaluation.subset_assessment import SubsetAssessment
from fractatlas.experiments.pooling import Folds, Pooled, ensemble, pool
from fractatlas.experiments.result_tables import count_folds
from fractatlas.experiments.where_tables import summarise_located
from fractatlas.io import write_csv, write_json, write_text
from fractatlas.report.report_page import write_report

SUBSET = "test"


def write_pooled(folder: Path, name: str, seeds: Sequence[Folds], images: pd.DataFrame | None) -> None:
    """Write ``predictions.csv, metrics.json, strata.csv, report.html`` and ``model_card.md`` of a recipe with folds.

    Each image of these folds is predicted once, by the network that was trained without its group; with several seeds,
    the prediction is the ensemble of theirs. With a single seed and heatmaps, also ``localisation.csv`` is written, and
    the scores of heatmaps are in ``metrics.json``. The page shows no radiographs, because records do not contain them.

    Args:
        folder: to write to.
        name: of the recipe.
        seeds: for each seed, the records of the same folds, with predictions of the test subset.
        images: from ``run_records.read_images``; without them, there are no strata.
    """
    pooled = pool(seeds[0], SUBSET) if len(seeds) == 1 else ensemble(seeds)[SUBSET]
    table = pooled.table.assign(probability_calibrated=pooled.table["probability"])
    record = _record(name, seeds, pooled) | {SUBSET: metrics.evaluate(table, pooled.threshold)}
    record[SUBSET]["n_subset"] = len(table)
    record |= subset_assessment.write(folder, [_assess(pooled, table, images)])
    write_csv(folder / "predictions.csv", table)
    if images is not None:
        write_csv(folder / "catalogue.csv", images)
    config = _config(seeds)
    write_text(folder / "training_config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    write_json(folder / "metrics.json", record)
    write_report(folder)


def _assess(pooled: Pooled, table: pd.DataFrame, images: pd.DataFrame | None) -> SubsetAssessment:
    joined = table if images is None else join(table, images)
    located, summary = pd.DataFrame(), {}
    if len(pooled.boxes):
        located = pooled.located()
        joined = joined.merge(located[["image_id", "box_size"]], on="image_id", how="left")
        summary = summarise_located([pooled], images)
    stratified = strata.stratify(joined, pooled.threshold, bootstrap_weights(table["group"]))
    assessed = SubsetAssessment(SUBSET, joined, stratified, {}, located, summary)
    if found := pooled.all_detections:
        # The thresholds of candidates differ between folds, so that no score depends on one.
        assessed.detection = detection.score(found)
        assessed.candidates = found.candidates[["image_id", "score", "in_box"]].astype({"in_box": int})
    return assessed


def _record(name: str, seeds: Sequence[Folds], pooled: Pooled) -> dict[str, Any]:
    """Return the contents of ``metrics.json`` without scores."""
    records, first = [record for folds in seeds for record in folds], seeds[0][0].facts
    thresholds = pooled.table["fold_threshold"].drop_duplicates().tolist()
    temperatures = sorted(record.point["temperature"] for record in records)
    found: dict[str, Any] = {
        "task_name": name if _is_complete(seeds[0]) else f"{name} ({count_folds(seeds[0])} folds)",
        "model": first["model"],
        "seed": ", ".join(str(folds[0].facts["seed"]) for folds in seeds),
        "operating_point": {
            "rule": first["operating_point"]["rule"],
            "threshold": pooled.threshold,
            "temperature": 1.0,
            "folds": {
                "networks": len(records),
                "thresholds": sorted(thresholds),
                "temperatures": [temperatures[0], temperatures[-1]],
            },
        },
        "leaks": max(
            (record.facts.get("leaks", {}) for record in records),
            key=lambda leaks: sum(leak["divided"] for leak in leaks.values()),
        ),
    }
    found |= {key: first[key] for key in ("heatmaps", "weights", "precision", "device") if key in first}
    if "versions" in first:
        commits = {commit for record in records for commit in record.facts["commits"].values()}
        found["versions"] = first["versions"] | {"commit": " ".join(sorted(commits))}
    if not found["leaks"]:
        del found["leaks"]
    return found


def _config(seeds: Sequence[Folds]) -> dict[str, Any]:
    """Return the configuration of the trainings, with all seeds.

    ``split.fold`` is ``None``, or a list of the folds, if they are not all.
    """
    config: dict[str, Any] = {}
    for key, value in seeds[0][0].settings.items():
        *groups, last = key.split(".")
        part = config
        for group in groups:
            part = part.setdefault(group, {})
        part[last] = value
    config["split"]["fold"] = None if _is_complete(seeds[0]) else [record.fold for record in seeds[0]]
    config["seed"] = ", ".join(str(folds[0].facts["seed"]) for folds in seeds)
    return config


def _is_complete(folds: Folds) -> bool:
    return len(folds) == folds[0].settings["split.folds"]
