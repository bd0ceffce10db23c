"""Find candidate boxes of fractures: the peaks of a heatmap and the regions around them."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.ndimage import label, maximum_filter

from fractatlas.evaluation.localisation import Heatmaps, place

MOST = 10  # candidates of an image
EXTENT = 0.5  # the region of a peak has at least this fraction of the peak's heat
FINE = 3  # points of the finer grid per side of a cell; odd, so that one of them is the cell's centre
CORNERS = ["left", "top", "right", "bottom"]
COLUMNS = ["image_id", *CORNERS, "score", "x", "y"]
DECIMALS = {**dict.fromkeys([*CORNERS, "x", "y"], 2), "score": 6}  # in a CSV file
NEIGHBOURS = np.ones((3, 3), dtype=bool)  # a cell touches eight others
TOLERANCE = 1e-3  # of a cell; views are rounded to float32


def find_candidates(heatmaps: Heatmaps, sizes: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    """Find the candidate boxes of several radiographs.

    Args:
        heatmaps: of these radiographs; others are ignored.
        sizes: for each image id, width and height of the upright radiograph in pixels.

    Returns:
        One row for each candidate, in the order of ``heatmaps`` and then by decreasing score: ``image_id`` and the
        columns of ``find_image_candidates``.
    """
    ids, found = [], [np.empty((0, len(COLUMNS) - 1))]
    for name, heat, view in zip(heatmaps.image_id.tolist(), heatmaps.heat, heatmaps.view, strict=True):
        if name in sizes:
            found.append(find_image_candidates(heat, view, *sizes[name]))
            ids += [name] * len(found[-1])
    table = pd.DataFrame(np.concatenate(found), columns=COLUMNS[1:])
    table.insert(0, "image_id", pd.Series(ids, dtype=object))
    return table


def find_image_candidates(heat: np.ndarray, view: np.ndarray, width: int, height: int) -> np.ndarray:
    """Find the candidate boxes of one radiograph.

    A peak is a cell, or several equal adjacent cells, with more heat than all adjacent cells. Its region contains the
    connected points with at least ``EXTENT`` of its heat, without those of larger candidates. The points are ``FINE`` x
    ``FINE`` per cell, interpolated as ``localisation.place`` does. A peak in the region of a larger candidate is not a
    candidate. Cells outside the radiograph, such as the padding of a letterbox, are ignored.

    Args:
        heat: (h, w), at least 0.
        view: left, top, right, bottom of the rectangle that the cells tile, in pixels of the upright radiograph.
        width: of the radiograph in pixels.
        height: of the radiograph in pixels.

    Returns:
        float64 (n, 7), at most ``MOST`` rows with decreasing score: left, top, right, bottom of the region's bounding
        box, clipped to the radiograph; the score, which is the peak's heat, above 0; x and y of the peak. All but the
        score are in pixels of the upright radiograph.
    """
    heat, (left, top, right, bottom) = _inside(np.asarray(heat), np.asarray(view, dtype=np.float64), width, height)
    rows, columns = heat.shape
    step_x, step_y = (right - left) / columns, (bottom - top) / rows
    peaks = label((heat == maximum_filter(heat, size=3, mode="nearest")) & (heat > 0), NEIGHBOURS)[0]
    cells = np.argwhere(peaks)
    order = np.argsort(-heat[tuple(cells.T)], kind="stable")
    fine = place(heat, np.array([0, 0, FINE * columns, FINE * rows]), FINE * columns, FINE * rows)
    taken, seen, found = np.zeros(fine.shape, dtype=bool), set(), []
    for row, column in cells[order]:
        number = peaks[row, column]
        centre = (FINE * row + FINE // 2, FINE * column + FINE // 2)
        if number in seen or taken[centre]:
            continue
        seen.add(number)
        regions = label((fine >= EXTENT * heat[row, column] * (1 - 1e-9)) & ~taken, NEIGHBOURS)[0]
        region = regions == regions[centre]
        taken |= region
        ys, xs = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        y, x = cells[peaks[tuple(cells.T)] == number].mean(axis=0) + 0.5
        box = (left + xs[0] / FINE * step_x, top + ys[0] / FINE * step_y,
               left + (xs[-1] + 1) / FINE * step_x, top + (ys[-1] + 1) / FINE * step_y)  # fmt: skip
        found.append((*box, heat[row, column], left + x * step_x, top + y * step_y))
        if len(found) == MOST:
            break
    table = np.array(found, dtype=np.float64).reshape(-1, len(COLUMNS) - 1)
    for column, side in ((0, width), (2, width), (5, width), (1, height), (3, height), (6, height)):
        table[:, column] = table[:, column].clip(0, side)
    return table


def _inside(heat: np.ndarray, view: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells that overlap the radiograph, float64, and the rectangle that they tile."""
    rows, top, bottom = _overlapping(heat.shape[0], view[1], view[3], height)
    columns, left, right = _overlapping(heat.shape[1], view[0], view[2], width)
    return heat[rows, columns].astype(np.float64), np.array([left, top, right, bottom])


def _overlapping(cells: int, start: float, end: float, side: int) -> tuple[slice, float, float]:
    """Return the cells of one axis that overlap 0 to ``side``, and their start and end."""
    step = (end - start) / cells
    first = min(max(0, int(np.floor(-start / step + TOLERANCE))), cells - 1)
    last = max(min(cells, int(np.ceil((side - start) / step - TOLERANCE))), first + 1)
    return slice(first, last), start + first * step, start + last * step
