import optuna

from fractatlas.search import storage
from fractatlas.search.sampler import TrialStreamSampler

UNIT = optuna.distributions.FloatDistribution(0, 1)


def sample(seed: int, count: int, interrupted: bool = False) -> list[float]:
    """Sample ``count`` trials; with ``interrupted``, one worker dies before and one after its trial is sampled."""
    sampler = TrialStreamSampler(lambda stream: optuna.samplers.TPESampler(seed=stream), seed)
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
