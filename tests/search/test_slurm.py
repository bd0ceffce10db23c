"""A search whose trials are tasks of array jobs of a SLURM cluster, which loses its node meanwhile."""

import subprocess
import sys
import time
from collections.abc import Callable

import pandas as pd
import pytest

from tests.conftest import REPOSITORY, SMALL
from tests.search.slurm import cluster, missing_programs

pytestmark = pytest.mark.skipif(bool(missing_programs()), reason="no SLURM: install Debian's slurm-wlm and munge")
SETTINGS = (
    "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5", "hydra.launcher.signal_delay_s=30",
    "hydra.launcher.max_num_timeout=3", "+hydra.launcher.additional_parameters={requeue: true}",
    "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2", "hydra.sweeper.study_name=cluster", "callbacks=default",
    "experiment=demo_densenet",
)  # fmt: skip


@pytest.mark.integration
@pytest.mark.fault("the node of a SLURM cluster killed during a search", "its trials resume, the search ends whole")
def test_a_search_ends_whole_if_the_node_of_its_jobs_is_lost(postgresql, phantoms, tmp_path):
    small = [override for override in SMALL if override.partition("=")[0] not in ("data", "model", "data.batch_size")]
    line = [sys.executable, "-m", "fractatlas", "search", *SETTINGS, *small, f"data.root={phantoms}",
            "trainer.max_epochs=10"]  # fmt: skip
    study, output = tmp_path / "logs" / "search" / "cluster", tmp_path / "output.txt"
    with cluster() as slurm, output.open("w") as stream:
        environment = slurm.environment | {"FRACATLAS_STORAGE": postgresql, "PYTHONPATH": str(REPOSITORY)}
        search = subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=stream, stderr=stream)

        def wait(until: Callable[[], object], seconds: float) -> None:
            deadline = time.monotonic() + seconds
            while not until():
                assert search.poll() is None, output.read_text()
                assert time.monotonic() < deadline, output.read_text() + slurm.run("squeue") + slurm.log("slurmctld")
                time.sleep(0.1)

        try:
            wait(lambda: list(study.glob("*/checkpoints/last.ckpt")), 120)
            slurm.kill_node()
            assert not list(study.glob("*/metrics.json"))  # the trainings were killed
            resumed = [path.parents[1] for path in study.glob("*/checkpoints/last.ckpt")]
            wait(lambda: slurm.state().startswith("down"), 120)
            slurm.start_node()
            search.wait(300)
        finally:
            search.kill()
            search.wait()
        controller = (slurm.folder / "slurmctld.log").read_text()
    assert search.returncode == 0, output.read_text()
    assert controller.count("due to failure of node") == 2  # the tasks of the first array
    trials = pd.read_csv(study / "trials.csv")
    assert list(trials["state"]) == ["complete"] * 6  # no trial is repeated or has failed
    assert all("resuming at epoch" in (run / "train.log").read_text() for run in resumed)
    assert not list(study.glob("*/failure.txt"))
    assert "the launcher failed" not in output.read_text()
