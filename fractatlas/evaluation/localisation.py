"""Measure how well heatmaps agree with the boxes of the fractures, compared with the image's centre and with chance.

Two measures over all fractured images, true positives and false negatives. The *pointing game*: is the heatmap's
maximum in a box (Zhang et al., Top-Down Neural Attention by Excitation Backprop, IJCV 2018; here without its tolerance
of 15 pixels)? The *energy-based pointing game*: which share of the heat is in the boxes (Wang et al., Score-CAM, CVPR
workshops 2020)?
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fractatlas.data.sources.fracatlas import BODY_PARTS
from fractatlas.errors import InputError
from fractatlas.evaluation.bootstrap import bootstrap_weights, interval, proportion_interval

SHORTER_SIDE = 256  # pixels of the shorter side of a radiograph when it is scored and when box sizes are measured
BOX_SIZES = {"below 16 px": (0, 16), "16 to 32 px": (16, 32), "32 px and more": (32, np.inf)}
SCORES = ("hit", "hit_centre", "hit_chance", "share", "share_chance")
FRACTURE_MAP, GRADCAM = "fracture map", "Grad-CAM"  # kinds of heatmaps
DIFFERENCES = (("hit", "hit_centre"), ("hit", "hit_chance"), ("share", "share_chance"))


@dataclass
class Heatmaps:
    """Heatmaps of n radiographs.

    Attributes:
        image_id: str (n,), unique.
        heat: float16 or float32 (n, h, w), finite, at least 0, on any scale. The cells tile the view, starting at the
            upper left. Activation maps of strided networks often do not tile it: see ``models.heatmaps``.
        view: float32 (n, 4): left, top, right, bottom of the rectangle that the heatmap covers, in pixels of the
            upright radiograph. It can be smaller than the radiograph (a crop) or larger (a letterbox).
    """

    image_id: np.ndarray
    heat: np.ndarray
    view: np.ndarray


def read_heatmaps(path: Path) -> Heatmaps:
    """Read an ``.npz`` file with the arrays of ``Heatmaps``; nothing in the file is executed.

    Raises:
        InputError: the file does not exist, or is not such a file.
    """
    if not path.is_file():
        raise InputError(f"heatmaps={path}: no such file; correct the path")
    try:
        with np.load(path, allow_pickle=False) as file:
            heatmaps = Heatmaps(*(file[name] for name in ("image_id", "heat", "view")))
    except KeyError as error:
        raise InputError(f"{path} has no array {str(error).split()[0]}; it needs image_id, heat and view") from None
    except (ValueError, EOFError, OSError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"{path} is not a complete .npz file of plain arrays; write it with numpy.savez") from None
    if problem := _problem(heatmaps):
        raise InputError(f"{path}: {problem}")
    return heatmaps


def _problem(heatmaps: Heatmaps) -> str:
    """Return why the arrays are invalid, or an empty string."""
    ids, heat, view = heatmaps.image_id, heatmaps.heat, heatmaps.view
    if ids.dtype.kind != "U" or ids.ndim != 1:
        return f"image_id is {ids.dtype} {ids.shape}, should be strings (n,)"
    if len(set(ids.tolist())) < len(ids):
        return f"image_id contains {pd.Series(ids)[pd.Series(ids).duplicated()].iloc[0]} more than once"
    if heat.dtype.kind != "f" or heat.ndim != 3 or len(heat) != len(ids) or not heat.size:
        return f"heat is {heat.dtype} {heat.shape}, should be floats ({len(ids)}, height, width)"
    if view.dtype.kind != "f" or view.shape != (len(ids), 4):
        return f"view is {view.dtype} {view.shape}, should be floats ({len(ids)}, 4)"
    valid = np.isfinite(heat).all(axis=(1, 2)) & (heat >= 0).all(axis=(1, 2))
    if not valid.all():
        return f"the heat of {ids[~valid][0]} should be finite and at least 0"
    valid = np.isfinite(view).all(axis=1) & (view[:, 0] < view[:, 2]) & (view[:, 1] < view[:, 3])
    if not valid.all():
        return f"the view of {ids[~valid][0]} should be left < right, top < bottom, in pixels"
    return ""


def place(heat: np.ndarray, view: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resample a heatmap to the pixels of its radiograph, bilinearly between the centres of its cells.

    Args:
        heat: (h, w).
        view: left, top, right, bottom of the rectangle that it covers, in pixels of the result.
        width: of the result.
        height: of the result.

    Returns:
        float64 (height, width), zero outside the view.
    """
    left, top, right, bottom = (float(edge) for edge in view)
    rows = _interpolation(heat.shape[0], top, bottom, height)
    columns = _interpolation(heat.shape[1], left, right, width)
    return rows @ heat.astype(np.float64) @ columns.T


def _interpolation(cells: int, start: float, end: float, pixels: int) -> np.ndarray:
    """Return the weight of each cell between ``start`` and ``end`` for each pixel of one axis: (pixels, cells)."""
    centres = np.arange(pixels) + 0.5
    position = np.clip((centres - start) / (end - start) * cells - 0.5, 0, cells - 1)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells)))
    return weights * ((centres >= start) & (centres <= end))[:, None]


def localise(heatmaps: Heatmaps, boxes: Mapping[str, np.ndarray], sizes: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    """Score every radiograph that has boxes, resampled to ``SHORTER_SIDE`` pixels.

    Args:
        heatmaps: of these radiographs; others are ignored.
        boxes: for each fractured image id, (n, 4) left, top, right, bottom in pixels of the upright radiograph.
        sizes: for each image id to score, width and height of the upright radiograph.

    Returns:
        One row for each image of ``sizes`` that has boxes: ``image_id``;
        ``hit``: 1 if the heatmap's maximum is in a box, else 0; 0 also for a heatmap of zeros. Of several maxima, the
        one nearest to their mean is used;
        ``hit_centre``: the same for the centre of the radiograph;
        ``hit_chance``: the same for a random point, which is the boxes' share of the area;
        ``share``: the boxes' share of the heat, 0 for a heatmap of zeros;
        ``share_chance``: the same for a constant heatmap, which is again the share of the area;
        ``box_size``: the longest side of a box in pixels.
        A box outside the view (cropped away) is not hit.

    Raises:
        InputError: a radiograph with boxes has no heatmap.
    """
    rows = {name: row for row, name in enumerate(heatmaps.image_id.tolist())}
    wanted = [name for name in sizes if len(boxes.get(name, ()))]
    if lacking := [name for name in wanted if name not in rows]:
        raise InputError(f"heatmaps: {len(lacking)} images with boxes have none, such as {lacking[0]}; add them")
    scores = [
        {"image_id": name, **_score(heatmaps.heat[rows[name]], heatmaps.view[rows[name]], boxes[name], *sizes[name])}
        for name in wanted
    ]
    return pd.DataFrame(scores, columns=["image_id", *SCORES, "box_size"])


def _score(heat: np.ndarray, view: np.ndarray, boxes: np.ndarray, width: int, height: int) -> dict[str, float]:
    # Scoring at a fixed size makes large radiographs as fast as small ones.
    columns, rows = (max(1, round(side * SHORTER_SIDE / min(width, height))) for side in (width, height))
    scale = np.array([columns / width, rows / height] * 2)
    heat, boxes = place(heat, view * scale, columns, rows), boxes * scale
    inside = np.zeros((rows, columns), dtype=bool)
    x, y = np.arange(columns) + 0.5, np.arange(rows) + 0.5
    for left, top, right, bottom in boxes:
        inside |= ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))
    total = heat.sum()
    return {
        "hit": int(total > 0 and inside[_maximum(heat)]),
        "hit_centre": int(inside[rows // 2, columns // 2]),
        "hit_chance": inside.mean(),
        "share": heat[inside].sum() / total if total > 0 else 0.0,
        "share_chance": inside.mean(),
        "box_size": (boxes[:, 2:] - boxes[:, :2]).max(),
    }


def _maximum(heat: np.ndarray) -> tuple[int, int]:
    """Return row and column of the largest value; if there are several, of that nearest to their mean.

    Beyond the centres of the outermost cells a heatmap is constant, so a maximum at the edge has several points.
    """
    points = np.argwhere(heat >= heat.max() * (1 - 1e-9))
    row, column = points[((points - points.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int(row), int(column)


def summarise(table: pd.DataFrame, groups: Mapping[str, Any], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Average the columns of ``localise`` over all images, by the size of the largest box and by body part.

    Args:
        table: from ``localise``, with any of the columns ``BODY_PARTS`` (0 or 1) of a catalogue.
        groups: the group of each image id; images of one group are drawn together.
        seed: of the bootstrap.

    Returns:
        For ``all``, each of ``BOX_SIZES`` and each body part in the table: ``n``, and for each column and each paired
        difference (``hit_minus_centre, hit_minus_chance, share_minus_chance``) ``value, low, high``: the mean and its
        95 % interval, as from ``bootstrap.interval``; ``None`` if there is no image. An image that shows several body
        parts counts in each.
    """
    columns = {name: table[name].to_numpy(np.float64) for name in SCORES}
    for one, other in DIFFERENCES:
        columns[f"{one}_minus_{other.partition('_')[2]}"] = columns[one] - columns[other]
    group = np.array([groups[name] for name in table["image_id"]], dtype=object)
    weights = bootstrap_weights(group, seed=seed) if len(table) else np.ones((1, 0))
    size = table["box_size"].to_numpy(np.float64)
    kept = {"all": size >= 0} | {name: (size >= low) & (size < high) for name, (low, high) in BOX_SIZES.items()}
    kept |= {name: table[name].to_numpy() == 1 for name in BODY_PARTS if name in table}
    summary: dict[str, dict[str, Any]] = {}
    for name, rows in kept.items():
        summary[name], groups_of_size = {"n": int(rows.sum())}, len(set(group[rows]))
        for column, of_images in columns.items():
            with np.errstate(invalid="ignore"):  # 0 / 0 in samples without an image of this size
                means = weights[:, rows] @ of_images[rows] / weights[:, rows].sum(axis=1)
            is_proportion = column in ("hit", "hit_centre") and groups_of_size > 1
            at_least = proportion_interval(means, int(rows.sum()), groups_of_size) if is_proportion else None
            summary[name][column] = interval(means, at_least)
    return summary
