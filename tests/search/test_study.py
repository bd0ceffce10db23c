import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from fractatlas.config import TrainConfig, check
from fractatlas.search import storage
from tests.conftest import REPOSITORY
from tests.search.processes import start, sweep, typed

STUDY = Path("logs", "search", "densenet_tiny_phantom")
QUICK, SLOW = {"seconds": 0.0}, {"seconds": 30.0}
SEARCHED = ("learning rate", "batch size", "epochs", "optimizer", "weight decay", "dropout")


def trials_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / STUDY / "trials.csv", keep_default_na=False).set_index("iteration")


def points(trials: pd.DataFrame) -> set[tuple]:
    searched = [name for name in SEARCHED if name in trials]
    return set(trials[searched].itertuples(index=False))


def wait_for(happened, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended(folder: Path) -> None:
    """No trial runs or waits any more, every finished one has its folder, and the points differ."""
    trials = trials_of(folder)
    assert set(trials["state"]) <= {"complete", "failed", "pruned", "lost"}
    complete = trials[trials["state"] == "complete"]
    for number in complete.index:
        assert (folder / STUDY / str(number) / "metrics.json").is_file()
    assert len(points(complete)) == len(complete)


@pytest.mark.slow
def test_the_study_s_search_as_it_is_typed(tmp_path, phantoms):
    status, said = sweep(tmp_path, phantoms, fake=QUICK)
    assert status == 0, said
    trials = trials_of(tmp_path)
    assert list(trials.index) == list(range(15))
    assert list(trials.columns) == [
        "learning rate", "batch size", "epochs", "optimizer", "weight decay", "dropout", "train accuracy",
        "val accuracy", "train loss", "val AUROC", "state", "seconds", "seed", "note",
    ]  # fmt: skip
    assert trials["learning rate"].between(1e-4, 1e-2).all()
    assert trials["weight decay"].between(1e-4, 5e-3).all()
    assert set(trials["batch size"]) == {32, 64}
    assert set(trials["epochs"]) == {2, 3}
    assert set(trials["optimizer"]) == {"adam", "sgd"}
    assert set(trials["dropout"]) == {0.1, 0.3, 0.5}
    assert len((tmp_path / STUDY / "trials.md").read_text().splitlines()) == 17
    page = (tmp_path / STUDY / "search.html").read_text()
    assert 'src="http' not in page
    assert page.count("plotly-graph-div") >= 4
    # The model-based draws come nearer to the optimum, lr 1e-3, than the random ones.
    assert "15 trials: 15 complete, 0 pruned, 0 failed" in said


def test_the_winner_is_an_experiment(tmp_path, phantoms):
    status, said = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=3", fake=QUICK)
    assert status == 0, said
    trials = trials_of(tmp_path)
    best = trials.loc[trials["val accuracy"].idxmax()]
    with initialize_config_dir(str(REPOSITORY / "conf"), job_name="test"):
        searchpath = f"hydra.searchpath=[file://{tmp_path / STUDY}]"
        paths = [f"paths.root={tmp_path}", f"paths.output_dir={tmp_path}"]
        config = check(compose("train", ["experiment=best", searchpath, *paths]), TrainConfig)
    assert config["optimizer"]["lr"] == best["learning rate"]
    assert config["optimizer"]["_target_"].lower().endswith(best["optimizer"])
    assert config["data"]["batch_size"] == best["batch size"]
    assert config["data"]["root"] == str(phantoms)
    assert config["model"]["variant"] == "densenet_tiny"
    assert config["test"] is True
    assert config["callbacks"]["last"]


def test_the_same_command_goes_on_until_the_total(tmp_path, phantoms):
    status, said = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=4", fake=QUICK)
    assert status == 0, said
    before = trials_of(tmp_path)
    finished = {file: file.stat().st_mtime_ns for file in (tmp_path / STUDY).glob("*/metrics.json")}
    status, said = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=7", fake=QUICK)
    assert status == 0, said
    after = trials_of(tmp_path)
    assert list(after.index) == list(range(7))
    assert after.loc[:3].equals(before)
    assert all(file.stat().st_mtime_ns == then for file, then in finished.items())
    assert len(points(after)) == 7  # the first draws were not repeated
    status, said = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=7", fake=QUICK)
    assert status == 0, said
    assert trials_of(tmp_path).equals(after)


@pytest.mark.slow
def test_a_search_in_pieces_draws_what_one_in_one_piece_draws(tmp_path, phantoms):
    for name, pieces in (("whole", (8,)), ("pieces", (3, 6, 8))):
        (tmp_path / name).mkdir()
        for total in pieces:
            assert sweep(tmp_path / name, phantoms, f"hydra.sweeper.n_trials={total}", fake=QUICK)[0] == 0
    assert points(trials_of(tmp_path / "whole")) == points(trials_of(tmp_path / "pieces"))


@pytest.mark.slow
def test_a_search_that_was_killed_and_interrupted_draws_what_one_in_one_piece_draws(tmp_path, phantoms):
    (tmp_path / "whole").mkdir()
    assert sweep(tmp_path / "whole", phantoms, "hydra.sweeper.n_trials=5", fake=QUICK)[0] == 0
    (tmp_path / "killed").mkdir()
    for sign in (signal.SIGKILL, signal.SIGINT):
        process = start(tmp_path / "killed", phantoms, "hydra.sweeper.n_trials=5", "hydra.sweeper.lease=2", fake=SLOW)
        output = tmp_path / "killed" / f"output-{process.pid}.txt"
        wait_for(lambda output=output: output.is_file() and "Launching" in output.read_text())
        os.kill(process.pid, sign)
        process.join(60)
    assert sweep(tmp_path / "killed", phantoms, "hydra.sweeper.n_trials=5", "hydra.sweeper.lease=2", fake=QUICK)[0] == 0
    trials = trials_of(tmp_path / "killed")
    assert points(trials[trials["state"] == "complete"]) == points(trials_of(tmp_path / "whole"))
    ended(tmp_path / "killed")


def test_a_process_that_died_while_it_drew_does_not_cost_the_next_one_its_trial(tmp_path, phantoms):
    """The next one waits until the lease of the half drawn trial is over, longer than its own would last."""
    assert sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=1", fake=QUICK)[0] == 0
    opened = storage.open_storage(f"sqlite:///{tmp_path}/logs/search/studies.db", 4)
    study = optuna.load_study(study_name=STUDY.name, storage=opened)
    study.ask()  # and dies
    status, said = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=3", "hydra.sweeper.lease=4", fake=QUICK)
    assert status == 0, said
    assert "waiting for another process to draw trial 1" in said
    trials = trials_of(tmp_path)
    assert trials["state"].tolist() == ["complete"] * 3
    assert trials["note"].tolist() == [""] * 3
    assert 1 not in trials.index  # it never had a point


@pytest.fixture(scope="module")
def known(tmp_path_factory, phantoms) -> Path:
    """A folder with a study of two trials."""
    folder = tmp_path_factory.mktemp("known")
    status, said = sweep(folder, phantoms, "hydra.sweeper.n_trials=2", fake=QUICK)
    assert status == 0, said
    return folder


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("monitor=val/auroc", 'with: monitor was "val/accuracy", is "val/auroc"\nTake'),
        ("split=random", "split._target_ was"),
        ("loss.pos_weight=4", "loss.pos_weight was null, is 4"),
        ("model.dropout=0.2", "search space: model.dropout was one of 0.1, 0.3, 0.5, is absent"),
        ("data.keep_contradictions=true", "data.keep_contradictions was false, is true"),
        ("optimizer=sgd", "search space: optimizer was"),
    ],
)
def test_what_cannot_be_compared_is_refused(known, phantoms, override, says):
    status, said = sweep(known, phantoms, "hydra.sweeper.n_trials=4", override, fake=QUICK)
    assert status == 1
    assert "error: study densenet_tiny_phantom cannot be gone on with: " in said
    assert says in said
    assert "Traceback" not in said
    assert len(trials_of(known)) == 2


def test_other_images_are_refused(tmp_path, phantoms):
    root = tmp_path / "phantoms"
    shutil.copytree(phantoms, root)
    assert sweep(tmp_path, root, "hydra.sweeper.n_trials=1", fake=QUICK)[0] == 0
    next((root / "images" / "Non_fractured").iterdir()).unlink()
    status, said = sweep(tmp_path, root, "hydra.sweeper.n_trials=2", fake=QUICK)
    assert status == 1
    assert "cannot be gone on with: data was" in said


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("hydra.sweeper.n_trials=0", "n_trials=0: should be greater than or equal to 1"),
        ("hydra.sweeper.trials=9", "unknown key 'hydra.sweeper.trials'"),
        ("hydra.sweeper.storage=nonsense", "hydra.sweeper.storage=nonsense: should be like"),
        ("test=true", "a search does not read the test part"),
        ("optimzer.lr=1", "unknown key 'optimzer.lr'"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0: should be"),
        ("hydra.sweeper.params={}", "would be merged with the space that is there"),
        ("hydra.sweeper.storage=sqlite:///nowhere/x.db", "there is no folder"),
        ("hydra/sweeper/sampler=tpo", "hydra/sweeper/sampler=tpo: no such choice; there are gp, qmc, random, tpe"),
    ],
)
def test_mistakes_are_answered_before_the_data_are_looked_at(tmp_path, phantoms, override, says):
    status, said = sweep(tmp_path, phantoms, override, fake=QUICK)
    assert status == 1
    assert says in said
    assert "images" not in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("logs/search/*/0"))


@pytest.mark.fault("trials that diverge, raise, run out of memory", "recorded with the reason, the search goes on")
def test_failed_trials_are_recorded_and_the_search_goes_on(tmp_path, phantoms):
    fail = {1: "raise", 3: "memory", 4: "nan"}
    status, said = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=6", fake={"fail": fail})
    assert status == 0, said
    trials = trials_of(tmp_path)
    assert list(trials["state"]) == ["complete", "failed", "complete", "failed", "failed", "complete"]
    assert trials.loc[1, "note"] == "ZeroDivisionError: a bug"
    assert trials.loc[3, "note"] == "out of memory: could not allocate"
    assert trials.loc[4, "note"] == "val/accuracy is nan"
    assert "6 trials: 3 complete, 0 pruned, 3 failed" in said
    assert "a bug" in (tmp_path / STUDY / "1" / "failure.txt").read_text()


def test_three_failures_at_the_start_end_the_search(tmp_path, phantoms):
    status, said = sweep(tmp_path, phantoms, fake={"fail": dict.fromkeys(range(15), "raise")})
    assert status == 1
    assert "error: the first 3 trials failed, the last with: ZeroDivisionError: a bug" in said
    assert len(trials_of(tmp_path)) == 3


def test_an_interrupted_trial_is_done_again(tmp_path, phantoms):
    status, said = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=4", fake={"fail": {2: "interrupt"}})
    assert status == 1
    assert "interrupted; the same command goes on with the study" in said
    assert list(trials_of(tmp_path)["state"]) == ["complete", "complete", "lost"]
    status, said = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=4", fake=QUICK)
    assert status == 0, said
    trials = trials_of(tmp_path)
    assert list(trials["state"]) == ["complete", "complete", "lost", "complete", "complete"]
    assert trials.loc[3, "note"] == "trial 2 again"
    assert len(points(trials)) == 4
    ended(tmp_path)


@pytest.mark.fault("search killed with -9, started again", "15 finished trials, none twice")
@pytest.mark.slow
def test_kills_at_random_moments(tmp_path, phantoms):
    draw = random.Random(0)
    arguments = ["hydra.sweeper.lease=2", "hydra.sweeper.n_trials=15"]
    for _ in range(10):
        process = start(tmp_path, phantoms, *arguments, fake={"seconds": 0.2})
        process.join(draw.uniform(1.5, 5))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    status, said = sweep(tmp_path, phantoms, *arguments, fake={"seconds": 0.2})
    assert status == 0, said
    assert (trials_of(tmp_path)["state"] == "complete").sum() == 15
    ended(tmp_path)


@pytest.mark.fault("two searches on one study at once", "every trial once")
def test_processes_share_a_study_without_doing_a_point_twice(tmp_path, phantoms):
    # Six points in all: everything has to be proposed, nothing twice.
    fixed = ["optimizer.lr=1e-3", "optimizer.weight_decay=1e-3", "data.batch_size=32", "trainer.max_epochs=2"]
    arguments = [*fixed, "hydra.sweeper.n_trials=6"]
    processes = [start(tmp_path, phantoms, *arguments, fake={"seconds": 0.5}) for _ in range(3)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    trials = trials_of(tmp_path)
    assert list(trials["state"]) == ["complete"] * 6
    assert len(set(trials[["optimizer", "dropout"]].itertuples(index=False))) == 6


def test_a_finite_space_is_searched_to_its_last_point(tmp_path, phantoms):
    # With this seed TPE alone proposes one of five points for ever.
    fixed = ["optimizer.lr=1e-3", "optimizer.weight_decay=1e-3", "data.batch_size=32", "trainer.max_epochs=2", "seed=0"]
    status, said = sweep(tmp_path, phantoms, *fixed, "hydra.sweeper.n_trials=7", fake=QUICK)
    assert status == 1
    assert "the search space is exhausted" in said
    trials = trials_of(tmp_path)
    assert list(trials["state"]) == ["complete"] * 6
    ended(tmp_path)


def test_a_slow_trial_is_not_taken_for_dead(tmp_path, phantoms):
    arguments = ["hydra.sweeper.n_trials=2", "hydra.sweeper.lease=2"]
    slow = start(tmp_path, phantoms, *arguments, fake={"seconds": 6})
    while not (tmp_path / STUDY / "0" / "started").is_file():
        time.sleep(0.1)
    status, said = sweep(tmp_path, phantoms, *arguments, fake=QUICK)
    slow.join(60)
    assert status == slow.exitcode == 0, said
    assert list(trials_of(tmp_path)["state"]) == ["complete", "complete"]


@pytest.mark.parametrize("sampler", ["gp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("random", "qmc"))])
def test_other_samplers_by_one_override(tmp_path, phantoms, sampler):
    status, said = sweep(tmp_path, phantoms, f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=7", fake=QUICK)
    assert status == 0, said
    ended(tmp_path)
    assert len(trials_of(tmp_path)) == 7


def test_a_pruner_by_one_override_stops_trials_and_shows_them(tmp_path, phantoms):
    arguments = ["hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=2"]
    for total in (8, 12):  # in two pieces, because a pruner must know the trials from before
        status, said = sweep(tmp_path, phantoms, *arguments, f"hydra.sweeper.n_trials={total}", fake=QUICK)
        assert status == 0, said
    trials = trials_of(tmp_path)
    assert len(trials) == 12
    assert 1 <= (trials["state"] == "pruned").sum() <= 10
    assert (trials["state"] == "pruned").sum() + (trials["state"] == "complete").sum() == 12
    # Only what was worse than another trial was stopped.
    worst = trials.loc[trials["state"] == "pruned", "val accuracy"].max()
    assert worst < trials.loc[trials["state"] == "complete", "val accuracy"].max()


@pytest.mark.slow
def test_the_joblib_launcher_runs_trials_side_by_side(tmp_path, phantoms):
    side_by_side = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2"]
    arguments = [*side_by_side, "hydra.sweeper.n_trials=2", "trainer.max_epochs=1"]
    line = [sys.executable, str(REPOSITORY / "train.py"), *typed(phantoms, *arguments)]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    ended(tmp_path)
    assert list(trials_of(tmp_path)["state"]) == ["complete"] * 2


@pytest.mark.slow
def test_trials_on_two_devices_join_one_study(tmp_path, phantoms):
    arguments = ["trainer=ddp_cpu", "trainer.max_epochs=1", "hydra.sweeper.n_trials=2"]
    status, said = sweep(tmp_path, phantoms, *arguments)
    assert status == 0, said
    assert list(trials_of(tmp_path)["state"]) == ["complete"] * 2
    ended(tmp_path)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/logs/search/studies.db")
    assert [study.study_name for study in storage.get_all_studies()] == ["densenet_tiny_phantom"]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["search"]
