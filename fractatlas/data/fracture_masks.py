"""Draw the outlines and boxes of fractures as masks of the preprocessed image."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fractatlas.data.transforms import Preprocess

OUTLINES, BOXES = 0, 1  # channels of a mask


class FractureMasks:
    """Draw the masks of the fractured images of a table.

    Args:
        table: one row per image with ``image_id, label, width, height``.
        outlines: by image id, the polygons of its fractures: float (k, 2), x and y in pixels of the upright radiograph.
        boxes: by image id, (n, 4): left, top, right, bottom, likewise.
        preprocess: the geometry.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        outlines: Mapping[str, Sequence[np.ndarray]],
        boxes: Mapping[str, np.ndarray],
        preprocess: Preprocess,
    ):
        self.size = preprocess.size
        self._shapes: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}  # by row, in pixels of the square
        for row, image in enumerate(table.itertuples()):
            corners = boxes.get(image.image_id)
            if image.label == 0 or corners is None:
                continue
            left, top, right, bottom = preprocess.view(int(image.width), int(image.height))
            origin, scale = np.array([left, top]), self.size / np.array([right - left, bottom - top])
            polygons = [(polygon - origin) * scale for polygon in outlines.get(image.image_id, ())]
            self._shapes[row] = polygons, (corners.reshape(-1, 2, 2) - origin) * scale

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Draw the masks of ``rows``: uint8 (n, 2, size, size), 1 in a fracture.

        The channel ``OUTLINES`` contains the polygons, or the boxes of an image without polygons, and the channel
        ``BOXES`` the boxes: the pixels whose centres are in them.
        """
        masks = np.zeros((len(rows), 2, self.size, self.size), dtype=np.uint8)
        for mask, row in zip(masks, rows, strict=True):
            polygons, corners = self._shapes.get(int(row), ((), ()))
            for box in corners:
                (left, top), (right, bottom) = np.clip(np.round(box), 0, self.size).astype(int)
                mask[BOXES, top:bottom, left:right] = 1
            mask[OUTLINES] = _fill(polygons, self.size) if polygons else mask[BOXES]
        return torch.from_numpy(masks)


def _fill(polygons: Sequence[np.ndarray], size: int) -> np.ndarray:
    image = Image.new("L", (size, size))
    pen = ImageDraw.Draw(image)
    for polygon in polygons:
        # Pillow has pixel centres at whole numbers.
        pen.polygon([(x, y) for x, y in (polygon - 0.5).tolist()], fill=1)
    return np.asarray(image)
