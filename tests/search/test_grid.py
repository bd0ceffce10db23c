import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import yaml

from fractatlas.cli import hydra_command
from fractatlas.config.schema import EvaluateConfig, TrainConfig
from fractatlas.errors import InputError
from fractatlas.search.grid import job_name
from fractatlas.signals import exit_on_stop_signals
from tests.cli.processes import MODULE, PLAIN, process
from tests.conftest import REPOSITORY, SMALL
from tests.search.processes import interrupt_library


def fake_training(config: dict) -> None:
    """Write the result files of a training, and record that it ran."""
    run = Path(config["paths"]["output_dir"])
    with (run / "calls.txt").open("a") as file:
        file.write(f"{config['resume']}\n")
    value = (80 + config["seed"]) / 100
    score = {"value": value, "low": value - 0.05, "high": value + 0.04}
    scores = {"n": 530, "positives": 94, "majority_rate": 0.8226, "auroc": score, "accuracy": score}
    metrics = {"monitor": {"name": config["monitor"], "value": value, "epoch": 1}, "val": scores}
    (run / "metrics.json").write_text(json.dumps(metrics | ({"test": scores} if config["test"] else {})))


def calls(folder: Path) -> dict[str, int]:
    """Return how often each job was trained."""
    return {file.parent.name: len(file.read_text().splitlines()) for file in sorted(folder.glob("*/calls.txt"))}


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "sweep.csv", dtype=str, keep_default_na=False).set_index("job")


def states(folder: Path) -> dict[str, str]:
    return table(folder)["state"].to_dict()


@pytest.fixture
def grid(tmp_path, monkeypatch) -> Callable[..., int | str]:
    """Run ``fractatlas train -m ARGUMENTS``; return its exit status, or the message that it exits with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    for name in set(os.environ) - set(PLAIN):
        monkeypatch.delenv(name)

    def run(*arguments: str, function: Callable = fake_training) -> int | str:
        monkeypatch.setattr(sys, "argv", ["fractatlas", "-m", *arguments])
        try:
            hydra_command.run("train", TrainConfig, function)
        except SystemExit as end:
            return end.code or 0
        return 0

    return run


def fails_with(error: BaseException, part: str) -> Callable[[dict], None]:
    """Return a training that raises ``error`` in the folders whose name contains ``part``."""

    def train(config: dict) -> None:
        if part in Path(config["paths"]["output_dir"]).name:
            raise error
        fake_training(config)

    return train


def test_each_job_has_a_folder_named_after_its_values_and_a_row(grid, tmp_path):
    assert grid("model=resnet,densenet", "seed=1,2", "trainer.max_epochs=3", "hydra.sweep.dir=g") == 0
    names = ["model=densenet,seed=1", "model=densenet,seed=2", "model=resnet,seed=1", "model=resnet,seed=2"]
    rows = table(tmp_path / "g")
    assert list(rows.index) == names
    assert sorted(folder.name for folder in (tmp_path / "g").iterdir() if folder.is_dir()) == names
    assert list(rows.columns[:2]) == ["model", "seed"]
    assert set(rows["state"]) == {"finished"}
    assert rows["val_auroc"].tolist() == rows["test_accuracy"].tolist() == ["0.81", "0.82", "0.81", "0.82"]
    assert set(rows["val_majority_rate"]) == {"0.8226"}
    assert rows["best"].tolist() == ["False", "True", "False", "False"]
    config = yaml.safe_load((tmp_path / "g" / names[2] / ".hydra" / "config.yaml").read_text())
    assert (config["model"]["variant"], config["seed"], config["trainer"]["max_epochs"]) == ("resnet50", 1, 3)


@pytest.mark.parametrize(
    ("axis", "names"),
    [
        ("seed=choice(1,2)", ["seed=1", "seed=2"]),
        ("seed=range(1,4)", ["seed=1", "seed=2", "seed=3"]),
        ("model=glob(*)", ["model=densenet", "model=resnet"]),
        (
            "preprocess.mean=[0.5,0.5,0.5],[0.4,0.4,0.4]",
            ["preprocess.mean=_0.4,0.4,0.4_", "preprocess.mean=_0.5,0.5,0.5_"],
        ),
        ("optimizer.lr=1e-3,0.001,1e-2", ["optimizer.lr=0.001", "optimizer.lr=0.01"]),
        ("seed=1", ["0"]),
        ("+seed=1,2", None),
    ],
)  # fmt: skip
def test_every_kind_of_axis_is_expanded(grid, tmp_path, axis, names):
    message = grid(axis, "hydra.sweep.dir=g")
    if names is None:
        assert str(message).startswith("error: ")
        assert not (tmp_path / "g").exists()
    else:
        assert sorted(calls(tmp_path / "g")) == names


@pytest.mark.integration
def test_null_stays_null_in_jobs_of_a_swept_model(grid, tmp_path):
    assert grid("model=densenet,resnet", "model.weights=null", "seed=3", "seed=1,2", "hydra.sweep.dir=g") == 0
    runs = sorted((tmp_path / "g").glob("*/.hydra/config.yaml"))
    configs = [yaml.safe_load(run.read_text()) for run in runs]
    assert [(config["model"]["weights"], config["seed"]) for config in configs] == 2 * [(None, 1), (None, 2)]


def test_jobs_of_experiments_are_valid_if_each_alone_is(grid, tmp_path):
    experiments = tmp_path / "mine" / "experiment"
    experiments.mkdir(parents=True)
    (experiments / "tiny.yaml").write_text("# @package _global_\ndefaults:\n  - demo_resnet\ntask_name: tiny\n")
    arguments = ["data.prepare.images=200", "--config-dir=mine", "experiment=demo_densenet,tiny"]
    assert grid(*arguments) == 0
    (folder,) = (tmp_path / "logs" / "train" / "sweeps").iterdir()  # one folder, though task_name differs
    assert list(calls(folder)) == ["experiment=demo_densenet", "experiment=tiny"]
    for run in folder.glob("*/.hydra/config.yaml"):
        assert yaml.safe_load(run.read_text())["data"]["prepare"]["images"] == 200


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["optimizer.lr=1e-3,abc"], ["error: job optimizer.lr=abc: optimizer.lr=abc: should be a valid number"]),
        (
            ["optimizer.lr=abc,0", "seed=1,2,3"],
            [
                "error: job optimizer.lr=abc seed=1 (and 2 more jobs): optimizer.lr=abc: should be a valid number",
                "error: job optimizer.lr=0 seed=1 (and 2 more jobs): optimizer.lr=0: should be greater than 0",
            ],
        ),
        (["model=resnet,densnet"],
         ["error: job model=densnet: model=densnet: no such choice; the choices are densenet, resnet"]),
        (["seed=1,2", "optimizer.lrr=1"], ["error: unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"]),
        (["optimizer=adam,sgd", "optimizer.betas=[0.5,0.9]"],
         ["error: job optimizer=sgd: 'optimizer.betas' does not belong to the chosen 'optimizer'; "
          "--help lists its keys"]),
        (["seed=1,2", "optimizer.lr=1e-3,abc", "trainer.max_epochs=0"],
         ["error: job seed=1 optimizer.lr=0.001 (and 3 more jobs): trainer.max_epochs=0: should be greater than or "
          "equal to 1", "error: job seed=1 optimizer.lr=abc (and 1 more job): optimizer.lr=abc: should be a valid "
          "number"]),
        (["optimizer.lr=interval(0,1)"],
         ["error: BasicSweeper does not support sweep type : INTERVAL_SWEEP; use hparams_search=optuna for intervals"]),
    ],
)  # fmt: skip
def test_invalid_jobs_are_refused_before_the_first_one_starts(grid, tmp_path, arguments, lines):
    message = grid(*arguments)
    assert isinstance(message, str)  # status 1
    assert message.splitlines() == lines
    assert list(tmp_path.iterdir()) == []


def test_invalid_jobs_are_refused_without_torch(tmp_path):
    program = """
import sys
from fractatlas.cli.main import main
sys.argv = ["fractatlas", "train", "-m", "optimizer.lr=1e-3,abc", "seed=range(5)"]
try:
    main()
except SystemExit as end:
    assert "(and 4 more jobs)" in end.code
assert not {"torch", "lightning", "matplotlib"} & set(sys.modules)
"""
    result = process("-c", program, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_same_command_skips_finished_jobs(grid, tmp_path):
    for arguments in (["seed=1,2"], ["seed=1,2"], ["seed=2,1,3"], ["seed=1,2,3", "data.num_workers=2"]):
        assert grid(*arguments, "hydra.sweep.dir=g") == 0
    assert calls(tmp_path / "g") == {"seed=1": 1, "seed=2": 1, "seed=3": 1}


def test_a_new_axis_keeps_the_jobs_that_are_done(grid, tmp_path):
    assert grid("model=resnet,densenet", "seed=1", "hydra.sweep.dir=g") == 0
    assert grid("model=resnet,densenet", "seed=1,2", "hydra.sweep.dir=g") == 0
    assert calls(tmp_path / "g") == {
        "model=densenet": 1, "model=densenet,seed=2": 1, "model=resnet": 1, "model=resnet,seed=2": 1
    }  # fmt: skip
    assert table(tmp_path / "g")["seed"].tolist() == ["1", "2", "1", "2"]


def test_a_job_with_other_overrides_gets_its_own_folder(grid, tmp_path):
    for seed in (1, 2):
        assert grid("model=resnet,densenet", f"seed={seed}", "hydra.sweep.dir=g") == 0
    assert sorted(calls(tmp_path / "g")) == [
        "model=densenet", "model=densenet,seed=2", "model=resnet", "model=resnet,seed=2"
    ]  # fmt: skip


def test_values_that_change_no_result_are_different_jobs_if_they_are_an_axis(grid, tmp_path):
    assert grid("data.num_workers=0,2", "hydra.sweep.dir=g") == 0
    assert grid("data.root=a,b", "hydra.sweep.dir=h") == 0
    assert calls(tmp_path / "g") == {"data.num_workers=0": 1, "data.num_workers=2": 1}
    assert calls(tmp_path / "h") == {"data.root=a": 1, "data.root=b": 1}
    assert grid("data.root=c", "hydra.sweep.dir=h") == 0
    assert len(calls(tmp_path / "h")) == 3


def test_a_folder_that_was_started_with_other_settings_is_refused(grid, tmp_path):
    experiment = tmp_path / "mine" / "experiment" / "one.yaml"
    experiment.parent.mkdir(parents=True)
    for dropout in (0.1, 0.2):
        experiment.write_text(f"# @package _global_\nmodel:\n  dropout: {dropout}\n")
        message = grid("--config-dir=mine", "experiment=one", "seed=1,2", "hydra.sweep.dir=g")
    assert message == (
        "error: g/seed=1 was started with other settings: model.dropout was 0.1, is 0.2; "
        "delete the folder, or use another hydra.sweep.dir"
    )
    assert calls(tmp_path / "g") == {"seed=1": 1, "seed=2": 1}


def test_a_finished_job_without_test_scores_is_scored_when_they_are_requested(grid, tmp_path):
    assert grid("seed=1,2", "test=false", "hydra.sweep.dir=g") == 0
    assert "test_auroc" not in table(tmp_path / "g")
    assert grid("seed=1,2", "hydra.sweep.dir=g") == 0
    assert table(tmp_path / "g")["test_auroc"].tolist() == ["0.81", "0.82"]
    assert grid("seed=1,2", "test=false", "hydra.sweep.dir=g") == 0
    assert calls(tmp_path / "g") == {"seed=1": 2, "seed=2": 2}


def test_the_folders_of_jobs_can_be_named_by_the_user(grid, tmp_path):
    subdir = "hydra.sweep.subdir=s${seed}/${hydra.job.num}"
    assert grid("seed=1,2", subdir, "hydra.sweep.dir=g") == 0
    assert (tmp_path / "g" / "s2" / "1" / "metrics.json").is_file()
    assert list(table(tmp_path / "g").index) == ["s1/0", "s2/1"]
    assert "two jobs have this folder" in grid("seed=1,2", "hydra.sweep.subdir=same", "hydra.sweep.dir=h")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InputError("the training diverged;\nlower optimizer.lr"), "the training diverged; lower optimizer.lr"),
        pytest.param(ZeroDivisionError("a bug"), "ZeroDivisionError: a bug", marks=pytest.mark.integration),
        pytest.param(MemoryError(), "out of memory: no message", marks=pytest.mark.integration),
        (SystemExit("error: no data"), "no data"),
    ],
)
def test_a_failed_job_does_not_stop_the_others(grid, tmp_path, error, reason):
    message = grid("seed=1,2,3", "hydra.sweep.dir=g", function=fails_with(error, "seed=1"))
    assert message == "error: 1 of 3 jobs failed: g/sweep.csv lists the reasons; repeat the command to retry"
    assert states(tmp_path / "g") == {"seed=1": "failed", "seed=2": "finished", "seed=3": "finished"}
    assert table(tmp_path / "g").loc["seed=1", "reason"] == reason
    assert (tmp_path / "g" / "seed=1" / "failure.txt").is_file() == isinstance(error, ArithmeticError | MemoryError)
    assert grid("seed=1,2,3", "hydra.sweep.dir=g") == 0  # retried
    assert calls(tmp_path / "g") == {"seed=1": 1, "seed=2": 1, "seed=3": 1}
    assert set(table(tmp_path / "g")["reason"]) == {""}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        pytest.param(SystemExit(1), 130, marks=pytest.mark.integration),
        pytest.param(SystemExit(130), 130, marks=pytest.mark.integration),
        (SystemExit(75), 75),
    ],
)
def test_a_stopped_grid_prints_the_command_that_resumes_it(grid, tmp_path, capsys, error, status):
    arguments = ["seed=2,3,1", "preprocess.mean=[0.5,0.5,0.5]"]
    assert grid(*arguments, function=fails_with(error, "seed=3")) == status
    (folder,) = (tmp_path / "logs" / "train" / "sweeps").iterdir()
    assert states(folder) == {"seed=1": "waiting", "seed=2": "finished", "seed=3": "interrupted"}
    printed = capsys.readouterr()
    line = f"fractatlas train -m seed=2,3,1 'preprocess.mean=[0.5,0.5,0.5]' hydra.sweep.dir={folder}"
    assert printed.out.splitlines()[-1].endswith(f"stopped; to resume: {line}")
    assert printed.out.count("to resume") == 1
    assert not printed.err
    assert grid(*arguments, f"hydra.sweep.dir={folder}") == 0
    assert calls(folder) == {"seed=1": 1, "seed=2": 1, "seed=3": 1}


def test_ctrl_c_stops_a_grid_if_a_library_replaces_its_exception(grid, tmp_path):
    def train(config: dict) -> None:
        with exit_on_stop_signals():  # as in the command
            interrupt_library()

    assert grid("seed=1,2", "hydra.sweep.dir=g", function=train) == 130
    assert states(tmp_path / "g") == {"seed=1": "interrupted", "seed=2": "waiting"}


def test_ctrl_c_stops_a_grid_after_the_job_if_a_library_catches_its_exception(grid, tmp_path):
    def train(config: dict) -> None:
        with suppress(AttributeError):
            interrupt_library()
        fake_training(config)

    assert grid("seed=1,2", "hydra.sweep.dir=g", function=train) == 130
    assert states(tmp_path / "g") == {"seed=1": "finished", "seed=2": "waiting"}


def test_a_started_job_is_resumed_in_its_folder(grid, tmp_path):
    def stop(config: dict) -> None:
        (Path(config["paths"]["output_dir"]) / "split.csv").touch()
        raise KeyboardInterrupt

    assert grid("seed=1,2", "hydra.sweep.dir=a b (c)", function=stop) == 130
    assert grid("seed=1,2", "hydra.sweep.dir=a b (c)") == 0
    assert (tmp_path / "a b (c)" / "seed=1" / "calls.txt").read_text() == f"{tmp_path}/a b (c)/seed=1\n"
    assert (tmp_path / "a b (c)" / "seed=2" / "calls.txt").read_text() == "None\n"


def test_the_table_is_written_after_every_job(grid, tmp_path):
    seen = []

    def train(config: dict) -> None:
        seen.append(states(tmp_path / "g"))
        fake_training(config)

    assert grid("seed=1,2", "hydra.sweep.dir=g", function=train) == 0
    assert seen == [{"seed=1": "running", "seed=2": "waiting"}, {"seed=1": "finished", "seed=2": "running"}]


def test_batches_are_given_to_the_launcher_one_after_the_other(grid, tmp_path, capsys):
    assert grid("seed=1,2,3", "hydra.sweeper.max_batch_size=2", "hydra.sweep.dir=g") == 0
    assert re.findall(r"Launching (\d) jobs", capsys.readouterr().out) == ["2", "1"]
    assert len(calls(tmp_path / "g")) == 3


def test_a_grid_of_evaluations_is_checked_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fractatlas", "-m", "subset=val,tset", "ckpt=x.ckpt"])
    with pytest.raises(SystemExit, match="job subset=tset: subset=tset: should be"):
        hydra_command.run("evaluate", EvaluateConfig, fake_training)
    assert list(tmp_path.iterdir()) == []


def test_names_of_folders():
    assert job_name(["monitor=val/auroc", "+data.root='a b'"]) == "monitor=val_auroc,data.root=_a_b_"
    long = job_name([f"preprocess.mean=[{number},1,1]" for number in range(40)])
    assert len(long) == 120
    assert long != job_name([f"preprocess.mean=[{number},1,2]" for number in range(40)])


def _run_grid(folder: str, arguments: list[str], seconds: float, kill: str = "") -> None:
    """Run a grid whose trainings take ``seconds``, in a process of its own."""
    os.chdir(folder)

    def train(config: dict) -> None:
        run = Path(config["paths"]["output_dir"])
        (run / "started").touch(exist_ok=False)  # raises if another process has trained this job
        time.sleep(seconds)
        if run.name == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        fake_training(config)

    sys.argv = ["fractatlas", "-m", *arguments]
    hydra_command.run("train", TrainConfig, train)


def start(folder: Path, *arguments: str, seconds: float = 0.2, kill: str = "") -> subprocess.Popen:
    call = f"_run_grid({str(folder)!r}, {list(arguments)!r}, {seconds}, {kill!r})"
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from tests.search.test_grid import _run_grid; {call}"
    )
    return subprocess.Popen([sys.executable, "-c", program], env=PLAIN, cwd=folder)


@pytest.mark.integration
@pytest.mark.fault("two grids in one folder at the same time", "each job is trained once, both wait for all jobs")
def test_two_processes_share_a_grid(tmp_path):
    processes = [start(tmp_path, "seed=range(6)", "hydra.sweep.dir=g") for _ in range(2)]
    assert [one.wait(200) for one in processes] == [0, 0]
    assert set(states(tmp_path / "g").values()) == {"finished"}
    assert set(calls(tmp_path / "g").values()) == {1}


@pytest.mark.integration
@pytest.mark.fault(
    "process of a grid killed with -9, started again", "the job is interrupted in the table, then trained"
)
def test_a_killed_grid_continues(tmp_path, grid):
    killed = start(tmp_path, "seed=1,2,3", "hydra.sweep.dir=g", kill="seed=2")
    assert killed.wait(200) == -signal.SIGKILL
    assert grid("seed=1,2,3", "hydra.sweep.dir=g") == 0
    assert calls(tmp_path / "g") == {"seed=1": 1, "seed=2": 1, "seed=3": 1}


@pytest.mark.integration
def test_jobs_run_in_the_processes_of_the_joblib_launcher(tmp_path):
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=g")
    assert start(tmp_path, "seed=1,2,3", *launcher, kill="seed=2").wait(300) == 1
    ended = states(tmp_path / "g")
    assert ended["seed=2"] == "failed"
    assert set(ended.values()) <= {"finished", "failed"}  # a killed worker also ends the jobs that run beside it
    for name in (name for name, state in ended.items() if state == "failed"):
        (tmp_path / "g" / name / "started").unlink(missing_ok=True)
    assert start(tmp_path, "seed=1,2,3", *launcher).wait(300) == 0
    assert set(states(tmp_path / "g").values()) == {"finished"}


@pytest.mark.integration
@pytest.mark.fault("Ctrl-C, SIGTERM while a grid trains, resumed", "the same results as without a stop, bit for bit")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_grid_of_trainings_resumes_bit_for_bit(phantoms, tmp_path, number, status):
    arguments = ["-m", "seed=1,2", "task_name=tiny", *SMALL, f"data.root={phantoms}", "trainer.max_epochs=2"]
    command = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
    whole = process(*command[1:], "hydra.sweep.dir=whole", folder=tmp_path)
    assert whole.returncode == 0, whole.stderr
    with subprocess.Popen(
        command, cwd=tmp_path, env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        output = ""
        for printed in running.stdout:
            output += printed
            if "#1" in output and "epoch 1/2 step 3" in printed:
                running.send_signal(number)
    assert running.returncode == status, output
    (folder,) = (tmp_path / "logs" / "tiny" / "sweeps").iterdir()
    assert states(folder) == {"seed=1": "finished", "seed=2": "interrupted"}
    assert output.count("to resume") == 1
    (line,) = [line for line in output.splitlines() if "to resume" in line]
    assert line.endswith(f"hydra.sweep.dir={folder}")
    assert f"python {REPOSITORY / 'train.py'} -m seed=1,2" in line
    before = (folder / "seed=1" / "metrics.json").stat().st_mtime_ns
    resumed = process(*command[1:], f"hydra.sweep.dir={folder}", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert (folder / "seed=1" / "metrics.json").stat().st_mtime_ns == before
    for seed in ("seed=1", "seed=2"):
        one, other = (tmp_path / "whole" / seed, folder / seed)
        assert (one / "predictions.csv").read_bytes() == (other / "predictions.csv").read_bytes()
        reports = [json.loads((run / "metrics.json").read_text()) | {"timing": None} for run in (one, other)]
        assert reports[0] == reports[1]
    shown = process(*MODULE, "table", str(folder), folder=tmp_path)
    assert "| seed=2 | densenet_tiny | 2      |" in shown.stdout


@pytest.mark.integration
def test_a_job_on_two_devices_is_trained_in_a_process_of_its_own(phantoms, tmp_path):
    arguments = [*SMALL, "trainer=ddp_cpu", f"data.root={phantoms}", "trainer.max_epochs=1", "test=false"]
    result = process(*MODULE, "train", "-m", "seed=1,2", *arguments, "hydra.sweep.dir=g", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert set(states(tmp_path / "g").values()) == {"finished"}
