import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score

from fractatlas.errors import InputError
from fractatlas.evaluation.paired_comparison import compare, spread


@pytest.fixture
def pair():
    generator = np.random.default_rng(0)
    label = (generator.random(400) < 0.3).astype(int)
    shared = generator.normal(size=400)
    tables = [
        pd.DataFrame({
            "image_id": [f"{row}.jpg" for row in range(400)], "label": label, "group": np.arange(400),
            "probability": 1 / (1 + np.exp(-(skill * (label - 0.5) + shared + generator.normal(scale=0.5, size=400)))),
        })
        for skill in (1.0, 1.4)
    ]  # fmt: skip
    return tables


def test_the_interval_of_a_difference_equals_scipys(pair):
    first, second = pair
    row = compare(first, second).set_index("metric").loc["accuracy"]

    def statistic(label, one, other):
        return accuracy_score(label, other >= 0.5) - accuracy_score(label, one >= 0.5)

    theirs = stats.bootstrap(
        (first["label"].to_numpy(), first["probability"].to_numpy(), second["probability"].to_numpy()), statistic,
        paired=True, vectorized=False, n_resamples=1000, method="percentile", rng=0,
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert (row["low"], row["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.15 * width)


def test_a_predictor_compared_with_itself_has_no_difference(pair):
    table = compare(pair[0], pair[0])
    assert (table["difference"] == 0).all()
    assert (table["p"] == 1).all()


def test_p_is_small_exactly_if_the_interval_excludes_zero(pair):
    table = compare(*pair)
    excludes_zero = (table["low"] > 0) | (table["high"] < 0)
    assert excludes_zero.any()
    assert (table.loc[excludes_zero, "p"] < 0.06).all()
    assert (table.loc[~excludes_zero, "p"] > 0.04).all()


def test_rows_are_matched_by_image_id(pair):
    first, second = pair
    assert compare(first, second.sample(frac=1, random_state=0)).equals(compare(first, second))
    assert set(compare(first, second.head(100))["n"]) == {100}


def test_disjoint_images_and_different_labels_are_refused(pair):
    first, second = pair
    with pytest.raises(InputError, match="no image in common"):
        compare(first, second.assign(image_id="x" + second["image_id"]))
    with pytest.raises(InputError, match="400 images, such as .*, have different labels"):
        compare(first, second.assign(label=1 - second["label"]))


def test_spread_returns_mean_and_sample_standard_deviation():
    table = spread(pd.DataFrame({"auroc": [0.8, 0.9, 1.0]}))
    assert table.loc[0].to_dict() == {
        "metric": "auroc",
        "seeds": 3,
        "mean": pytest.approx(0.9),
        "sd": pytest.approx(0.1),
    }
