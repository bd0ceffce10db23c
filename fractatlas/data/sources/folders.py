"""Radiographs in one sub-folder for each class, without a table. Layout::

    <root>/<class>/.../*           two classes, any names below them
    <root>/<subset>/<class>/.../*  the same with a given split; the subsets are train, val (valid) and test

Image files of all kinds that ``images.read_content`` reads are listed, DICOM also without an extension.
"""

import logging
import os
import re
from collections import Counter
from functools import cached_property
from pathlib import Path

import pandas as pd

from fractatlas.data.files import is_image, walk
from fractatlas.data.sources.source import Source
from fractatlas.data.sources.table import SUBSET_NAMES
from fractatlas.errors import InputError
from fractatlas.wording import join_names, plural

log = logging.getLogger(__name__)
# Names of folders, by their letters and digits in lower case.
POSITIVE = {"fractured", "fracture", "fractures", "broken", "positive", "pos", "abnormal", "1", "yes", "true"}


class Folders(Source):
    """Radiographs in one sub-folder for each class.

    ``image_id`` is the path of the file without the name of the class folder if this is unique, otherwise with it.

    Args:
        root: the data folder.
        positive: name of the class folder of fractured images; ``None``: the one whose name is in ``POSITIVE``.
    """

    name = "folders"

    def __init__(self, root: str | Path, positive: str | int | None):
        self.root, self.positive = Path(root), None if positive is None else str(positive)

    def require(self) -> None:
        """Require two class folders."""
        _ = self._classes

    def rows(self) -> pd.DataFrame:
        """Return ``image_id, path, label`` and, if there are folders of subsets, ``given_split``."""
        rows: list[tuple[str, str, int, str]] = []
        skipped: Counter[str] = Counter()
        for folder, (label, subset) in self._classes.items():
            files = []
            for file in map(Path, walk(str(folder))):
                if is_image(str(file)):
                    files.append(file)
                else:
                    skipped[file.suffix.lower() or "no extension"] += 1
            if not files:
                raise InputError(f"{folder}: no images; add the images of this class, or remove the folder")
            for file in files:
                path = file.relative_to(self.root).as_posix()
                short = file.relative_to(folder).as_posix()
                rows.append((f"{subset}/{short}" if subset else short, path, label, subset))
        if skipped:
            counts = ", ".join(f"{count} {extension}" for extension, count in skipped.most_common(6))
            log.info("%s: skipped %s (%s)", self.root, plural(skipped.total(), "other file"), counts)
        table = pd.DataFrame(rows, columns=["image_id", "path", "label", "given_split"])
        repeated = table["image_id"].duplicated(keep=False)
        table["image_id"] = table["image_id"].where(~repeated, table["path"])
        table = table if table["given_split"].any() else table.drop(columns="given_split")
        return table.sort_values("image_id", kind="stable", ignore_index=True)

    @cached_property
    def _classes(self) -> dict[Path, tuple[int, str]]:
        """The label and the subset of each class folder."""
        if not self.root.is_dir():
            raise InputError(f"data.root={self.root}: no such folder; give the folder that contains the two classes")
        folders = _subfolders(self.root)
        subsets = {name: SUBSET_NAMES.get(name.lower()) for name in folders}
        if folders and all(subsets.values()):
            parents = {self.root / name: subset or "" for name, subset in subsets.items()}
        else:
            parents = {self.root: ""}
        classes: dict[Path, tuple[int, str]] = {}
        for parent, subset in parents.items():
            names = _subfolders(parent)
            positive = [name for name in names if self._is_positive(name)]
            if len(names) != 2 or len(positive) != 1:
                found = f"found {join_names(names) or 'none'}"
                if self.positive is not None and len(names) == 2:
                    problem = f"data.positive={self.positive}: no such folder in {parent} ({found})"
                    raise InputError(f"{problem}; give the name of the folder of fractured images")
                remedy = "name the folder of fractured images (data.positive=NAME)" if len(names) == 2 else (
                    "arrange the images in two folders, such as fractured and not_fractured"
                )  # fmt: skip
                raise InputError(f"{parent}: should have two folders, one for each class ({found}); {remedy}")
            classes |= {parent / name: (int(name in positive), subset) for name in names}
        return classes

    def _is_positive(self, name: str) -> bool:
        if self.positive is not None:
            return name == self.positive
        return re.sub("[^a-z0-9]", "", name.lower()) in POSITIVE


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
