import numpy as np
import pytest

from fractatlas.evaluation.bootstrap import draws, interval


def test_the_first_row_is_the_images_themselves_and_the_others_are_resamples():
    rows = draws(["a", "b", "c", "d"], resamples=500)
    assert (rows.shape, rows.dtype) == ((501, 4), np.float64)
    assert (rows[0] == 1).all()
    assert (rows.sum(axis=1) == 4).all()
    assert rows[1:].mean() == 1
    assert rows[1:].var() == pytest.approx(0.75, abs=0.1)  # of a binomial count: 4 draws, each 1/4


def test_a_group_is_drawn_as_a_whole():
    rows = draws([7, 3, 7, 3, 3], resamples=50)
    assert (rows[:, [0]] == rows[:, [2]]).all()
    assert (rows[:, [1]] == rows[:, [3, 4]]).all()
    assert (rows[1:, 0] + rows[1:, 1] == 2).all()


def test_the_seed_decides_the_draws():
    assert np.array_equal(draws(range(9), 20, seed=1), draws(range(9), 20, seed=1))
    assert not np.array_equal(draws(range(9), 20, seed=1), draws(range(9), 20, seed=2))


def test_a_means_interval_is_the_textbooks():
    sample = np.random.default_rng(0).normal(size=400)
    weights = draws(range(400))
    found = interval(weights @ sample / weights.sum(axis=1))
    error = 1.96 * sample.std() / 20
    assert found["value"] == pytest.approx(sample.mean())
    assert found["low"] == pytest.approx(sample.mean() - error, abs=0.1 * error)
    assert found["high"] == pytest.approx(sample.mean() + error, abs=0.1 * error)


def test_what_is_undefined_has_no_interval_and_undefined_resamples_do_not_count():
    assert interval(np.array([np.nan, 1.0, 2.0])) is None
    assert interval(np.array([1.5, 1.0, np.nan, 1.0])) == {"value": 1.5, "low": 1.0, "high": 1.0}
    assert interval(np.array([1.5, np.nan])) == {"value": 1.5, "low": 1.5, "high": 1.5}


def test_where_all_went_one_way_the_interval_is_the_exact_one():
    none = interval(np.zeros(2001), trials=14)
    assert (none["value"], none["low"]) == (0, 0)
    assert none["high"] == pytest.approx(1 - 0.025 ** (1 / 14))
    every = interval(np.ones(2001), trials=14)
    assert (every["low"], every["high"]) == (pytest.approx(0.025 ** (1 / 14)), 1)
