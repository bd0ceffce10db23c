"""Check image files for truncation and trailing bytes, and compute hashes that identify copies."""

import hashlib
import io
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
from PIL import Image

from fractatlas.data.file_kinds import START, is_dicom
from fractatlas.data.image_limits import TRUNCATED, UnreadableError
from fractatlas.data.images import read_content
from fractatlas.io import cache_lock, write_csv
from fractatlas.progress_bar import track
from fractatlas.wording import plural

log = logging.getLogger(__name__)

ORIENTATION = 0x0112  # EXIF tag
VERSION = 3  # of ``inspect``; increase it when the results change, so that cached statistics are computed again


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of one image file.

    Attributes:
        content: hash of the file, 32 hexadecimal digits.
        bytes: file size.
        error: ``"truncated"``, ``"unreadable"`` or ``""``. With an error, all fields below but ``reason`` keep their
            defaults.
        mode: mode of the stored image in Pillow, ``DICOM``, or ``other`` for a file that Pillow cannot open.
        orientation: EXIF orientation, 1 to 8.
        width: pixels of the upright image.
        height: pixels of the upright image.
        junk: number of bytes after the end marker of a JPEG.
        pixels: hash of the upright grey pixels, 32 hexadecimal digits.
        dhash: difference hash of 16 rows of 16 bits (Krawetz, "Kind of Like That", 2013), 64 hexadecimal digits.
        reason: why an unreadable file cannot be read, in a few words.
    """

    content: str
    bytes: int
    error: str = ""
    mode: str = ""
    orientation: int = 1
    width: int = 0
    height: int = 0
    junk: int = 0
    pixels: str = ""
    dhash: str = ""
    reason: str = ""


FIELDS = [field.name for field in fields(ImageStatistics)]


def inspect(content: bytes) -> ImageStatistics:
    """Decode the content of an image file completely, as ``images.read_content`` does, and compute its statistics.

    A file that was cut and closed with an end marker decodes without an error and is not recognised as truncated.
    """
    key, size = content_key(content), len(content)
    try:
        upright = read_content(content)
    except UnreadableError as error:
        reason = " ".join(str(error).split())
        return ImageStatistics(key, size, "truncated" if reason == TRUNCATED else "unreadable", reason=reason)
    mode, orientation = "DICOM", 1
    if not is_dicom(content[:START]):
        try:
            with Image.open(io.BytesIO(content)) as image:
                mode, orientation = image.mode, image.getexif().get(ORIENTATION, 1)
        except Exception:  # another library can read kinds of TIFF that Pillow cannot
            mode = "other"
    small = np.asarray(upright.resize((17, 16), Image.Resampling.LANCZOS), dtype=np.int16)
    return ImageStatistics(
        key,
        size,
        mode=mode,
        orientation=orientation,
        width=upright.width,
        height=upright.height,
        junk=_bytes_after_end_marker(content),
        pixels=content_key(b"%d %d " % upright.size + upright.tobytes()),
        dhash=np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex(),
    )


def inspect_all(
    root: Path, paths: Iterable[str], cache: Path | None = None, purpose: str = "check them and to find near-duplicates"
) -> pd.DataFrame:
    """Compute the statistics of many image files, once for each content.

    Args:
        root: the data folder.
        paths: paths relative to ``root``; ``""`` means a missing file.
        cache: folder that stores the statistics by content; ``None`` stores nothing.
        purpose: for the log: images are decoded to do this.

    Returns:
        Columns ``FIELDS``, one row per path, in the order of ``paths``.
    """
    paths = list(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        keys = pool.map(lambda path: content_key(_read_or_empty(root / path)), paths)
        contents = list(track(keys, "reading files", len(paths)))
    wanted = dict(zip(contents, paths, strict=True))
    if cache is None:
        statistics = _inspect_files(root, wanted, purpose)
    else:
        # Decoded pixels can differ between versions of Pillow.
        file = cache / f"image-statistics-{VERSION}-{PIL.__version__}.csv"
        statistics = _read_cached(file)
        if wanted.keys() - set(statistics.index):
            with cache_lock(cache):
                statistics = _read_cached(file)  # another process may have written in the meantime
                if new := {key: path for key, path in wanted.items() if key not in statistics.index}:
                    statistics = pd.concat([statistics, _inspect_files(root, new, purpose)])
                    write_csv(file, statistics.reset_index())
    return statistics.loc[contents].reset_index()


def content_key(content: bytes) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256 of ``content``."""
    return hashlib.sha256(content).hexdigest()[:32]


def _read_or_empty(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def _inspect_files(root: Path, paths: dict[str, str], purpose: str) -> pd.DataFrame:
    log.info("decoding %s once to %s", plural(len(paths), "image"), purpose)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the global interpreter lock
        statistics = pool.map(lambda path: asdict(inspect(_read_or_empty(root / path))), paths.values())
        rows = list(track(statistics, "checking images", len(paths)))
    return pd.DataFrame(rows, columns=FIELDS).set_index("content")


def _read_cached(file: Path) -> pd.DataFrame:
    types = {field.name: field.type for field in fields(ImageStatistics)}
    try:
        table = pd.read_csv(file, dtype=types, keep_default_na=False)[FIELDS]
    except (FileNotFoundError, ValueError, KeyError):  # a damaged cache is written again
        table = pd.DataFrame(columns=FIELDS).astype(types)
    return table.set_index("content")


def _bytes_after_end_marker(content: bytes) -> int:
    """Count the bytes after the end marker of a JPEG."""
    if not content.startswith(b"\xff\xd8"):
        return 0
    scan = 2
    while content[scan : scan + 1] == b"\xff" and content[scan + 1 : scan + 2] != b"\xda":
        scan += 2 + int.from_bytes(content[scan + 2 : scan + 4])
    end = content.find(b"\xff\xd9", scan)
    return len(content) - end - 2 if end >= 0 else 0
