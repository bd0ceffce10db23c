"""GRAZPEDWRI-DX: 20,327 wrist radiographs of 6,091 children, with boxes of fractures.

Source: Nagy et al., A pediatric wrist trauma X-ray dataset (GRAZPEDWRI-DX) for machine learning, Scientific Data 9:222,
2022, doi 10.1038/s41597-022-01328-z. Download: https://doi.org/10.6084/m9.figshare.14825193. Licence: CC BY 4.0.
Layout after the archives are unpacked into one folder::

    dataset.csv                              filestem, patient_id, study_number, timehash, gender, age, laterality,
                                             projection (1 frontal, 2 lateral, 3 oblique), initial_exam,
                                             ao_classification, cast, diagnosis_uncertain, osteopenia,
                                             fracture_visible (1 or empty), metal, pixel_spacing, device_manufacturer
    images_part{1,2,3,4}/<filestem>.png      16 bits; or all in one folder images/
    folder_structure/pascalvoc/<filestem>.xml
    folder_structure/yolov5/labels/<filestem>.txt and meta.yaml   category 3 is fracture

The folders of the images and of the annotations, the format of the labels and the categories were confirmed in public
code that uses the data. The columns of ``dataset.csv`` were not; the real files were not available to test this module.
"""

import logging
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from fractatlas.data.sources.annotations import Annotation, read_voc, read_yolo
from fractatlas.data.sources.source import Source
from fractatlas.data.tables import read_table
from fractatlas.errors import InputError

log = logging.getLogger(__name__)
REQUIRED = ("filestem", "patient_id", "fracture_visible")
FLAGS = ("initial_exam", "cast", "diagnosis_uncertain", "osteopenia", "metal")  # 1 or empty
OTHERS = ("gender", "age", "laterality", "pixel_spacing", "device_manufacturer")
PROJECTIONS = {"1": "frontal", "2": "lateral", "3": "oblique"}
FOLDERS = ("images", *(f"images_part{number}" for number in (1, 2, 3, 4)), "folder_structure/yolov5/images")
VOC, YOLO = Path("folder_structure/pascalvoc"), Path("folder_structure/yolov5")
FRACTURE, CATEGORY = "fracture", 3


class GrazPedWri(Source):
    """GRAZPEDWRI-DX in its published layout.

    ``image_id`` is the name of the image file. The label is ``fracture_visible``; if an image has boxes of fractures
    without it, ``note`` states this. Patients are those of the table, and a study of a patient is an exam. Boxes are
    those of the category fracture, from the PASCAL VOC files, or else from the YOLO files.

    Args:
        root: the folder that contains ``dataset.csv``.
    """

    name = "GRAZPEDWRI-DX"

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def require(self) -> None:
        """Require the table and a folder of images."""
        if not (self.root / "dataset.csv").is_file():
            missing = "dataset.csv"
        elif not any((self.root / folder).is_dir() for folder in FOLDERS):
            missing = "folder images, or images_part1 to images_part4,"
        else:
            return
        remedy = "give its folder (data.root=DIR); docs/howto/dataset.md states where to get it"
        raise InputError(f"no GRAZPEDWRI-DX in {self.root} ({missing} is missing); {remedy}")

    def rows(self) -> pd.DataFrame:
        """Return ``image_id, path, label, patient, given_exam``, the attributes of the table and ``note``."""
        given, file = self._table, self.root / "dataset.csv"
        stems = given["filestem"]
        if (again := stems.duplicated()).any():
            raise InputError(f"{file}: filestem {stems[again].iloc[0]} occurs more than once; remove the repeated rows")
        visible = given["fracture_visible"]
        wrong = ~visible.isin(["", "0", "1", "0.0", "1.0"])
        if wrong.any():
            row = int(np.argmax(wrong))
            problem = f"line {row + 2}: fracture_visible is {visible[row]}, should be 1 or empty"
            raise InputError(f"{file}, {problem}; use the table as published")
        table = pd.DataFrame({"image_id": stems + ".png", "path": stems.map(self._files).fillna("")})
        table["label"] = visible.isin(["1", "1.0"]).astype(int)
        table["patient"] = given["patient_id"]
        if "study_number" in given:
            known = (given["patient_id"] != "") & (given["study_number"] != "")
            table["given_exam"] = (given["patient_id"] + "/" + given["study_number"]).where(known, "")
        if "projection" in given:
            table["view"] = given["projection"].str.removesuffix(".0").replace(PROJECTIONS)
        for name in [name for name in FLAGS if name in given]:
            table[name] = given[name].isin(["1", "1.0", "True", "true"]).map({True: "yes", False: "no"})
        for name in [name for name in OTHERS if name in given]:
            numbers = pd.to_numeric(given[name].replace("", np.nan), errors="coerce")
            is_number = name in ("age", "pixel_spacing") and (numbers.notna() | (given[name] == "")).all()
            table[name] = numbers if is_number else given[name]
        boxed = table["image_id"].isin({one.image_id for one in self._annotations})
        table["note"] = ""
        table.loc[boxed & (table["label"] == 0), "note"] = "a box of a fracture, fracture_visible is empty: 0 is used"
        return table.sort_values("image_id", kind="stable", ignore_index=True)

    def annotations(self) -> list[Annotation]:
        """Return the boxes of fractures."""
        found, stems = [], set(self._table["filestem"])
        if (self.root / VOC).is_dir():
            for file in sorted((self.root / VOC).glob("*.xml")):
                if file.stem in stems:
                    found += [Annotation(f"{file.stem}.png", box) for box in read_voc(file, FRACTURE)[2]]
            return found
        category = self._category
        for file in sorted((self.root / YOLO / "labels").glob("*.txt")):
            if file.stem in stems and file.stem in self._files:
                size = _image_size(self.root / self._files[file.stem])
                found += (
                    [Annotation(f"{file.stem}.png", box) for box in read_yolo(file, category, size)] if size else []
                )
        return found

    @cached_property
    def _table(self) -> pd.DataFrame:
        self.require()
        return read_table(self.root / "dataset.csv", REQUIRED, "use the table as published")

    @cached_property
    def _files(self) -> dict[str, str]:
        """The path of each image file by its name without extension."""
        files: dict[str, str] = {}
        for folder in FOLDERS:
            for file in sorted((self.root / folder).glob("*.png")):
                files.setdefault(file.stem, f"{folder}/{file.name}")
        return files

    @property
    def _category(self) -> int:
        """The number of the category fracture in the YOLO files."""
        file = self.root / YOLO / "meta.yaml"
        names = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("names") if file.is_file() else None
        pairs = names.items() if isinstance(names, dict) else enumerate(names or ())
        return next((int(number) for number, name in pairs if name == FRACTURE), CATEGORY)


def _image_size(file: Path) -> tuple[int, int] | None:
    """Return width and height, or ``None`` if the file is not an image."""
    try:
        with Image.open(file) as image:
            return image.size
    except Exception:  # the catalogue states why the file cannot be read
        return None
