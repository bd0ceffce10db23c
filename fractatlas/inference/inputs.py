"""Find the image files of a path, a folder or a pattern."""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from fractatlas.data.images import DICOM_HEADER, is_dicom
from fractatlas.errors import InputError

EXTENSIONS = {".bmp", ".dcm", ".dic", ".dicom", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm",
              ".png", ".ppm", ".tif", ".tiff", ".webp"}  # fmt: skip


@dataclass
class Inputs:
    """The result of a search for images.

    Attributes:
        images: paths, relative if the search was given a relative path.
        errors: folders that could not be listed, with the reason.
        skipped: the number of skipped files by extension.
    """

    images: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)


def find_inputs(given: str) -> Inputs:
    """Find images.

    A single file is always accepted. A folder is searched with its subfolders. In folders and among the matches of a
    pattern (``*``, ``?``, ``[]``, ``**``), a file is an image if it has one of ``EXTENSIONS`` (upper or lower case), or
    if it has no extension, or digits as its extension, and a DICOM header. A pattern that ends in an extension takes
    every file that it matches. Hidden files and folders and ``DICOMDIR`` are skipped.

    Args:
        given: a file, a folder or a pattern; tried in this order.

    Returns:
        The images without repetition, sorted by the components of their paths.

    Raises:
        InputError: nothing has this name, or there is no image among the files.
    """
    if os.path.isfile(given):
        return Inputs(images=[given])
    inputs, suffix, is_folder = Inputs(), PurePath(given).suffix, os.path.isdir(given)
    any_type = bool(suffix) and not glob.has_magic(suffix)
    require_match(given)
    for match in [given] if is_folder else glob.glob(given, recursive=True):
        if not os.path.isdir(match):
            _add_file(inputs, match, any_type)
        elif is_folder or not match.endswith(os.sep):  # ** also matches its parent folder, with a final separator
            for path in _walk(match, inputs.errors):
                _add_file(inputs, path, any_type=False)
    inputs.images = sorted(set(inputs.images), key=lambda path: path.split(os.sep))
    if not inputs.images and not inputs.errors:
        count, extensions = inputs.skipped.total(), " ".join(sorted(EXTENSIONS))
        raise InputError(f"input={given}: no image among {count} files (DICOM, {extensions}); use another folder")
    return inputs


def require_match(given: str) -> None:
    """Require that a file or folder has this name or matches this pattern, without a search of folders for images.

    Raises:
        InputError: nothing matches.
    """
    if not os.path.exists(given) and next(glob.iglob(given, recursive=True), None) is None:
        raise InputError(f"input={given}: no file or folder matches; correct the path or pattern")


def _add_file(inputs: Inputs, path: str, any_type: bool) -> None:
    if any_type or _is_image(path):
        inputs.images.append(path)
    else:
        inputs.skipped[PurePath(path).suffix.lower() or "no extension"] += 1


def _walk(folder: str, errors: dict[str, str]) -> Iterator[str]:
    """Yield every file below ``folder`` that is not hidden.

    Links to folders are followed, each folder once, except to ``folder``'s own parents.
    """

    def add_error(error: OSError) -> None:
        errors[error.filename] = error.strerror or type(error).__name__

    visited = {(status.st_dev, status.st_ino) for status in map(os.stat, Path(folder).resolve().parents)}
    for parent, folders, names in os.walk(folder, onerror=add_error, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(names) if not name.startswith("."))


def _is_image(path: str) -> bool:
    name = PurePath(path)
    if name.suffix.lower() in EXTENSIONS:
        return True
    if (name.suffix and not name.suffix[1:].isdigit()) or name.name.upper() == "DICOMDIR":
        return False
    try:
        if not os.path.isfile(path):
            return False  # reading a pipe would block
        with open(path, "rb") as file:
            return is_dicom(file.read(DICOM_HEADER))
    except OSError:
        return False
