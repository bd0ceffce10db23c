"""Decode once: every image at the size that the network needs, memory-mapped, shared by runs, trials and processes.

A folder holds the pixels that one geometry gives, one after the other, and a list of whose they are. Rows are only
ever added, and the list is renamed into place after the pixels are on disk. So a reader needs no lock, a build that
was killed leaves at most a tail that no list names, and a changed image or another data set adds its rows alone.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor

from fractatlas.data.inspection import content_key, decode
from fractatlas.data.transforms import Preprocess
from fractatlas.errors import InputError
from fractatlas.files import shared, whole
from fractatlas.progress import track

log = logging.getLogger(__name__)

ROWS_AT_A_TIME = 512  # between two lists; what a killed build loses at most


class Decoder:
    """Pixels straight from the files.

    Args:
        root: the data folder.
        paths: of the images, relative to ``root``.
        preprocess: the geometry.
    """

    def __init__(self, root: Path, paths: Sequence[str], preprocess: Preprocess):
        self.root, self.paths, self.preprocess = root, list(paths), preprocess

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Decode the images of ``rows``: uint8 (n, 1, size, size).

        Raises:
            InputError: a file can no longer be read.
        """
        return torch.stack([self.preprocess(decode(read(self.root / self.paths[row]))) for row in rows])


class PixelCache:
    """Pixels from memory-mapped rows.

    Args:
        pixels: uint8 (m, size, size), memory-mapped.
        rows: for each image, its row in ``pixels``.
    """

    def __init__(self, pixels: np.ndarray, rows: Sequence[int]):
        self.pixels, self.rows = pixels, np.asarray(rows)

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Copy the images of ``rows``: uint8 (n, 1, size, size)."""
        return torch.from_numpy(self.pixels[self.rows[rows]]).unsqueeze(1)


def open_cache(
    folder: Path, root: Path, paths: Sequence[str], contents: Sequence[str], preprocess: Preprocess
) -> PixelCache:
    """Open the cache for some images, after decoding those that it lacks.

    Args:
        folder: where caches are; each geometry has a folder of its own below it.
        root: the data folder.
        paths: of the images, relative to ``root``.
        contents: their ``Inspection.content``.
        preprocess: the geometry.

    Raises:
        InputError: an image can no longer be read, or ``folder`` cannot be written.
    """
    # Another release of a library may decode or resize by a grey level otherwise.
    settings = f"{preprocess.geometry!r} Pillow {PIL.__version__} torchvision {torchvision.__version__}"
    store = folder / f"pixels-{preprocess.size}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    file, index = store / "pixels.bin", store / "contents.txt"
    wanted = dict(zip(contents, paths, strict=True))
    known = _known(file, index, preprocess.size)
    if wanted.keys() - known.keys():
        with shared(store):
            known = _known(file, index, preprocess.size)  # another process may have filled it meanwhile
            if new := {key: path for key, path in wanted.items() if key not in known}:
                log.info("decoding %d images into %s", len(new), store)
                _add(file, index, known, root, new, preprocess)
    shape = (len(known), preprocess.size, preprocess.size)
    row = {key: number for number, key in enumerate(known)}
    return PixelCache(np.memmap(file, np.uint8, "r", shape=shape), [row[key] for key in contents])


def read(file: Path) -> bytes:
    """Read a file that was there when the catalogue was made.

    Raises:
        InputError: it no longer is.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} can no longer be read: {error.strerror}") from None


def _known(file: Path, index: Path, size: int) -> dict[str, None]:
    """The contents whose pixels are there, in the order of their rows."""
    known = dict.fromkeys(index.read_text(encoding="ascii").split()) if index.is_file() else {}
    there = file.stat().st_size if file.is_file() else 0
    return known if there >= len(known) * size * size else {}  # cut short from outside: all anew


def _add(
    file: Path, index: Path, known: dict[str, None], root: Path, new: dict[str, str], preprocess: Preprocess
) -> None:
    """Append the pixels of ``new`` (content to path), and their names to ``known``."""
    image = preprocess.size**2
    if not known:
        index.unlink(missing_ok=True)  # of a spoilt cache: it must not be read beside other rows
    with file.open("r+b" if known else "wb") as pixels, ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels.truncate(len(known) * image)
        pixels.seek(0, os.SEEK_END)
        try:
            rows = track(pool.map(lambda item: _row(root, *item, preprocess), new.items()), "decoding", len(new))
            for names, several in _several(zip(new, rows, strict=True)):
                pixels.write(several)
                pixels.flush()
                os.fsync(pixels.fileno())
                with whole(index) as temporary:
                    temporary.write_text("\n".join([*known, *names]), encoding="ascii")
                known.update(dict.fromkeys(names))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            pixels.truncate(len(known) * image)  # a full disk wants its space back
            raise


def _row(root: Path, key: str, path: str, preprocess: Preprocess) -> bytes:
    content = read(root / path)
    if content_key(content) != key:
        raise InputError(f"{root / path} changed while it was read: start again when the data folder is complete")
    return preprocess(decode(content)).numpy().tobytes()


def _several(rows: Iterable[tuple[str, bytes]]) -> Iterable[tuple[list[str], bytes]]:
    names, pixels = [], bytearray()
    for name, row in rows:
        names.append(name)
        pixels += row
        if len(names) == ROWS_AT_A_TIME:
            yield names, pixels
            names, pixels = [], bytearray()
    if names:
        yield names, pixels
