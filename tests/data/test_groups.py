import numpy as np
import pandas as pd
import pytest

from fractatlas.data.groups import NEAR, add_groups, near_duplicates
from fractatlas.data.sources.fracatlas import COLUMNS, neighbours


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


def test_an_exam_is_a_sequence_of_views_of_one_body_part_that_starts_with_a_frontal_view():
    table = make_catalogue(
        (1, "hand", "frontal"), (2, "hand", "lateral"), (3, "hand", "oblique"),
        (4, "hand", "frontal"), (5, "hand", "frontal"),
        (6, "leg", "frontal"), (8, "leg", "lateral"),  # one missing in between
        (11, "leg", "lateral"),  # two missing
    )  # fmt: skip
    assert linked(add_groups(table)) == [[1, 2, 3], [4, 5], [6, 8], [11]]


def test_copies_join_their_exams_to_one_group():
    rows = (1, "hand", "frontal"), (2, "hand", "lateral"), (50, "leg", "frontal"), (60, "hip", "frontal")
    table = make_catalogue(*rows)
    table.loc[3, "dhash"] = table.loc[1, "dhash"]
    grouped = add_groups(table)
    assert linked(grouped) == [[1, 2, 60], [50]]
    assert grouped["duplicates"].tolist() == ["", "IMG0000002.jpg", "", "IMG0000002.jpg"]


def test_images_without_a_hash_or_a_number_are_not_linked():
    table = make_catalogue((1, "hand", "frontal"), (2, "leg", "frontal"), (3, "hip", "frontal"))
    table["dhash"] = ""
    table["image_id"] = ["a.jpg", "b.jpg", "c.jpg"]
    assert add_groups(table)["group"].tolist() == table["image_id"].tolist()
    assert len(neighbours(table)[0]) == 0


def test_fracatlas_has_small_groups_and_the_known_copies(real_catalogue):
    catalogue = real_catalogue.set_index("image_id")
    usable = catalogue[catalogue["excluded"] == ""]
    assert (usable.groupby("exam").size() <= 7).all()
    assert 1.8 < usable.groupby("group").size().mean() < 2.1
    for copies in (["0002886", "0004243"], ["0002998", "0004280"], ["0003034", "0004314", "0004341"],
                   ["0002652", "0004067"], ["0002904", "0004232"]):  # fmt: skip
        assert catalogue.loc[[f"IMG{number}.jpg" for number in copies], "duplicates"].nunique() == 1
