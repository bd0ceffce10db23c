"""Write files atomically, and lock folders that several processes use."""

import csv
import gzip
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from fractatlas.errors import InputError
from fractatlas.progress_bar import waiting


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it to ``path`` if the block succeeds, delete it if not.

    Raises:
        OSError: with ``path`` as its ``filename``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)  # the reader of the message does not know the temporary name
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def cache_lock(folder: Path) -> Iterator[None]:
    """Create a cache folder and let one process at a time run the block; the others log that they wait.

    Raises:
        InputError: the folder, or a file that the block writes, is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")  # the system releases the lock of a killed process
        try:
            lock.acquire(timeout=1)
        except Timeout:
            with waiting("waiting for another process", f" that writes to {folder}"):
                lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        raise InputError(
            f"cannot write the cache in {folder} ({error.strerror or error}); "
            "use another folder (paths.cache_dir=DIR; for the audit: --cache DIR) or no cache (data.cache=false)"
        ) from None


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a run folder for the block.

    Raises:
        InputError: another process holds the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"{folder}: another process is writing to this run folder; wait until it ends") from None


@contextmanager
def try_lock(file: Path) -> Iterator[bool]:
    """Lock ``file`` for the block unless another process holds the lock; yield whether this process has locked it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def read_csv(path: Path, required: Sequence[str], remedy: str, **options: Any) -> pd.DataFrame:
    """Read a UTF-8 table with or without a byte order mark; ``options`` are those of pandas.

    Raises:
        InputError: the file is missing, is not a table, or lacks a ``required`` column; ``remedy`` ends the last one.
    """
    try:
        table = pd.read_csv(path, encoding="utf-8-sig", **options)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; correct the path") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8; save the table as UTF-8") from None
    except pd.errors.EmptyDataError:
        raise InputError(f"{path}: the file is empty; correct the path, or write the file again") from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        if cells := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", reason):
            expected, line, found = cells.groups()
            problem = f"line {line} has {found} cells, the first line {expected}"
            raise InputError(f"{path}, {problem}; put text that contains the separator in quotes") from None
        raise InputError(f"{path}: cannot be read as CSV: {reason}; {remedy}") from None
    if missing := [name for name in required if name not in table]:
        if len(table.columns) == 1 and ";" in table.columns[0]:
            raise InputError(f"{path}: the columns are separated by semicolons, should be by commas; {remedy}")
        columns = f"column {missing[0]} is" if len(missing) == 1 else f"columns {', '.join(missing)} are"
        raise InputError(f"{path}: {columns} missing; {remedy}")
    return table


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically, without its index and with every digit of its numbers.

    Bytes of file names that are not UTF-8 become ``\\udc..`` escapes. A path that ends with ``.gz`` is compressed;
    equal tables give equal bytes.
    """
    # Before Python 3.13, the csv module does not quote a lone carriage return, which readers interpret as a line end.
    texts = table.select_dtypes(include=["object", "string"])
    returns = any(isinstance(value, str) and "\r" in value for name in texts for value in texts[name])
    with atomic_path(path) as temporary:
        quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
        if path.suffix == ".gz":
            text = table.to_csv(index=False, quoting=quoting).encode(errors="backslashreplace")
            temporary.write_bytes(gzip.compress(text, mtime=0))
        else:
            table.to_csv(temporary, index=False, errors="backslashreplace", quoting=quoting)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically; raise ``ValueError`` for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
