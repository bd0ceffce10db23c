import time

import optuna
import pytest

from fractatlas.errors import InputError
from fractatlas.search import report, storage

UNIT = optuna.distributions.FloatDistribution(0, 1)
SPACE = {"lr": UNIT, "dropout": UNIT}


@pytest.fixture
def study(tmp_path) -> optuna.Study:
    opened = storage.open_storage(f"sqlite:///{tmp_path}/studies.db", heartbeat_timeout=2)
    return optuna.create_study(storage=opened, sampler=optuna.samplers.RandomSampler(seed=0))


@pytest.mark.parametrize(
    ("sampled", "names", "expected"),
    [(True, ("lr", "dropout"), True), (True, ("lr",), False), (False, ("lr", "dropout"), False)],
)
def test_trial_is_sampled_when_its_attribute_and_all_parameters_are_visible(sampled, names, expected):
    trial = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING,
        params=dict.fromkeys(names, 0.5),
        distributions=dict.fromkeys(names, UNIT),
        user_attrs={storage.SAMPLED: True} if sampled else {},
    )
    assert storage.is_sampled(trial, SPACE) is expected


def test_exception_fails_the_trial_and_enqueues_its_parameters(study):
    trial = study.ask(SPACE)
    with pytest.raises(KeyboardInterrupt), storage.heartbeats(study, trial):
        raise KeyboardInterrupt
    assert storage.is_interrupted(study.trials[0])
    repeated = study.ask(SPACE)
    assert repeated.params == trial.params
    assert repeated.user_attrs[storage.REPEATS] == 0


def test_trial_without_any_heartbeat_is_failed_after_the_timeout(study):
    study.ask(SPACE)  # the worker dies before its first heartbeat
    storage.repeat_stale_trials(study)
    assert study.trials[0].state == optuna.trial.TrialState.RUNNING
    time.sleep(3.5)
    storage.repeat_stale_trials(study)
    assert storage.is_interrupted(study.trials[0])
    assert len(study.trials) == 1  # not repeated, because its parameters may be incomplete


def test_seconds_of_an_interrupted_trial_end_at_its_last_heartbeat(study):
    opened = storage.open_storage(study._storage._backend.url, heartbeat_timeout=2)
    trial = study.ask(SPACE)
    trial.set_user_attr(storage.SAMPLED, True)
    time.sleep(0.5)
    opened.record_heartbeat(trial._trial_id)
    time.sleep(3.5)  # the worker was killed; later, another one finds the trial
    storage.repeat_stale_trials(study)
    assert storage.is_interrupted(study.trials[0])
    table = report.trials_table(study.trials, list(SPACE))
    assert 0.4 <= table["seconds"][0] < 3
    assert study.trials[0].duration.total_seconds() > 3.5


def test_heartbeats_continue_after_a_database_error(study, monkeypatch, caplog):
    errors = iter([OSError("server is gone")])
    original = optuna.storages.RDBStorage.record_heartbeat
    recorded = []

    def record(self, trial_id):
        for error in errors:
            raise error
        recorded.append(trial_id)
        original(self, trial_id)

    monkeypatch.setattr(optuna.storages.RDBStorage, "record_heartbeat", record)
    with storage.heartbeats(study, study.ask(SPACE)):
        time.sleep(1.5)
    assert "heartbeat not written, will try again: server is gone" in caplog.text
    assert len(recorded) >= 2


@pytest.mark.parametrize(
    ("url", "message"), [("nonsense", "should be like"), ("sqlite:////nowhere/x.db", "no folder /nowhere; create it")]
)
def test_invalid_address_is_refused(url, message):
    with pytest.raises(InputError, match=message):
        storage.open_storage(url, 60)
