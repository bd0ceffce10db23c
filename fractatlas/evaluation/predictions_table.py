"""Read and check tables of predictions, from this project or from any other system."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fractatlas.data import leaks
from fractatlas.data.groups import GIVEN, merge_groups, read_given
from fractatlas.errors import InputError
from fractatlas.io import read_csv

REQUIRED = ("image_id", "label", "probability")


def read_predictions(path: Path) -> pd.DataFrame:
    """Read and check a table of predictions.

    Returns:
        ``image_id`` (str), ``group``, ``split`` (default: ``test``), ``label`` (0 or 1), ``probability`` (of a
        fracture, 0 to 1) and, if the file has them, ``probability_calibrated``, ``fold_threshold`` (of the network
        that predicted the image, if several networks are pooled) and ``patient``. ``group`` joins the images with the
        same value in the file's column ``group`` or ``patient``; it is ``image_id`` if the file has neither. Rows are
        in the file's order.

    Raises:
        InputError: a column or a value is missing or invalid; the message contains the line.
    """
    remedy = f"predictions need {','.join(REQUIRED)} separated by commas"
    table = read_csv(path, REQUIRED, remedy, dtype=dict.fromkeys(("image_id", "split", *GIVEN), str))
    if table.empty:
        raise InputError(f"{path} has no rows; add one row per image")
    for name, allowed in (("label", "0 or 1"), ("probability", "a number from 0 to 1"),
                          ("probability_calibrated", "a number from 0 to 1"),
                          ("fold_threshold", "a number from 0 to 1")):  # fmt: skip
        if name not in table:
            continue
        values = pd.to_numeric(table[name], errors="coerce")
        _require(path, table[name], ~values.isin([0, 1]) if name == "label" else ~values.between(0, 1), allowed)
        table[name] = values.astype(int if name == "label" else float)
    _require(path, table["image_id"], table["image_id"].isna(), "a string")
    _require(path, table["image_id"], table["image_id"].duplicated(), "unique")
    table["split"] = table["split"].fillna("test") if "split" in table else "test"
    given = read_given(table)
    group = table["group"].fillna(table["image_id"]) if "group" in table else table["image_id"]
    if "patient" in given:
        table["patient"] = given["patient"]
        group = merge_groups(table["image_id"], [group, given["patient"]])
    order = [
        "image_id",
        "group",
        "split",
        "label",
        "probability",
        "probability_calibrated",
        "fold_threshold",
        "patient",
    ]
    return table.assign(group=group)[[name for name in order if name in table or name == "group"]]


def join(predictions: pd.DataFrame, catalogue: pd.DataFrame) -> pd.DataFrame:
    """Add the catalogue's columns to the predictions, without those that the predictions have."""
    known = catalogue.drop(columns=[name for name in predictions if name != "image_id"], errors="ignore")
    return predictions.merge(known.drop_duplicates("image_id"), on="image_id", how="left")


def add_groups(predictions: pd.DataFrame, catalogue: pd.DataFrame) -> pd.DataFrame:
    """Join groups of the predictions that a group of the catalogue links."""
    known = _catalogue_columns(predictions, catalogue, ["group"])
    merged = merge_groups(predictions["image_id"], [predictions["group"], *known.values()])
    changed = merged.nunique() < predictions["group"].nunique()
    return predictions.assign(group=merged) if changed else predictions


def find_leaks(predictions: pd.DataFrame, catalogue: pd.DataFrame | None) -> dict[str, dict[str, Any]]:
    """Return ``data.leaks.find_leaks`` of the subsets in the predictions, for the relations that are known.

    These are the column ``patient``, the exams, duplicates and patients of the catalogue, and the column ``group`` if
    it links more images than these.

    Args:
        predictions: as ``read_predictions`` returns them.
        catalogue: ``image_id`` and any columns of a catalogue.
    """
    ids, known = predictions["image_id"], {}
    if catalogue is not None:
        known = _catalogue_columns(predictions, catalogue, [*leaks.COLUMNS.values(), "group"])
    if "patient" in predictions:
        known["patient"] = predictions["patient"]
    linked = merge_groups(ids, list(known.values()))
    if predictions["group"].nunique() < linked.nunique():
        known["given_group"] = predictions["group"]
    found = leaks.find_leaks(predictions, pd.DataFrame(known | {"image_id": ids, "group": predictions["group"]}))
    if catalogue is not None and (unmatched := int((~ids.isin(catalogue["image_id"])).sum())):
        for kind in {"exams", "duplicates"} & found.keys():
            found[kind]["unmatched"] = unmatched
    return found


def _catalogue_columns(
    predictions: pd.DataFrame, catalogue: pd.DataFrame, names: Sequence[str]
) -> dict[str, pd.Series]:
    """Return columns of the catalogue for the images of the predictions, as text; ``""`` for other images."""
    rows = catalogue.drop_duplicates("image_id").set_index("image_id").astype(str)
    return {name: predictions["image_id"].map(rows[name]).fillna("") for name in names if name in rows}


def _require(path: Path, column: pd.Series, invalid: pd.Series, allowed: str) -> None:
    if invalid.any():
        row = int(invalid.to_numpy().argmax())
        raise InputError(f"{path}, line {row + 2}: {column.name} is {column.iloc[row]}, should be {allowed}")
