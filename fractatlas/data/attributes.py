"""Divide images into strata by their attributes: the columns of a catalogue that have no other meaning here."""

from itertools import pairwise

import numpy as np
import pandas as pd

from fractatlas.data.catalogue import RESERVED
from fractatlas.data.sources.fracatlas import BODY, BODY_PARTS, VIEWS
from fractatlas.data.tables import as_numbers

FLAGS = {"body part": tuple(BODY), "view": VIEWS}  # attributes that have a column of 0 and 1 for each value
YES_NO = {"hardware": "hardware", "multiscan": "several scans"}
LABEL_COLUMNS = ("fractured", "fracture_count")  # of FracAtlas: other forms of the label
# Columns of joined predictions.
PREDICTIONS = ("split", "probability", "probability_calibrated", "fold_threshold", "box_size")
MOST_FREQUENT = 10  # values of a text column that are strata of their own
OTHER, SEVERAL = "other", "several"
QUARTILES = 4


def strata_of(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> dict[str, pd.Series]:
    """Return the stratum of each image, categorical, for each attribute; missing if it belongs to none.

    Attributes of FracAtlas come first: body part, view, hardware, several scans. Then the source, if there are several,
    and all other columns: numbers in quartiles, text by its ``MOST_FREQUENT`` values and ``OTHER``. Columns of text
    with a different value in more than half of the images, and columns with one value, have no strata.

    Args:
        table: with the columns of a catalogue.
        reference: the images whose quartiles and most frequent values are used, so that strata of several subsets can
            be compared; ``None``: those of ``table``.
    """
    reference = table if reference is None else reference
    strata = {}
    for attribute, names in FLAGS.items():
        if {*names} <= {*table}:
            flags = table[list(names)].apply(pd.to_numeric, errors="coerce").fillna(0).astype(float)
            one = flags.idxmax(axis=1).where(flags.sum(axis=1) == 1, SEVERAL).where(flags.sum(axis=1) > 0)
            strata[attribute] = one.astype(pd.CategoricalDtype([*names, SEVERAL]))
    for name, attribute in YES_NO.items():
        if name in table and _is_flag(table[name]):
            strata[attribute] = table[name].map({0: "no", 1: "yes"}).astype("category")
    for name in attribute_columns(table):
        if name in reference and (stratum := _divide(table[name], reference[name])) is not None:
            strata[name.replace("_", " ")] = stratum
    return strata


def attribute_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns that are attributes of their own: not reserved, and not among those of FracAtlas."""
    used = {*RESERVED, *PREDICTIONS, *LABEL_COLUMNS} - {"source"}
    for names in FLAGS.values():
        used |= {*names} if {*names} <= {*table} else set()
    used |= {*BODY_PARTS} if {*BODY} <= {*table} else set()
    used |= {name for name in YES_NO if name in table and _is_flag(table[name])}
    return [name for name in table if name not in used]


def _is_flag(column: pd.Series) -> bool:
    return bool(column.dropna().isin([0, 1]).all())


def _divide(column: pd.Series, reference: pd.Series) -> pd.Series | None:
    numbers, known = as_numbers(column), as_numbers(reference)
    if numbers is not None and known is not None and known.nunique() > QUARTILES:
        edges = np.unique(np.quantile(known.dropna(), np.linspace(0, 1, QUARTILES + 1)))
        if len(edges) > 2:
            names = [f"above {low:g} to {high:g}" for low, high in pairwise(edges)]
            names[0] = names[0].removeprefix("above ")
            return pd.cut(numbers, edges, labels=names, include_lowest=True)
    text, counts = _as_text(column), _as_text(reference).value_counts()
    if len(counts) < 2 or len(counts) > counts.sum() / 2:
        return None
    frequent = sorted(counts.index, key=lambda value: (-counts[value], value))[:MOST_FREQUENT]
    if known is not None:
        frequent.sort(key=float)
    shown = text.where(text.isna() | text.isin(frequent), OTHER)
    return shown.astype(pd.CategoricalDtype([*frequent, *([OTHER] if len(counts) > len(frequent) else [])]))


def _as_text(column: pd.Series) -> pd.Series:
    numbers = as_numbers(column)
    if numbers is not None:
        text = numbers.map(lambda value: f"{value:g}", na_action="ignore")
    else:
        text = column.astype(str).where(column.notna()).str.strip()
    return text.where(text != "")
