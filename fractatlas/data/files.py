"""Search folders for image files."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from fractatlas.data.file_kinds import START, is_dicom, is_readable_image, unreadable_image

EXTENSIONS = {".avif", ".bmp", ".dcm", ".dic", ".dicom", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
              ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}  # fmt: skip


def walk(folder: str, on_error: Callable[[OSError], None] | None = None) -> Iterator[str]:
    """Yield every file below ``folder`` that is not hidden, in the order of the names.

    Links to folders are followed, each folder once, except to ``folder``'s own parents.

    Args:
        folder: the folder.
        on_error: called for a folder that cannot be listed, as in ``os.walk``.
    """
    visited = {(status.st_dev, status.st_ino) for status in map(os.stat, Path(folder).resolve().parents)}
    for parent, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(names) if not name.startswith("."))


def is_image(path: str) -> bool:
    """Return whether a file in a folder is an image: by its extension, or by its first bytes; a DICOMDIR is not."""
    name = PurePath(path)
    if name.suffix.lower() in EXTENSIONS:
        return True
    return name.name.upper() != "DICOMDIR" and is_image_start(read_start(path))


def is_image_start(start: bytes) -> bool:
    """Return whether the first ``START`` bytes of a file begin an image, also of a kind that cannot be read."""
    return is_dicom(start) or is_readable_image(start) or bool(unreadable_image(start))


def read_start(path: str) -> bytes:
    """Return the first ``START`` bytes of a file, fewer if it is shorter or cannot be read."""
    try:
        if not os.path.isfile(path):
            return b""  # reading a pipe would block
        with open(path, "rb") as file:
            return file.read(START)
    except OSError:
        return b""
