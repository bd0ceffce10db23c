import json
from types import SimpleNamespace

import optuna
import pytest
from omegaconf import OmegaConf

from fractatlas.search import trial as search_trial
from fractatlas.search.trial import ReportToStudy, run_trial, runs_on_one_device
from fractatlas.training.fit import train


class PrunedTrial:
    """A trial that the pruner stops after ``epoch``."""

    def __init__(self, epoch: int):
        self.epoch, self.reported, self.attributes = epoch, {}, {}

    def report(self, value: float, step: int) -> None:
        self.reported[step] = value

    def should_prune(self) -> bool:
        return max(self.reported) >= self.epoch

    def set_user_attr(self, name: str, value: object) -> None:
        self.attributes[name] = value


def test_pruned_trial_stops_after_its_epoch_with_complete_results(configuration, tmp_path):
    trial = PrunedTrial(epoch=2)
    config = configuration(tmp_path, "trainer.max_epochs=4", "test=false")
    train(config, [ReportToStudy(trial, config["monitor"])])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [row["epoch"] for row in metrics["history"]] == [1, 2]
    assert trial.reported == {row["epoch"]: pytest.approx(row["val/auroc"]) for row in metrics["history"]}
    assert trial.attributes == {"pruned after epoch": 2}
    assert {"train/loss", "train/accuracy", "val/accuracy"} <= metrics["history"][0].keys()


def test_last_epoch_is_not_pruned(configuration, tmp_path):
    trial = PrunedTrial(epoch=1)
    config = configuration(tmp_path, "trainer.max_epochs=1", "test=false")
    train(config, [ReportToStudy(trial, config["monitor"])])
    assert trial.attributes == {}


@pytest.mark.parametrize(
    ("devices", "nodes", "expected"),
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
def test_trials_on_one_device_run_in_the_process_of_the_search(devices, nodes, expected):
    assert runs_on_one_device({"devices": devices, "num_nodes": nodes}) is expected


@pytest.mark.parametrize("state", [optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL])
def test_a_trial_that_has_ended_is_not_trained_if_a_cluster_starts_its_job_again(tmp_path, monkeypatch, caplog, state):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study = optuna.create_study(study_name="cluster", storage=url)
    ended = state == optuna.trial.TrialState.COMPLETE
    study.tell(study.ask(), 0.7 if ended else None, state=state)
    pruner = {"_target_": "optuna.pruners.NopPruner"}
    search = {"study_name": "cluster", "storage": url, "heartbeat_timeout": 60, "pruner": pruner}
    monkeypatch.setattr(search_trial, "train", lambda *_: pytest.fail("trained"))
    hydra = SimpleNamespace(sweep=SimpleNamespace(subdir="0"), runtime=SimpleNamespace(output_dir=str(tmp_path)))
    monkeypatch.setattr(search_trial, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    assert run_trial(search, OmegaConf.create()) == (0.7 if ended else None)
    assert f"trial 0: not trained, because the study has it as {state.name.lower()}" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["studies.db"]
    assert study.trials[0].state == state
    assert study.trials[0].user_attrs == {}
