"""Records of made-up runs with heatmaps."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from fractatlas.config.overrides import compose_config
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.experiments.run_records import collect, read_record, write_record


@pytest.fixture
def make_run(run_folder, phantoms, tmp_path):
    """Copy the made-up run, with a configuration, and an evaluation of its test subset."""

    def make(name: str, *options: str) -> Path:
        run = tmp_path / name
        for folder in (run, run / "test"):
            shutil.copytree(run_folder, folder)
            (folder / ".hydra").mkdir()
            config = compose_config(["data=phantom", f"data.root={phantoms}", "model.weights=null", *options])
            (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
            metrics = json.loads((folder / "metrics.json").read_text())
            metrics |= {"model": "densenet_tiny", "versions": {"commit": "abc"}}
            (folder / "metrics.json").write_text(json.dumps(metrics))
        return run

    return make


@pytest.fixture
def kept(make_run, tmp_path):
    """A record that was written and read, its folder, and the run folder."""
    run = make_run("run")
    folder = tmp_path / "predictions"
    write_record(folder, "a_seed_1", collect(run, "A", 1, None), RunFolder(run).catalogue)
    return read_record(folder, "a_seed_1"), folder, RunFolder(run)
