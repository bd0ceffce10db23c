"""Predict one uploaded file: decode, preprocess, run the network, and describe the result as JSON."""

import asyncio
import base64
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fractatlas.data.dicom import RADIOGRAPHS, is_other_modality
from fractatlas.data.image_limits import UnreadableError
from fractatlas.data.images import read_content
from fractatlas.evaluation.candidates import CORNERS, DECIMALS
from fractatlas.evaluation.localisation import place
from fractatlas.inference.model import Model
from fractatlas.models.heatmaps import heatmap_kind
from fractatlas.serving.uploads import RequestError, Upload
from fractatlas.serving.worker import Output, Worker

REMEDY = (
    "upload another file: one complete radiograph, DICOM with one frame, JPEG, PNG, TIFF, BMP, JPEG 2000, WebP or AVIF"
)


@dataclass(frozen=True)
class _Decoded:
    """What is kept of an image: it can have a hundred million pixels."""

    pixels: Tensor
    size: tuple[int, int]
    modality: str
    png: str | None


class Predictor:
    """Predict uploaded files with one network.

    Images are decoded in ``threads`` threads, and the network runs in one thread. An image exists in memory only
    while one of these threads works on it.

    Args:
        model: the network.
        box_threshold: smallest score of a box; ``None``: that of the checkpoint.
        batch_size: of ``Worker``.
        threads: number of threads that decode; ``None``: one for each core.
        image_side: longer side, at most, of images and heatmaps in results, in pixels.
    """

    def __init__(
        self, model: Model, box_threshold: float | None, batch_size: int, threads: int | None, image_side: int
    ):
        self.model, self.image_side = model, image_side
        self.box_threshold = model.box_threshold if box_threshold is None else box_threshold
        self.kind = heatmap_kind(model.backbone)
        self._worker = Worker(model, batch_size)
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="decoder")

    async def predict(self, upload: Upload, heatmap: bool, image: bool) -> dict[str, Any]:
        """Return the result for one file.

        Args:
            upload: the file.
            heatmap: whether the result has the heatmap.
            image: whether the result has the upright image.

        Returns:
            ``name, probability, probability_calibrated, prediction, width, height, modality, warning`` and ``boxes``;
            ``map`` and ``image`` on request, as ``data:`` addresses of grey PNG images of the same size. ``modality``
            is that of a DICOM file, otherwise ``None``; ``warning`` is a text if it is not one of bone radiographs.
            ``boxes`` is ``None`` for a network without a fracture map, otherwise a list of ``left, top, right,
            bottom`` in pixels of the upright image, and ``score``.

        Raises:
            RequestError: the file cannot be read as one radiograph.
        """
        loop = asyncio.get_running_loop()
        try:
            decoded = await loop.run_in_executor(self._pool, self._decode, upload.content, image)
        except UnreadableError as error:
            problem, _, remedy = str(error).partition("; ")
            # Some reasons name what to do with a file in a folder.
            raise RequestError(422, problem, REMEDY if remedy in ("", "remove it") else remedy) from None
        output = await asyncio.wrap_future(self._worker.submit(decoded.pixels, heatmap))
        described = await loop.run_in_executor(self._pool, self._describe, decoded, output, heatmap)
        return {"name": upload.name} | described

    def close(self) -> None:
        """Finish the images that wait, and end the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._worker.close()

    def _decode(self, content: bytes, image: bool) -> _Decoded:
        radiograph = read_content(content)
        png = None
        if image:
            width, height = self._shown_size(radiograph.size)
            shown = radiograph if radiograph.size == (width, height) else radiograph.resize((width, height))
            png = _as_png(shown)
        return _Decoded(self.model.preprocess(radiograph), radiograph.size, radiograph.info.get("modality", ""), png)

    def _describe(self, decoded: _Decoded, output: Output, heatmap: bool) -> dict[str, Any]:
        calibrated = output.probability_calibrated if self.model.operating_point else None
        width, height = decoded.size
        result: dict[str, Any] = {
            "probability": output.probability,
            "probability_calibrated": calibrated,
            "prediction": int(output.fractured),
            "width": width,
            "height": height,
            "modality": decoded.modality or None,
            "warning": _warn(decoded.modality),
            "boxes": None,
        }
        if self.model.has_map and output.heat is not None:
            rows = self.model.find_boxes(output.heat, decoded.size, self.box_threshold).tolist()
            names = [*CORNERS, "score"]
            result["boxes"] = [
                {name: round(value, DECIMALS[name]) for name, value in zip(names, row, strict=True)} for row in rows
            ]
        if heatmap and output.heat is not None:
            result["map"] = self._draw(output.heat, decoded.size)
        if decoded.png:
            result["image"] = decoded.png
        return result

    def _draw(self, heat: np.ndarray, size: tuple[int, int]) -> str:
        """Return the heatmap as a grey PNG; white is probability 1 of a fracture map, and the maximum of Grad-CAM."""
        width, height = self._shown_size(size)
        view = np.array(self.model.preprocess.view(*size)) * np.tile([width / size[0], height / size[1]], 2)
        placed = place(heat, view, width, height)
        if not self.model.has_map:
            placed = placed / max(placed.max(), 1e-9)
        return _as_png(Image.fromarray((255 * placed.clip(0, 1)).round().astype(np.uint8)))

    def _shown_size(self, size: tuple[int, int]) -> tuple[int, int]:
        scale = min(1.0, self.image_side / max(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _warn(modality: str) -> str | None:
    if not is_other_modality(modality):
        return None
    return f"modality {modality} is not one of bone radiographs ({', '.join(RADIOGRAPHS)})"


def _as_png(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)  # ten times as fast as the default, and a tenth larger
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
