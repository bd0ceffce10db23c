"""A search on a PostgreSQL server that several processes share."""

import os
import signal
import time

import pytest

from tests.search.processes import start
from tests.search.test_sweeper import check_study, trials_of


@pytest.mark.fault("four searches on one PostgreSQL study, two killed", "each trial is complete once")
@pytest.mark.integration
def test_killing_two_of_four_workers_loses_no_trial(postgresql, tmp_path, phantoms):
    arguments = [f"hydra.sweeper.storage='{postgresql}'", "hydra.sweeper.n_trials=20"]
    arguments += ["hydra.sweeper.heartbeat_timeout=6"]
    workers = [start(tmp_path, phantoms, *arguments, fake={"seconds": 1.0}) for _ in range(4)]
    folder = tmp_path / "logs" / "search" / "densenet_tiny_phantom"
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*/metrics.json"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.1)
    for worker in workers[:2]:
        os.kill(worker.pid, signal.SIGKILL)
    for worker in workers:
        worker.join(200)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    trials = trials_of(tmp_path)
    assert (trials["state"] == "complete").sum() == 20
    check_study(tmp_path)
