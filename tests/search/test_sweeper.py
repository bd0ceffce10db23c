import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest
from optuna.distributions import FloatDistribution

from fractatlas.config.overrides import compose_config
from fractatlas.experiments.plan import read_plan
from fractatlas.search import storage
from fractatlas.search.sweeper import ResumableSweeper
from fractatlas.signals import exit_on_stop_signals
from tests.conftest import REPOSITORY
from tests.search.processes import interrupt_library, search_arguments, start, sweep

STUDY = Path("logs", "search", "densenet_tiny_phantom")
QUICK, SLOW = {"seconds": 0.0}, {"seconds": 30.0}
SEARCHED = ("learning rate", "batch size", "epochs", "optimizer", "weight decay", "dropout")


def trials_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / STUDY / "trials.csv", keep_default_na=False).set_index("iteration")


def points(trials: pd.DataFrame) -> set[tuple]:
    searched = [name for name in SEARCHED if name in trials]
    return set(trials[searched].itertuples(index=False))


def wait_for(happened, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_study(folder: Path) -> None:
    """Check that all trials have ended, and that complete ones have folders and different hyperparameters."""
    trials = trials_of(folder)
    assert set(trials["state"]) <= {"complete", "failed", "pruned", "interrupted"}
    complete = trials[trials["state"] == "complete"]
    for number in complete.index:
        assert (folder / STUDY / str(number) / "metrics.json").is_file()
    assert len(points(complete)) == len(complete)


@pytest.mark.integration
def test_default_search_matches_the_reference_report(tmp_path, phantoms):
    status, output = sweep(tmp_path, phantoms, fake=QUICK)
    assert status == 0, output
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
    assert "15 trials: 15 complete, 0 pruned, 0 failed" in output
    start = trials.iloc[:5]
    places = sorted(math.log10(rate) / 2 + 2 for rate in start["learning rate"])  # from 0 to 1
    assert [int(place * 5) for place in places] == [0, 1, 2, 3, 4]
    for name in ("batch size", "epochs", "optimizer", "dropout"):
        counts = start[name].value_counts()
        assert len(counts) == (3 if name == "dropout" else 2)
        assert counts.max() - counts.min() <= 1


@pytest.mark.integration
def test_search_prints_what_a_person_waits_for(tmp_path, phantoms):
    fake = {"fail": {1: "raise"}, "majority_rate": None}
    arguments = ["hydra.sweeper.n_trials=2", "model.dropout=choice(0.3)"]  # a single choice is not searched
    status, output = sweep(tmp_path, phantoms, *arguments, fake=fake)
    assert status == 0, output
    assert "model.dropout=" not in output
    assert "dropout" not in trials_of(tmp_path)
    folder = tmp_path / STUDY
    value = float(trials_of(tmp_path).loc[0, "val accuracy"])
    accuracy, low, high = (f"{value + change:.4f}" for change in (0, -0.02, 0.02))
    best = f"best so far {accuracy} (trial 0), majority rate {accuracy}"
    lines = [line.partition(" ")[2] for line in output.splitlines()]
    lines = lines[lines.index(f"study densenet_tiny_phantom: 0 of 2 trials done; results in {folder}") + 1 :]
    assert lines.pop(0).startswith("trial 0 (1 of 2): optimizer.lr=0.00")
    assert lines.pop(0) == f"trial 0 (1 of 2): val/accuracy {accuracy}, {best}"
    assert lines.pop(0).startswith("trial 1 (2 of 2): optimizer.lr=0.00")
    assert lines == [
        "trial 1 failed: ZeroDivisionError: a bug",
        f"trial 1 (2 of 2): failed, {best}",
        "2 trials: 1 complete, 0 pruned, 1 failed",
        f"best: trial 0, val/accuracy {accuracy} [{low}, {high}], majority rate {accuracy}",
        f"the best trial equals the majority rate: val/accuracy {accuracy}",
        f"page: {folder / 'search.html'}",
        f"to train the best trial with 3 seeds: fractatlas plan {folder / 'refit.yaml'}",
    ]
    assert all(re.match(r"\d\d:\d\d:\d\d \S", line) for line in output.splitlines()), output  # Hydra's lines, too
    page = (folder / "search.html").read_text()
    assert '<a href="0/">0</a>' in page
    assert f"The best trial equals the majority rate: val/accuracy {accuracy}." in page


def test_best_trial_is_written_as_experiment_and_plan(tmp_path, phantoms):
    status, output = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=2", fake=QUICK)
    assert status == 0, output
    trials = trials_of(tmp_path)
    best = trials.loc[trials["val accuracy"].idxmax()]
    plan = read_plan(tmp_path / STUDY / "refit.yaml")
    assert plan.seeds == [0, 1, 2]
    assert plan.recipes == {f"trial {trials['val accuracy'].idxmax()}": ["experiment=best"]}
    config = compose_config(plan.options(["experiment=best"]))
    assert config["optimizer"]["lr"] == best["learning rate"]
    assert config["optimizer"]["_target_"].lower().endswith(best["optimizer"])
    assert config["data"]["batch_size"] == best["batch size"]
    assert config["data"]["root"] == str(phantoms)
    assert config["model"]["variant"] == "densenet_tiny"
    assert config["test"] is True
    assert config["callbacks"]["last"]


@pytest.mark.integration
def test_same_command_resumes_until_n_trials(tmp_path, phantoms):
    status, output = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=2", fake=QUICK)
    assert status == 0, output
    before = trials_of(tmp_path)
    finished = {file: file.stat().st_mtime_ns for file in (tmp_path / STUDY).glob("*/metrics.json")}
    status, output = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=4", fake=QUICK)
    assert status == 0, output
    after = trials_of(tmp_path)
    assert list(after.index) == list(range(4))
    assert after.loc[:1].equals(before)
    assert all(file.stat().st_mtime_ns == then for file, then in finished.items())
    assert len(points(after)) == 4  # the first points were not sampled again
    status, output = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=4", fake=QUICK)
    assert status == 0, output
    assert trials_of(tmp_path).equals(after)


@pytest.mark.integration
def test_resumed_search_samples_the_same_points(tmp_path, phantoms):
    for name, totals in (("one_run", (8,)), ("resumed", (3, 6, 8))):
        (tmp_path / name).mkdir()
        for total in totals:
            assert sweep(tmp_path / name, phantoms, f"hydra.sweeper.n_trials={total}", fake=QUICK)[0] == 0
    assert points(trials_of(tmp_path / "one_run")) == points(trials_of(tmp_path / "resumed"))


@pytest.mark.integration
def test_killed_and_interrupted_search_samples_the_same_points(tmp_path, phantoms):
    (tmp_path / "one_run").mkdir()
    assert sweep(tmp_path / "one_run", phantoms, "hydra.sweeper.n_trials=5", fake=QUICK)[0] == 0
    (tmp_path / "killed").mkdir()
    arguments = ["hydra.sweeper.n_trials=5", "hydra.sweeper.heartbeat_timeout=2"]
    for sign in (signal.SIGKILL, signal.SIGINT):
        process = start(tmp_path / "killed", phantoms, *arguments, fake=SLOW)
        output = tmp_path / "killed" / f"output-{process.pid}.txt"
        # It is not the first of 5 if the next search starts before the trial of the killed one counts as interrupted.
        wait_for(lambda output=output: output.is_file() and re.search(r"\(\d of 5\): ", output.read_text()))
        os.kill(process.pid, sign)
        process.join(60)
        assert process.exitcode == (130 if sign == signal.SIGINT else -signal.SIGKILL)
    assert sweep(tmp_path / "killed", phantoms, *arguments, fake=QUICK)[0] == 0
    trials = trials_of(tmp_path / "killed")
    assert points(trials[trials["state"] == "complete"]) == points(trials_of(tmp_path / "one_run"))
    check_study(tmp_path / "killed")


@pytest.mark.integration
def test_trial_waits_for_a_worker_that_died_while_sampling(tmp_path, phantoms):
    """The next trial waits longer than the heartbeat timeout, and its own heartbeats continue meanwhile."""
    assert sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=1", fake=QUICK)[0] == 0
    opened = storage.open_storage(f"sqlite:///{tmp_path}/logs/search/studies.db", 4)
    study = optuna.load_study(study_name=STUDY.name, storage=opened)
    study.ask()  # and the worker dies
    arguments = ["hydra.sweeper.n_trials=3", "hydra.sweeper.heartbeat_timeout=4"]
    status, output = sweep(tmp_path, phantoms, *arguments, fake=QUICK)
    assert status == 0, output
    assert "for another process to sample trial 1" in output
    trials = trials_of(tmp_path)
    assert trials["state"].tolist() == ["complete"] * 3
    assert trials["note"].tolist() == [""] * 3
    assert 1 not in trials.index  # it was never sampled


@pytest.fixture(scope="module")
def started_study(tmp_path_factory, phantoms) -> Path:
    """Return a folder with a study of two trials."""
    folder = tmp_path_factory.mktemp("started_study")
    status, output = sweep(folder, phantoms, "hydra.sweeper.n_trials=2", fake=QUICK)
    assert status == 0, output
    return folder


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("monitor=val/auroc", 'settings: monitor was "val/accuracy", is "val/auroc"\nUndo'),
        ("split=random", "split._target_ was"),
        ("loss.pos_weight=4", "loss.pos_weight was null, is 4"),
        ("model.dropout=0.2", "search space: model.dropout was one of 0.1, 0.3, 0.5, is absent"),
        ("data.keep_contradictions=true", "data.keep_contradictions was false, is true"),
        ("optimizer=sgd", "search space: optimizer was"),
    ],
)
def test_other_settings_are_refused(started_study, phantoms, override, message):
    status, output = sweep(started_study, phantoms, "hydra.sweeper.n_trials=4", override, fake=QUICK)
    assert status == 1
    assert "error: study densenet_tiny_phantom has trials with other settings: " in output
    assert message in output
    assert "Traceback" not in output
    assert len(trials_of(started_study)) == 2


@pytest.mark.integration
def test_other_images_are_refused(tmp_path, phantoms):
    root = tmp_path / "phantoms"
    shutil.copytree(phantoms, root)
    assert sweep(tmp_path, root, "hydra.sweeper.n_trials=1", fake=QUICK)[0] == 0
    next((root / "images" / "Non_fractured").iterdir()).unlink()
    status, output = sweep(tmp_path, root, "hydra.sweeper.n_trials=2", fake=QUICK)
    assert status == 1
    assert "has trials with other settings: data was" in output


def test_sweeper_is_imported_without_torch():
    code = "import sys, fractatlas.search.sweeper; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.sweeper.n_trials=0", "n_trials=0: should be greater than or equal to 1"),
        ("hydra.sweeper.trials=9", "unknown key 'hydra.sweeper.trials'"),
        ("hydra.sweeper.storage=nonsense", "hydra.sweeper.storage=nonsense: should be like"),
        ("test=true", "a search does not use the test subset"),
        ("optimzer.lr=1", "unknown key 'optimzer.lr'"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0: should be"),
        ("hydra.sweeper.params={}", "would be merged with the search space"),
        ("hydra.sweeper.start_points=sobol", "start_points=sobol: should be 'latin_hypercube' or 'random'"),
        (
            "hydra.sweeper.params.loss\\.pos_weight=interval(1,5)",
            "loss\\.pos_weight: needs double quotes; "
            "write '++hydra.sweeper.params.loss\\.pos_weight=\"interval(1,5)\"'\n",
        ),
        (
            '++hydra.sweeper.params.loss.pos_weight="interval(1,5)"',
            "loss.pos_weight: the dots of the name need backslashes; "
            "write '++hydra.sweeper.params.loss\\.pos_weight=\"interval(1,5)\"'\n",
        ),
        ("hydra.sweeper.params.optimizer\\.lr=1e-3", "has the single value 0.001; fix it with optimizer.lr=0.001"),
        ("optimizer.lr=interval(1e-3,1e-4)", "optimizer.lr=interval(1e-3,1e-4): not a distribution: "),
        (
            'hydra.sweeper.params.optimizer\\.lr="interval(1,2"',
            "optimizer.lr=interval(1,2: not a distribution: brackets",
        ),
        ("optimizer.lr=1e-3,fast", "error: optimizer.lr=fast: should be a valid number\n"),
        ("model.dropout=interval(0.5,3.0)", "error: model.dropout=3.0: should be less than 1\n"),
        ("model.dropout=range(0.1,1.6,0.5)", "error: model.dropout=1.1: should be less than 1\n"),
        ("hydra.sweeper.n_trails=3", "unknown key 'hydra.sweeper.n_trails'; did you mean 'hydra.sweeper.n_trials'?"),
        ("hydra.sweeper.storage=sqlite:///nowhere/x.db", "no folder"),
        (
            "hydra/sweeper/sampler=tpo",
            "hydra/sweeper/sampler=tpo: no such choice; the choices are gp, qmc, random, tpe",
        ),
    ],
)
def test_mistakes_are_reported_before_data_are_read(tmp_path, phantoms, override, message):
    status, output = sweep(tmp_path, phantoms, override, fake=QUICK)
    assert status == 1
    assert message in output
    assert "images" not in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("logs/search/*/0"))


@pytest.mark.integration
def test_null_is_a_value_and_a_choice_of_a_search(tmp_path, phantoms):
    overrides = ["hydra.sweeper.n_trials=1", "model=choice(densenet)"]
    overrides += ["model.weights=null", "trainer.gradient_clip_val=null,1.0"]
    overrides += ["trainer.max_epochs=1", "trainer.max_epochs=range(1,3)"]
    status, output = sweep(tmp_path, phantoms, *overrides, fake=QUICK)
    assert status == 0, output
    (table,) = tmp_path.glob("logs/search/*/trials.csv")
    trials = pd.read_csv(table, keep_default_na=False)
    assert trials["epochs"][0] in (1, 2)
    assert "trainer.gradient_clip_val" in trials


@pytest.mark.integration
@pytest.mark.fault("trials that diverge, raise, run out of memory", "stored with the reason, the search continues")
def test_failed_trials_are_stored_and_the_search_continues(tmp_path, phantoms):
    fail = {1: "raise", 3: "memory", 4: "nan"}
    status, output = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=6", fake={"fail": fail})
    assert status == 0, output
    trials = trials_of(tmp_path)
    assert list(trials["state"]) == ["complete", "failed", "complete", "failed", "failed", "complete"]
    assert trials.loc[1, "note"] == "ZeroDivisionError: a bug"
    assert trials.loc[3, "note"] == "out of memory: could not allocate"
    assert trials.loc[4, "note"] == "val/accuracy is nan: the training diverged; lower optimizer.lr"
    assert "6 trials: 3 complete, 0 pruned, 3 failed" in output
    assert "a bug" in (tmp_path / STUDY / "1" / "failure.txt").read_text()


@pytest.mark.integration
def test_three_failures_at_the_start_end_the_search(tmp_path, phantoms):
    status, output = sweep(tmp_path, phantoms, fake={"fail": dict.fromkeys(range(15), "raise")})
    assert status == 1
    assert "error: the first 3 trials failed, the last one with: ZeroDivisionError: a bug" in output
    assert len(trials_of(tmp_path)) == 3


@pytest.mark.integration
def test_interrupted_trial_is_repeated(tmp_path, phantoms):
    status, output = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=4", fake={"fail": {2: "interrupt"}})
    assert status == 130
    command = ["python", str(REPOSITORY / "train.py"), *search_arguments(phantoms, "hydra.sweeper.n_trials=4")]
    assert f"stopped; to resume: {shlex.join(command)}\n" in output
    assert list(trials_of(tmp_path)["state"]) == ["complete", "complete", "interrupted"]
    status, output = sweep(tmp_path, phantoms, "hydra.sweeper.n_trials=4", fake=QUICK)
    assert status == 0, output
    trials = trials_of(tmp_path)
    assert list(trials["state"]) == ["complete", "complete", "interrupted", "complete", "complete"]
    assert trials.loc[3, "note"] == "repeats trial 2"
    assert len(points(trials)) == 4
    check_study(tmp_path)


def test_ctrl_c_while_a_trial_is_composed_ends_the_search():
    sweeper = ResumableSweeper()
    sweeper.study, sweeper.search, sweeper.fixed = optuna.create_study(), {"n_trials": 1}, []
    sweeper.launcher = SimpleNamespace(launch=lambda overrides, initial_job_idx: interrupt_library())
    with pytest.raises(KeyboardInterrupt), exit_on_stop_signals():
        sweeper._launch([sweeper.study.ask({"optimizer.lr": FloatDistribution(0, 1)})])


@pytest.mark.fault("search killed with -9, started again", "15 complete trials, none twice")
@pytest.mark.integration
def test_search_survives_kills_at_random_moments(tmp_path, phantoms):
    draw = random.Random(0)
    arguments = ["hydra.sweeper.heartbeat_timeout=2", "hydra.sweeper.n_trials=15"]
    for _ in range(10):
        process = start(tmp_path, phantoms, *arguments, fake={"seconds": 0.2})
        process.join(draw.uniform(1.5, 5))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    status, output = sweep(tmp_path, phantoms, *arguments, fake={"seconds": 0.2})
    assert status == 0, output
    assert (trials_of(tmp_path)["state"] == "complete").sum() == 15
    check_study(tmp_path)


@pytest.mark.fault("two searches on one study at the same time", "each trial runs once")
@pytest.mark.integration
def test_processes_share_a_study_without_repeating_a_trial(tmp_path, phantoms):
    # The space has six points.
    fixed = ["optimizer.lr=1e-3", "optimizer.weight_decay=1e-3", "data.batch_size=32", "trainer.max_epochs=2"]
    arguments = [*fixed, "hydra.sweeper.n_trials=6"]
    processes = [start(tmp_path, phantoms, *arguments, fake={"seconds": 0.5}) for _ in range(3)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    trials = trials_of(tmp_path)
    assert list(trials["state"]) == ["complete"] * 6
    assert len(set(trials[["optimizer", "dropout"]].itertuples(index=False))) == 6


@pytest.mark.integration
def test_processes_and_resumed_searches_share_the_start_points(tmp_path, phantoms):
    (tmp_path / "one").mkdir()
    (tmp_path / "three").mkdir()
    assert sweep(tmp_path / "one", phantoms, "hydra.sweeper.n_trials=5", fake=QUICK)[0] == 0
    assert sweep(tmp_path / "three", phantoms, "hydra.sweeper.n_trials=1", fake=QUICK)[0] == 0
    processes = [
        start(tmp_path / "three", phantoms, "hydra.sweeper.n_trials=5", fake={"seconds": 0.5}) for _ in range(3)
    ]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert points(trials_of(tmp_path / "three")) == points(trials_of(tmp_path / "one"))


@pytest.mark.integration
def test_random_start_points_are_those_of_the_sampler(tmp_path, phantoms):
    arguments = ["hydra.sweeper.start_points=random", "hydra.sweeper.n_trials=3"]
    assert sweep(tmp_path, phantoms, *arguments, fake=QUICK)[0] == 0
    rates = trials_of(tmp_path)["learning rate"]
    assert rates.round(5).tolist() == [0.00079, 0.0008, 0.00084]  # of TPE with the default seed


@pytest.mark.integration
def test_finite_space_is_searched_completely(tmp_path, phantoms):
    # With this seed, TPE without uniform sampling proposes five of the six points again and again.
    fixed = ["optimizer.lr=1e-3", "optimizer.weight_decay=1e-3", "data.batch_size=32", "trainer.max_epochs=2", "seed=0"]
    status, output = sweep(tmp_path, phantoms, *fixed, "hydra.sweeper.n_trials=7", fake=QUICK)
    assert status == 1
    assert "the search space is exhausted" in output
    trials = trials_of(tmp_path)
    assert list(trials["state"]) == ["complete"] * 6
    check_study(tmp_path)


@pytest.mark.integration
def test_slow_trial_is_not_repeated(tmp_path, phantoms):
    arguments = ["hydra.sweeper.n_trials=2", "hydra.sweeper.heartbeat_timeout=6"]
    slow = start(tmp_path, phantoms, *arguments, fake={"seconds": 10})
    while not (tmp_path / STUDY / "0" / "started").is_file():
        time.sleep(0.1)
    status, output = sweep(tmp_path, phantoms, *arguments, fake=QUICK)
    slow.join(60)
    assert status == slow.exitcode == 0, output
    assert list(trials_of(tmp_path)["state"]) == ["complete", "complete"]


@pytest.mark.integration
@pytest.mark.parametrize("sampler", ["gp", "random", "qmc"])
def test_other_samplers(tmp_path, phantoms, sampler):
    arguments = [f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=7"]
    status, output = sweep(tmp_path, phantoms, *arguments, fake=QUICK)
    assert status == 0, output
    check_study(tmp_path)
    assert len(trials_of(tmp_path)) == 7


@pytest.mark.integration
def test_pruned_trials_are_stopped_and_listed(tmp_path, phantoms):
    arguments = ["hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=2"]
    for total in (8, 12):  # resumed, because a pruner compares with earlier trials
        status, output = sweep(tmp_path, phantoms, *arguments, f"hydra.sweeper.n_trials={total}", fake=QUICK)
        assert status == 0, output
    trials = trials_of(tmp_path)
    assert len(trials) == 12
    assert 1 <= (trials["state"] == "pruned").sum() <= 10
    assert (trials["state"] == "pruned").sum() + (trials["state"] == "complete").sum() == 12
    # Only trials that are worse than another one are pruned.
    worst = trials.loc[trials["state"] == "pruned", "val accuracy"].max()
    assert worst < trials.loc[trials["state"] == "complete", "val accuracy"].max()


@pytest.mark.integration
def test_joblib_launcher_runs_trials_in_parallel(tmp_path, phantoms):
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2"]
    arguments = [*parallel, "hydra.sweeper.n_trials=2", "trainer.max_epochs=1"]
    line = [sys.executable, str(REPOSITORY / "train.py"), *search_arguments(phantoms, *arguments)]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    check_study(tmp_path)
    assert list(trials_of(tmp_path)["state"]) == ["complete"] * 2


@pytest.mark.integration
def test_trials_on_two_devices_join_one_study(tmp_path, phantoms):
    with_map = ["map=fpn", "map.channels=8", "monitor=val/hit"]
    arguments = ["trainer=ddp_cpu", "trainer.max_epochs=1", "hydra.sweeper.n_trials=2", *with_map]
    status, output = sweep(tmp_path, phantoms, *arguments)
    assert status == 0, output
    assert list(trials_of(tmp_path)["state"]) == ["complete"] * 2
    check_study(tmp_path)
    names = optuna.get_all_study_names(f"sqlite:///{tmp_path}/logs/search/studies.db")
    assert names == ["densenet_tiny_phantom"]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["search"]
