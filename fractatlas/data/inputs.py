"""Which files are meant by a file, a folder or a pattern."""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from fractatlas.data.reading import DICOM_HEADER, is_dicom
from fractatlas.errors import InputError

EXTENSIONS = {".bmp", ".dcm", ".dic", ".dicom", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm",
              ".png", ".ppm", ".tif", ".tiff", ".webp"}  # fmt: skip


@dataclass
class Inputs:
    """What there is to read.

    ``images`` are paths that begin as the user typed them, ``errors`` folders that could not be looked into, and why;
    ``others`` counts the files passed over by their extension.
    """

    images: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)


def find_inputs(given: str) -> Inputs:
    """Find images.

    A file is taken whatever it is. In a folder, searched with its subfolders, and among the matches of a pattern
    (``*``, ``?``, ``[]``, ``**``) an image is what has one of ``EXTENSIONS`` (in any case), or what has no extension or
    one of digits alone, as DICOM files named by number have, and begins as DICOM does. A pattern that ends in an
    extension takes all that it matches. Hidden files and folders and ``DICOMDIR`` are passed over.

    Args:
        given: a file, a folder or a pattern, in this order.

    Returns:
        The images, each once, in sorted order, part of the path by part.

    Raises:
        InputError: there is nothing of that name, or no image in it.
    """
    found = Inputs()
    if os.path.isfile(given):
        found.images.append(given)
        return found
    if os.path.isdir(given):
        _add_folder(found, given)
    else:
        suffix = PurePath(given).suffix
        every = bool(suffix) and not glob.has_magic(suffix)
        matches = glob.glob(given, recursive=True)
        if not matches:
            raise InputError(f"input={given}: no such file or folder, and nothing matches it as a pattern")
        for match in matches:
            if os.path.isdir(match):
                if not match.endswith(os.sep):  # the folder itself, as ** matches it
                    _add_folder(found, match)
            else:
                _add(found, match, every)
    found.images = sorted(set(found.images), key=lambda path: path.split(os.sep))
    if not found.images and not found.errors:
        raise InputError(f"input={given}: no image among {found.others.total()} files; {_listed(EXTENSIONS)}, or DICOM")
    return found


def _add_folder(found: Inputs, folder: str) -> None:
    for path in _files(folder, found.errors):
        _add(found, path, every=False)


def _add(found: Inputs, path: str, every: bool) -> None:
    if every or _is_image(path):
        found.images.append(path)
    else:
        found.others[PurePath(path).suffix.lower() or "no extension"] += 1


def _files(folder: str, errors: dict[str, str]) -> Iterator[str]:
    """Every file below ``folder`` that is not hidden; links to folders are followed, each once, but not further up."""

    def failed(error: OSError) -> None:
        errors[error.filename] = error.strerror

    above = {(status.st_dev, status.st_ino) for status in map(os.stat, Path(folder).resolve().parents)}
    seen = set()
    for where, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen | above:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(where, name) for name in sorted(names) if not name.startswith("."))


def _is_image(path: str) -> bool:
    name = PurePath(path)
    if name.suffix.lower() in EXTENSIONS:
        return True
    if (name.suffix and not name.suffix[1:].isdigit()) or name.name.upper() == "DICOMDIR":
        return False
    try:
        if not os.path.isfile(path):
            return False  # a pipe would wait for ever
        with open(path, "rb") as file:
            return is_dicom(file.read(DICOM_HEADER))
    except OSError:
        return False


def _listed(names: set[str]) -> str:
    return " ".join(sorted(names))
