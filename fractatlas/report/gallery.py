"""Radiographs for the page and for TensorBoard: the most confident mistakes, and where the network looks."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from fractatlas.data.inspection import decode
from fractatlas.evaluation.localisation import Heatmaps, place
from fractatlas.report.overlays import overlay

SIDE = 256  # pixels of a picture's shorter side
MISTAKES, HEATMAPS = 8, 12


def mistakes(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Pick the ``MISTAKES`` fractured images of the lowest probability, and as many others of the highest.

    Args:
        table: ``image_id, label, probability``, one part.
        threshold: fractured from this probability on; what is on the right side of it is no mistake.
    """
    ranked = table.sort_values(["probability", "image_id"])
    missed = ranked[(ranked["label"] == 1) & (ranked["probability"] < threshold)].head(MISTAKES)
    alarms = ranked[(ranked["label"] == 0) & (ranked["probability"] >= threshold)].tail(MISTAKES)[::-1]
    return pd.concat([missed, alarms])


def across(table: pd.DataFrame, count: int = HEATMAPS) -> pd.DataFrame:
    """Pick ``count`` fractured images, from the surest to the least sure in even steps, so that nobody chose them."""
    fractured = table[table["label"] == 1].sort_values(["probability", "image_id"], ascending=[False, True])
    return fractured.iloc[np.unique(np.linspace(0, len(fractured) - 1, min(count, len(fractured))).round().astype(int))]


def pictures(
    table: pd.DataFrame, root: Path, boxes: Mapping[str, np.ndarray], heatmaps: Heatmaps | None
) -> list[dict[str, Any]]:
    """Draw every image of ``table``: its radiograph, the boxes of its fractures and, where there is one, its heatmap.

    Args:
        table: ``image_id, path, label, probability``, one row per picture.
        root: the data folder; an image that is no longer there, or not in the catalogue, is left out.
        boxes: for each fractured image id, (n, 4) left, top, right, bottom in pixels.
        heatmaps: scaled to its own hottest point each.

    Returns:
        For each ``image_id, label, probability`` and ``image`` (PIL, RGB, ``SIDE`` pixels on the shorter side).
    """
    where = {} if heatmaps is None else {name: row for row, name in enumerate(heatmaps.image_id.tolist())}
    drawn = []
    for row in table.itertuples():
        if not isinstance(row.path, str) or not (root / row.path).is_file():
            continue
        image = decode((root / row.path).read_bytes())
        scale = SIDE / min(image.size)
        small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
        heat = None
        if row.image_id in where:
            at = where[row.image_id]
            heat = place(heatmaps.heat[at], heatmaps.view[at] * scale, *small.size)
            heat = heat / max(heat.max(), 1e-9)
        found = boxes.get(row.image_id)
        picture = overlay(small, heat, None if found is None else found * scale)
        drawn.append({"image_id": row.image_id, "label": row.label, "probability": row.probability, "image": picture})
    return drawn


def grid(drawn: list[dict[str, Any]], columns: int = 4) -> np.ndarray:
    """Put pictures side by side: uint8 (height, width, 3)."""
    tiles = [np.asarray(ImageOps.pad(item["image"], (SIDE, SIDE))) for item in drawn]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[row : row + columns]) for row in range(0, len(tiles), columns)])


def data_address(image: Image.Image) -> str:
    """A ``data:`` address of a picture, as JPEG."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
