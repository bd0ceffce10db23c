"""Any radiographs, listed in a table: CSV (commas, semicolons or tabs; UTF-8) or Parquet.

The table has one row for each image, with the columns ``path`` and ``label``. Optional columns are ``image_id``,
``patient``, ``exam``, ``group``, ``split`` and ``source``. All other columns are attributes, which are strata of
reports. Boxes and polygons are in a COCO file, whose ``file_name`` is the image id, the path or the file name of an
image.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from fractatlas.data.catalogue import RESERVED
from fractatlas.data.dicom_tags import read_tags
from fractatlas.data.groups import GIVEN
from fractatlas.data.sources.annotations import Annotation, read_coco, read_coco_sizes, rename
from fractatlas.data.sources.source import Source
from fractatlas.data.splits import SUBSETS
from fractatlas.data.tables import as_numbers, detect_separator, is_parquet, read_table
from fractatlas.errors import InputError
from fractatlas.wording import join_names, plural

log = logging.getLogger(__name__)
LABELS = {"0": 0, "0.0": 0, "false": 0, "no": 0, "1": 1, "1.0": 1, "true": 1, "yes": 1}
SUBSET_NAMES = {name: name for name in SUBSETS} | {
    "training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test", "": ""
}  # fmt: skip
NO_VALUE = {"", "na", "nan", "n/a", "<na>"}  # labels that are none, in lower case
REMEDY = "name the columns of your table (data.columns.path=NAME data.columns.label=NAME)"
NO_LABEL = "no label"
THIRD = "empty the cells of all other labels, which excludes the images"


class Table(Source):
    """Radiographs that one table or several list.

    Args:
        table: the file, or one file for each data set. With several, the name of the data set precedes each image id.
        root: folder that paths are relative to; ``None``: the folder of each table.
        finding: what label 1 means.
        positive: name of the fractured class; ``None``: a label is one of ``LABELS``, in any letter case.
        columns: names of the columns in the table by their names in this class; ``None``: the table has no such column.
        boxes: COCO file, or one for each table, ``None`` for a table without boxes.
        dicom_tags: tags to read from DICOM files, names of ``dicom_tags.COLUMNS``. A column of the table with the same
            name has precedence.
    """

    name = "table"
    draw_split = "data.columns.split=null"

    def __init__(
        self,
        table: str | Sequence[str],
        root: str | None,
        positive: str | int | None,
        columns: Mapping[str, str | None],
        boxes: str | Sequence[str | None] | None,
        dicom_tags: Sequence[str],
        finding: str = Source.finding,
    ):
        self.tables = [Path(table)] if isinstance(table, str) else [Path(file) for file in table]
        self.name = ", ".join(str(file) for file in self.tables)
        given = [boxes] if isinstance(boxes, str) or boxes is None else [*boxes]
        if len(given) != len(self.tables) and boxes is not None:
            problem = f"data.boxes has {plural(len(given), 'file')} for {plural(len(self.tables), 'table')}"
            raise InputError(f"{problem}; give one for each table, null for a table without boxes")
        self.coco = [Path(file) if file else None for file in given] if boxes else [None] * len(self.tables)
        self.positive = None if positive is None else str(positive)
        self.columns, self.tags, self.finding = dict(columns), list(dicom_tags), finding
        # Of each table: the folder that its paths are relative to.
        self.folders = [Path(root) if root else file.parent for file in self.tables]
        self.root = self.folders[0]
        if len({*self.folders}) > 1:
            self.root = Path(os.path.commonpath([folder.absolute() for folder in self.folders]))

    @property
    def place(self) -> str:
        """The tables."""
        return self.name

    def require(self) -> None:
        """Require the tables, the files of boxes and the folders of the images."""
        for key, files in (("data.table", self.tables), ("data.boxes", self.coco)):
            for file in filter(None, files):
                if not file.is_file():
                    raise InputError(f"{key}={file}: no such file; correct the path")
        for folder in self.folders:
            if not folder.is_dir():
                raise InputError(f"data.root={folder}: no such folder; give the folder that the paths are relative to")

    def rows(self) -> pd.DataFrame:
        """Return the columns of ``Source.rows``; an image without a label is excluded."""
        table = pd.concat(self._tables, ignore_index=True) if len(self._tables) > 1 else self._tables[0].copy()
        table["label"] = table["label"].astype(int)
        if table["source"].nunique() < 2:
            table = table.drop(columns="source")
        if repeated := table["image_id"][table["image_id"].duplicated()].tolist():
            raise InputError(f"{self.name}: image_id {repeated[0]} occurs more than once; give each image its own")
        for name in [name for name in table if name != "label"]:
            table[name] = table[name].fillna("")
        for name in [name for name in table if name not in RESERVED]:
            if (numbers := as_numbers(table[name])) is not None:
                table[name] = numbers
        boxes = pd.Series({image_id: len(found) for image_id, found in self.boxes().items()}, dtype=float)
        boxed = table["image_id"].map(boxes).fillna(0)
        disputed = (table["label"] == 0) & (boxed > 0) & (table["excluded"] == "")
        table["note"] = ""
        table.loc[disputed, "note"] = [f"label 0, {count:.0f} boxes: 0 is used" for count in boxed[disputed]]
        return table.sort_values("image_id", kind="stable", ignore_index=True)

    def annotations(self) -> list[Annotation]:
        """Return the boxes and polygons of the COCO files."""
        found = []
        for file, table in zip(self.coco, self._tables, strict=True):
            if file is None:
                continue
            listed, names = read_coco(file), _names(table)
            known = [one for one in listed if _key(one.image_id) in names]
            others = sorted({one.image_id for one in listed if _key(one.image_id) not in names})
            if listed and not known:
                example = f"for example {others[0]}, and there {table['path'].iloc[0]}"
                problem = f"no file_name is the image_id, the path or the file name of an image ({example})"
                raise InputError(f"{file}: {problem}; use the boxes of these images, or data.boxes=null")
            if others:
                log.warning(
                    "%s: boxes of %s not in the table: %s", file, plural(len(others), "image"), join_names(others)
                )
            found += rename(known, {one.image_id: names[_key(one.image_id)] for one in known})
        return found

    def annotated_sizes(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Return the sizes that the COCO files state."""
        sizes: dict[str, tuple[int, int]] = {}
        for file, table in zip(self.coco, self._tables, strict=True):
            names = _names(table) if file else {}
            listed = read_coco_sizes(file) if file else {}
            sizes |= {names[_key(name)]: size for name, size in listed.items() if _key(name) in names and all(size)}
        return {"COCO": sizes} if sizes else {}

    @cached_property
    def _tables(self) -> list[pd.DataFrame]:
        self.require()
        return [self._read(number) for number in range(len(self.tables))]

    def _read(self, number: int) -> pd.DataFrame:
        """Read one table: the columns of ``Source.rows`` with ``source`` and ``excluded``, and attributes, as text."""
        file, folder = self.tables[number], self.folders[number]
        asked = {key: name for key, name in self.columns.items() if name and (name != key or key in ("path", "label"))}
        given = read_table(file, [*asked.values()], REMEDY)
        if given.empty:
            raise InputError(f"{file}: no rows; add one row for each image")
        column = {key: name for key, name in self.columns.items() if name in given}
        path = given[column["path"]].map(_normalised)
        lines = pd.Series([f"line {line}" for line in range(2, len(path) + 2)], index=path.index)
        ids = given[column["image_id"]] if "image_id" in column else path.where(path != "", lines)
        table = pd.DataFrame({"image_id": ids, "path": path})  # without a path, the image is excluded
        _refuse(file, ids, ids == "", "image_id is empty; fill it, or remove the row")
        for name in ("path", "image_id"):
            again = table[name].duplicated() & (table[name] != "")
            _refuse(file, table[name], again, f"{name} {{}} occurs more than once; remove the repeated rows")
        table["label"], unlabelled = self._labels(file, given[column["label"]])
        table["excluded"] = np.where(unlabelled, NO_LABEL, "")
        for key, name in GIVEN.items():
            if key in column:
                table[name] = given[column[key]]
        if "split" in column:
            split = given[column["split"]]
            table["given_split"] = split.str.lower().map(SUBSET_NAMES)
            wrong = table["given_split"].isna()
            _refuse(
                file, split, wrong, "split is {}, should be train, val or test; correct it, or data.columns.split=null"
            )
        names = self._source_names
        table["source"] = given[column["source"]].replace("", names[number]) if "source" in column else names[number]
        has_decimal_commas = not is_parquet(file) and detect_separator(file) != ","
        tags = read_tags(folder, path, self.tags)
        for name in tags:
            if name not in table:
                table[name] = tags[name]
        for name in [name for name in given if name not in column.values() and not name.startswith("Unnamed:")]:
            free = f"{name}_in_table" if name in RESERVED else name
            if free != name:
                log.info("%s: the column %s is read as %s, because %s has another meaning here", file, name, free, name)
            table[free] = _with_decimal_points(given[name]) if has_decimal_commas else given[name]
        if len(self.tables) > 1:  # equal ids in several data sets are different images and patients
            for name in ["image_id", *(name for name in GIVEN.values() if name in table)]:
                table[name] = (table["source"] + "/" + table[name]).where(table[name] != "", "")
            moved = Path(os.path.relpath(folder.absolute(), self.root.absolute()))
            table["path"] = [(moved / path).as_posix() if path else "" for path in table["path"]]
        return table

    @property
    def _source_names(self) -> list[str]:
        """The name of each data set: that of its table, of its folder if the tables have equal names, or a number."""
        for names in ([file.stem for file in self.tables], [file.absolute().parent.name for file in self.tables]):
            if len({*names}) == len(names):
                return names
        return [f"{file.stem}_{number}" for number, file in enumerate(self.tables, 1)]

    def _labels(self, file: Path, given: pd.Series) -> tuple[pd.Series, pd.Series]:
        """Return the labels, 0 for an empty one, and whether each is empty."""
        text = given.str.lower()
        empty = text.isin(NO_VALUE)
        found = list(dict.fromkeys(given[~empty]))
        if not found:
            raise InputError(
                f"{file}: the column of labels is empty; fill it, or name another (data.columns.label=NAME)"
            )
        if self.positive is not None:
            problem = f"{file}: data.positive={self.positive}: the labels are {join_names(found)}"
            if self.positive not in found:
                raise InputError(f"{problem}; give the name of the fractured class")
            if len(found) > 2:
                raise InputError(f"{problem}; there should be two: {THIRD}")
            return (given == self.positive).astype(int), empty
        labels = text.map(LABELS)
        if len(found) > 1 and labels[~empty].isna().all():
            remedy = f"name the fractured class, such as data.positive={found[0]}"
            remedy += f", and {THIRD}" if len(found) > 2 else ""
            raise InputError(f"{file}: the labels are {join_names(found)}; {remedy}")
        remedy = "correct it, empty the cell, or name the fractured class (data.positive=NAME)"
        _refuse(file, given, labels.isna() & ~empty, f"label is {{}}, should be 0 or 1; {remedy}")
        return labels.fillna(0).astype(int), empty


def _normalised(path: str) -> str:
    """Return a path with forward slashes, without ``./``."""
    if "\\" in path and "/" not in path:
        path = path.replace("\\", "/")  # written on Windows
    return str(PurePosixPath(path)) if path else ""


def _names(table: pd.DataFrame) -> dict[str, str]:
    """Return the image id by every name that only one image has: id, path, file name, each also without extension."""
    own = {_key(image_id): image_id for image_id in table["image_id"]}
    names: dict[str, set[str]] = {}
    for image_id, path, source in zip(table["image_id"], table["path"], table["source"], strict=True):
        short = image_id.removeprefix(f"{source}/")
        for name in (short, path, PurePosixPath(path).name, PurePosixPath(path).stem):
            names.setdefault(_key(name), set()).add(image_id)
    return {name: next(iter(ids)) for name, ids in names.items() if len(ids) == 1} | own


def _key(name: str) -> str:
    return name.casefold()


def _with_decimal_points(column: pd.Series) -> pd.Series:
    """Return a column with ``20.5`` for ``20,5`` if all cells that are not empty are numbers with decimal commas."""
    is_number = column.str.fullmatch(r"[+-]?\d+(,\d+)?") | (column == "")
    return column.str.replace(",", ".") if is_number.all() else column


def _refuse(file: Path, column: pd.Series, wrong: pd.Series, problem: str) -> None:
    """Raise an error about the first wrong row; ``{}`` in ``problem`` is its value."""
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{file}, line {row + 2}: {problem.replace('{}', str(column.iloc[row]))}")
