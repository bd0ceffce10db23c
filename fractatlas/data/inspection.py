"""One look at an image file: is it whole, how large is it, and what tells its copies."""

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
from PIL import Image, ImageOps

from fractatlas.files import shared, write_csv
from fractatlas.progress import track

log = logging.getLogger(__name__)

ORIENTATION = 0x0112  # the EXIF tag
MAX_PIXELS = 100_000_000  # a chest radiograph has 10 to 20 million; decoding takes some bytes for each
MAX_SIDE = 30_000  # pixels; a long-leg film has about 15,000
VERSION = 1  # of what ``inspect`` finds; another one forgets what was remembered

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit tells neither width nor height; ``too_large`` stands in for it


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` found.

    ``content`` and ``pixels`` are hashes of the file and of the upright grey pixels, 32 hexadecimal digits; ``dhash``
    is the difference hash of 16 rows of 16 bits (Krawetz, "Kind of Like That", 2013), 64 digits. ``width`` and
    ``height`` are pixels of the upright image, ``orientation`` is EXIF's (1 to 8), ``junk`` counts the bytes after a
    JPEG's end marker. Of an unreadable file all but ``content``, ``bytes`` and ``error`` are empty.
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


FIELDS = [field.name for field in fields(Inspection)]


def inspect(content: bytes) -> Inspection:
    """Decode an image file to its end.

    Returns:
        What was found; ``error`` is ``"truncated"`` or ``"unreadable"`` where the file does not decode. A file that
        was cut short and closed with an end marker decodes, and is not told.
    """
    key, size = content_key(content), len(content)
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode, orientation = image.mode, image.getexif().get(ORIENTATION, 1)
        upright = decode(content)
    except Exception as error:  # a broken file can make a decoder fail in any way
        return Inspection(key, size, "truncated" if "truncated" in str(error) else "unreadable")
    small = np.asarray(upright.resize((17, 16), Image.Resampling.LANCZOS), dtype=np.int16)
    return Inspection(
        key,
        size,
        mode=mode,
        orientation=orientation,
        width=upright.width,
        height=upright.height,
        junk=_after_the_end(content),
        pixels=content_key(b"%d %d " % upright.size + upright.tobytes()),
        dhash=np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex(),
    )


def inspect_all(root: Path, paths: Iterable[str], memory: Path | None = None) -> pd.DataFrame:
    """Inspect many files, each content once.

    Args:
        root: the data folder.
        paths: of the files, relative to ``root``; ``""`` stands for a file that is not there.
        memory: a folder that remembers, by content, what was found; ``None`` looks at every file anew.

    Returns:
        A row of ``FIELDS`` for each of ``paths``, in their order.
    """
    paths = list(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        contents = list(pool.map(lambda path: content_key(_read(root / path)), paths))
    if memory is None:
        found = _inspect_new(root, dict(zip(contents, paths, strict=True)))
    else:
        # Another release of Pillow may decode a pixel otherwise.
        store = memory / f"inspections-{VERSION}-{PIL.__version__}.csv"
        wanted, found = dict(zip(contents, paths, strict=True)), _remembered(store)
        if wanted.keys() - set(found.index):
            with shared(memory):
                found = _remembered(store)  # another process may have looked meanwhile
                if new := {key: path for key, path in wanted.items() if key not in found.index}:
                    found = pd.concat([found, _inspect_new(root, new)])
                    write_csv(store, found.reset_index())
    return found.loc[contents].reset_index()


def decode(content: bytes) -> Image.Image:
    """Decode an image file: one channel of 8 bits, upright.

    A JPEG's luminance comes straight from its decoder, in half the time and within one grey level of converting the
    colours that it would give.

    Raises:
        OSError: the file is unreadable, truncated or ``too_large``.
    """
    with Image.open(io.BytesIO(content)) as image:
        if reason := too_large(*image.size):
            raise OSError(reason)
        image.draft("L", image.size)
        return ImageOps.exif_transpose(image).convert("L")


def too_large(width: int, height: int) -> str:
    """Why an image of this size is not decoded; empty where it is."""
    if max(width, height) > MAX_SIDE:
        return f"{width} x {height} pixels is above the limit of {MAX_SIDE:,} pixels a side"
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels is above the limit of {MAX_PIXELS:,} pixels"
    return ""


def content_key(content: bytes) -> str:
    """Name a content: 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]


def _read(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def _inspect_new(root: Path, paths: dict[str, str]) -> pd.DataFrame:
    log.info("looking at %d images", len(paths))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding lets go of Python's lock
        looks = pool.map(lambda path: asdict(inspect(_read(root / path))), paths.values())
        rows = list(track(looks, "looking at images", len(paths)))
    return pd.DataFrame(rows, columns=FIELDS).set_index("content")


def _remembered(store: Path) -> pd.DataFrame:
    types = {field.name: field.type for field in fields(Inspection)}
    empty = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()}).set_index("content")
    if not store.is_file():
        return empty
    try:
        return pd.read_csv(store, dtype=types, keep_default_na=False)[FIELDS].set_index("content")
    except (ValueError, KeyError):
        return empty  # spoilt from outside; it can be had again


def _after_the_end(content: bytes) -> int:
    """How many bytes follow a JPEG's end marker."""
    if not content.startswith(b"\xff\xd8"):
        return 0
    scan = 2
    while content[scan : scan + 1] == b"\xff" and content[scan + 1 : scan + 2] != b"\xda":
        scan += 2 + int.from_bytes(content[scan + 2 : scan + 4])
    end = content.find(b"\xff\xd9", scan)
    return len(content) - end - 2 if end >= 0 else 0
