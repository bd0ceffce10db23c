import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY

# A training that needs longer to stop than ``subprocess.run`` waits.
TRAINING = """
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(1)
    pathlib.Path("saved").touch()
    sys.exit({signal.SIGINT: 130, signal.SIGTERM: 75}[number])
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
pathlib.Path("started").touch()
time.sleep(60)
"""
PLAN = """
import logging, pathlib, signal, sys
from fractatlas.experiments import train_and_score
logging.basicConfig(level=logging.INFO, format="%(message)s")
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.executable = "./python"
train_and_score.train(pathlib.Path("run"), [])
"""


@pytest.mark.fault("Ctrl-C or SIGTERM while a plan trains", "the plan waits until the training has stopped")
@pytest.mark.integration
@pytest.mark.parametrize(("number", "to_group", "status"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 75)])
def test_stopped_plan_waits_for_its_training(tmp_path, number, to_group, status):
    (tmp_path / "training.py").write_text(TRAINING)
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec {sys.executable} training.py\n")
    (tmp_path / "python").chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", PLAN],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        (os.killpg if to_group else os.kill)(process.pid, number)
        output = process.stderr.read()
    assert process.returncode == status
    assert output == "stopped; repeat the command to resume the plan\n"
    assert (tmp_path / "saved").exists()
