"""Generate phantoms: radiograph-like images of long bones, some fractured, in the layout of FracAtlas.

They serve to try all commands without the data set, and for tests. Bones have cortex, marrow, texture and ends, and
are surrounded by soft tissue, noise and a lead marker; skin folds and vessel canals resemble fractures slightly. A
fracture is a thin dark line across a bone, often with a step. Its median length is 22 pixels at a shorter image side of
256 pixels, as in FracAtlas.
"""

import json
import logging
import os
import shutil
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

from fractatlas.data.sources.fracatlas import BODY_PARTS, COCO, COLUMNS, VIEWS
from fractatlas.progress_bar import track
from fractatlas.signals import signal_handlers
from fractatlas.wording import plural

log = logging.getLogger(__name__)
FRACTURED_SHARE = 0.4
TRUNCATED_SHARE = 0.01
SIZES = ((248, 302), (302, 248), (248, 302), (302, 248), (372, 452))  # width, height: most small, some larger


@dataclass
class Phantom:
    """One generated image: ``pixels`` uint8 (height, width), ``boxes`` float32 (n, 4) left, top, right, bottom."""

    pixels: np.ndarray
    boxes: np.ndarray
    attributes: dict[str, int]


def generate(root: Path, images: int, seed: int) -> None:
    """Write a data set of phantoms to ``root``, completely or not at all.

    The same arguments give the same files, byte for byte.

    Args:
        root: a folder that does not exist yet.
        images: number of images; ``FRACTURED_SHARE`` of them are fractured, ``TRUNCATED_SHARE`` are truncated files.
        seed: seed of the random numbers.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        generator = np.random.default_rng([seed, images])
        fractured = generator.permutation(images) < round(FRACTURED_SHARE * images)
        not_fractured = generator.permutation(np.flatnonzero(~fractured))
        truncated = set(not_fractured[: max(2, round(TRUNCATED_SHARE * images))].tolist())
        for folder in ("images/Fractured", "images/Non_fractured", COCO.parent):
            (temporary / folder).mkdir(parents=True)
        write, numbers = partial(_write, temporary, seed, truncated), range(images)
        workers = min(os.cpu_count() or 1, images // 200)
        log.info("generating %s in %s", plural(images, "phantom"), root)
        if workers > 1:
            # "spawn", because a process forked from one with threads can deadlock.
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                # Started with Ctrl-C ignored, which processes inherit: a terminal sends it to all of them.
                with signal_handlers(signal.SIG_IGN, (signal.SIGINT,)):
                    written = pool.map(write, numbers, fractured.tolist(), chunksize=25)
                try:
                    rows = list(track(written, "generating phantoms", images))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        else:
            rows = list(track(map(write, numbers, fractured.tolist()), "generating phantoms", images))
        pd.DataFrame([row for row, _, _ in rows])[["image_id", *COLUMNS]].to_csv(temporary / "dataset.csv", index=False)
        (temporary / COCO).write_text(json.dumps(_coco(rows), indent=1), encoding="utf-8")
        temporary.chmod(0o755)
        temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def draw(generator: np.random.Generator, fractured: bool) -> Phantom:
    """Draw one phantom.

    Args:
        generator: source of all random numbers.
        fractured: whether one of the bones is fractured.
    """
    width, height = SIZES[generator.integers(len(SIZES))]
    scale = min(width, height) / 256
    y, x = np.mgrid[:height, :width].astype(np.float32)
    body_part = int(generator.choice(4, p=[0.4, 0.4, 0.1, 0.1]))
    bones = (3, 2, 1, 1)[body_part] if generator.random() < 0.8 else 1
    thickness = (9, 15, 24, 20)[body_part] * scale * generator.uniform(0.85, 1.15)
    fractured_bone = int(generator.integers(bones)) if fractured else -1
    angle = generator.normal(0, 0.12)  # between the limb and the vertical, radians
    centre = np.array([width, height]) / 2 + generator.normal(0, 8 * scale, 2)
    spacing = thickness * generator.uniform(2.6, 3.4)

    along, across = _limb_coordinates(x - centre[0], y - centre[1], angle)
    limb = spacing * bones / 2 + thickness * generator.uniform(0.8, 1.6)
    tissue = 0.30 / (1 + np.exp((np.abs(across) - limb) / (4 * scale)))
    picture = 0.05 + tissue * (1 + 0.15 * _texture(generator, (height, width), 20 * scale))
    grain = 1 + 0.10 * _texture(generator, (height, width), 2.5 * scale)
    boxes = []
    for bone in range(bones):
        offset = (bone - (bones - 1) / 2) * spacing
        absorption, line = _bone(generator, along, across - offset, thickness, scale, bone == fractured_bone)
        picture = picture + absorption * grain
        if line is not None:
            boxes.append(_box(line, offset, centre, angle, width, height))
    picture = picture - _skin_folds(generator, along, across, limb, scale)
    _marker(generator, picture, scale)
    exposure = generator.uniform(0.85, 1.2)
    picture = 1 - np.exp(-exposure * 1.6 * np.maximum(picture, 0))  # saturation of the film
    noise = 0.013 * generator.standard_normal(picture.shape, dtype=np.float32)
    picture = gaussian_filter(picture.astype(np.float32), 0.5 * scale) + noise
    pixels = (np.clip(picture * generator.uniform(0.95, 1.1), 0, 1) * 255).round().astype(np.uint8)
    view = int(generator.choice(3, p=[0.5, 0.4, 0.1]))
    attributes = {name: int(BODY_PARTS.index(name) == body_part) for name in BODY_PARTS}
    attributes |= {name: int(VIEWS.index(name) == view) for name in VIEWS}
    attributes |= {"fractured": int(fractured), "fracture_count": len(boxes), "hardware": 0, "multiscan": 0}
    return Phantom(pixels, np.array(boxes, dtype=np.float32).reshape(-1, 4), attributes)


def _bone(
    generator: np.random.Generator,
    along: np.ndarray,
    across: np.ndarray,
    thickness: float,
    scale: float,
    fractured: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the absorption of one bone and the points of its fracture line as (along, across)."""
    length = generator.uniform(75, 170) * scale
    start = generator.uniform(-25, 25) * scale
    s = along - start
    across = across - generator.normal(0, 4e-4 / scale) * s**2
    points, gap = None, 0.0
    if fractured:
        where = generator.uniform(-0.65, 0.65) * min(length, 110 * scale)
        slope = generator.normal(0, 0.45)
        knots_at, knots = np.linspace(-thickness, thickness, 9), generator.normal(0, 1.2 * scale, 9)
        beyond = s - where - slope * across - np.interp(across, knots_at, knots)
        step = generator.choice([-1, 1]) * generator.uniform(0.15, 0.8) * thickness
        across = across - step / (1 + np.exp(-beyond / (0.6 * scale)))
        opening = generator.uniform(1.5, 3.5) * scale
        gap = generator.uniform(0.75, 1.0) * np.exp(-((beyond / opening) ** 2))
        u = np.linspace(-thickness, thickness, 25)
        points = np.stack([start + where + slope * u + np.interp(u, knots_at, knots), u], 1)
    flare = 1 + 0.45 * np.exp((np.abs(s) - length) / (16 * scale))
    half = thickness * np.minimum(flare, 1.6)
    ends = 1 / (1 + np.exp((np.abs(s) - length) / (1.2 * scale)))
    inside = ends / (1 + np.exp((np.abs(across) - half) / (0.8 * scale)))
    cortex = np.exp(-(((np.abs(across) - 0.82 * half) / (0.22 * thickness)) ** 2))
    canal_at = generator.uniform(-0.5, 0.5) * length
    canal = (np.abs(s - canal_at - 2.5 * across) < 1.0 * scale) & (np.abs(s - canal_at) < 9 * scale)
    shade = inside * (0.34 + 0.30 * cortex) * (1 - gap) - 0.06 * inside * canal
    return shade.astype(np.float32), points


def _skin_folds(
    generator: np.random.Generator, along: np.ndarray, across: np.ndarray, limb: float, scale: float
) -> np.ndarray:
    """Return faint dark lines that cross tissue and bone."""
    folds = np.zeros_like(along)
    for _ in range(generator.integers(0, 3)):
        line = along - generator.uniform(-90, 90) * scale - generator.normal(0, 0.3) * across
        folds += generator.uniform(0.02, 0.05) * np.exp(-((line / (1.6 * scale)) ** 2)) * (np.abs(across) < limb)
    return folds


def _marker(generator: np.random.Generator, picture: np.ndarray, scale: float) -> None:
    """Add a lead letter in a corner of ``picture``."""
    size = round(14 * scale)
    top = int(generator.integers(4, 20)) if generator.random() < 0.5 else picture.shape[0] - size - 8
    left = int(generator.integers(4, 20)) if generator.random() < 0.5 else picture.shape[1] - size - 8
    stroke = max(2, size // 5)
    picture[top : top + size, left : left + stroke] += 0.9
    picture[top + size - stroke : top + size, left : left + size // 2 + 2] += 0.9


def _texture(generator: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Return smooth noise with a standard deviation of about 1 and grains of ``sigma`` pixels."""
    size = (int(shape[1] / sigma) + 2, int(shape[0] / sigma) + 2)
    coarse = generator.standard_normal(size[::-1], dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))


def _limb_coordinates(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Convert image coordinates to (along, across) a limb at ``angle`` to the vertical."""
    return y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)


def _box(points: np.ndarray, offset: float, centre: np.ndarray, angle: float, width: int, height: int) -> list[float]:
    """Return the box around a fracture line with a margin of 3 pixels."""
    along, across = points[:, 0], points[:, 1] + offset
    x = centre[0] + along * np.sin(angle) + across * np.cos(angle)
    y = centre[1] + along * np.cos(angle) - across * np.sin(angle)
    left, right = np.clip([x.min() - 3, x.max() + 3], 0, width)
    top, bottom = np.clip([y.min() - 3, y.max() + 3], 0, height)
    return [float(left), float(top), float(right), float(bottom)]


def _write(root: Path, seed: int, truncated: set[int], number: int, fractured: bool) -> tuple[dict, np.ndarray, tuple]:
    """Write one file; return its row of ``dataset.csv``, its boxes and its (width, height)."""
    generator = np.random.default_rng([seed, number])
    phantom = draw(generator, fractured)
    name = f"IMG{number:07d}.jpg"
    file = root / "images" / ("Fractured" if fractured else "Non_fractured") / name
    image = Image.fromarray(phantom.pixels)
    if generator.random() < 0.85:
        image = image.convert("RGB")  # most files of FracAtlas are grey images stored as RGB
    image.save(file, quality=90)
    if number in truncated:
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    return {"image_id": name, **phantom.attributes}, phantom.boxes, image.size


def _coco(rows: list[tuple[dict, np.ndarray, tuple]]) -> dict:
    images: list[dict] = []
    annotations: list[dict] = []
    for row, boxes, (width, height) in rows:
        if len(boxes):
            images.append({"id": len(images), "width": width, "height": height, "file_name": row["image_id"]})
        for left, top, right, bottom in boxes.tolist():
            box = [left, top, right - left, bottom - top]
            outline = [left, top, right, top, right, bottom, left, bottom]
            shape = {"bbox": box, "area": box[2] * box[3], "segmentation": [outline], "iscrowd": 0}
            ids = {"id": len(annotations), "image_id": images[-1]["id"], "category_id": 0}
            annotations.append(ids | shape)
    return {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "fractured"}]}
