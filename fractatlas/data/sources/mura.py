"""MURA: 40,005 radiographs of elbow, finger, forearm, hand, humerus, shoulder and wrist in 14,656 studies.

The label of a study is **abnormal or normal**, not fractured: hardware, degenerative joints and lesions are abnormal,
too.

Source: Rajpurkar et al., MURA: Large Dataset for Abnormality Detection in Musculoskeletal Radiographs, 2017,
arXiv:1712.06957. To be requested from the Stanford Center for Artificial Intelligence in Medicine and Imaging
(https://aimi.stanford.edu/datasets/mura-msk-xrays). Licence: its research use agreement; non-commercial use, the images
must not be passed on. Layout::

    MURA-v1.1/
      {train,valid}/XR_<PART>/patient<id>/study<n>_{positive,negative}/image<n>.png
      {train,valid}_image_paths.csv     no header: MURA-v1.1/train/XR_<PART>/patient<id>/study<n>_positive/image1.png
      {train,valid}_labeled_studies.csv no header: MURA-v1.1/train/XR_<PART>/patient<id>/study<n>_positive/,1

Folders, names of files and lists were read from public code that uses the data. The real files were not available to
test this module.
"""

import logging
from functools import cached_property
from pathlib import Path, PurePosixPath

import pandas as pd

from fractatlas.data.sources.source import Source
from fractatlas.errors import InputError
from fractatlas.io import read_csv
from fractatlas.wording import join_names, plural

log = logging.getLogger(__name__)
LISTS = {"train": "train", "valid": "val"}  # MURA's test subset is not public
SUFFIXES = {"positive": 1, "negative": 0}


class Mura(Source):
    """MURA in its published layout.

    ``image_id`` is the path of the image. Patients are those of the folders, and a study is an exam. The label is that
    of the study's folder; if the list of studies states another, ``note`` contains both. ``body_part`` is an attribute.

    Args:
        root: the folder that contains ``train`` and ``valid``.
        given_split: whether MURA's own lists are the split: ``train``, and ``valid`` as ``val``.
    """

    name = "MURA"
    finding = "abnormality"
    draw_split = "data.given_split=false"

    def __init__(self, root: str | Path, given_split: bool):
        self.root, self.given_split = Path(root), given_split

    def require(self) -> None:
        """Require the folders of both subsets."""
        if missing := [name for name in LISTS if not (self.root / name).is_dir()]:
            remedy = "give the folder MURA-v1.1 (data.root=DIR); docs/howto/dataset.md states where to get it"
            raise InputError(f"no MURA in {self.root} (folder {missing[0]} is missing); {remedy}")

    def rows(self) -> pd.DataFrame:
        """Return ``image_id, path, label, patient, given_exam, body_part, note`` and, if used, ``given_split``."""
        self.require()
        rows = []
        for folder, subset in LISTS.items():
            for path in self._paths(folder):
                try:
                    _, region, patient, study, _ = path.parts
                    label = SUFFIXES[study.rpartition("_")[2]]
                except (ValueError, KeyError):
                    form = f"{folder}/XR_<PART>/patient<id>/study<n>_positive/image<n>.png"
                    raise InputError(f"{self.root / path}: should be {form}; use the folder as published") from None
                stated = self._studies.get(str(path.parent))
                disputed = stated is not None and stated != label
                note = f"label {label} by folder, {stated} in the list of studies: {label} is used" if disputed else ""
                part = region.removeprefix("XR_").lower()
                rows.append([str(path), label, patient, str(path.parent), part, subset, note])
        columns = ["path", "label", "patient", "given_exam", "body_part", "given_split", "note"]
        table = pd.DataFrame(rows, columns=columns)
        table.insert(0, "image_id", table["path"])
        if not self.given_split:
            table = table.drop(columns="given_split")
        return table.sort_values("image_id", kind="stable", ignore_index=True)

    def _paths(self, folder: str) -> list[PurePosixPath]:
        """Return the paths of a list relative to ``root``; without a list, those of the files in the folder."""
        file = self.root / f"{folder}_image_paths.csv"
        images = (self.root / folder).rglob("*.png")
        found = [PurePosixPath(image.relative_to(self.root).as_posix()) for image in images]
        if file.is_file():
            listed = read_csv(file, [], "use the list that MURA contains", header=None, dtype=str).iloc[:, 0]
            paths = [_inside(name, folder) for name in listed.dropna()]
        else:
            paths = found
        paths = [path for path in paths if not _is_hidden(path)]
        if others := sorted({path for path in found if not _is_hidden(path)} - {*paths}):
            listing = join_names(others)
            log.warning("%s does not name %s, not used: %s", file.name, plural(len(others), "image"), listing)
        if not paths:
            raise InputError(f"{self.root / folder}: no images; the data set is incomplete, download it again")
        return paths

    @cached_property
    def _studies(self) -> dict[str, int]:
        """The label of each study in the lists of studies, by its folder relative to ``root``."""
        studies: dict[str, int] = {}
        for folder in LISTS:
            file = self.root / f"{folder}_labeled_studies.csv"
            if file.is_file():
                table = read_csv(file, [], "use the list that MURA contains", header=None, dtype=str)
                if table.shape[1] != 2 or not table[1].isin(["0", "1"]).all():
                    raise InputError(
                        f"{file}: should have two columns, study and 0 or 1; use the list that MURA contains"
                    )
                studies |= {
                    str(_inside(name, folder)): int(label) for name, label in zip(table[0], table[1], strict=True)
                }
        return studies


def _is_hidden(path: PurePosixPath) -> bool:
    return path.name.startswith(".")  # some copies contain files of macOS


def _inside(listed: str, folder: str) -> PurePosixPath:
    """Return a listed path from the folder of its subset on."""
    parts = PurePosixPath(listed.strip()).parts
    return PurePosixPath(*parts[parts.index(folder) :]) if folder in parts else PurePosixPath(*parts)
