"""Read tags of DICOM files as columns of a table."""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pydicom

from fractatlas.data.file_kinds import START, is_dicom
from fractatlas.progress_bar import track

COLUMNS = {"PatientID": "patient", "BodyPartExamined": "body_part", "ViewPosition": "view",
           "PixelSpacing": "pixel_spacing", "PatientSex": "sex", "PatientAge": "age"}  # fmt: skip
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
SALT = "fractatlas"


def read_tags(root: Path, paths: Sequence[str], tags: Sequence[str]) -> pd.DataFrame:
    """Read tags of many files; no pixels are decoded.

    Args:
        root: the data folder.
        paths: relative to ``root``.
        tags: names among ``COLUMNS``.

    Returns:
        Text columns, named as in ``COLUMNS``, one row per path. ``patient`` is ``hash_patient_id`` of the tag, ``age``
        is in years and ``pixel_spacing`` in millimetres, between rows. A cell is ``""`` if the file is not DICOM,
        cannot be read, or does not have the tag.
    """
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # the catalogue states what is wrong with a file
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda path: _read_file(root / path, tags) if path else {}, paths)
        rows = list(track(found, "reading DICOM tags", len(paths)))
    return pd.DataFrame(rows, columns=[COLUMNS[tag] for tag in tags]).fillna("")


def hash_patient_id(patient_id: str) -> str:
    """Return the first 16 hexadecimal digits of a salted SHA-256 of a patient id; ``""`` for an empty one.

    The salt is not secret: whoever knows a patient id, or tries all possible ones, can compute its hash. The hash keeps
    ids out of files by accident; it does not make them anonymous.
    """
    name = patient_id.strip()
    return hashlib.sha256(f"{SALT}/{name}".encode()).hexdigest()[:16] if name else ""


def _read_file(file: Path, tags: Sequence[str]) -> dict[str, str]:
    try:
        if not file.is_file():  # reading a pipe would block
            return {}
        with file.open("rb") as content:
            if not is_dicom(content.read(START)):
                return {}
            content.seek(0)
            dataset = pydicom.dcmread(content, force=True, stop_before_pixels=True, specific_tags=[*tags])
            return {COLUMNS[tag]: _as_text(tag, dataset.get(tag)) for tag in tags}
    except Exception:  # a damaged header can raise anything; the file is then excluded as unreadable
        return {}


def _as_text(tag: str, value: object) -> str:
    text = "" if value is None else str(value).strip()
    if tag == "PatientID":
        return hash_patient_id(text)
    if tag == "PixelSpacing":
        number = re.search(r"\d+(\.\d+)?", text)
        return number[0] if number else ""
    if tag == "PatientAge":
        age = re.fullmatch(r"(\d{1,3})([YMWD])", text.upper())
        return f"{int(age[1]) * YEARS[age[2]]:.2f}".removesuffix(".00") if age else ""
    return text.lower() if tag != "PatientSex" else text.upper()
