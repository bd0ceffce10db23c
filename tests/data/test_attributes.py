import numpy as np
import pandas as pd

from fractatlas.data.attributes import attribute_columns, strata_of


def test_numbers_are_divided_into_quartiles_of_the_table():
    age = [*range(40), np.nan]
    strata = strata_of(pd.DataFrame({"age": age}))["age"]
    assert strata.value_counts().to_dict() == {name: 10 for name in strata.cat.categories}
    assert strata.isna().tolist() == [False] * 40 + [True]
    as_text = strata_of(pd.DataFrame({"age": [*map(str, range(40)), ""]}))["age"]  # as read from catalogue.csv
    assert as_text.equals(strata)


def test_the_strata_of_a_part_are_those_of_the_reference():
    reference = pd.DataFrame({"age": range(41), "ward": ["a"] * 21 + ["b"] * 20})
    part = strata_of(reference[30:], reference)
    assert list(part["age"].cat.categories) == ["0 to 10", "above 10 to 20", "above 20 to 30", "above 30 to 40"]
    assert set(part["age"]) == {"above 20 to 30", "above 30 to 40"}
    assert set(part["ward"]) == {"b"}


def test_text_is_divided_by_its_ten_most_frequent_values():
    values = [f"ward {number}" for number in range(12) for _ in range(20 - number)]
    strata = strata_of(pd.DataFrame({"hospital_ward": values}))["hospital ward"]
    assert list(strata.cat.categories) == [f"ward {number}" for number in range(10)] + ["other"]
    assert (strata == "other").sum() == 10 + 9


def test_few_different_numbers_are_values():
    strata = strata_of(pd.DataFrame({"fingers": [1, 2, 2, 3] * 5, "flag": [0, 1] * 10}))
    assert list(strata["fingers"].cat.categories) == ["1", "2", "3"]
    assert set(strata["flag"].cat.categories) == {"0", "1"}


def test_identifiers_constants_and_columns_with_another_meaning_have_no_strata():
    reserved = {"width": range(20), "patient": ["a", "b"] * 10, "note": ["a", "b"] * 10, "probability": range(20)}
    reserved["fold_threshold"] = [0.4, 0.5] * 10
    table = pd.DataFrame({"uid": [f"u{number}" for number in range(20)], "device": ["x"] * 20} | reserved)
    assert strata_of(table) == {}


def test_the_columns_of_fracatlas_are_body_part_and_view_only_if_all_of_them_exist():
    flags = {name: [1, 0] * 5 for name in ("hand", "leg", "hip", "shoulder", "mixed")}
    assert attribute_columns(pd.DataFrame(flags)) == []
    assert attribute_columns(pd.DataFrame({"hand": ["left", "right"] * 5})) == ["hand"]
    assert attribute_columns(pd.DataFrame({"hardware": ["plate", "none"] * 5})) == ["hardware"]
    assert attribute_columns(pd.DataFrame({"hardware": [0, 1] * 5})) == []
