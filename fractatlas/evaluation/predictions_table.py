"""Read and check tables of predictions, from this project or from any other system."""

from pathlib import Path

import pandas as pd

from fractatlas.errors import InputError
from fractatlas.io import read_csv

REQUIRED = ("image_id", "label", "probability")


def read_predictions(path: Path) -> pd.DataFrame:
    """Read and check a table of predictions.

    Returns:
        ``image_id`` (str), ``group`` (default: ``image_id``), ``split`` (default: ``test``), ``label`` (0 or 1),
        ``probability`` (of a fracture, 0 to 1) and, if the file has it, ``probability_calibrated``. Rows are in the
        file's order.

    Raises:
        InputError: a column or a value is missing or invalid; the message contains the line.
    """
    remedy = f"predictions need {','.join(REQUIRED)} separated by commas"
    table = read_csv(path, REQUIRED, remedy, dtype={"image_id": str, "group": str, "split": str})
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
        raise InputError(f"{path}, line {row + 2}: {column.name} is {column.iloc[row]}, should be {allowed}")
