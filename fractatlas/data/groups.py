"""Which images must stay on one side of a split: copies of one image, and neighbouring ids of one study.

FracAtlas has no patient ids, so both are found from the images and from ``dataset.csv``. The thresholds were settled
on the real radiographs; ``audit`` shows by what.
"""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BODY = ["hand", "leg", "hip", "shoulder"]
# Of the 256 bits of the difference hash: one pair of the real set lies between 9 and 15, cut short as below.
NEAR = 8
# Some copies were cut short and saved again, so that only their upper part agrees: 10 of the 16 rows, 160 bits.
UPPER_ROWS, UPPER_NEAR = 10, 2
GAP = 2  # ids; an image in between may be missing, and one link too many costs little


def add_groups(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Add the columns ``duplicates, study, group``, each the first ``image_id`` of those that belong together.

    Args:
        catalogue: ordered by ``image_id``, with the columns of ``dataset.csv`` and ``dhash``.

    Returns:
        The catalogue with ``duplicates`` (``""`` where an image has none), ``study`` and ``group``: what is linked by
        either, directly or through others.
    """
    usable = np.flatnonzero(catalogue["dhash"] != "")
    copies = usable[near_duplicates(catalogue["dhash"].iloc[usable])]
    views = study_neighbours(catalogue)
    ids = catalogue["image_id"].to_numpy()
    clusters = _components(copies, len(ids))
    return catalogue.assign(
        duplicates=np.where(np.bincount(clusters)[clusters] > 1, _first(ids, clusters), ""),
        study=_first(ids, _components(views, len(ids))),
        group=_first(ids, _components(np.concatenate([copies, views]), len(ids))),
    )


def near_duplicates(dhash: pd.Series) -> np.ndarray:
    """Find the pairs of images that are copies of each other, identical or nearly so.

    Args:
        dhash: 64 hexadecimal digits each, 16 rows of 16 bits from the top.

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


def neighbours(catalogue: pd.DataFrame) -> np.ndarray:
    """Find the neighbouring ids, at most ``GAP`` apart, that show the same body part.

    Returns:
        int64 (n, 2), positions in ``catalogue``, the smaller id first.
    """
    number = pd.to_numeric(catalogue["image_id"].str.extract(r"(\d+)", expand=False), errors="coerce").to_numpy()
    order = np.argsort(number, kind="stable")  # without a number: last
    before, after = order[:-1], order[1:]
    body = catalogue[BODY].to_numpy()
    same = (body[after] == body[before]).all(axis=1) & body[before].any(axis=1)
    return np.stack([before, after], axis=1)[same & (number[after] - number[before] <= GAP)]


def study_neighbours(catalogue: pd.DataFrame) -> np.ndarray:
    """Find the neighbouring ids that look like one study: views of one limb, taken one after the other.

    Neighbours that show the same body part belong together, unless a frontal view follows one that is not: a study
    starts with its frontal view. In the real set the labels of the first kind correlate by 0.81, of the second by
    0.21, of strangers by 0.02; see ``audit.label_agreement``. Grey levels told the two kinds apart no better.

    Returns:
        int64 (n, 2), positions in ``catalogue``.
    """
    pairs, frontal = neighbours(catalogue), catalogue["frontal"].to_numpy() == 1
    return pairs[~(frontal[pairs[:, 1]] & ~frontal[pairs[:, 0]])]


def _components(pairs: np.ndarray, count: int) -> np.ndarray:
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1]


def _first(ids: np.ndarray, components: np.ndarray) -> np.ndarray:
    """For each image, the id of the first image of its component."""
    _, first = np.unique(components, return_index=True)
    return ids[first[components]]
