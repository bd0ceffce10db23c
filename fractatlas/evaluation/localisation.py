"""Where a heatmap points, held against the boxes of the fractures, beside what the image's centre and chance get.

Two questions. The *pointing game* (Zhang et al., Top-Down Neural Attention by Excitation Backprop, IJCV 2018, here
without its tolerance of 15 pixels): does the hottest point lie in a box? The *energy-based pointing game* (Wang et al.,
Score-CAM, CVPR workshops 2020): what share of the heat lies in the boxes? All fractured images count, found or missed.
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fractatlas.errors import InputError
from fractatlas.evaluation.bootstrap import draws, interval

SHORTER_SIDE = 256  # pixels that a radiograph is looked at in, and that box sizes are given in
SIZES = {"below 16 px": (0, 16), "16 to 32 px": (16, 32), "32 px and more": (32, np.inf)}
DIFFERENCES = (("hit", "hit_centre"), ("hit", "hit_chance"), ("share", "share_chance"))


@dataclass
class Heatmaps:
    """Heat over the views of n radiographs.

    Args:
        image_id: str (n,), each once.
        heat: float16 or float32 (n, h, w), finite, 0 and above, on any scale; its cells tile the view, the first at the
            upper left. Strided networks' own maps often do not: see ``models.heatmaps.lay_out``.
        view: float32 (n, 4): left, top, right, bottom of the rectangle that the map covers, in pixels of the upright
            radiograph. It may lie inside (a crop) or reach beyond (a letterbox).
    """

    image_id: np.ndarray
    heat: np.ndarray
    view: np.ndarray


def read_heatmaps(path: Path) -> Heatmaps:
    """Read a ``.npz`` file with the arrays of ``Heatmaps``, from whatever system.

    Raises:
        InputError: it is not such a file; nothing in it is executed.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Heatmaps(*(file[name] for name in ("image_id", "heat", "view")))
    except KeyError as error:
        raise InputError(f"{path} has no array {str(error).split()[0]}; it needs image_id, heat and view") from None
    except (ValueError, EOFError, OSError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"{path} is not an .npz file of plain arrays, or is broken") from None
    if wrong := _wrong(found):
        raise InputError(f"{path}: {wrong}")
    return found


def _wrong(found: Heatmaps) -> str:
    """What is wrong with heatmaps, or ``""``."""
    ids, heat, view = found.image_id, found.heat, found.view
    if ids.dtype.kind != "U" or ids.ndim != 1:
        return f"image_id is {ids.dtype} {ids.shape}, should be a row of names"
    if len(set(ids.tolist())) < len(ids):
        return f"image_id lists {pd.Series(ids)[pd.Series(ids).duplicated()].iloc[0]} more than once"
    if heat.dtype.kind != "f" or heat.ndim != 3 or len(heat) != len(ids) or not heat.size:
        return f"heat is {heat.dtype} {heat.shape}, should be floats ({len(ids)}, height, width)"
    if view.dtype.kind != "f" or view.shape != (len(ids), 4):
        return f"view is {view.dtype} {view.shape}, should be floats ({len(ids)}, 4)"
    sound = np.isfinite(heat).all(axis=(1, 2)) & (heat >= 0).all(axis=(1, 2))
    if not sound.all():
        return f"the heat of {ids[~sound][0]} should be finite and 0 or above"
    sound = np.isfinite(view).all(axis=1) & (view[:, 0] < view[:, 2]) & (view[:, 1] < view[:, 3])
    if not sound.all():
        return f"the view of {ids[~sound][0]} should be left < right, top < bottom, in pixels"
    return ""


def place(heat: np.ndarray, view: np.ndarray, width: int, height: int) -> np.ndarray:
    """Lay a map over its radiograph, bilinearly between the middles of its cells.

    Args:
        heat: (h, w).
        view: left, top, right, bottom of what it covers, in the pixels of ``width`` x ``height``.
        width: of the radiograph, in the pixels to give.
        height: likewise.

    Returns:
        float64 (height, width), zero outside the view.
    """
    left, top, right, bottom = (float(edge) for edge in view)
    rows = _between(heat.shape[0], top, bottom, height)
    columns = _between(heat.shape[1], left, right, width)
    return rows @ heat.astype(np.float64) @ columns.T


def _between(cells: int, start: float, end: float, pixels: int) -> np.ndarray:
    """What each pixel of one axis takes from each cell between ``start`` and ``end``: (pixels, cells)."""
    middles = np.arange(pixels) + 0.5
    at = np.clip((middles - start) / (end - start) * cells - 0.5, 0, cells - 1)
    shares = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells)))
    return shares * ((middles >= start) & (middles <= end))[:, None]


def localise(heatmaps: Heatmaps, boxes: Mapping[str, np.ndarray], sizes: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    """Score every radiograph that has a box, with its shorter side at ``SHORTER_SIDE`` pixels.

    Args:
        heatmaps: of these radiographs; of others, too.
        boxes: for each fractured image id, (n, 4) left, top, right, bottom in pixels of the upright radiograph.
        sizes: width and height of the upright radiographs that are to be scored, by image id.

    Returns:
        One row for each image of ``sizes`` that has boxes: ``image_id``; ``hit``, 1 if the hottest point lies in a
        box, else 0, also where there is no heat (of several equally hot points, the one nearest to their middle);
        ``hit_centre``, the same of the radiograph's centre; ``hit_chance``, of a point drawn evenly, so the boxes'
        share of the area; ``share`` of the radiograph's heat in the boxes, 0 without any; ``share_chance``, of a map
        that is the same everywhere, again the share of the area; ``box_size``, the longest side of a box in pixels.
        What a crop left out counts: a box there cannot be hit.

    Raises:
        InputError: a radiograph with boxes has no heatmap.
    """
    rows = {name: row for row, name in enumerate(heatmaps.image_id.tolist())}
    wanted = [name for name in sizes if len(boxes.get(name, ()))]
    if lacking := [name for name in wanted if name not in rows]:
        raise InputError(f"no heatmap of {lacking[0]}, nor of {len(lacking) - 1} others of {len(wanted)} with boxes")
    found = [
        {"image_id": name, **_score(heatmaps.heat[rows[name]], heatmaps.view[rows[name]], boxes[name], *sizes[name])}
        for name in wanted
    ]
    columns = ("image_id", "hit", "hit_centre", "hit_chance", "share", "share_chance", "box_size")
    return pd.DataFrame(found, columns=columns)


def _score(heat: np.ndarray, view: np.ndarray, boxes: np.ndarray, width: int, height: int) -> dict[str, float]:
    # So that a radiograph of 2304 x 2880 costs no more than another.
    columns, rows = (max(1, round(side * SHORTER_SIDE / min(width, height))) for side in (width, height))
    scale = np.array([columns / width, rows / height] * 2)
    heat, boxes = place(heat, view * scale, columns, rows), boxes * scale
    inside = np.zeros((rows, columns), dtype=bool)
    x, y = np.arange(columns) + 0.5, np.arange(rows) + 0.5
    for left, top, right, bottom in boxes:
        inside |= ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))
    total = heat.sum()
    return {
        "hit": int(total > 0 and inside[_hottest(heat)]),
        "hit_centre": int(inside[rows // 2, columns // 2]),
        "hit_chance": inside.mean(),
        "share": heat[inside].sum() / total if total > 0 else 0.0,
        "share_chance": inside.mean(),
        "box_size": (boxes[:, 2:] - boxes[:, :2]).max(),
    }


def _hottest(heat: np.ndarray) -> tuple[int, int]:
    """Row and column of the largest value; of several, the one nearest to their middle.

    Beyond the middles of the outermost cells a map is flat, so that there are many where it is hottest at its edge.
    """
    points = np.argwhere(heat >= heat.max() * (1 - 1e-9))
    row, column = points[((points - points.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int(row), int(column)


def summarise(table: pd.DataFrame, groups: Mapping[str, Any], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Average what ``localise`` found, over all images and by the size of the largest box.

    Args:
        table: of ``localise``.
        groups: the group of each image id; images of one group are drawn together.
        seed: of the bootstrap.

    Returns:
        For ``all`` and each of ``SIZES``: ``n``, and for each column and each paired difference
        (``hit_minus_centre, hit_minus_chance, share_minus_chance``) ``value, low, high``: the mean and its 95 %
        interval over bootstrap samples of groups; ``None`` where there is no image.
    """
    columns = {name: table[name].to_numpy(np.float64) for name in table if name not in ("image_id", "box_size")}
    for one, other in DIFFERENCES:
        columns[f"{one}_minus_{other.partition('_')[2]}"] = columns[one] - columns[other]
    group = np.array([groups[name] for name in table["image_id"]], dtype=object)
    weights = draws(group, seed=seed) if len(table) else np.ones((1, 0))
    size = table["box_size"].to_numpy(np.float64)
    kept = {"all": size >= 0} | {name: (size >= low) & (size < high) for name, (low, high) in SIZES.items()}
    with np.errstate(invalid="ignore"):  # 0 / 0 where no image of this size was drawn
        return {
            name: {"n": int(rows.sum())}
            | {
                column: interval(
                    weights[:, rows] @ values[rows] / weights[:, rows].sum(axis=1),
                    len(set(group[rows])) if column in ("hit", "hit_centre") else None,
                )
                for column, values in columns.items()
            }
            for name, rows in kept.items()
        }
