"""Group images that must be in the same subset: copies of one image, images of one exam and images of one patient.

Copies are recognised by a hash of the image. Patients, exams and other groups are columns of the data (``GIVEN``). A
source without a column for exams can infer them, as FracAtlas does from neighbouring ids. The thresholds of copies were
chosen on the radiographs of FracAtlas; the audit page shows the evidence.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Largest number of different bits, of the 256 bits of the difference hash. In FracAtlas, the only pair with 9 to 15
# different bits is a truncated copy as below.
NEAR = 8
# The lower part of some copies is missing, because a truncated file was saved again. The upper 10 of 16 rows (160 bits)
# of these copies differ in at most 2 bits.
UPPER_ROWS, UPPER_NEAR = 10, 2
ROW_BITS = 16
# Of these bands of bits, at least two are equal in any two hashes that differ in at most NEAR bits, and at least one in
# any two whose upper rows differ in at most UPPER_NEAR bits, because a different bit changes one band only.
BANDS, UPPER_BANDS = NEAR + 2, UPPER_NEAR + 1
BLOCK = 1_000_000  # pairs of hashes that are compared at a time, to limit memory
# Optional columns of a data set, of a manifest and of predictions, and their names in the tables of this package.
GIVEN = {"patient": "patient", "exam": "given_exam", "group": "given_group"}


def add_groups(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Add the columns ``duplicates`` and ``group``; each value is the first ``image_id`` of the linked images.

    Args:
        catalogue: ordered by ``image_id``, with ``dhash`` and any of ``exam`` (inferred) and the columns of ``GIVEN``.

    Returns:
        The catalogue with ``duplicates`` (``""`` for an image without copies), and ``group`` as from ``link``.
    """
    usable = np.flatnonzero(catalogue["dhash"] != "")
    copies = usable[duplicate_links(catalogue["dhash"].iloc[usable])]
    duplicates = first_linked(catalogue["image_id"], copies)
    return link(catalogue.assign(duplicates=duplicates.where(duplicates.duplicated(keep=False), "")))


def link(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Add the column ``group``: images that are linked directly or through other images.

    Links are equal values of ``duplicates``, ``exam`` and the columns of ``GIVEN`` that exist; ``""`` is no link. An
    inferred exam with images of several known patients is divided by patient first.

    Args:
        catalogue: with ``image_id, duplicates`` and, if exams were inferred, ``exam``.
    """
    ids = catalogue["image_id"]
    if {"patient", "exam"} <= {*catalogue}:
        patient = catalogue["patient"]
        several = patient.where(patient != "").groupby(catalogue["exam"]).transform("nunique") > 1
        parts = ids.groupby([catalogue["exam"], patient]).transform("first")
        catalogue = catalogue.assign(exam=catalogue["exam"].where(~several, parts))
    columns = [name for name in ("duplicates", "exam", *GIVEN.values()) if name in catalogue]
    return catalogue.assign(group=merge_groups(ids, [catalogue[name] for name in columns]))


def add_given(catalogue: pd.DataFrame, given: pd.DataFrame) -> pd.DataFrame:
    """Add columns of ``GIVEN`` from another table and group the images again.

    Args:
        catalogue: with ``image_id, duplicates`` and, if exams were inferred, ``exam``.
        given: ``image_id`` and any columns of ``GIVEN``, by their names in this package; an empty value adds nothing.
    """
    for name in [name for name in GIVEN.values() if name in given]:
        values = catalogue["image_id"].map(given.set_index("image_id")[name]).fillna("")
        if name in catalogue:
            values = values.where(values != "", catalogue[name])
        catalogue = catalogue.assign(**{name: values})
    if "given_exam" in given:
        catalogue = catalogue.drop(columns="exam", errors="ignore")
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
    return first_linked(ids, np.concatenate(pairs))


def near_duplicates(dhash: pd.Series) -> np.ndarray:
    """Find pairs of identical or nearly identical images.

    Only hashes with equal bands of bits are compared (Norouzi et al., Fast Search in Hamming Space with Multi-Index
    Hashing, CVPR 2012), so that the time grows little faster than the number of images.

    Args:
        dhash: difference hashes, 64 hexadecimal digits each: 16 rows of 16 bits from the top.

    Returns:
        int64 (n, 2), positions in ``dhash``, the smaller first, ordered.
    """
    unique, of_hash = _distinct(dhash)
    members = _positions(of_hash, len(unique))
    same = [_pairs_within(positions) for positions in members if len(positions) > 1]
    near = [np.array(np.meshgrid(members[a], members[b])).reshape(2, -1).T for a, b in _near_pairs(unique)]
    pairs = np.sort(np.concatenate([np.zeros((0, 2), dtype=np.int64), *same, *near]), axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def duplicate_links(dhash: pd.Series) -> np.ndarray:
    """Return pairs that link the same images as ``near_duplicates``, directly or through others, but are fewer.

    Arguments and result are those of ``near_duplicates``, in any order.
    """
    unique, of_hash = _distinct(dhash)
    first = np.zeros(len(unique), dtype=np.int64)
    first[of_hash[::-1]] = np.arange(len(of_hash))[::-1]
    same = np.stack([first[of_hash], np.arange(len(of_hash))], axis=1)
    return np.concatenate([same[same[:, 0] != same[:, 1]], first[_near_pairs(unique)]])


def find_matches(dhash: pd.Series, known: pd.Series) -> np.ndarray:
    """Find an image of ``known`` that each image is identical or nearly identical to.

    Args:
        dhash: difference hashes of n images, as for ``near_duplicates``.
        known: likewise, of other images.

    Returns:
        int64 (n,), a position in ``known``; -1 for an image without a match.
    """
    unique, of_hash = _distinct(pd.concat([dhash, known], ignore_index=True))
    of_image, of_known = of_hash[: len(dhash)], of_hash[len(dhash) :]
    match = np.full(len(unique), -1, dtype=np.int64)
    match[of_known[::-1]] = np.arange(len(of_known))[::-1]  # the first image of known with this hash
    own = match.copy()
    for one, other in _near_pairs(unique):
        for hashed, near in ((one, other), (other, one)):
            if match[hashed] < 0 <= own[near]:
                match[hashed] = own[near]
    return match[of_image]


def _distinct(dhash: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct hashes, uint8 (m, 32), and the number of the hash of each image, int64 (n,)."""
    codes, values = pd.factorize(np.asarray(dhash, dtype=object))
    unique = np.frombuffer(bytes.fromhex("".join(values)), dtype=np.uint8).reshape(-1, 32)
    return unique, codes.astype(np.int64)


def _positions(of_hash: np.ndarray, hashes: int) -> list[np.ndarray]:
    """Return the positions of the images of each hash."""
    order = np.argsort(of_hash, kind="stable")
    return np.split(order, np.cumsum(np.bincount(of_hash, minlength=hashes))[:-1]) if hashes else []


def _pairs_within(positions: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(len(positions), 1)
    return np.stack([positions[first], positions[second]], axis=1)


def _near_pairs(hashes: np.ndarray) -> np.ndarray:
    """Return the pairs of distinct hashes, uint8 (m, 32), that are near: int64 (n, 2), the smaller position first."""
    if len(hashes) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    bits, words = np.unpackbits(hashes, axis=1), np.ascontiguousarray(hashes).view(np.uint64)
    upper_bits, found = UPPER_ROWS * ROW_BITS, []
    # A band takes bits from all over the image: the background at its edges is the same in many images.
    for chosen in combinations(range(BANDS), 2):
        for pairs in _pairs_with_equal_bits(bits[:, np.isin(np.arange(bits.shape[1]) % BANDS, chosen)]):
            found.append(pairs[np.bitwise_count(words[pairs[:, 0]] ^ words[pairs[:, 1]]).sum(axis=1) <= NEAR])
    upper = np.ascontiguousarray(hashes[:, : upper_bits // 8]).view(np.uint32)
    for band in range(UPPER_BANDS):
        for pairs in _pairs_with_equal_bits(bits[:, np.arange(band, upper_bits, UPPER_BANDS)]):
            different = np.bitwise_count(upper[pairs[:, 0]] ^ upper[pairs[:, 1]]).sum(axis=1)
            found.append(pairs[different <= UPPER_NEAR])
    return np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), dtype=np.int64)


def _pairs_with_equal_bits(bits: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the pairs of rows of ``bits`` (m, at most 64) that are equal: int64 (n, 2), about ``BLOCK`` at a time."""
    packed_bytes = np.packbits(np.pad(bits, ((0, 0), (0, 64 - bits.shape[1]))), axis=1)
    packed = np.ascontiguousarray(packed_bytes).view(np.uint64)[:, 0]
    order = np.argsort(packed, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(packed[order]) != 0])
    ends = np.r_[starts[1:], len(order)]
    # The pairs of a run of equal rows: each position with all later ones of the run.
    later = np.repeat(ends, ends - starts) - np.arange(len(order)) - 1
    blocks = np.cumsum(later) // BLOCK
    for block in np.unique(blocks[later > 0]):
        first = np.flatnonzero((blocks == block) & (later > 0))
        repeated = np.repeat(first, later[first])
        offsets = np.arange(len(repeated)) - np.repeat(np.cumsum(later[first]) - later[first], later[first]) + 1
        yield np.stack([order[repeated], order[repeated + offsets]], axis=1)


def first_linked(ids: pd.Series, pairs: np.ndarray) -> pd.Series:
    """Return, for each image, the id of the first image that is linked to it, directly or through others."""
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(ids), len(ids)))
    return ids.groupby(connected_components(links, directed=False)[1]).transform("first")
