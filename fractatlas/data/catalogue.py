"""The catalogue: one row per image of a FracAtlas folder, with its label, its size, and why it is left out if it is.

Abedeen et al., FracAtlas: A Dataset for Fracture Classification, Localization and Segmentation of Musculoskeletal
Radiographs, Scientific Data 10:521, 2023, doi 10.1038/s41597-023-02432-4. Published layout::

    images/{Fractured,Non_fractured}/IMG#######.jpg
    dataset.csv
    Annotations/COCO JSON/COCO_fracture_masks.json
"""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from fractatlas.data.groups import add_groups
from fractatlas.data.inspection import FIELDS, inspect_all
from fractatlas.errors import InputError

FOLDERS = {"Fractured": 1, "Non_fractured": 0}
BODY_PARTS = ("hand", "leg", "hip", "shoulder", "mixed")
VIEWS = ("frontal", "lateral", "oblique")
COLUMNS = (*BODY_PARTS, "hardware", "multiscan", "fractured", "fracture_count", *VIEWS)
GROUPS = ("duplicates", "study", "group")
CONTRADICTION = "duplicate with the opposite label"
FARTHEST = 1_000_000  # pixels; a box beyond is no box
COCO = Path("Annotations/COCO JSON/COCO_fracture_masks.json")


def read_catalogue(root: Path, memory: Path | None = None, keep_contradictions: bool = False) -> pd.DataFrame:
    """Read the published FracAtlas layout, and every image file once.

    The label is what at least two of the three witnesses say: ``dataset.csv``, the folder, and whether there is a
    box. Where they differ, ``note`` says so.

    Args:
        root: the folder that holds ``images/`` and ``dataset.csv``.
        memory: a folder that remembers what was found in the images; see ``inspect_all``.
        keep_contradictions: whether copies of one image with opposite labels stay in.

    Returns:
        A table ordered by ``image_id`` with the columns ``image_id, path`` (relative to ``root``), ``label`` (0 or
        1), those of ``dataset.csv``, ``boxes`` (how many), those of ``Inspection`` but its error, those of
        ``add_groups``, ``excluded`` (why the image is left out, or ``""``) and ``note``.

    Raises:
        InputError: the folder, the table or a value in it is not as published.
    """
    table = _read_table(root)
    files = _find_images(root)
    boxes = read_boxes(root)

    if not table["image_id"].isin(files.index).any():
        raise InputError(f"no image_id of {root / 'dataset.csv'} is the name of a file in {root / 'images'}")
    table = table.set_index("image_id").join(files, how="outer").rename_axis("image_id").reset_index()
    in_table = table["fractured"].notna()
    table[list(COLUMNS)] = table[list(COLUMNS)].fillna(0).astype(int)
    table["boxes"] = [len(boxes.get(image_id, ())) for image_id in table["image_id"]]
    table["path"] = table["path"].fillna("")
    table = table.join(inspect_all(root, table["path"], memory)).rename(columns={"error": "excluded"})
    table.loc[~in_table, "excluded"] = "not in dataset.csv"
    table.loc[table["path"] == "", "excluded"] = "no image file"

    folder = table["folder"].fillna(table["fractured"]).astype(int)
    # Without the annotations their vote is the table's.
    boxed = table["boxes"] > 0 if (root / COCO).is_file() else table["fractured"]
    votes = table["fractured"] + folder + boxed
    table["label"] = (votes >= 2).astype(int)
    disputed = ~votes.isin([0, 3]) & in_table & (table["path"] != "")
    table["note"] = ""
    table.loc[disputed, "note"] = [
        f"dataset.csv says {row.fractured}, the folder {int(row.folder)}, {row.boxes} boxes: taken as {row.label}"
        for row in table[disputed].itertuples()
    ]
    both = table["image_id"].isin(files.index[files["twice"]])
    table.loc[both, "note"] += "; in both class folders: the file in Fractured is taken"
    table["note"] = table["note"].str.removeprefix("; ")

    table = add_groups(table)
    if not keep_contradictions:
        table.loc[contradictions(table), "excluded"] = CONTRADICTION
    found = [name for name in FIELDS if name != "error"]
    return table[["image_id", "path", "label", *COLUMNS, "boxes", *found, *GROUPS, "excluded", "note"]]


def contradictions(catalogue: pd.DataFrame) -> pd.Series:
    """Tell the readable images that have a near-duplicate with the opposite label: bool, one for each row."""
    usable = catalogue[(catalogue["excluded"] == "") & (catalogue["duplicates"] != "")]
    opposite = usable.groupby("duplicates")["label"].transform("nunique") > 1
    return opposite.reindex(catalogue.index, fill_value=False)


def read_boxes(root: Path) -> dict[str, np.ndarray]:
    """Read the COCO boxes.

    Returns:
        For each image id with a fracture, float32 (n, 4): left, top, right, bottom in pixels of the upright image.

    Raises:
        InputError: the file is not COCO JSON.
    """
    file = root / COCO
    if not file.is_file():
        return {}
    try:
        coco = json.loads(file.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in coco["images"]}
        boxes: dict[str, list] = {}
        for annotation in coco["annotations"]:
            left, top, width, height = (float(value) for value in annotation["bbox"])
            if not all(-FARTHEST < value < FARTHEST for value in (left, top, width, height)) or min(width, height) < 0:
                raise ValueError(f"bbox {annotation['bbox']}")
            boxes.setdefault(str(names[annotation["image_id"]]), []).append([left, top, left + width, top + height])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{file} is not COCO JSON ({type(error).__name__}: {error})") from None
    return {name: np.array(rows, dtype=np.float32) for name, rows in boxes.items()}


def _read_table(root: Path) -> pd.DataFrame:
    file = root / "dataset.csv"
    if not file.is_file() or not (root / "images").is_dir():
        raise InputError(
            f"no FracAtlas in {root} (no {'images folder' if file.is_file() else 'dataset.csv'} there)\n"
            "Fetch it (make data), name another folder (FRACATLAS_ROOT=DIR), or try data=phantom"
        )
    try:
        table = pd.read_csv(file, encoding="utf-8-sig", dtype={"image_id": str})
    except (ValueError, OSError) as error:
        raise InputError(f"{file} is not a readable CSV file: {error}") from None
    if missing := [name for name in ("image_id", *COLUMNS) if name not in table]:
        raise InputError(f"{file} lacks the column {', '.join(missing)}; is it FracAtlas' own table?")
    if twice := table["image_id"][table["image_id"].duplicated()].tolist():
        raise InputError(f"{file} lists {twice[0]} more than once")
    for name in COLUMNS:
        values = pd.to_numeric(table[name], errors="coerce")
        wrong = values.isna() | (values < 0) | (values % 1 != 0) | ((values > 1) & (name != "fracture_count"))
        if wrong.any():
            row = int(np.argmax(wrong))
            allowed = "a count" if name == "fracture_count" else "0 or 1"
            raise InputError(f"{file} line {row + 2}: {name} is {table[name][row]}, should be {allowed}")
        table[name] = values.astype(int)
    return table[["image_id", *COLUMNS]]


def _find_images(root: Path) -> pd.DataFrame:
    """Index ``image_id``; columns ``path``, ``folder`` (1 fractured, 0 not) and ``twice``: Fractured wins then."""
    found: dict[str, tuple[str, int, bool]] = {}
    for folder, label in reversed(FOLDERS.items()):
        names = os.listdir(root / "images" / folder) if (root / "images" / folder).is_dir() else []
        images = [name for name in names if name.lower().endswith((".jpg", ".jpeg", ".png"))]
        if not images:
            raise InputError(f"no images in {root / 'images' / folder}; is the data set whole?")
        found |= {name: (f"images/{folder}/{name}", label, name in found) for name in images}
    return pd.DataFrame.from_dict(found, orient="index", columns=["path", "folder", "twice"])
