import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fractatlas.data.groups import (
    NEAR,
    ROW_BITS,
    UPPER_NEAR,
    UPPER_ROWS,
    add_groups,
    duplicate_links,
    find_matches,
    first_linked,
    near_duplicates,
)
from fractatlas.data.sources.fracatlas import COLUMNS, infer_exams, neighbours


def dhash(*flipped: int, seed: int = 0) -> str:
    """Return a hash of random bits with some bits flipped; bit 0 is the top left one."""
    bits = np.random.default_rng(seed).integers(0, 2, 256)
    bits[list(flipped)] ^= 1
    return np.packbits(bits).tobytes().hex()


def make_catalogue(*rows: tuple[int, str, str]) -> pd.DataFrame:
    """Return a catalogue of (number, body part, view) in which no image is a copy."""
    table = pd.DataFrame({"image_id": [f"IMG{number:07d}.jpg" for number, _, _ in rows]})
    for name in COLUMNS:
        table[name] = [int(name in (body, view)) for _, body, view in rows]
    return table.assign(excluded="", dhash=[dhash(seed=number) for number, _, _ in rows])


def linked(table: pd.DataFrame) -> list[list[int]]:
    return [[int(name[3:10]) for name in ids] for _, ids in table.groupby("group")["image_id"]]


@pytest.mark.parametrize(
    ("flipped", "near"),
    [
        ((), True),
        (range(0, 256, 32), True),  # 8 of 256
        (range(0, 256, 28), False),  # 10 of 256
        (range(160, 256), True),  # another lower part: a truncated file that was saved again
        ((0, 1, *range(160, 256)), True),
        ((0, 1, 2, *range(160, 256)), False),
    ],
)
def test_near_duplicates_differ_in_few_bits_or_only_in_the_lower_part(flipped, near):
    pairs = near_duplicates(pd.Series([dhash(seed=9), dhash(), dhash(seed=8), dhash(*flipped)]))
    assert pairs.tolist() == ([[1, 3]] if near else [])


def test_near_duplicates_equal_those_of_a_loop_over_all_pairs():
    generator = np.random.default_rng(0)
    hashes = [dhash(*generator.integers(0, 256, n % 9), seed=n % 7) for n in range(40)]
    bits = [np.unpackbits(np.frombuffer(bytes.fromhex(value), np.uint8)) for value in hashes]
    expected = [
        [i, j]
        for i in range(40)
        for j in range(i + 1, 40)
        if (bits[i] != bits[j]).sum() <= NEAR or (bits[i] != bits[j])[:160].sum() <= 2
    ]
    assert near_duplicates(pd.Series(hashes)).tolist() == expected
    assert len(expected) > 5


def brute_force(dhash: pd.Series) -> list[list[int]]:
    """Return the pairs of ``near_duplicates`` by a comparison of all pairs."""
    bits = np.array([np.unpackbits(np.frombuffer(bytes.fromhex(value), np.uint8)) for value in dhash])
    different = bits[:, None] != bits[None]
    near = (different.sum(axis=2) <= NEAR) | (different[:, :, : UPPER_ROWS * ROW_BITS].sum(axis=2) <= UPPER_NEAR)
    return np.argwhere(np.triu(near, 1)).tolist()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_search_by_equal_bands_finds_the_pairs_of_a_comparison_of_all_pairs(data):
    seed, kinds = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 6))
    generator = np.random.default_rng(seed)
    # Few different images, so that many hashes are equal; black parts, so that many bands are equal.
    kinds_of_bits = generator.integers(0, 2, (kinds, 256)) * (generator.random((kinds, 256)) < generator.random())
    bits = kinds_of_bits[generator.integers(0, kinds, data.draw(st.integers(0, 40)))]
    for row in bits:
        row[generator.integers(0, 256, generator.integers(0, 14))] ^= 1
        if generator.random() < 0.3:
            row[160:] = generator.integers(0, 2, 96)
    hashes = pd.Series([np.packbits(row).tobytes().hex() for row in bits], dtype=object)
    expected = brute_force(hashes) if len(hashes) else []
    assert near_duplicates(hashes).tolist() == expected
    ids = pd.Series([f"{number:02}" for number in range(len(hashes))], dtype=object)
    if len(ids):
        pairs = np.array(expected, dtype=np.int64).reshape(-1, 2)
        assert first_linked(ids, duplicate_links(hashes)).equals(first_linked(ids, pairs))
        half = len(hashes) // 2
        matches = find_matches(hashes[:half], hashes[half:])
        assert (matches >= 0).tolist() == [any(i == row and j >= half for i, j in expected) for row in range(half)]
        assert all([row, half + other] in expected for row, other in enumerate(matches) if other >= 0)


def test_many_identical_images_are_linked_without_a_pair_for_each_two():
    hashes = pd.Series([dhash()] * 3000 + [dhash(1)] * 3000)
    assert len(duplicate_links(hashes)) == 5999


def test_an_exam_is_a_sequence_of_views_of_one_body_part_that_starts_with_a_frontal_view():
    table = make_catalogue(
        (1, "hand", "frontal"), (2, "hand", "lateral"), (3, "hand", "oblique"),
        (4, "hand", "frontal"), (5, "hand", "frontal"),
        (6, "leg", "frontal"), (8, "leg", "lateral"),  # one missing in between
        (11, "leg", "lateral"),  # two missing
    )  # fmt: skip
    assert linked(add_groups(infer_exams(table))) == [[1, 2, 3], [4, 5], [6, 8], [11]]


def test_copies_join_their_exams_to_one_group():
    rows = (1, "hand", "frontal"), (2, "hand", "lateral"), (50, "leg", "frontal"), (60, "hip", "frontal")
    table = make_catalogue(*rows)
    table.loc[3, "dhash"] = table.loc[1, "dhash"]
    grouped = add_groups(infer_exams(table))
    assert linked(grouped) == [[1, 2, 60], [50]]
    assert grouped["duplicates"].tolist() == ["", "IMG0000002.jpg", "", "IMG0000002.jpg"]


def test_images_without_a_hash_or_a_number_are_not_linked():
    table = make_catalogue((1, "hand", "frontal"), (2, "leg", "frontal"), (3, "hip", "frontal"))
    table["dhash"] = ""
    table["image_id"] = ["a.jpg", "b.jpg", "c.jpg"]
    assert add_groups(infer_exams(table))["group"].tolist() == table["image_id"].tolist()
    assert len(neighbours(table)[0]) == 0


def test_fracatlas_has_small_groups_and_the_known_copies(real_catalogue):
    catalogue = real_catalogue.set_index("image_id")
    usable = catalogue[catalogue["excluded"] == ""]
    assert (usable.groupby("exam").size() <= 7).all()
    assert 1.8 < usable.groupby("group").size().mean() < 2.1
    for copies in (["0002886", "0004243"], ["0002998", "0004280"], ["0003034", "0004314", "0004341"],
                   ["0002652", "0004067"], ["0002904", "0004232"]):  # fmt: skip
        assert catalogue.loc[[f"IMG{number}.jpg" for number in copies], "duplicates"].nunique() == 1
