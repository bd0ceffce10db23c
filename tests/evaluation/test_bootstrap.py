import numpy as np
import pytest

from fractatlas.evaluation.bootstrap import bootstrap_weights, interval


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
    assert interval(np.array([1.5, 1.0, np.nan, 1.0])) == {"value": 1.5, "low": 1.0, "high": 1.0}
    assert interval(np.array([1.5, np.nan])) == {"value": 1.5, "low": 1.5, "high": 1.5}


def test_proportions_of_0_and_1_have_the_exact_interval():
    none = interval(np.zeros(2001), trials=14)
    assert (none["value"], none["low"]) == (0, 0)
    assert none["high"] == pytest.approx(1 - 0.025 ** (1 / 14))
    every = interval(np.ones(2001), trials=14)
    assert (every["low"], every["high"]) == (pytest.approx(0.025 ** (1 / 14)), 1)
