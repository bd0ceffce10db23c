import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fractatlas.errors import InputError
from fractatlas.experiments.train_and_score import OUTPUT, Commands, Run, finish_runs
from fractatlas.wording import plural
from tests.cli.processes import MODULE, PLAIN, process
from tests.conftest import REPOSITORY, SMALL

# A command that needs a moment to stop. It does not stop within the time that ``subprocess.run`` waits.
COMMAND = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[-1].partition("=")[2])
folder.mkdir(exist_ok=True)
def stop(number, frame):
    time.sleep(1)
    (folder / "saved").touch()
    sys.exit({signal.SIGINT: 130, signal.SIGTERM: 75}[number])
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
(folder / "started").touch()
time.sleep(60)
"""
PLAN = """
import logging, pathlib, signal, sys
from fractatlas.experiments.train_and_score import Run, finish_runs
logging.basicConfig(level=logging.INFO, format="%(message)s")
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.executable = "./python"
jobs = int(sys.argv[1])
runs = [Run("A", seed, None, pathlib.Path(f"run_{seed}"), (), "val") for seed in range(jobs + 1)]
finish_runs(runs, jobs, print)
"""
# As above, in the shell: it prints its verb, then fails (seed 7; seed 77 when seed 1 has started), waits for SIGTERM
# (seed 8), or succeeds.
SHELL = """#!/bin/sh
for last; do :; done
folder=${last#hydra.run.dir=}
mkdir -p "$folder"
echo "output of $3"
case "$folder" in
  *seed_77) for i in $(seq 500); do [ -e "${folder}/../seed_1" ] && break; sleep 0.02; done ;;
esac
case "$folder" in
  *seed_7*) echo "error: no such key" >&2; exit 1 ;;
  *seed_8*)
    trap 'touch "$folder/saved"; exit 75' TERM
    touch "$folder/started"
    for i in $(seq 500); do sleep 0.02; done ;;
esac
touch "$folder/metrics.json"
"""


@pytest.fixture
def runs_of(tmp_path):
    """Make runs with these seeds."""
    return lambda *seeds: [Run("A b", seed, None, tmp_path / f"seed_{seed}", (), "val") for seed in seeds]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    (tmp_path / "python").write_text(SHELL)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))


def wait_until(happened, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_as_many_runs_as_jobs_are_trained_at_the_same_time(runs_of, monkeypatch):
    running, most, together = set(), [], threading.Barrier(2)

    def command(commands: Commands, folder: Path, verb: str, *arguments: str) -> None:
        running.add(folder)
        most.append(len(running))
        together.wait(timeout=30)
        running.discard(folder)
        together.wait(timeout=30)

    monkeypatch.setattr(Commands, "run", command)
    finished = []
    finish_runs(runs_of(1, 2, 3, 4), 2, finished.append)
    assert max(most) == 2
    assert sorted(run.seed for run in finished) == [1, 2, 3, 4]


def test_after_a_failure_running_ones_finish_and_no_other_starts(runs_of, monkeypatch, caplog):
    started, running, failed = [], threading.Event(), threading.Event()

    def command(commands: Commands, folder: Path, verb: str, *arguments: str) -> None:
        started.append(folder.name)
        if folder.name == "seed_2":
            assert running.wait(timeout=30)
            failed.set()
            raise InputError("seed_2: train failed")
        running.set()
        assert failed.wait(timeout=30)
        time.sleep(0.1)

    monkeypatch.setattr(Commands, "run", command)
    finished = []
    with caplog.at_level("INFO"), pytest.raises(InputError, match="seed_2: train failed"):
        finish_runs(runs_of(1, 2, 3, 4), 2, finished.append, total=5)
    assert sorted(started) == ["seed_1", "seed_2"]
    assert [run.seed for run in finished] == [1]
    assert "failed: A b, seed 2" in caplog.messages
    (line,) = [message for message in caplog.messages if message.startswith("finished: ")]
    assert re.fullmatch(r"finished: A b, seed 1 in 0:00:\d\d \(2 of 5 runs\)", line)


def test_an_error_while_a_record_is_written_starts_no_other_run(runs_of, monkeypatch):
    started = []
    monkeypatch.setattr(Commands, "run", lambda commands, folder, *arguments: (started.append(folder), time.sleep(0.1)))

    def finished(run: Run) -> None:
        raise InputError("the disk is full")

    with pytest.raises(InputError, match="the disk is full"):
        finish_runs(runs_of(*range(20)), 1, finished)
    assert len(started) < 20


@pytest.mark.fault("a run of a plan fails while others are trained", "the others finish, the error names the run")
def test_output_of_several_runs_is_in_their_folders(runs_of, shell, capfd):
    finished = []
    with pytest.raises(
        InputError, match=r"seed_77: train failed with status 1; correct the error at the end of .*/seed_77/plan"
    ):
        finish_runs(runs_of(1, 77), 2, finished.append)
    assert [run.seed for run in finished] == [1]
    one, other = (run.folder / OUTPUT for run in runs_of(1, 77))
    assert one.read_text() == "output of train\n"
    assert other.read_text() == "output of train\nerror: no such key\n"
    assert "output of train" not in capfd.readouterr().out


def test_output_of_a_single_run_is_that_of_the_plan(runs_of, shell, capfd):
    with pytest.raises(InputError, match="seed_7: train failed with status 1; correct the error printed above"):
        finish_runs(runs_of(7, 1), 1, print)
    assert capfd.readouterr().out == "output of train\n"
    assert not (runs_of(1)[0].folder).exists()


@pytest.mark.fault("SIGTERM while a plan trains several runs", "every run stops with its checkpoint, status 75")
def test_sigterm_stops_all_runs(runs_of, shell, tmp_path, caplog):
    runs = [
        Run("A", seed, None, tmp_path / name, (), "val") for seed, name in enumerate(("seed_8", "seed_88", "seed_888"))
    ]

    def stop() -> None:
        wait_until(lambda: all((run.folder / "started").exists() for run in runs[:2]))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as stopped:
        finish_runs(runs, 2, print)
    assert stopped.value.code == 75
    assert [(run.folder / "saved").exists() for run in runs] == [True, True, False]
    assert not runs[2].folder.exists()
    assert caplog.messages.count("stopped; repeat the command to resume the plan") == 1
    assert caplog.messages[-1] == "stopped; repeat the command to resume the plan"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.fault("Ctrl-C or SIGTERM while a plan trains", "the plan waits until the training has stopped")
@pytest.mark.integration
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(("number", "to_group", "status"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 75)])
def test_stopped_plan_waits_for_its_trainings(tmp_path, number, to_group, status, jobs):
    (tmp_path / "training.py").write_text(COMMAND)
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} training.py "$@"\n')
    (tmp_path / "python").chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", PLAN, str(jobs)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as plan:
        wait_until(lambda: len(list(tmp_path.glob("run_*/started"))) == jobs)
        assert plan.poll() is None
        (os.killpg if to_group else os.kill)(plan.pid, number)
        output = plan.stderr.read()
    assert plan.returncode == status
    lines = output.splitlines()
    assert lines[-1] == "stopped; repeat the command to resume the plan"
    assert sorted(lines[:-1]) == (
        [f"started: A, seed {seed}; its output is in run_{seed}/{OUTPUT}" for seed in range(jobs) if jobs > 1]
        + [f"stopped: A, seed {seed}" for seed in range(jobs) if jobs > 1]
        + [f"stopping {plural(jobs, 'command')}"]
    )
    assert [(tmp_path / f"run_{seed}" / "saved").exists() for seed in range(jobs + 1)] == [True] * jobs + [False]


@pytest.mark.integration
@pytest.mark.fault("SIGTERM while a plan trains several runs on phantoms", "every run resumes from its checkpoint")
def test_several_trainings_are_stopped_and_resumed(phantoms, tmp_path):
    options = [*SMALL, f"data.root={phantoms}", "trainer.max_epochs=25", "data.cache=false"]
    plan = tmp_path / "small.yaml"
    plan.write_text(f"seeds: [1, 2]\ncommon: {options}\nvariants: {{V: [], W: [optimizer.lr=1e-2]}}\n")
    line = [*MODULE, "plan", str(plan), "--jobs", "2", "--logs", "logs"]
    with subprocess.Popen(
        [sys.executable, *line], cwd=tmp_path, env=PLAIN, stderr=subprocess.PIPE, text=True
    ) as running:
        wait_until(lambda: len(list((tmp_path / "logs").glob("*/*/checkpoints/last.ckpt"))) == 2, 300)
        running.terminate()
        output = running.stderr.read()
    assert running.returncode == 75, output
    assert output.splitlines()[-1].endswith("stopped; repeat the command to resume the plan")
    assert not list((tmp_path / "logs").glob("*/*/metrics.json"))
    assert len(list((tmp_path / "logs").glob("*/*"))) == 2
    result = process(*line, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("finished: ") == 4
    assert "to resume: " in (tmp_path / "logs" / "v" / "seed_1" / OUTPUT).read_text()
    table = (tmp_path / "small" / "variants.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table[1:]] == ["V", "W"]
    assert len(list((tmp_path / "small" / "predictions").glob("*.json"))) == 4
