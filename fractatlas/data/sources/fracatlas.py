"""FracAtlas: 4,083 radiographs of hands, legs, hips and shoulders, labelled fractured or not.

Source: Abedeen et al., FracAtlas: A Dataset for Fracture Classification, Localization and Segmentation of
Musculoskeletal Radiographs, Scientific Data 10:521, 2023, doi 10.1038/s41597-023-02432-4. Licence: CC BY 4.0. Layout::

    images/{Fractured,Non_fractured}/IMG#######.jpg
    dataset.csv
    Annotations/COCO JSON/COCO_fracture_masks.json

Other data in this layout can have the columns of ``groups.GIVEN`` in ``dataset.csv``. The separator of the table, the
letter case of class folders and extensions, and ids without extension may differ.
"""

import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from fractatlas.data.groups import GIVEN, first_linked, read_given
from fractatlas.data.sources.annotations import Annotation, read_coco, read_coco_sizes, read_voc, rename
from fractatlas.data.sources.source import Source
from fractatlas.data.tables import read_table
from fractatlas.errors import InputError

FOLDERS = {"Fractured": 1, "Non_fractured": 0}
FOLDER_LABELS = {"fractured": 1, "nonfractured": 0, "notfractured": 0}  # by the letters of the name, in lower case
BODY = ["hand", "leg", "hip", "shoulder"]
BODY_PARTS = (*BODY, "mixed")
VIEWS = ("frontal", "lateral", "oblique")
COLUMNS = (*BODY_PARTS, "hardware", "multiscan", "fractured", "fracture_count", *VIEWS)
GAP = 2  # largest difference between neighbouring ids, because one image in between may be missing
COCO = Path("Annotations/COCO JSON/COCO_fracture_masks.json")
VOC = Path("Annotations/PASCAL VOC")


class FracAtlas(Source):
    """FracAtlas, or other data in its layout.

    The label is the majority of three sources: ``dataset.csv``, the class folder, and whether the image has a box. If
    they differ, ``note`` contains the three values. ``image_id`` is the name of the file. Exams are inferred from
    neighbouring ids, unless ``dataset.csv`` has a column ``exam``.

    Args:
        root: the data folder.
    """

    name = "FracAtlas"
    has_exams = True

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def require(self) -> None:
        """Require the table and the folder of images."""
        file, images = self.root / "dataset.csv", self.root / "images"
        if not file.is_file() or not images.is_dir():
            missing = "folder images" if file.is_file() else "dataset.csv"
            raise InputError(
                f"no FracAtlas in {self.root} ({missing} is missing); download it (make data), set another folder "
                "(FRACATLAS_ROOT=DIR), name your own data (data=table, data=folders), or use generated images "
                "(data=phantom)"
            )

    def rows(self) -> pd.DataFrame:
        """Return the columns of ``Source.rows`` and ``COLUMNS``; an image without a row of the table is excluded."""
        table, files = self._table, self._files
        table = table.set_index("image_id").join(files, how="outer").rename_axis("image_id").sort_index().reset_index()
        in_table = table["fractured"].notna()
        table[list(COLUMNS)] = table[list(COLUMNS)].fillna(0).astype(int)
        given = [name for name in GIVEN.values() if name in table]
        table[["path", *given]] = table[["path", *given]].fillna("")
        table["excluded"] = np.where(in_table, "", "not in dataset.csv")

        annotated = self.boxes()
        boxes = pd.Series([len(annotated.get(image_id, ())) for image_id in table["image_id"]], index=table.index)
        folder = table["folder"].fillna(table["fractured"]).astype(int)
        # Without annotations, the label of dataset.csv replaces the label from the boxes.
        votes = table["fractured"] + folder + (boxes > 0 if (self.root / COCO).is_file() else table["fractured"])
        table["label"] = (votes >= 2).astype(int)
        disputed = ~votes.isin([0, 3]) & in_table & (table["path"] != "")
        table["note"] = ""
        table.loc[disputed, "note"] = [
            f"label {row.fractured} in dataset.csv, {int(row.folder)} by folder, {boxes[row.Index]} boxes: "
            f"{row.label} is used"
            for row in table[disputed].itertuples()
        ]
        in_both = table["image_id"].isin(files.index[files["in_both_folders"]])
        table.loc[in_both, "note"] += "; in both class folders: the file in Fractured is used"
        table["note"] = table["note"].str.removeprefix("; ")
        if "given_exam" not in table:
            table = infer_exams(table)
            given = ["exam", *given]
        return table[["image_id", "path", "label", *COLUMNS, *given, "excluded", "note"]]

    def annotations(self) -> list[Annotation]:
        """Return the boxes and polygons of the COCO file; none if there is no such file."""
        file = self.root / COCO
        if not file.is_file():
            return []
        found = read_coco(file)
        return rename(found, self._matching({one.image_id for one in found}))

    def annotated_sizes(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Return the sizes in the COCO file and in the PASCAL VOC files."""
        coco = read_coco_sizes(self.root / COCO) if (self.root / COCO).is_file() else {}
        voc = {name: size for name, size, _ in map(read_voc, sorted((self.root / VOC).glob("*.xml")))}
        return {
            kind: {names.get(name, name): size for name, size in sizes.items()}
            for kind, sizes in (("COCO", coco), ("VOC", voc))
            if (names := self._matching(sizes)) is not None
        }

    @cached_property
    def _table(self) -> pd.DataFrame:
        """The checked ``dataset.csv``: ``image_id`` (name of the file, if there is one), ``COLUMNS``, given columns."""
        self.require()
        file = self.root / "dataset.csv"
        required = ["image_id", *COLUMNS]
        table = read_table(file, required, "use the table that FracAtlas contains")
        if (empty := table["image_id"] == "").any():
            problem = f"line {int(np.argmax(empty)) + 2}: image_id is empty"
            raise InputError(f"{file}, {problem}; give the name of the image file, or remove the row")
        for name in COLUMNS:
            values = pd.to_numeric(table[name], errors="coerce")
            wrong = values.isna() | (values < 0) | (values % 1 != 0) | ((values > 1) & (name != "fracture_count"))
            wrong |= values == np.inf
            if wrong.any():
                row = int(np.argmax(wrong))
                allowed = "a count" if name == "fracture_count" else "0 or 1"
                raise InputError(f"{file}, line {row + 2}: {name} is {table[name][row] or 'nan'}, should be {allowed}")
            table[name] = values.astype(int)
        given, ids = self._matching(table["image_id"]), table["image_id"]
        table["image_id"] = [given.get(name, name) for name in ids]
        if repeated := table["image_id"][table["image_id"].duplicated()].tolist():
            raise InputError(f"{file}: image_id {repeated[0]} occurs more than once; remove the repeated rows")
        if not given:
            example = f"for example {table['image_id'].iloc[0]} and {self._files.index[0]}" if len(table) else "no rows"
            problem = f"no image_id in dataset.csv matches a file in images/ ({example})"
            raise InputError(f"{self.root}: {problem}; use the table of these images")
        return table[required].join(read_given(table))

    @cached_property
    def _files(self) -> pd.DataFrame:
        """The image files by name: ``path``, ``folder`` (1 fractured, 0 not), ``in_both_folders``.

        Of a file that is in both folders, the one in ``Fractured`` is listed.
        """
        self.require()
        images = self.root / "images"
        found: dict[int, str] = {}
        names = sorted(entry.name for entry in os.scandir(images) if entry.is_dir())
        for name in names:
            label = FOLDER_LABELS.get(re.sub("[^a-z]", "", name.lower()))
            if label is not None and (label not in found or name in FOLDERS):
                found[label] = name
        files: dict[str, tuple[str, int, bool]] = {}
        for folder, label in reversed(FOLDERS.items()):
            folder = found.get(label, folder)
            listed = os.listdir(images / folder) if (images / folder).is_dir() else []
            listed = [name for name in listed if name.lower().endswith((".jpg", ".jpeg", ".png"))]
            if not listed:
                there = "" if label in found else f" (folders in images: {', '.join(names) or 'none'})"
                raise InputError(f"{images / folder}: no images{there}; the data set is incomplete, download it again")
            files |= {name: (f"images/{folder}/{name}", label, name in files) for name in listed}
        return pd.DataFrame.from_dict(files, orient="index", columns=["path", "folder", "in_both_folders"])

    @cached_property
    def _by_stem(self) -> dict[str, str]:
        """The name of the file by its name without extension in lower case, if there is only one."""
        stems = pd.Series(self._files.index, index=[_stem(name) for name in self._files.index])
        return stems[~stems.index.duplicated(keep=False)].to_dict()

    def _matching(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the name of the file of each id that has one: the same name, or else another letter case or extension.

        A file whose exact name is among the ids belongs to no other id.
        """
        ids = list(ids)
        exact = {name: name for name in ids if name in self._files.index}
        similar = {name: self._by_stem.get(_stem(name), "") for name in ids if name not in exact}
        return exact | {name: file for name, file in similar.items() if file and file not in exact}


def infer_exams(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Add the column ``exam``, the first ``image_id`` of the images that ``neighbours`` links to one exam.

    Args:
        catalogue: ordered by ``image_id``, with the columns of body parts and views.
    """
    pairs, starts = neighbours(catalogue)
    return catalogue.assign(exam=first_linked(catalogue["image_id"], pairs[~starts]))


def neighbours(catalogue: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs of consecutive images of the same body part whose ids differ by at most ``GAP``.

    Such a pair belongs to one exam, unless a frontal view follows a view that is not frontal: an exam starts with its
    frontal view. In FracAtlas, the labels of neighbours within an exam correlate by 0.81, across such a start by 0.21,
    and of images far apart by 0.02; see ``audit.label_agreement``. A rule based on grey levels did not separate exams
    better.

    Returns:
        int64 (n, 2), positions in ``catalogue``, the smaller id first; and bool (n,), whether the second image starts
        another exam.
    """
    number = pd.to_numeric(catalogue["image_id"].str.extract(r"(\d+)", expand=False), errors="coerce").to_numpy()
    order = np.argsort(number, kind="stable")  # ids without a number come last
    before, after = order[:-1], order[1:]
    body, frontal = catalogue[BODY].to_numpy(), catalogue["frontal"].to_numpy() == 1
    same = (body[after] == body[before]).all(axis=1) & body[before].any(axis=1)
    pairs = np.stack([before, after], axis=1)[same & (number[after] - number[before] <= GAP)]
    return pairs, frontal[pairs[:, 1]] & ~frontal[pairs[:, 0]]


def _stem(name: str) -> str:
    """Return the name without the extension of an image, in lower case."""
    return re.sub(r"\.(jpe?g|png)$", "", name.lower())
