"""Searches and grids whose jobs are processes of submitit, as on a SLURM cluster, but on this machine."""

import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.conftest import SMALL
from tests.search.processes import CONTEXT, _sweep, search_arguments

LAUNCHER = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")


def started(folder: Path, phantoms: Path, arguments: list[str]):
    process = CONTEXT.Process(target=_sweep, args=(str(folder), arguments, None))
    process.start()
    return process


def output(folder: Path, process) -> str:
    return (folder / f"output-{process.pid}.txt").read_text()


@pytest.mark.integration
@pytest.mark.fault("a job of a search on submitit killed with -9", "its trial is repeated, the search ends whole")
def test_a_search_ends_whole_if_a_job_is_killed(phantoms, tmp_path):
    arguments = search_arguments(
        phantoms, *LAUNCHER, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", "hydra.sweeper.study_name=cluster",
        "trainer.max_epochs=2",
    )  # fmt: skip
    process = started(tmp_path, phantoms, arguments)
    study = tmp_path / "logs" / "search" / "cluster"
    deadline = time.monotonic() + 200
    while not (study / "0" / "split.csv").is_file():  # the training of the first trial begins
        assert process.is_alive(), output(tmp_path, process)
        assert time.monotonic() < deadline, output(tmp_path, process)
        time.sleep(0.05)
    # The folder of a local job has the number of the process that starts the job's own process.
    number = min(int(folder.name) for folder in (study / ".submitit").iterdir() if folder.name.isdigit())
    (job,) = psutil.Process(number).children()
    job.kill()
    process.join(400)
    text = output(tmp_path, process)
    assert process.exitcode == 0, text
    assert "the launcher failed, its unfinished trials are repeated" in text
    trials = pd.read_csv(study / "trials.csv")
    assert (trials["state"].str.lower() == "complete").sum() == 3


@pytest.mark.integration
def test_a_grid_runs_on_submitit(phantoms, tmp_path):
    arguments = ["-m", *SMALL, f"data.root={phantoms}", *LAUNCHER, "trainer.max_epochs=1", "seed=0,1",
                 "hydra.sweep.dir=grid"]  # fmt: skip
    process = started(tmp_path, phantoms, arguments)
    process.join(300)
    assert process.exitcode == 0, output(tmp_path, process)
    assert len(list((tmp_path / "grid").glob("seed=*/metrics.json"))) == 2
