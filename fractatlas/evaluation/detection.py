"""Score candidate boxes against the boxes of the fractures: FROC, AP at an IoU, false alarms on negative images.

FROC (free-response receiver operating characteristic): Bunch et al., A Free Response Approach to the Measurement and
Characterization of Radiographic Observer Performance, Proceedings of SPIE 127:124, 1977. The rates of false alarms are
those of the LUNA16 challenge without the last (Setio et al., Medical Image Analysis 42:1, 2017). AP (average
precision): Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, with the matching and the 101-point
interpolation of ``pycocotools``.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from fractatlas.evaluation.bootstrap import (
    TAIL,
    Score,
    bootstrap_weights,
    interval,
    proportion_interval,
    without_interval,
)
from fractatlas.evaluation.candidates import CORNERS, MOST
from fractatlas.evaluation.metrics import MIN_GROUPS, weights_above
from fractatlas.evaluation.operating_point import midpoint_below
from fractatlas.wording import plural

FALSE_ALARMS = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1.0, "2": 2.0, "4": 4.0}  # per image
IOUS = {"ap_30": 0.3, "ap_50": 0.5}
RECALLS = np.linspace(0, 1, 101)  # of the interpolated precision-recall curve
# False alarms per image, of the drawn FROC curve, which has the values of the tables.
CURVE = np.unique([*np.geomspace(0.05, 4, 60), *FALSE_ALARMS.values()])
BLOCK = 4_000_000  # bootstrap samples times candidates that are computed at once; limits memory


@dataclass
class Detections:
    """Candidates and boxes of n radiographs, matched by position.

    Attributes:
        images: one row for each radiograph, with ``image_id, label, group``.
        candidates: the rows of ``candidates.find_candidates`` of these radiographs, with ``in_box`` (bool: the peak is
            in a box) and ``row`` (of ``images``). With the columns of ``match_by_iou``, the corners are not needed.
        boxes: one row for each box: ``left, top, right, bottom`` in pixels, ``row`` (of ``images``) and ``score``, the
            highest of the candidates whose peak is in the box, ``-inf`` if there is none.
    """

    images: pd.DataFrame
    candidates: pd.DataFrame
    boxes: pd.DataFrame
    _bootstrapped: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    def bootstrapped(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores in bootstrap samples of the groups; they are computed once.

        Args:
            seed: of the bootstrap.

        Returns:
            The sensitivity at ``FALSE_ALARMS`` and ``CURVE``, (b, rates), and the AP at each of ``IOUS``, (b, 2).
        """
        if seed not in self._bootstrapped:
            weights = bootstrap_weights(self.images["group"], seed=seed)
            self._bootstrapped[seed] = _resample(self, weights, np.r_[[*FALSE_ALARMS.values()], CURVE])
        return self._bootstrapped[seed]

    def by_score(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return sensitivity and false alarms per image at each distinct score.

        Args:
            weights: float64 (b, n), how often each image counts.

        Returns:
            The scores (k,), descending; the sensitivity over boxes and the false alarms per image with each score as
            threshold: two (b, k). The sensitivity is NaN in samples without a box.
        """
        found = self.boxes[np.isfinite(self.boxes["score"])]
        alarms = self.candidates[~self.candidates["in_box"]]
        scores = np.r_[found["score"], alarms["score"]]
        rows = np.r_[found["row"], alarms["row"]].astype(int)
        labels = np.arange(len(rows)) < len(found)
        if not len(rows):
            return np.zeros(0), np.zeros((len(weights), 0)), np.zeros((len(weights), 0))
        hits, misses, _ = weights_above(labels, scores, weights, rows)
        with np.errstate(invalid="ignore"):  # 0 / 0 in samples without a box
            sensitivity = hits / self.box_weights(weights)[:, None]
        return np.unique(scores)[::-1], sensitivity, misses / weights.sum(axis=1, keepdims=True)

    def box_weights(self, weights: np.ndarray) -> np.ndarray:
        """Return how many boxes the images of each row of ``weights`` (b, n) have: (b,)."""
        return weights[:, self.boxes["row"].to_numpy(dtype=int)].sum(axis=1)


def match(images: pd.DataFrame, candidates: pd.DataFrame, boxes: Mapping[str, np.ndarray]) -> Detections:
    """Match candidates with boxes by the position of their peaks.

    Args:
        images: ``image_id, label, group`` of the radiographs. Fractured ones without a box are omitted, because the
            position of their fracture is not known; boxes of images without a fracture are ignored.
        candidates: from ``candidates.find_candidates``; rows of other images are ignored.
        boxes: for each fractured image id, (n, 4): left, top, right, bottom in pixels of the upright radiograph.
    """
    boxed = images["image_id"].isin([name for name, corners in boxes.items() if len(corners)])
    images = images[boxed | (images["label"] == 0)].reset_index(drop=True)
    rows = {name: row for row, name in enumerate(images["image_id"])}
    candidates = candidates[candidates["image_id"].isin(rows)].reset_index(drop=True)
    candidates = candidates.assign(row=candidates["image_id"].map(rows).astype(int), in_box=False)
    of_image = {name: table for name, table in candidates.groupby("image_id")}
    listed = []
    for name in images.loc[images["label"] == 1, "image_id"]:
        table = of_image.get(name, candidates[:0])
        x, y, scores = (table[column].to_numpy() for column in ("x", "y", "score"))
        for left, top, right, bottom in np.asarray(boxes[name], dtype=np.float64):
            inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
            candidates.loc[table.index[inside], "in_box"] = True
            listed.append((left, top, right, bottom, rows[name], scores[inside].max(initial=-np.inf)))
    rows_of_boxes = np.array(listed, dtype=np.float64).reshape(-1, 6)
    return Detections(images, candidates, pd.DataFrame(rows_of_boxes, columns=[*CORNERS, "row", "score"]))


def choose_box_threshold(detections: Detections) -> float | None:
    """Choose the score of the highest F1 of candidates against boxes.

    A box is a true positive if the peak of a candidate with at least this score is in it. A candidate whose peak is in
    no box is a false positive.

    Returns:
        The midpoint between this score and the next lower one, so that rounding changes no decision; ``None`` if no
        peak is in a box.
    """
    scores, sensitivity, alarms = detections.by_score(np.ones((1, len(detections.images))))
    found, false = sensitivity * len(detections.boxes), alarms * len(detections.images)
    if not (found > 0).any():
        return None
    f1 = 2 * found / (found + false + len(detections.boxes))
    return midpoint_below(scores, int(np.argmax(f1[0])))


def score(detections: Detections, box_threshold: float | None = None, seed: int = 0) -> dict[str, Any]:
    """Compute the detection scores of a subset with their 95 % intervals.

    Args:
        detections: of the subset, with at least one image.
        box_threshold: the smallest score of a candidate that counts as an alarm, chosen on other images; ``None`` omits
            the scores that need it.
        seed: of the bootstrap, which draws the images of one group together.

    Returns:
        ``n``, ``boxes`` and ``negatives`` (numbers of images, boxes and images without a fracture); ``froc``: for each
        of ``FALSE_ALARMS``, the sensitivity over boxes at the lowest threshold with at most so many false alarms per
        image; ``ap_30`` and ``ap_50``; ``curve``: ``false_alarms, sensitivity, low, high`` at each of ``CURVE``. With
        ``box_threshold``, which is repeated: ``sensitivity`` over boxes, ``alarm_rate`` (the share of images without a
        fracture that have a candidate at or above the threshold) and ``alarms_per_negative`` (the mean number of such
        candidates in an image without a fracture). Scores have ``value, low, high`` as from ``bootstrap.interval``; an
        undefined score is ``None``.
    """
    images, boxes = detections.images, detections.boxes
    scores = mean_score([detections], seed)
    if box_threshold is None:
        return scores
    weights = bootstrap_weights(images["group"], seed=seed)
    negative, groups = images["label"].to_numpy() == 0, _groups(detections)
    counted = detections.candidates.loc[detections.candidates["score"] >= box_threshold, "row"]
    alarms = np.bincount(counted.astype(int), minlength=len(images))
    found = np.bincount(boxes["row"].astype(int), boxes["score"] >= box_threshold, minlength=len(images))
    with np.errstate(invalid="ignore"):  # 0 / 0 in samples without a box or without a negative image
        sensitivity = weights @ found / detections.box_weights(weights)
        rate, mean = (weights[:, negative] @ of[negative] / weights[:, negative].sum(axis=1)
                      for of in (alarms > 0, alarms))  # fmt: skip
    return scores | {
        "box_threshold": box_threshold,
        "sensitivity": _proportion(sensitivity, len(boxes), groups[0]),
        "alarm_rate": _proportion(rate, int(negative.sum()), groups[1]),
        "alarms_per_negative": interval(mean),
    }


def mean_score(several: Sequence[Detections], seed: int = 0) -> dict[str, Any]:
    """Return the mean over several networks of each score that needs no ``box_threshold``, as ``score`` does.

    Args:
        several: the detections of each network, of the same images and boxes.
        seed: of the bootstrap.
    """
    first = several[0]
    each = [detections.bootstrapped(seed) for detections in several]
    reached, precision = (np.mean(values, axis=0) for values in zip(*each, strict=True))
    box_groups, _ = _groups(first)
    froc = zip(FALSE_ALARMS, reached.T[: len(FALSE_ALARMS)], strict=True)
    average = {name: interval(values) for name, values in zip(IOUS, precision.T, strict=True)}
    if box_groups < MIN_GROUPS:
        reason = f"{plural(box_groups, 'group')} with a fracture, fewer than {MIN_GROUPS}"
        average = {name: one and without_interval(one["value"], reason) for name, one in average.items()}
    return {
        "n": len(first.images),
        "boxes": len(first.boxes),
        "negatives": int((first.images["label"] == 0).sum()),
        "froc": {name: _proportion(values, len(first.boxes), box_groups) for name, values in froc},
        **average,
        "curve": _curve(reached[:, len(FALSE_ALARMS) :]),
    }


def _groups(detections: Detections) -> tuple[int, int]:
    """Return the number of groups with a box, and with an image without a fracture."""
    group, negative = detections.images["group"].to_numpy(dtype=object), detections.images["label"].to_numpy() == 0
    return len(set(group[detections.boxes["row"].astype(int)])), len(set(group[negative]))


def _proportion(values: np.ndarray, count: int, groups: int) -> Score | None:
    return interval(values, proportion_interval(values, count, groups) if groups > 1 else None)


def resampled(detections: Detections, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute detection scores in bootstrap samples.

    Args:
        detections: of n images.
        weights: float64 (b, n), how often each image counts.

    Returns:
        ``froc``: the sensitivity over boxes at 1/2 false alarm per image, ``ap_30`` and ``ap_50``: float64 (b,).
    """
    reached, precision = _resample(detections, weights, np.array([FALSE_ALARMS["1/2"]]))
    return {"froc": reached[:, 0], **dict(zip(IOUS, precision.T, strict=True))}


def _resample(detections: Detections, weights: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sensitivity at each of ``rates``, (b, rates), and the AP at each of ``IOUS``, (b, 2)."""
    order, matched = _matches(detections)
    size = max(1, BLOCK // max(1, len(detections.candidates) + len(detections.boxes)))
    sensitivity, precision = [], []
    for start in range(0, len(weights), size):
        block = weights[start : start + size]
        sensitivity.append(_sensitivity_at(detections, block, rates))
        precision.append(_average_precision(detections, order, matched, block))
    return np.concatenate(sensitivity), np.concatenate(precision)


def _sensitivity_at(detections: Detections, weights: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Return the sensitivity at the lowest threshold with at most so many false alarms per image: (b, rates)."""
    _, sensitivity, alarms = detections.by_score(weights)
    undefined = detections.box_weights(weights) == 0
    sensitivity = np.c_[np.where(undefined, np.nan, 0.0), sensitivity]  # above the highest score
    # False alarms increase along a row: the number of thresholds within the limit is the index of the last one.
    index = np.stack([np.searchsorted(row, rates + 1e-9, side="right") for row in alarms])
    return np.take_along_axis(sensitivity, index, axis=1)


def _curve(curves: np.ndarray) -> dict[str, list[float]]:
    """Return the FROC curve with its pointwise 95 % band from its values (b, rates) in bootstrap samples."""
    resampled = curves[1:][np.isfinite(curves[1:]).all(axis=1)]
    low, high = np.quantile(resampled if len(resampled) else curves[:1], [TAIL, 1 - TAIL], axis=0)
    columns = {"false_alarms": CURVE, "sensitivity": curves[0], "low": low, "high": high}
    return {name: [round(float(value), 4) for value in values] for name, values in columns.items()}


def _matches(detections: Detections) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return indices of the candidates by decreasing score, and for each of ``IOUS`` whether they match a box."""
    order = np.argsort(-detections.candidates["score"].to_numpy(), kind="mergesort")
    known = {*IOUS} <= {*detections.candidates}
    table = detections.candidates if known else match_by_iou(detections)
    return order, [table[name].to_numpy(dtype=bool)[order] for name in IOUS]


def match_by_iou(detections: Detections) -> pd.DataFrame:
    """Match candidates with boxes by IoU, as COCO does.

    Returns:
        The candidates with a column for each of ``IOUS``: bool, whether the candidate is matched with a box.
    """
    from pycocotools.cocoeval import COCOeval  # takes a quarter of a second, and only detection needs it

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(*to_coco(detections), iouType="bbox")
        parameters = evaluation.params
        parameters.iouThrs, parameters.maxDets = np.array([*IOUS.values()]), [MOST]
        parameters.areaRng, parameters.areaRngLbl = [[0, np.inf]], ["all"]
        evaluation.evaluate()
    rows = [row for row in evaluation.evalImgs if row is not None]
    ids = np.array([number for row in rows for number in row["dtIds"]], dtype=int)
    matched = np.concatenate([np.zeros((len(IOUS), 0)), *(row["dtMatches"] for row in rows)], axis=1) > 0
    columns = np.zeros((len(IOUS), len(detections.candidates)), dtype=bool)
    columns[:, ids - 1] = matched
    return detections.candidates.assign(**dict(zip(IOUS, columns, strict=True)))


def to_coco(detections: Detections) -> tuple[Any, Any]:
    """Return the boxes and the candidates as objects of ``pycocotools.coco.COCO``; ids count from 1."""
    from pycocotools.coco import COCO

    pair = []
    for table in (detections.boxes, detections.candidates):
        coco = COCO()
        sides = table[["right", "bottom"]].to_numpy() - table[["left", "top"]].to_numpy()
        bbox = np.c_[table[["left", "top"]].to_numpy(), sides].tolist()
        records = zip(table["row"].tolist(), table["score"].tolist(), bbox, strict=True)
        coco.dataset = {
            "images": [{"id": row} for row in range(len(detections.images))],
            "categories": [{"id": 1}],
            "annotations": [
                {"id": number, "image_id": int(row), "category_id": 1, "iscrowd": 0, "bbox": corners, "score": value,
                 "area": corners[2] * corners[3]}
                for number, (row, value, corners) in enumerate(records, start=1)
            ],
        }  # fmt: skip
        coco.createIndex()
        pair.append(coco)
    return pair[0], pair[1]


def _average_precision(
    detections: Detections, order: np.ndarray, matched: Sequence[np.ndarray], weights: np.ndarray
) -> np.ndarray:
    """Return the mean of the interpolated precision at ``RECALLS``, weighted by image: (b, 2), NaN without a box."""
    boxes = detections.box_weights(weights)
    drawn = np.take(weights, detections.candidates["row"].to_numpy(dtype=int)[order], axis=1)
    every = np.cumsum(drawn, axis=1)
    columns = []
    for of in matched:
        # The interpolated precision is the highest at this recall or above, which is always that of a match.
        tp = np.cumsum(np.compress(of, drawn, axis=1), axis=1)
        precision = tp / np.maximum(np.compress(of, every, axis=1), np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        precision = np.c_[precision, np.zeros(len(weights))]  # beyond the highest recall
        recall = tp / np.maximum(boxes, np.spacing(1))[:, None]
        index = np.stack([np.searchsorted(row, RECALLS, side="left") for row in recall])
        columns.append(np.where(boxes > 0, np.take_along_axis(precision, index, axis=1).mean(axis=1), np.nan))
    return np.stack(columns, axis=1)
