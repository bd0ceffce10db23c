"""Draw heatmaps and boxes over radiographs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageOps

from fractatlas.data.images import decode
from fractatlas.evaluation.localisation import Heatmaps, place

SIDE = 256  # pixels of the shorter side of a drawn radiograph
OPACITY = 0.55  # at the highest heat, so that the bone stays visible
BOX_COLOUR = (64, 224, 255)


def overlay(image: Image.Image, heat: np.ndarray | None, boxes: np.ndarray | None = None) -> Image.Image:
    """Draw heat and boxes over a radiograph; higher heat is more opaque.

    Args:
        image: of mode ``L``, upright.
        heat: (height, width) of the image, 0 to 1, as ``evaluation.localisation.place`` returns it after scaling;
            ``None`` draws none.
        boxes: (n, 4), left, top, right, bottom in the image's pixels.

    Returns:
        An image of mode ``RGB`` and the same size.
    """
    import matplotlib  # slow to import, and not every command draws

    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    if heat is not None:
        heat = np.clip(heat, 0, 1).astype(np.float32)
        opacity = OPACITY * heat[..., None]
        colours = matplotlib.colormaps["turbo"](heat, bytes=True)[..., :3]
        pixels = (1 - opacity) * pixels + opacity * colours
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    pen, thickness = ImageDraw.Draw(drawn), max(1, round(min(image.size) / 200))
    for left, top, right, bottom in () if boxes is None else np.asarray(boxes, dtype=float):
        corners = np.sort([[left, top], [right - 1, bottom - 1]], axis=0)  # right and bottom are exclusive
        pen.rectangle(corners.round().astype(int).ravel().tolist(), outline=BOX_COLOUR, width=thickness)
    return drawn


def draw_radiographs(
    table: pd.DataFrame, root: Path, boxes: Mapping[str, np.ndarray], heatmaps: Heatmaps | None
) -> list[dict[str, Any]]:
    """Draw every radiograph of a table with the boxes of its fractures and, if it has one, its heatmap.

    Args:
        table: ``image_id, path, label, probability``, one row per radiograph.
        root: the data folder; radiographs without a file in it are skipped.
        boxes: for each fractured image id, (n, 4) left, top, right, bottom in pixels.
        heatmaps: each is scaled to its own maximum.

    Returns:
        For each drawn radiograph ``image_id, label, probability`` and ``image``: PIL, RGB, ``SIDE`` pixels on the
        shorter side.
    """
    rows = {} if heatmaps is None else {name: row for row, name in enumerate(heatmaps.image_id.tolist())}
    drawn = []
    for item in table.itertuples():
        if not isinstance(item.path, str) or not (root / item.path).is_file():
            continue
        image = decode((root / item.path).read_bytes())
        scale = SIDE / min(image.size)
        small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
        heat = None
        if heatmaps is not None and item.image_id in rows:
            row = rows[item.image_id]
            heat = place(heatmaps.heat[row], heatmaps.view[row] * scale, *small.size)
            heat = heat / max(heat.max(), 1e-9)
        corners = boxes.get(item.image_id)
        picture = overlay(small, heat, None if corners is None else corners * scale)
        fields = {"image_id": item.image_id, "label": item.label, "probability": item.probability}
        drawn.append(fields | {"image": picture})
    return drawn


def tile(drawn: list[dict[str, Any]], columns: int = 4) -> np.ndarray:
    """Place the images of ``draw_radiographs`` in a grid: uint8 (height, width, 3)."""
    tiles = [np.asarray(ImageOps.pad(item["image"], (SIDE, SIDE))) for item in drawn]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[row : row + columns]) for row in range(0, len(tiles), columns)])
