"""Pool the records of a recipe: over its folds, so that each image is predicted once for each seed, and over seeds.

Probabilities of different networks are comparable after calibration only. Pooled tables therefore contain calibrated
probabilities, each with the temperature of its own network, and the threshold of its own network on the same scale
(``fold_threshold``). Temperatures and thresholds were chosen on the validation subset of each fold.

The scores of candidate boxes are not calibrated. Pooled over folds, a score is replaced by the rate of false alarms of
its fold at this score, with a minus sign. The FROC curve is then the average of the folds' curves at equal rates of
false alarms (vertical averaging; Fawcett, An Introduction to ROC Analysis, Pattern Recognition Letters 27:861, 2006).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd
from hydra.utils import instantiate

from fractatlas.errors import InputError
from fractatlas.evaluation.detection import Detections
from fractatlas.evaluation.external_predictions import ALLOWED_RULES
from fractatlas.evaluation.operating_point import calibrate, choose_operating_point
from fractatlas.experiments.run_records import LOCALISED, RunRecord

Folds = Sequence[RunRecord]  # the runs of one recipe and seed: one for each fold, or a single one


@dataclass(eq=False)
class Pooled:
    """One prediction for each image of a subset; equal to itself only, and not to be changed.

    Attributes:
        table: ``image_id, group, split, label, probability``, sorted by ``image_id``; of folds and ensembles, the
            probability is calibrated. Pooled over folds, also ``fold_threshold``.
        threshold: the smallest probability that is classified as fractured; pooled over folds, the mean of their
            thresholds, for display only.
        boxes: ``run_records.BOX_COLUMNS``; empty without heatmaps.
        candidates: ``run_records.CANDIDATE_COLUMNS``; empty without the heatmaps of all images. Pooled over folds,
            scores of boxes and candidates are minus the false alarms per image at this score.
        detected: whether the heatmaps of all images were scored.
    """

    table: pd.DataFrame
    threshold: float
    boxes: pd.DataFrame
    candidates: pd.DataFrame
    detected: bool

    def located(self) -> pd.DataFrame:
        """Return one row for each image with a box, in the format of ``localisation.localise``."""
        return self.boxes.drop_duplicates("image_id")[["image_id", *LOCALISED]].reset_index(drop=True)

    @cached_property
    def all_detections(self) -> Detections | None:
        """The result of ``detections`` for all images, with the scores that it has computed."""
        return self.detections(self.table)

    def detections(self, table: pd.DataFrame) -> Detections | None:
        """Return the candidates and boxes of the images of a table with ``image_id, label, group``.

        Fractured images without a box are omitted, as by ``detection.match``; ``None`` without the heatmaps of all
        images.
        """
        if not self.detected:
            return None
        images = table[(table["label"] == 0) | table["image_id"].isin(self.boxes["image_id"])].reset_index(drop=True)
        rows = pd.Series(images.index, index=images["image_id"])
        candidates = self.candidates[self.candidates["image_id"].isin(rows.index)].reset_index(drop=True)
        boxes = self.boxes[self.boxes["image_id"].isin(rows.index)].reset_index(drop=True)
        return Detections(
            images[["image_id", "label", "group"]],
            candidates.assign(row=candidates["image_id"].map(rows).astype(int), in_box=candidates["in_box"] == 1),
            boxes[["size"]].assign(
                row=boxes["image_id"].map(rows).astype(int), score=boxes["score"].fillna(-np.inf).astype(float)
            ),
        )


def pool(folds: Folds, subset: str) -> Pooled:
    """Join the predictions of a subset over the folds of one seed; once for the same records.

    Args:
        folds: the runs of one recipe and seed; a single run without folds is returned as it is, not calibrated.
        subset: ``val`` or ``test``.

    Raises:
        InputError: an image is in this subset of two folds.
    """
    return _pool(tuple(folds), subset)


@lru_cache(maxsize=64)  # several tables of a plan need the same ones
def _pool(folds: tuple[RunRecord, ...], subset: str) -> Pooled:
    if folds[0].fold is None:
        (record,) = folds
        return _join(folds, subset, [record.tables[subset]], [record.point["threshold"]])
    tables, thresholds = [], []
    for record in folds:
        temperature = record.point["temperature"]
        threshold = float(calibrate(np.array([record.point["threshold"]]), temperature)[0])
        probability = calibrate(record.tables[subset]["probability"], temperature)
        tables.append(_plain(record.tables[subset]).assign(probability=probability, fold_threshold=threshold))
        thresholds.append(threshold)
    return _join([_by_false_alarms(record, subset) for record in folds], subset, tables, thresholds)


def _by_false_alarms(record: RunRecord, subset: str) -> RunRecord:
    """Replace the scores of boxes and candidates of a subset by minus the false alarms per image at this score."""
    boxes, candidates = (table[table["split"] == subset] for table in (record.boxes, record.candidates))
    every = np.sort(candidates["score"].to_numpy(dtype=np.float64))
    alarms = np.sort(candidates.loc[candidates["in_box"] == 0, "score"].to_numpy(dtype=np.float64))

    def rates(scores: pd.Series) -> pd.Series:
        count = len(alarms) - np.searchsorted(alarms, scores, side="left")
        above = len(every) - np.searchsorted(every, scores, side="right")  # keeps the order at equal rates
        return pd.Series(-count / len(record.tables[subset]) - 1e-9 * above, scores.index).where(scores.notna())

    boxes, candidates = (table.assign(score=rates(table["score"])) for table in (boxes, candidates))
    return replace(record, boxes=boxes, candidates=candidates)


def ensemble(seeds: Sequence[Folds]) -> dict[str, Pooled]:
    """Average the calibrated probabilities of the seeds for each image, and choose the thresholds again on validation.

    Computed once for the same records.

    Args:
        seeds: for each seed, of one or several recipes, its folds, the same for all seeds. Images that a seed does not
            have are omitted. The rule for the thresholds is that of the first seed.

    Returns:
        By subset, ``val`` and ``test``, without heatmaps.

    Raises:
        InputError: the seeds have no image of a fold in common; an image has different labels, or is in different folds
            or subsets, in two seeds; or it is in one subset of two folds.
    """
    return _ensemble(tuple(map(tuple, seeds)))


@lru_cache(maxsize=16)
def _ensemble(seeds: tuple[tuple[RunRecord, ...], ...]) -> dict[str, Pooled]:
    for folds in seeds[1:]:
        _require_same_split(seeds[0], folds)
    rule = instantiate(_part(seeds[0][0].settings, "threshold"), _execution_whitelist_=ALLOWED_RULES)
    tables: dict[str, list[pd.DataFrame]] = {"val": [], "test": []}
    thresholds = []
    for records in zip(*seeds, strict=True):  # of one fold
        means = {subset: _mean(records, subset) for subset in tables}
        threshold = choose_operating_point(means["val"], rule, "")["threshold"]
        thresholds.append(threshold)
        for subset, table in means.items():
            tables[subset].append(table if records[0].fold is None else table.assign(fold_threshold=threshold))
    return {subset: _join([], subset, several, thresholds) for subset, several in tables.items()}


def require_equal_labels(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> None:
    """Check that an image has the same label in all tables.

    Args:
        tables: ``image_id, label``.
        names: of their recipes, for the message.

    Raises:
        InputError: an image has different labels.
    """
    labels = pd.concat([table[["image_id", "label"]] for table in tables]).groupby("image_id")["label"].nunique()
    if (several := labels[labels > 1]).size:
        recipes = " and ".join(dict.fromkeys(names))
        raise InputError(f"{recipes}: {several.index[0]} has different labels; use recipes of one data set")


def _require_same_split(first: Folds, second: Folds) -> None:
    names = [folds[0].facts["recipe"] for folds in (first, second)]
    require_equal_labels([record.predictions for folds in (first, second) for record in folds], names)
    one, other = (
        pd.concat([record.predictions[["image_id", "split"]].assign(fold=record.fold) for record in folds])
        for folds in (first, second)
    )
    place, keys = ("split", ["image_id"]) if first[0].fold is None else ("fold", ["image_id", "split"])
    both = one.merge(other, on=keys, suffixes=("", "_second"))
    if (differ := both[place] != both[f"{place}_second"]).any():
        image = both.loc[differ, "image_id"].iloc[0]
        recipes = " and ".join(dict.fromkeys(names))
        raise InputError(f"{recipes}: {image} is in different folds or subsets; an ensemble needs one split")


def _mean(records: Sequence[RunRecord], subset: str) -> pd.DataFrame:
    tables = [record.tables[subset] for record in records]
    common = set.intersection(*(set(table["image_id"]) for table in tables))
    if not common:
        names = " and ".join(sorted({record.facts["recipe"] for record in records}))
        raise InputError(f"{names}: an ensemble needs {subset} images that all seeds have; use the same split")
    tables = [table[table["image_id"].isin(common)].reset_index(drop=True) for table in tables]
    pairs = zip(tables, records, strict=True)
    calibrated = [calibrate(table["probability"], record.point["temperature"]) for table, record in pairs]
    return _plain(tables[0]).assign(probability=np.mean(calibrated, axis=0))


def _join(records: Folds, subset: str, tables: Sequence[pd.DataFrame], thresholds: Sequence[float]) -> Pooled:
    table = pd.concat(tables).sort_values("image_id", ignore_index=True)
    if (repeated := table["image_id"].duplicated()).any():
        name = table.loc[repeated, "image_id"].iloc[0]
        raise InputError(f"{name} is in the {subset} subset of two folds; delete the records of this recipe")
    located = bool(records) and all(subset in record.facts["located"] for record in records)
    detected = located and all(subset in record.facts["detected"] for record in records)
    boxes, candidates = (
        pd.concat([of[of["split"] == subset] for of in several], ignore_index=True) if known else pd.DataFrame()
        for several, known in (
            ([record.boxes for record in records], located),
            ([record.candidates for record in records], detected),
        )
    )
    return Pooled(table, float(np.mean(thresholds)), boxes, candidates, detected)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    return table[["image_id", "group", "split", "label"]]


def _part(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the settings of one part of a configuration, such as ``threshold``, without its name."""
    return {key.removeprefix(f"{name}."): value for key, value in settings.items() if key.startswith(f"{name}.")}
