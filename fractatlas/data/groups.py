"""Group images that must be in the same subset: copies of one image, images of one exam and images of one patient.

FracAtlas has no patient ids. Copies are recognised by a hash of the image, exams by neighbouring ids and the columns of
``dataset.csv``. The thresholds were chosen on the real radiographs; the audit page shows the evidence. Other data can
have the columns of ``GIVEN``.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BODY = ["hand", "leg", "hip", "shoulder"]
# Largest number of different bits, of the 256 bits of the difference hash. In FracAtlas, the only pair with 9 to 15
# different bits is a truncated copy as below.
NEAR = 8
# The lower part of some copies is missing, because a truncated file was saved again. The upper 10 of 16 rows (160 bits)
# of these copies differ in at most 2 bits.
UPPER_ROWS, UPPER_NEAR = 10, 2
# Optional columns of dataset.csv, of a manifest and of predictions, and their names in the tables of this package.
GIVEN = {"patient": "patient", "group": "given_group"}
GAP = 2  # largest difference between neighbouring ids, because one image in between may be missing


def add_groups(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Add the columns ``duplicates, exam, group``; each value is the first ``image_id`` of the linked images.

    Args:
        catalogue: ordered by ``image_id``, with ``dhash`` and the columns of ``dataset.csv``.

    Returns:
        The catalogue with ``duplicates`` (``""`` for an image without copies), ``exam``, and ``group`` as from
        ``link``.
    """
    usable = np.flatnonzero(catalogue["dhash"] != "")
    copies = usable[near_duplicates(catalogue["dhash"].iloc[usable])]
    pairs, starts = neighbours(catalogue)
    exams = pairs[~starts]
    ids = catalogue["image_id"]
    duplicates = _first_linked(ids, copies)
    duplicates = duplicates.where(duplicates.duplicated(keep=False), "")
    return link(catalogue.assign(duplicates=duplicates, exam=_first_linked(ids, exams)))


def link(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Add the column ``group``: images that are linked directly or through other images.

    Links are equal values of ``duplicates``, ``exam`` and the columns of ``GIVEN`` that exist; ``""`` is no link. An
    inferred exam with images of several known patients is divided by patient first.

    Args:
        catalogue: with ``image_id, duplicates, exam``.
    """
    ids = catalogue["image_id"]
    if "patient" in catalogue:
        patient = catalogue["patient"]
        several = patient.where(patient != "").groupby(catalogue["exam"]).transform("nunique") > 1
        parts = ids.groupby([catalogue["exam"], patient]).transform("first")
        catalogue = catalogue.assign(exam=catalogue["exam"].where(~several, parts))
    columns = ["duplicates", "exam", *(name for name in GIVEN.values() if name in catalogue)]
    return catalogue.assign(group=merge_groups(ids, [catalogue[name] for name in columns]))


def add_given(catalogue: pd.DataFrame, given: pd.DataFrame) -> pd.DataFrame:
    """Add columns of ``GIVEN`` from another table and group the images again.

    Args:
        catalogue: with ``image_id, duplicates, exam``.
        given: ``image_id`` and any columns of ``GIVEN``, by their names in this package; an empty value adds nothing.
    """
    for name in [name for name in GIVEN.values() if name in given]:
        values = catalogue["image_id"].map(given.set_index("image_id")[name]).fillna("")
        if name in catalogue:
            values = values.where(values != "", catalogue[name])
        catalogue = catalogue.assign(**{name: values})
    return link(catalogue)


def read_given(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of ``GIVEN`` of a file, by their names in this package, as text; ``""`` if there is no value.

    Args:
        table: with any columns of ``GIVEN``, read as text.
    """
    found = {new: table[old].fillna("").astype(str).str.strip() for old, new in GIVEN.items() if old in table}
    return pd.DataFrame(found, index=table.index)


def merge_groups(ids: pd.Series, groupings: Sequence[pd.Series]) -> pd.Series:
    """Return the group of each image if equal values in any of several columns link images.

    Args:
        ids: unique names of n images.
        groupings: each (n,); ``""`` is no link.

    Returns:
        The first id of each group, (n,).
    """
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    positions = pd.Series(np.arange(len(ids)), index=ids.index)
    for values in groupings:
        linked = positions[values != ""]
        pairs.append(np.stack([linked.groupby(values).transform("first"), linked], axis=1).astype(np.int64))
    return _first_linked(ids, np.concatenate(pairs))


def near_duplicates(dhash: pd.Series) -> np.ndarray:
    """Find pairs of identical or nearly identical images.

    Args:
        dhash: difference hashes, 64 hexadecimal digits each: 16 rows of 16 bits from the top.

    Returns:
        int64 (n, 2), positions in ``dhash``, the smaller first.
    """
    words = np.array([np.frombuffer(bytes.fromhex(value), dtype=np.uint16) for value in dhash]).reshape(-1, 16)
    pairs = []
    for first, row in enumerate(words):
        different = np.bitwise_count(words[first + 1 :] ^ row)
        near = (different.sum(1) <= NEAR) | (different[:, :UPPER_ROWS].sum(1) <= UPPER_NEAR)
        second = first + 1 + np.flatnonzero(near)
        pairs.append(np.stack([np.full_like(second, first), second], axis=1))
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), dtype=np.int64)


def neighbours(catalogue: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs of consecutive images of the same body part whose ids differ by at most ``GAP``.

    Such a pair belongs to one exam, unless a frontal view follows a view that is not frontal: an exam starts with its
    frontal view. In FracAtlas, the labels of neighbours within an exam correlate by 0.81, across such a start by 0.21,
    and of images far apart by 0.02; see ``audit.label_agreement``. A rule based on grey levels did not separate exams
    better.

    Returns:
        int64 (n, 2), positions in ``catalogue``, the smaller id first; and bool (n,), whether the second image starts
        another exam.
    """
    number = pd.to_numeric(catalogue["image_id"].str.extract(r"(\d+)", expand=False), errors="coerce").to_numpy()
    order = np.argsort(number, kind="stable")  # ids without a number come last
    before, after = order[:-1], order[1:]
    body, frontal = catalogue[BODY].to_numpy(), catalogue["frontal"].to_numpy() == 1
    same = (body[after] == body[before]).all(axis=1) & body[before].any(axis=1)
    pairs = np.stack([before, after], axis=1)[same & (number[after] - number[before] <= GAP)]
    return pairs, frontal[pairs[:, 1]] & ~frontal[pairs[:, 0]]


def _first_linked(ids: pd.Series, pairs: np.ndarray) -> pd.Series:
    """Return, for each image, the id of the first image that is linked to it, directly or through others."""
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(ids), len(ids)))
    return ids.groupby(connected_components(links, directed=False)[1]).transform("first")
