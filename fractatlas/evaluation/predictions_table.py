"""Read the files of a run that evaluation needs: predictions (also of other systems), catalogue, metrics."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from fractatlas.errors import InputError

REQUIRED = ("image_id", "label", "probability")


def read_predictions(path: Path) -> pd.DataFrame:
    """Read and check a table of predictions.

    Returns:
        ``image_id`` (str), ``group`` (default: ``image_id``), ``split`` (default: ``test``), ``label`` (0 or 1),
        ``probability`` (of a fracture, 0 to 1) and, if the file has it, ``probability_calibrated``. Rows are in the
        file's order.

    Raises:
        InputError: a column or a value is missing or invalid; the message contains the row.
    """
    try:
        table = pd.read_csv(path, encoding="utf-8-sig", dtype={"image_id": str, "group": str, "split": str})
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable CSV file: {error}") from None
    if missing := [name for name in REQUIRED if name not in table]:
        separator = " separated by commas" if len(table.columns) == 1 else ""
        raise InputError(
            f"{path}: column {', '.join(missing)} is missing; predictions need {','.join(REQUIRED)}{separator}"
        )
    if table.empty:
        raise InputError(f"{path} has no rows; add one row per image")
    for name, allowed in (("label", "0 or 1"), ("probability", "a number from 0 to 1"),
                          ("probability_calibrated", "a number from 0 to 1")):  # fmt: skip
        if name not in table:
            continue
        values = pd.to_numeric(table[name], errors="coerce")
        _require(path, table[name], ~values.isin([0, 1]) if name == "label" else ~values.between(0, 1), allowed)
        table[name] = values.astype(int if name == "label" else float)
    _require(path, table["image_id"], table["image_id"].isna(), "a string")
    _require(path, table["image_id"], table["image_id"].duplicated(), "unique")
    table["split"] = table["split"].fillna("test") if "split" in table else "test"
    table["group"] = table["group"].fillna(table["image_id"]) if "group" in table else table["image_id"]
    order = ["image_id", "group", "split", "label", "probability", "probability_calibrated"]
    return table[[name for name in order if name in table]]


def read_catalogue_file(path: Path) -> pd.DataFrame:
    """Read a run's ``catalogue.csv``.

    Raises:
        InputError: the file is not a table with a column ``image_id``.
    """
    try:
        table = pd.read_csv(path, dtype={"image_id": str}, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable CSV file: {error}") from None
    if "image_id" not in table:
        raise InputError(f"{path}: column image_id is missing; use the catalogue.csv of a run")
    return table


def read_metrics(path: Path) -> dict[str, Any]:
    """Read a run's ``metrics.json``.

    Raises:
        InputError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}; run the training or evaluation again") from None


def join(predictions: pd.DataFrame, catalogue: pd.DataFrame) -> pd.DataFrame:
    """Add the catalogue's columns to the predictions, and its groups if the predictions have none."""
    known = catalogue.drop(columns=["label", "split"], errors="ignore").drop_duplicates("image_id")
    table = predictions.merge(known.rename(columns={"group": "catalogue_group"}), on="image_id", how="left")
    if "catalogue_group" in table and (table["group"] == table["image_id"]).all():
        table["group"] = table["catalogue_group"].fillna(table["image_id"])
    return table.drop(columns="catalogue_group", errors="ignore")


def _require(path: Path, column: pd.Series, invalid: pd.Series, allowed: str) -> None:
    if invalid.any():
        row = int(invalid.to_numpy().argmax())
        raise InputError(f"{path} row {row + 1}: {column.name} is {column.iloc[row]}, should be {allowed}")
