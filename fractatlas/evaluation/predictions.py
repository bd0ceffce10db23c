"""The predictions table, of this project or of any other system: one row per image, with what the catalogue knows."""

from pathlib import Path

import pandas as pd

from fractatlas.errors import InputError

NEEDED = ("image_id", "label", "probability")


def read_predictions(path: Path) -> pd.DataFrame:
    """Read and check a table of predictions.

    Returns:
        ``image_id`` (str), ``label`` (0 or 1), ``probability`` (of a fracture, 0 to 1), ``split`` (``test`` where the
        file has none), ``group`` (the image itself where the file has none) and, where the file has it,
        ``probability_calibrated``; in the file's order.

    Raises:
        InputError: the file is no such table; says in which line.
    """
    try:
        table = pd.read_csv(path, encoding="utf-8-sig", dtype={"image_id": str, "group": str, "split": str})
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable table of predictions: {error}") from None
    if missing := [name for name in NEEDED if name not in table]:
        form = " separated by commas" if len(table.columns) == 1 else ""
        raise InputError(f"{path} lacks the column {', '.join(missing)}; predictions have {','.join(NEEDED)}{form}")
    if table.empty:
        raise InputError(f"{path} has no rows")
    for name, allowed in (("label", "0 or 1"), ("probability", "a number from 0 to 1"),
                          ("probability_calibrated", "a number from 0 to 1")):  # fmt: skip
        if name not in table:
            continue
        values = pd.to_numeric(table[name], errors="coerce")
        _refuse(path, table[name], ~values.isin([0, 1]) if name == "label" else ~values.between(0, 1), allowed)
        table[name] = values.astype(int if name == "label" else float)
    _refuse(path, table["image_id"], table["image_id"].isna(), "a name")
    _refuse(path, table["image_id"], table["image_id"].duplicated(), "listed once")
    table["split"] = table["split"].fillna("test") if "split" in table else "test"
    table["group"] = table["group"].fillna(table["image_id"]) if "group" in table else table["image_id"]
    order = ["image_id", "group", "split", "label", "probability", "probability_calibrated"]
    return table[[name for name in order if name in table]]


def read_catalogue_file(path: Path) -> pd.DataFrame:
    """Read a run's ``catalogue.csv``.

    Raises:
        InputError: the file is no table with an ``image_id``.
    """
    try:
        table = pd.read_csv(path, dtype={"image_id": str}, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable catalogue: {error}") from None
    if "image_id" not in table:
        raise InputError(f"{path} lacks the column image_id; name a run's catalogue.csv")
    return table


def join(predictions: pd.DataFrame, catalogue: pd.DataFrame) -> pd.DataFrame:
    """Add the catalogue's columns to the predictions, and its groups where the predictions have none of their own."""
    known = catalogue.drop(columns=["label", "split"], errors="ignore").drop_duplicates("image_id")
    table = predictions.merge(known.rename(columns={"group": "catalogue_group"}), on="image_id", how="left")
    alone = (table["group"] == table["image_id"]).all()
    if alone and "catalogue_group" in table:
        table["group"] = table["catalogue_group"].fillna(table["image_id"])
    return table.drop(columns="catalogue_group", errors="ignore")


def _refuse(path: Path, column: pd.Series, wrong: pd.Series, allowed: str) -> None:
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise InputError(f"{path} row {row + 1}: {column.name} is {column.iloc[row]}, should be {allowed}")
