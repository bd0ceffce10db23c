import logging

import pandas as pd
import pytest
from scipy.stats.contingency import association

from fractatlas.data.association import cramers_v, describe_association


def table(north: int, south: int) -> pd.DataFrame:
    """Return 100 images of each of two sources with these numbers of fractured images."""
    labels = [1] * north + [0] * (100 - north) + [1] * south + [0] * (100 - south)
    return pd.DataFrame({"label": labels, "source": ["north"] * 100 + ["south"] * 100})


@pytest.mark.parametrize(("north", "south"), [(50, 50), (10, 90), (30, 45), (0, 100)])
def test_the_association_is_cramers_v(north, south):
    images = table(north, south)
    counts = pd.crosstab(images["label"], images["source"]).to_numpy()
    assert cramers_v(images["label"], images["source"]) == pytest.approx(association(counts, method="cramer"))


def test_label_and_source_that_go_together_give_a_warning():
    found = describe_association(table(10, 60))
    assert found.level == logging.WARNING
    assert found.text.startswith("label and source go together")
    assert "10.0 % of 100 images of north, 60.0 % of 100 images of south (Cramér's V 0.52)" in found.text


def test_an_equal_share_gives_no_warning_and_one_source_no_line():
    assert describe_association(table(30, 31)).level == logging.INFO
    assert describe_association(table(30, 31)[:100]) is None
    assert describe_association(table(30, 31).drop(columns="source")) is None
