"""Cache decoded images at the size of the network: memory-mapped, shared by runs, trials and processes.

A cache folder contains the pixels of all images for one geometry, and an index: the content keys of the images in the
order of their rows. Rows are only appended, and the index is replaced atomically after the pixels are on disk.
Therefore readers need no lock, a killed process leaves at most rows without an index entry, and a changed image or
another data set only adds its rows.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor

from fractatlas.data.images import UnreadableError, read_content
from fractatlas.data.integrity import content_key
from fractatlas.data.transforms import Preprocess
from fractatlas.errors import InputError
from fractatlas.io import cache_lock, write_text
from fractatlas.progress_bar import track
from fractatlas.wording import plural

log = logging.getLogger(__name__)

ROWS_PER_COMMIT = 512  # rows between two versions of the index; a killed process loses at most as many


class Decoder:
    """Decode pixels from the image files.

    Args:
        root: the data folder.
        paths: paths of the images, relative to ``root``.
        preprocess: the geometry.
    """

    def __init__(self, root: Path, paths: Sequence[str], preprocess: Preprocess):
        self.root, self.paths, self.preprocess = root, list(paths), preprocess

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Decode the images of ``rows``: uint8 (n, 1, size, size).

        Raises:
            InputError: a file cannot be read.
        """
        return torch.stack([self.preprocess(_decode(self.root / self.paths[row])) for row in rows])


class PixelCache:
    """Read pixels from memory-mapped rows.

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
    """Open the pixel cache of some images; decode the images that it does not contain yet.

    Args:
        folder: folder of all caches; each geometry has a subfolder.
        root: the data folder.
        paths: paths of the images, relative to ``root``.
        contents: their ``content_key``.
        preprocess: the geometry.

    Raises:
        InputError: an image cannot be read, or ``folder`` is not writable.
    """
    # Decoded and resized pixels can differ between versions of the libraries.
    settings = f"{preprocess.geometry!r} Pillow {PIL.__version__} torchvision {torchvision.__version__}"
    store = folder / f"pixels-{preprocess.size}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    file, index = store / "pixels.bin", store / "contents.txt"
    wanted = dict(zip(contents, paths, strict=True))
    cached = _read_index(file, index, preprocess.size)
    if wanted.keys() - cached.keys():
        with cache_lock(store):
            cached = _read_index(file, index, preprocess.size)  # another process may have written in the meantime
            if new := {key: path for key, path in wanted.items() if key not in cached}:
                log.info("decoding %s into %s", plural(len(new), "image"), store)
                _append(file, index, cached, root, new, preprocess)
    shape = (len(cached), preprocess.size, preprocess.size)
    row = {key: number for number, key in enumerate(cached)}
    return PixelCache(np.memmap(file, np.uint8, "r", shape=shape), [row[key] for key in contents])


def _read_index(file: Path, index: Path, size: int) -> dict[str, None]:
    """Return the content keys of the cached images in the order of their rows."""
    keys = dict.fromkeys(index.read_text(encoding="ascii").split()) if index.is_file() else {}
    existing = file.stat().st_size if file.is_file() else 0
    return keys if existing >= len(keys) * size * size else {}  # a truncated cache is written again


def _append(
    file: Path, index: Path, cached: dict[str, None], root: Path, new: dict[str, str], preprocess: Preprocess
) -> None:
    """Append the pixels of ``new`` (content key to path), and their keys to ``cached``."""
    row_bytes = preprocess.size**2
    if not cached:
        index.unlink(missing_ok=True)  # the index of a truncated cache does not fit the new rows
    with file.open("r+b" if cached else "wb") as pixels, ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels.truncate(len(cached) * row_bytes)
        pixels.seek(0, os.SEEK_END)
        keys = list(new)
        try:
            decoded = pool.map(lambda key: _decode_row(root, key, new[key], preprocess), keys)
            with closing(track(decoded, "decoding images", len(new))) as rows:
                for start in range(0, len(keys), ROWS_PER_COMMIT):
                    committed = keys[start : start + ROWS_PER_COMMIT]
                    pixels.writelines(islice(rows, len(committed)))
                    pixels.flush()
                    os.fsync(pixels.fileno())
                    write_text(index, "\n".join([*cached, *committed]))
                    cached.update(dict.fromkeys(committed))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            pixels.truncate(len(cached) * row_bytes)  # free the space if the disk is full
            raise


def _decode_row(root: Path, key: str, path: str, preprocess: Preprocess) -> bytes:
    content = _read(root / path)
    if content_key(content) != key:
        raise InputError(f"{root / path} changed while it was read; start again when the data folder is complete")
    return preprocess(read_content(content)).numpy().tobytes()


def _decode(file: Path) -> Image.Image:
    try:
        return read_content(_read(file))
    except UnreadableError as error:
        raise InputError(f"{file} cannot be read: {error}; restore it and start again") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; restore it and start again") from None
