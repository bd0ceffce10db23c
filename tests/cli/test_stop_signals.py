"""Ctrl-C, SIGTERM and SIGUSR1: exit statuses, and how a stopped command resumes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import yaml

from tests.cli.processes import MODULE, PLAIN, process, script
from tests.conftest import REPOSITORY, SMALL


@pytest.mark.integration
@pytest.mark.fault("Ctrl-C, SIGTERM, SIGUSR1 while training", "last.ckpt, status 130 or 75, resumable")
@pytest.mark.parametrize(
    ("line", "typed", "number", "status"),
    [
        ([str(REPOSITORY / "train.py")], f"python {REPOSITORY / 'train.py'}", signal.SIGINT, 130),
        ([*MODULE, "train"], "fractatlas train", signal.SIGTERM, 75),
        ([*MODULE, "train"], "fractatlas train", signal.SIGUSR1, 75),
    ],
)
def test_a_stopped_run_saves_a_checkpoint_and_prints_how_to_resume(phantoms, tmp_path, line, typed, number, status):
    arguments = [*SMALL, f"data.root={phantoms}", "trainer.max_epochs=40", "data.num_workers=2", "data.cache=false",
                 "test=false"]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, *line, *arguments],
        cwd=tmp_path, env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as running:  # fmt: skip
        output = ""
        for printed in running.stdout:
            output += printed
            if "epoch 2/40 step 3" in printed:
                os.killpg(running.pid, number)  # as a terminal does, to the data-loading workers, too
    assert running.returncode == status, output
    assert "Traceback" not in output, output
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    assert f"to resume: {typed} resume={run}" in output
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert not (run / "metrics.json").exists()

    result = process(*line, f"resume={run}", "trainer.max_epochs=3", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "logs" / "train" / "runs").iterdir()) == [run]
    assert yaml.safe_load((run / ".hydra" / "config.yaml").read_text())["trainer"]["max_epochs"] == 3
    assert "epoch 2/3" in result.stdout
    assert "epoch 1/3" not in result.stdout
    assert (run / "metrics.json").is_file()


@pytest.mark.integration
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_search_ends_with_the_status_of_the_signal_and_resumes(phantoms, tmp_path, number, status):
    arguments = [*(option for option in SMALL if "batch_size" not in option), f"data.root={phantoms}",
                 "hydra.sweeper.n_trials=2"]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, *MODULE, "search", *arguments],
        cwd=tmp_path, env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as running:  # fmt: skip
        output = ""
        for printed in running.stdout:
            output += printed
            if "epoch 1/" in printed and "step" in printed:
                running.send_signal(number)
    assert running.returncode == status, output
    assert "Traceback" not in output, output
    assert f"stopped; to resume: {shlex.join(['python', *MODULE, 'search', *arguments])}\n" in output
    result = process(*MODULE, "search", *arguments, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 trials: 2 complete" in result.stdout
    assert re.search(
        r"trial 2 \(2 of 2\): val/accuracy 0\.\d+, best so far 0\.\d+ .*, majority rate 0\.\d+", result.stdout
    )
    assert "[HYDRA]" not in result.stdout


@pytest.mark.integration
@pytest.mark.fault("SIGTERM while two processes train, resumed", "the same result as without a stop, bit for bit")
def test_a_stopped_run_on_two_devices_is_resumed(phantoms, tmp_path):
    arguments = [*SMALL, "trainer=ddp_cpu", f"data.root={phantoms}", "trainer.max_epochs=3", "test=false"]
    uninterrupted, stopped = tmp_path / "uninterrupted", tmp_path / "stopped's"
    script("train.py", *arguments, f"hydra.run.dir={uninterrupted}", folder=tmp_path)
    with subprocess.Popen(
        [sys.executable, *MODULE, "train", *arguments, f"hydra.run.dir={stopped}"],
        cwd=tmp_path, env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as running:  # fmt: skip
        for line in running.stdout:
            if "epoch 2/3 step 2" in line:
                running.terminate()
    assert running.returncode == 75
    result = process(*MODULE, "train", f"resume={stopped}", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    reports = [json.loads((run / "metrics.json").read_text()) | {"timing": None} for run in (uninterrupted, stopped)]
    assert reports[0] == reports[1]
    assert (uninterrupted / "predictions.csv").read_bytes() == (stopped / "predictions.csv").read_bytes()
