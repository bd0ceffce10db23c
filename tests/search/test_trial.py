import json

import optuna
import pytest

from fractatlas.search import storage
from fractatlas.search.trial import ReportToStudy, _on_one_device
from fractatlas.training.run import train


class Pruned:
    """A trial that the pruner gives up after ``epoch``."""

    def __init__(self, epoch: int):
        self.epoch, self.reported, self.attributes = epoch, {}, {}

    def report(self, value: float, step: int) -> None:
        self.reported[step] = value

    def should_prune(self) -> bool:
        return max(self.reported) >= self.epoch

    def set_user_attr(self, name: str, value: object) -> None:
        self.attributes[name] = value


def test_a_pruned_trial_stops_after_its_epoch_and_is_whole(configuration, tmp_path):
    trial = Pruned(epoch=2)
    config = configuration(tmp_path, "trainer.max_epochs=4", "test=false")
    train(config, [ReportToStudy(trial, config["monitor"])])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [row["epoch"] for row in metrics["history"]] == [1, 2]
    assert trial.reported == {row["epoch"]: pytest.approx(row["val/auroc"]) for row in metrics["history"]}
    assert trial.attributes == {"pruned after epoch": 2}
    assert {"train/loss", "train/accuracy", "val/accuracy"} <= metrics["history"][0].keys()


def test_the_last_epoch_is_not_pruned(configuration, tmp_path):
    trial = Pruned(epoch=1)
    config = configuration(tmp_path, "trainer.max_epochs=1", "test=false")
    train(config, [ReportToStudy(trial, config["monitor"])])
    assert trial.attributes == {}


@pytest.mark.parametrize(
    ("devices", "nodes", "alone"),
    [
        (1, 1, True),
        ([3], 1, True),
        (2, 1, False),
        ([0, 1], 1, False),
        (-1, 1, False),
        ("auto", 1, False),
        (1, 2, False),
    ],
)
def test_only_trials_on_one_device_run_in_the_sweep_itself(devices, nodes, alone):
    assert _on_one_device({"devices": devices, "num_nodes": nodes}) is alone


def test_every_point_is_drawn_from_its_own_stream():
    def draws(seed: int, count: int, accidents: bool = False) -> list[float]:
        sampler = storage.OwnStream(lambda own: optuna.samplers.TPESampler(seed=own), seed)
        study, points = optuna.create_study(sampler=sampler), []
        for number in range(count):
            if accidents and number == 1:
                study.ask()  # and dies before it has a point
            trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
            trial.set_user_attr(storage.DRAWN, True)
            points.append(trial.params["x"])
            if accidents and number == 2:  # dies, and its point is done again
                study.enqueue_trial(trial.params, user_attrs={storage.REDO_OF: trial.number})
                study.ask().set_user_attr(storage.DRAWN, True)
        return points

    assert draws(0, 6) == draws(0, 6)
    assert len(set(draws(0, 6))) == 6
    assert draws(0, 3) != draws(1, 3)
    assert draws(0, 6, accidents=True) == draws(0, 6)


def test_a_trial_is_drawn_when_its_whole_point_can_be_seen():
    # Read between two of its parameters and after its attribute, as another process of the search may read it.
    axis = optuna.distributions.FloatDistribution(0, 1)
    space = {"lr": axis, "dropout": axis}
    seen = {"lr": 0.1, "dropout": 0.5}

    def trial(drawn: bool, *names: str) -> optuna.trial.FrozenTrial:
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params={name: seen[name] for name in names},
            distributions=dict.fromkeys(names, axis),
            user_attrs={storage.DRAWN: True} if drawn else {},
        )

    assert storage.is_drawn(trial(True, "lr", "dropout"), space)
    assert not storage.is_drawn(trial(True, "lr"), space)
    assert not storage.is_drawn(trial(False, "lr", "dropout"), space)
