"""Read boxes and polygons from COCO JSON, YOLO and PASCAL VOC files, and write COCO JSON."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from fractatlas.errors import InputError
from fractatlas.io import write_text

MAX_COORDINATE = 1_000_000  # pixels; a larger value in a box is an error


@dataclass(frozen=True)
class Annotation:
    """One annotated fracture.

    Attributes:
        image_id: the image.
        box: left, top, right, bottom in pixels of the upright image.
        polygons: float32 (k, 2) each, x and y in pixels of the upright image; empty if only the box is known.
    """

    image_id: str
    box: list[float]
    polygons: list[np.ndarray] = field(default_factory=list)


def has_area(annotation: Annotation, size: tuple[int, int]) -> bool:
    """Return whether a part of the box is in an image of this width and height."""
    left, top, right, bottom = annotation.box
    return max(left, 0) < min(right, size[0]) and max(top, 0) < min(bottom, size[1])


def rename(annotations: Iterable[Annotation], names: Mapping[str, str]) -> list[Annotation]:
    """Replace the image ids that ``names`` contains."""
    return [replace(one, image_id=names.get(one.image_id, one.image_id)) for one in annotations]


def read_coco(file: Path) -> list[Annotation]:
    """Read COCO JSON; ``image_id`` is the ``file_name``. A run-length encoded mask is ignored, its box is used.

    Raises:
        InputError: the file is missing, or is not COCO JSON with finite boxes.
    """
    try:
        coco = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}; correct the path") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not COCO JSON ({error}); save it as JSON in UTF-8") from None
    try:
        names = {image["id"]: str(image["file_name"]) for image in coco["images"]}
        listed = list(coco["annotations"])
    except (LookupError, TypeError):
        content = "images (each with id and file_name) and annotations"
        raise InputError(f"{file} is not COCO JSON; it should have the lists {content}") from None
    return [_read_annotation(file, number, entry, names) for number, entry in enumerate(listed)]


def _read_annotation(file: Path, number: int, entry: Any, names: Mapping[Any, str]) -> Annotation:
    identity = entry.get("id") if isinstance(entry, dict) else None
    place = f"{file}: annotation {number + 1} of the list" if identity is None else f"{file}: annotation {identity}"
    try:
        name = names[entry["image_id"]]
    except (LookupError, TypeError):
        raise InputError(
            f"{place}: its image_id is not the id of an image in this file; correct or remove it"
        ) from None
    try:
        left, top, width, height = box = [float(value) for value in entry["bbox"]]
        if not all(abs(value) < MAX_COORDINATE for value in box):
            raise ValueError
    except (LookupError, TypeError, ValueError, OverflowError):
        raise InputError(
            f"{place}: bbox should be four numbers: left, top, width, height; correct or remove it"
        ) from None
    shapes = entry.get("segmentation") or []
    try:
        polygons = [_polygon(shape) for shape in shapes] if isinstance(shapes, list) else []
    except (TypeError, ValueError, OverflowError):
        problem = "segmentation should be lists of x and y, three points or more in each"
        raise InputError(f"{place}: {problem}; correct or remove it") from None
    return Annotation(name, [left, top, left + width, top + height], polygons)


def read_coco_sizes(file: Path) -> dict[str, tuple[int, int]]:
    """Return the width and height of each image that a COCO file states, by file name."""
    images = json.loads(file.read_text(encoding="utf-8-sig"))["images"]
    return {str(image["file_name"]): (int(image.get("width") or 0), int(image.get("height") or 0)) for image in images}


def write_coco(file: Path, annotations: Iterable[Annotation], sizes: Mapping[str, tuple[int, int]]) -> None:
    """Write COCO JSON with one category, ``fracture``; ``sizes`` are width and height by image id."""
    images: dict[str, dict[str, Any]] = {}
    entries: list[dict[str, Any]] = []
    for one in annotations:
        width, height = sizes.get(one.image_id, (0, 0))
        image = {"id": len(images), "file_name": one.image_id, "width": int(width), "height": int(height)}
        image = images.setdefault(one.image_id, image)
        left, top, right, bottom = one.box
        shapes = [polygon.ravel().tolist() for polygon in one.polygons]
        entry = {"id": len(entries), "image_id": image["id"], "category_id": 0, "iscrowd": 0, "segmentation": shapes}
        box = [left, top, right - left, bottom - top]
        entries.append(entry | {"bbox": box, "area": box[2] * box[3]})
    content = {"images": [*images.values()], "annotations": entries, "categories": [{"id": 0, "name": "fracture"}]}
    write_text(file, json.dumps(content))


def read_yolo(file: Path, category: int, size: tuple[int, int]) -> list[list[float]]:
    """Read the boxes of one category from a YOLO file: ``category x y width height``, as shares of the image.

    Args:
        file: one line per box.
        category: number of the category.
        size: width and height of the image in pixels.

    Returns:
        Left, top, right, bottom of each box in pixels.

    Raises:
        InputError: a line does not have this format.
    """
    boxes = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, x, y, width, height = (float(value) for value in line.split()[:5])
        except ValueError:
            problem = f"{file}, line {number}: {line.strip()[:40]!r} is no box"
            raise InputError(f"{problem}; a line has five numbers: category, x, y, width, height") from None
        if kind == category:
            corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            boxes.append((corners * [*size, *size]).tolist())
    return boxes


def read_voc(file: Path, category: str | None = None) -> tuple[str, tuple[int, int], list[list[float]]]:
    """Read a PASCAL VOC file.

    Args:
        file: XML of one image.
        category: the ``name`` of the boxes; ``None``: all.

    Returns:
        The file name of the image, its width and height as stated, and left, top, right, bottom of each box in pixels.

    Raises:
        InputError: the file is broken.
    """
    try:
        tree = ElementTree.parse(file)
        size = (int(tree.findtext("size/width") or 0), int(tree.findtext("size/height") or 0))
        boxes = [
            [float(shape.findtext(f"bndbox/{edge}") or "nan") for edge in ("xmin", "ymin", "xmax", "ymax")]
            for shape in tree.iterfind("object")
            if category in (None, shape.findtext("name"))
        ]
        if not np.isfinite(boxes).all():
            raise ValueError("a box without four numbers")
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as PASCAL VOC XML: {error}; correct or delete it") from None
    return tree.findtext("filename") or file.stem, size, boxes


def _polygon(shape: list[float]) -> np.ndarray:
    points = np.array(shape, dtype=np.float32).reshape(-1, 2)
    if len(points) < 3 or not (np.abs(points) < MAX_COORDINATE).all():  # false for NaN, too
        raise ValueError
    return points
