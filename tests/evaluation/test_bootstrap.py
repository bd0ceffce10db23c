import numpy as np
import pytest
from scipy.stats import binomtest

from fractatlas.evaluation.bootstrap import (
    NO_SPREAD,
    auroc_interval,
    bootstrap_weights,
    interval,
    mean_of_two_interval,
    proportion_interval,
)


def test_the_first_row_is_ones_and_the_others_are_resamples():
    rows = bootstrap_weights(["a", "b", "c", "d"], resamples=500)
    assert (rows.shape, rows.dtype) == ((501, 4), np.float64)
    assert (rows[0] == 1).all()
    assert (rows.sum(axis=1) == 4).all()
    assert rows[1:].mean() == 1
    assert rows[1:].var() == pytest.approx(0.75, abs=0.1)  # of a binomial count: 4 bootstrap_weights, each 1/4


def test_images_of_one_group_are_drawn_together():
    rows = bootstrap_weights([7, 3, 7, 3, 3], resamples=50)
    assert (rows[:, [0]] == rows[:, [2]]).all()
    assert (rows[:, [1]] == rows[:, [3, 4]]).all()
    assert (rows[1:, 0] + rows[1:, 1] == 2).all()


def test_equal_seeds_give_equal_weights():
    assert np.array_equal(bootstrap_weights(range(9), 20, seed=1), bootstrap_weights(range(9), 20, seed=1))
    assert not np.array_equal(bootstrap_weights(range(9), 20, seed=1), bootstrap_weights(range(9), 20, seed=2))


def test_changed_weights_do_not_change_later_ones():
    rows = bootstrap_weights(range(9), 20, seed=1)
    expected = rows.copy()
    rows[:] = 0
    assert np.array_equal(bootstrap_weights(range(9), 20, seed=1), expected)


def test_the_interval_of_a_mean_is_1_96_standard_errors():
    sample = np.random.default_rng(0).normal(size=400)
    weights = bootstrap_weights(range(400))
    result = interval(weights @ sample / weights.sum(axis=1))
    error = 1.96 * sample.std() / 20
    assert result["value"] == pytest.approx(sample.mean())
    assert result["low"] == pytest.approx(sample.mean() - error, abs=0.1 * error)
    assert result["high"] == pytest.approx(sample.mean() + error, abs=0.1 * error)


def test_an_undefined_value_has_no_interval_and_undefined_resamples_are_ignored():
    assert interval(np.array([np.nan, 1.0, 2.0])) is None
    ignored = interval(np.array([1.5, 1.0, np.nan, 2.0]))
    assert (ignored["low"], ignored["high"]) == (pytest.approx(1.025), pytest.approx(1.975))


@pytest.mark.parametrize("values", [[1.5, 1.5, np.nan, 1.5], [1.5, np.nan], [0.0, 0.0, 0.0]])
def test_a_value_without_spread_has_no_interval_but_the_reason(values):
    expected = {"value": values[0], "low": None, "high": None, "reason": NO_SPREAD}
    assert interval(np.array(values)) == expected


def test_proportions_of_0_and_1_have_the_exact_interval_of_the_number_of_groups():
    low, high = proportion_interval(np.zeros(2001), images=40, groups=14)
    assert (low, high) == (0, pytest.approx(1 - 0.025 ** (1 / 14)))
    low, high = proportion_interval(np.ones(2001), images=40, groups=14)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 14)), 1)


@pytest.mark.parametrize(("hits", "images"), [(1, 10), (9, 10), (50, 100), (199, 200)])
def test_the_interval_of_a_proportion_is_never_narrower_than_the_exact_one(hits, images):
    exact = binomtest(hits, images).proportion_ci()
    sample = np.arange(images) < hits
    for groups in (range(images), np.arange(images) // 2):
        weights = bootstrap_weights(groups)
        low, high = proportion_interval(weights @ sample / weights.sum(axis=1), images, len(set(groups)))
        assert low <= exact.low + 1e-9
        assert high >= exact.high - 1e-9
    if hits == 50:  # both images of each group are equal
        assert high - low > 1.3 * (exact.high - exact.low)


def test_a_proportion_in_a_single_group_has_no_interval():
    assert proportion_interval(np.full(101, 0.7), images=10, groups=1) is None


def test_the_interval_of_an_auroc_has_a_width_at_0_and_1():
    assert auroc_interval(1.0, 93, 436) == (pytest.approx(0.98735, abs=1e-4), 1)
    assert auroc_interval(0.0, 93, 436) == (0, pytest.approx(1 - 0.98735, abs=1e-4))
    low, high = auroc_interval(0.9, 50, 50)
    assert low < 0.9 < high
    assert 0.9 - low > high - 0.9
    assert auroc_interval(0.9, 1, 500)[0] < 0.4


def test_the_interval_of_a_mean_of_two_proportions_contains_their_uncertainty():
    assert mean_of_two_interval((1.0, (0.9, 1.0)), (1.0, (1.0, 1.0))) == (pytest.approx(0.95), 1)
    low, high = mean_of_two_interval((0.5, (0.2, 0.8)), (0.5, (0.1, 0.9)))
    assert (low, high) == (pytest.approx(0.25), pytest.approx(0.75))
