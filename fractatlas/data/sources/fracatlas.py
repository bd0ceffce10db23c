"""Read FracAtlas: the catalogue (one row per image, with label, size and reason for exclusion) and the boxes.

Source: Abedeen et al., FracAtlas: A Dataset for Fracture Classification, Localization and Segmentation of
Musculoskeletal Radiographs, Scientific Data 10:521, 2023, doi 10.1038/s41597-023-02432-4. Layout::

    images/{Fractured,Non_fractured}/IMG#######.jpg
    dataset.csv
    Annotations/COCO JSON/COCO_fracture_masks.json

Other data in this layout can have the columns of ``groups.GIVEN`` in ``dataset.csv``.
"""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from fractatlas.data.groups import GIVEN, add_groups, read_given
from fractatlas.data.integrity import FIELDS, inspect_all
from fractatlas.errors import InputError
from fractatlas.io import read_csv

FOLDERS = {"Fractured": 1, "Non_fractured": 0}
BODY_PARTS = ("hand", "leg", "hip", "shoulder", "mixed")
VIEWS = ("frontal", "lateral", "oblique")
COLUMNS = (*BODY_PARTS, "hardware", "multiscan", "fractured", "fracture_count", *VIEWS)
GROUPS = ("duplicates", "exam", "group")
CONTRADICTION = "duplicate with the opposite label"
MAX_COORDINATE = 1_000_000  # pixels; a larger value in a box is an error
COCO = Path("Annotations/COCO JSON/COCO_fracture_masks.json")


def read_catalogue(root: Path, cache: Path | None = None, keep_contradictions: bool = False) -> pd.DataFrame:
    """Read a FracAtlas folder and inspect each image file.

    The label is the majority of three sources: ``dataset.csv``, the class folder, and whether the image has a box. If
    they differ, the column ``note`` contains the three values.

    Args:
        root: folder that contains ``images/`` and ``dataset.csv``.
        cache: folder that stores image statistics; see ``inspect_all``.
        keep_contradictions: whether near-duplicates with opposite labels are kept.

    Returns:
        Table ordered by ``image_id`` with the columns ``image_id, path`` (relative to ``root``), ``label`` (0 or 1),
        ``COLUMNS`` of ``dataset.csv``, ``boxes`` (their number), the ``FIELDS`` of ``inspect`` without ``error``,
        ``GROUPS`` of ``add_groups``, the columns of ``GIVEN`` that ``dataset.csv`` has, ``excluded`` (the reason, or
        ``""``) and ``note``.

    Raises:
        InputError: the folder, ``dataset.csv`` or the annotations do not have the published format.
    """
    table = _read_table(root)
    files = _find_images(root)
    boxes = read_boxes(root)

    if not table["image_id"].isin(files.index).any():
        raise InputError(f"{root}: no image_id in dataset.csv matches a file in images/; use the table of these images")
    table = table.set_index("image_id").join(files, how="outer").rename_axis("image_id").reset_index()
    in_table = table["fractured"].notna()
    table[list(COLUMNS)] = table[list(COLUMNS)].fillna(0).astype(int)
    table["boxes"] = [len(boxes.get(image_id, ())) for image_id in table["image_id"]]
    given = [name for name in GIVEN.values() if name in table]
    table[["path", *given]] = table[["path", *given]].fillna("")
    table = table.join(inspect_all(root, table["path"], cache)).rename(columns={"error": "excluded"})
    table.loc[~in_table, "excluded"] = "not in dataset.csv"
    table.loc[table["path"] == "", "excluded"] = "no image file"

    folder = table["folder"].fillna(table["fractured"]).astype(int)
    # Without annotations, the label of dataset.csv replaces the label from the boxes.
    boxed = table["boxes"] > 0 if (root / COCO).is_file() else table["fractured"]
    votes = table["fractured"] + folder + boxed
    table["label"] = (votes >= 2).astype(int)
    disputed = ~votes.isin([0, 3]) & in_table & (table["path"] != "")
    table["note"] = ""
    table.loc[disputed, "note"] = [
        f"label {row.fractured} in dataset.csv, {int(row.folder)} by folder, {row.boxes} boxes: {row.label} is used"
        for row in table[disputed].itertuples()
    ]
    in_both = table["image_id"].isin(files.index[files["in_both_folders"]])
    table.loc[in_both, "note"] += "; in both class folders: the file in Fractured is used"
    table["note"] = table["note"].str.removeprefix("; ")

    table = add_groups(table)
    if not keep_contradictions:
        table.loc[contradictions(table), "excluded"] = CONTRADICTION
    statistics = [name for name in FIELDS if name != "error"]
    return table[["image_id", "path", "label", *COLUMNS, "boxes", *statistics, *GROUPS, *given, "excluded", "note"]]


def contradictions(catalogue: pd.DataFrame) -> pd.Series:
    """Return a bool per row: whether the image is usable and has a near-duplicate with the opposite label."""
    usable = catalogue[(catalogue["excluded"] == "") & (catalogue["duplicates"] != "")]
    opposite = usable.groupby("duplicates")["label"].transform("nunique") > 1
    return opposite.reindex(catalogue.index, fill_value=False)


def read_boxes(root: Path) -> dict[str, np.ndarray]:
    """Read the bounding boxes of the COCO annotations.

    Returns:
        Boxes by image id, only for images that have one: float32 (n, 4), left, top, right, bottom in pixels of the
        upright image. Empty if there is no annotation file.

    Raises:
        InputError: the file is not COCO JSON.
    """
    boxes: dict[str, list] = {}
    for name, box, _ in _read_annotations(root):
        boxes.setdefault(name, []).append(box)
    return {name: np.array(rows, dtype=np.float32) for name, rows in boxes.items()}


def read_outlines(root: Path) -> dict[str, list[np.ndarray]]:
    """Read the outlines of the fractures: the polygons of the COCO annotations, or the box where there is none.

    Returns:
        Polygons by image id, only for images that have one: float32 (k, 2), x and y in pixels of the upright image.
        Empty if there is no annotation file.

    Raises:
        InputError: the file is not COCO JSON.
    """
    outlines: dict[str, list[np.ndarray]] = {}
    for name, (left, top, right, bottom), polygons in _read_annotations(root):
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=np.float32)
        outlines.setdefault(name, []).extend(polygons or [corners])
    return outlines


def _read_annotations(root: Path) -> list[tuple[str, list[float], list[np.ndarray]]]:
    """Return image id, box (left, top, right, bottom) and polygons (k, 2) of each annotation."""
    file = root / COCO
    if not file.is_file():
        return []
    annotations = []
    try:
        coco = json.loads(file.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in coco["images"]}
        for annotation in coco["annotations"]:
            left, top, width, height = box = [float(value) for value in annotation["bbox"]]
            if not all(abs(value) < MAX_COORDINATE for value in box) or min(width, height) < 0:
                raise ValueError(f"bbox {annotation['bbox']}")
            shapes = annotation.get("segmentation") or []
            # A run-length encoded mask is a dict; its box is used.
            polygons = [_polygon(shape) for shape in shapes] if isinstance(shapes, list) else []
            name = str(names[annotation["image_id"]])
            annotations.append((name, [left, top, left + width, top + height], polygons))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{file} is not COCO JSON ({error!r}); download the data set again") from None
    return annotations


def _polygon(shape: list[float]) -> np.ndarray:
    points = np.array(shape, dtype=np.float32).reshape(-1, 2)
    if len(points) < 3 or not (np.abs(points) < MAX_COORDINATE).all():  # false for NaN, too
        raise ValueError(f"segmentation of {len(points)} points")
    return points


def require_layout(root: Path) -> None:
    """Require the table and the folder of images.

    Raises:
        InputError: one of them is missing.
    """
    file = root / "dataset.csv"
    if not file.is_file() or not (root / "images").is_dir():
        raise InputError(
            f"no FracAtlas in {root} ({'folder images' if file.is_file() else 'dataset.csv'} is missing); "
            "download it (make data), set another folder (FRACATLAS_ROOT=DIR), or use generated images (data=phantom)"
        )


def _read_table(root: Path) -> pd.DataFrame:
    require_layout(root)
    file = root / "dataset.csv"
    required = ["image_id", *COLUMNS]
    text = dict.fromkeys(("image_id", *GIVEN), str)
    table = read_csv(file, required, "use the table that FracAtlas contains", dtype=text)
    if (empty := table["image_id"].isna()).any():
        line = int(np.argmax(empty)) + 2
        raise InputError(f"{file}, line {line}: image_id is empty; give the name of the image file, or remove the row")
    if repeated := table["image_id"][table["image_id"].duplicated()].tolist():
        raise InputError(f"{file}: image_id {repeated[0]} occurs more than once; remove the repeated rows")
    for name in COLUMNS:
        values = pd.to_numeric(table[name], errors="coerce")
        wrong = values.isna() | (values < 0) | (values % 1 != 0) | ((values > 1) & (name != "fracture_count"))
        if wrong.any():
            row = int(np.argmax(wrong))
            allowed = "a count" if name == "fracture_count" else "0 or 1"
            raise InputError(f"{file}, line {row + 2}: {name} is {table[name][row]}, should be {allowed}")
        table[name] = values.astype(int)
    return table[required].join(read_given(table))


def _find_images(root: Path) -> pd.DataFrame:
    """List the image files by ``image_id``: ``path``, ``folder`` (1 fractured, 0 not), ``in_both_folders``.

    Of a file that is in both folders, the one in ``Fractured`` is listed.
    """
    files: dict[str, tuple[str, int, bool]] = {}
    for folder, label in reversed(FOLDERS.items()):
        names = os.listdir(root / "images" / folder) if (root / "images" / folder).is_dir() else []
        images = [name for name in names if name.lower().endswith((".jpg", ".jpeg", ".png"))]
        if not images:
            raise InputError(f"{root / 'images' / folder}: no images; the data set is incomplete, download it again")
        files |= {name: (f"images/{folder}/{name}", label, name in files) for name in images}
    return pd.DataFrame.from_dict(files, orient="index", columns=["path", "folder", "in_both_folders"])
