import itertools
import math
from collections import Counter

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from fractatlas.search import storage
from fractatlas.search.sampler import TrialStreamSampler, start_points

UNIT = FloatDistribution(0, 1)
MIXED = {
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "momentum": FloatDistribution(0, 0.9, step=0.1),
    "smoothing": FloatDistribution(0.1, 0.3, step=0.1),
    "width": IntDistribution(8, 512, log=True),
    "epochs": IntDistribution(2, 10, step=2),
    "batch_size": CategoricalDistribution([32, 64]),
    "dropout": CategoricalDistribution([0.1, 0.3, 0.5]),
    "augment": CategoricalDistribution(["none", "light", "heavy", None]),
    "variant": CategoricalDistribution(list("abcdefgh")),
}


def started_study(points: int = 5, seed: int = 0) -> optuna.Study:
    """Return a study whose first trials have the start points of ``MIXED``."""
    sampler = TrialStreamSampler(lambda stream: optuna.samplers.RandomSampler(stream), seed, MIXED, points)
    return optuna.create_study(sampler=sampler)


def ask(study: optuna.Study, **attributes: object) -> optuna.Trial:
    """Sample a trial as the search does."""
    trial = study.ask(dict(MIXED))
    for name, value in {storage.SAMPLED: True, **attributes}.items():
        trial.set_user_attr(name, value)
    return trial


def sample(seed: int, count: int, interrupted: bool = False) -> list[float]:
    """Sample ``count`` trials; with ``interrupted``, one worker dies before and one after its trial is sampled."""
    sampler = TrialStreamSampler(lambda stream: optuna.samplers.TPESampler(seed=stream), seed, {"x": UNIT})
    study, values = optuna.create_study(sampler=sampler), []
    for number in range(count):
        if interrupted and number == 1:
            study.ask()
        trial = study.ask({"x": UNIT})
        trial.set_user_attr(storage.SAMPLED, True)
        values.append(trial.params["x"])
        if interrupted and number == 2:
            study.enqueue_trial(trial.params, user_attrs={storage.REPEATS: trial.number})
            study.ask().set_user_attr(storage.SAMPLED, True)
    return values


def test_every_trial_has_its_own_stream():
    assert sample(0, 6) == sample(0, 6)
    assert len(set(sample(0, 6))) == 6
    assert sample(0, 3) != sample(1, 3)


def test_interrupted_trials_do_not_change_the_samples():
    assert sample(0, 6, interrupted=True) == sample(0, 6)


@pytest.mark.parametrize("seed", range(10))
def test_start_points_are_spread_over_every_hyperparameter(seed):
    points = start_points(MIXED, 5, seed)
    assert len(points) == 5
    for point in points:
        create_trial(value=0.0, params=point, distributions=MIXED)  # raises if a value is outside its distribution
    for name in ("batch_size", "dropout", "augment", "epochs"):
        counts = Counter(point[name] for point in points)
        expected = 5 if name == "epochs" else len(MIXED[name].choices)
        assert len(counts) == expected
        assert max(counts.values()) - min(counts.values()) <= 1
    assert len({point["variant"] for point in points}) == 5
    places = sorted(math.log10(point["lr"]) + 4 for point in points)  # from 0 to 2
    assert [int(place / 0.4) for place in places] == [0, 1, 2, 3, 4]
    assert min(b - a for a, b in itertools.pairwise(places)) == pytest.approx(0.4)
    assert max(point["width"] for point in points) / min(point["width"] for point in points) > 20
    assert len({round(point["momentum"] * 10) // 2 for point in points}) == 5


@pytest.mark.parametrize("seed", range(10))
def test_start_points_differ_in_several_hyperparameters(seed):
    searched = {name: MIXED[name] for name in ("lr", "batch_size", "dropout", "epochs")}
    for one, other in itertools.combinations(start_points(searched, 5, seed), 2):
        assert sum(one[name] != other[name] for name in one) >= 2


def test_start_points_depend_on_the_seed_but_not_on_the_order_of_the_names():
    points = start_points(MIXED, 5, 0)
    assert start_points(dict(reversed(MIXED.items())), 5, 0) == points
    assert start_points(MIXED, 5, 1) != points


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (4, 2)])
def test_start_points_are_at_most_the_points_of_the_space(count, expected):
    points = start_points({"batch_size": MIXED["batch_size"]}, count, 0)
    assert len(points) == expected
    assert len({point["batch_size"] for point in points}) == expected


@pytest.mark.parametrize("name", ["TPESampler", "GPSampler"])
def test_first_trials_have_the_start_points(name):
    make = getattr(optuna.samplers, name)
    sampler = TrialStreamSampler(lambda stream: make(seed=stream, n_startup_trials=5), 0, MIXED, 5)
    study = optuna.create_study(sampler=sampler)
    for index in range(7):
        study.tell(ask(study), index / 10)
    assert [trial.params for trial in study.trials[:5]] == start_points(MIXED, 5, 0)
    assert all(trial.params not in start_points(MIXED, 5, 0) for trial in study.trials[5:])


def test_resumed_study_continues_with_the_unused_start_points():
    study = started_study()
    for _ in range(2):
        study.tell(ask(study), 0.5)
    resumed = started_study()
    resumed.add_trials(study.trials)
    for _ in range(3):
        resumed.tell(ask(resumed), 0.5)
    assert [trial.params for trial in resumed.trials] == start_points(MIXED, 5, 0)


def test_processes_that_sample_at_the_same_time_take_different_start_points():
    study = started_study()
    slow = study.ask()  # of another process, which has not sampled its hyperparameters yet
    others = [ask(study).params for _ in range(3)]
    assert others == start_points(MIXED, 5, 0)[1:4]
    study.tell(slow, state=TrialState.FAIL)  # it stopped before it sampled them
    assert [ask(study).params for _ in range(2)] == [start_points(MIXED, 5, 0)[index] for index in (0, 4)]


def test_repeated_and_discarded_trials_do_not_use_a_start_point():
    study, points = started_study(), start_points(MIXED, 5, 0)
    interrupted = ask(study)
    study.tell(interrupted, state=TrialState.FAIL)
    study.enqueue_trial(interrupted.params, user_attrs={storage.REPEATS: 0})
    assert ask(study).params == points[0]
    study.tell(ask(study, **{storage.DISCARDED: "same as trial 0"}), state=TrialState.FAIL)
    assert [ask(study).params for _ in range(4)] == points[1:]


def test_study_with_other_first_trials_has_no_more_start_points_than_startup_trials():
    study = started_study()
    for number in range(3):
        point = {name: one.choices[0] if hasattr(one, "choices") else one.low for name, one in MIXED.items()}
        point["epochs"] = 2 + 2 * number
        attributes = {storage.SAMPLED: True}
        study.add_trial(create_trial(value=0.5, params=point, distributions=MIXED, user_attrs=attributes))
    sampled = [ask(study).params for _ in range(4)]
    assert [point in start_points(MIXED, 5, 0) for point in sampled] == [True, True, False, False]
