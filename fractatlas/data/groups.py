"""Group images that must be on the same side of a split: copies of one image and images of one exam.

FracAtlas has no patient ids. Copies are recognised by a hash of the image, exams by neighbouring ids and the columns of
``dataset.csv``. The thresholds were chosen on the real radiographs; the audit page shows the evidence.
"""

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
GAP = 2  # largest difference between neighbouring ids, because one image in between may be missing


def add_groups(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Add the columns ``duplicates, exam, group``; each value is the first ``image_id`` of the linked images.

    Args:
        catalogue: ordered by ``image_id``, with ``dhash`` and the columns of ``dataset.csv``.

    Returns:
        The catalogue with ``duplicates`` (``""`` for an image without copies), ``exam``, and ``group`` (images that are
        linked by copies or exams, directly or through other images).
    """
    usable = np.flatnonzero(catalogue["dhash"] != "")
    copies = usable[near_duplicates(catalogue["dhash"].iloc[usable])]
    exams = exam_pairs(catalogue)
    ids = catalogue["image_id"].to_numpy()
    clusters = _components(copies, len(ids))
    return catalogue.assign(
        duplicates=np.where(np.bincount(clusters)[clusters] > 1, _first(ids, clusters), ""),
        exam=_first(ids, _components(exams, len(ids))),
        group=_first(ids, _components(np.concatenate([copies, exams]), len(ids))),
    )


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


def neighbours(catalogue: pd.DataFrame) -> np.ndarray:
    """Find pairs of consecutive images of the same body part whose ids differ by at most ``GAP``.

    Returns:
        int64 (n, 2), positions in ``catalogue``, the smaller id first.
    """
    number = pd.to_numeric(catalogue["image_id"].str.extract(r"(\d+)", expand=False), errors="coerce").to_numpy()
    order = np.argsort(number, kind="stable")  # ids without a number come last
    before, after = order[:-1], order[1:]
    body = catalogue[BODY].to_numpy()
    same = (body[after] == body[before]).all(axis=1) & body[before].any(axis=1)
    return np.stack([before, after], axis=1)[same & (number[after] - number[before] <= GAP)]


def exam_pairs(catalogue: pd.DataFrame) -> np.ndarray:
    """Find pairs of neighbouring ids that belong to one exam.

    Neighbours of the same body part belong to one exam, unless a frontal view follows a view that is not frontal: an
    exam starts with its frontal view. In FracAtlas, the labels of neighbours within an exam correlate by 0.81, across
    such a start by 0.21, and of images far apart by 0.02; see ``audit.label_agreement``. A rule based on grey levels
    did not separate exams better.

    Returns:
        int64 (n, 2), positions in ``catalogue``.
    """
    pairs, frontal = neighbours(catalogue), catalogue["frontal"].to_numpy() == 1
    return pairs[~(frontal[pairs[:, 1]] & ~frontal[pairs[:, 0]])]


def _components(pairs: np.ndarray, count: int) -> np.ndarray:
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1]


def _first(ids: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Return, for each image, the id of the first image of its component."""
    _, first = np.unique(components, return_index=True)
    return ids[first[components]]
