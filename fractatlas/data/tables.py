"""Read tables of images: CSV with any of three separators, or Parquet."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fractatlas.errors import InputError
from fractatlas.io import read_csv

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
PARQUET = (".parquet", ".pq")


def read_table(file: Path, required: Sequence[str], remedy: str) -> pd.DataFrame:
    """Read a table as text: CSV in UTF-8, separated by commas, semicolons or tabs, or Parquet.

    The separator is the one that is most frequent in the first line.

    Args:
        file: the table; ``.parquet`` and ``.pq`` are Parquet.
        required: the columns that it must have.
        remedy: ends the message if it is not such a table.

    Returns:
        All columns as text without surrounding spaces, ``""`` for an empty cell.

    Raises:
        InputError: the file is missing, is not a table, lacks a column or has two of the same name, or has a row with
            more or fewer cells than the first line.
    """
    if is_parquet(file):
        return _read_parquet(file, required, remedy)
    separator = detect_separator(file)
    header = read_csv(file, [], remedy, sep=separator, dtype=str, header=None, nrows=1).iloc[0].dropna().str.strip()
    if repeated := [*header[header.duplicated()]]:
        raise InputError(f"{file}: column {repeated[0]} occurs more than once; rename or remove one of them")
    table = read_csv(file, [], remedy, sep=separator, dtype=str, keep_default_na=False, na_values=[""])
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes additional cells of the first row as an index
        raise InputError(f"{file}, line 2: more cells than in the first line; put text with a separator in quotes")
    table.columns = table.columns.str.strip()
    if missing := [name for name in required if name not in table]:
        columns = f"column {missing[0]} is" if len(missing) == 1 else f"columns {', '.join(missing)} are"
        found = f"found {', '.join(table.columns[:12])}{', ...' if len(table.columns) > 12 else ''}"
        raise InputError(f"{file}: {columns} missing ({found}; separated by {SEPARATORS[separator]}); {remedy}")
    # A row with fewer cells than the header ends with empty cells, such as one with another separator.
    cut = table.iloc[:, 1:].isna().all(axis=1) & table.iloc[:, 0].notna()
    for row in np.flatnonzero(cut.to_numpy())[:1]:
        text = str(table.iloc[row, 0])
        if other := next((name for mark, name in SEPARATORS.items() if mark != separator and mark in text), None):
            problem = f"the cells are separated by {other}, in the first line by {SEPARATORS[separator]}"
            raise InputError(f"{file}, line {row + 2}: {problem}; use one separator")
    return table.fillna("").apply(lambda column: column.str.strip())


def is_parquet(file: Path) -> bool:
    """Return whether a table is read as Parquet."""
    return file.suffix.lower() in PARQUET


def detect_separator(file: Path) -> str:
    """Return the separator that is most frequent in the first line of a CSV file; a comma if there is none.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with file.open("rb") as content:
            first = content.readline(1_000_000).decode("utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}; correct the path") from None
    return max(SEPARATORS, key=first.count)


def as_numbers(column: pd.Series) -> pd.Series | None:
    """Return a column as numbers, NaN where it is empty; ``None`` if a cell is neither empty nor a finite number."""
    empty = column.isna() | (column.astype(str).str.strip() == "")
    numbers = pd.to_numeric(column.where(~empty), errors="coerce")
    return numbers if (np.isfinite(numbers.astype(float)) | empty).all() and not empty.all() else None


def _read_parquet(file: Path, required: Sequence[str], remedy: str) -> pd.DataFrame:
    try:
        table = pd.read_parquet(file)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}; correct the path") from None
    except ImportError:
        raise InputError(f"{file}: Parquet needs pyarrow; run pip install pyarrow, or save the table as CSV") from None
    except Exception as error:  # pyarrow raises exceptions of its own
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: cannot be read as Parquet: {reason}; {remedy}") from None
    if missing := [name for name in required if name not in table]:
        raise InputError(f"{file}: columns {', '.join(missing)} are missing (found {', '.join(table)[:200]}); {remedy}")
    return table.apply(_as_text)


def _as_text(column: pd.Series) -> pd.Series:
    """Return the values as they would be in a CSV file: 1 for 1.0, and ``""`` if there is none."""
    text = column.astype(object).where(column.notna(), "")
    return text.map(lambda value: str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))
