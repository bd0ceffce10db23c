"""Files that are whole or not there: written under another name, then renamed."""

import csv
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from fractatlas.errors import InputError

log = logging.getLogger(__name__)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``, and rename it to ``path`` if the block ends well.

    Raises:
        OSError: with ``path`` as its ``filename``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, name):
            error.filename = str(path)  # which says more to who reads it than a name that is gone
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Make a cache folder, and let one process at a time into the block; the others wait, and say so.

    Raises:
        InputError: something in the block could not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")  # a killed process lets go of it
        try:
            lock.acquire(timeout=1)
        except Timeout:
            log.info("waiting for another process that fills %s", folder)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        raise InputError(
            f"cannot fill the cache in {folder} ({error.strerror or error})\n"
            "Name another folder (paths.cache_dir=DIR, the audit's --cache DIR), or train without (data.cache=false)"
        ) from None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let no second process into the block for the same folder.

    Raises:
        InputError: one is in it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"{folder}: another process is writing this run") from None


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index, floats to the last digit; file names that are not UTF-8 with ``\\udc..``."""
    # Before Python 3.13 a carriage return alone is not quoted, and would end the row.
    text = table.select_dtypes(include=["object", "string"])
    returns = any(isinstance(value, str) and "\r" in value for name in text for value in text[name])
    with whole(path) as temporary:
        quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
        table.to_csv(temporary, index=False, errors="backslashreplace", quoting=quoting)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
