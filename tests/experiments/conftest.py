"""Records of made-up runs, and of a run with heatmaps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from fractatlas.config.overrides import compose_config
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.experiments.run_records import (
    BOX_COLUMNS,
    CANDIDATE_COLUMNS,
    RunRecord,
    collect,
    read_record,
    write_record,
)

SETTINGS = {
    "task_name": "made_up", "preprocess.size": 64, "split._target_": "fractatlas.data.splits.kfold_split",
    "split.folds": 3, "threshold._partial_": True,
}  # fmt: skip
YOUDEN = {"threshold._target_": "fractatlas.evaluation.operating_point.youden"}
POINTS = ((0.5, 1.0), (0.2, 3.0), (0.7, 0.5))  # threshold and temperature of each fold


def made_up_record(seed: int, fold: int | None, rule: dict | None = None) -> RunRecord:
    """Make the record of a run with 60 images in each fold, two in each group."""
    random = np.random.default_rng(100 * seed + (fold or 0))
    tables = []
    for subset, number in (("val", (fold or 0) + 1), ("test", fold or 0)):
        labels = np.random.default_rng(number % 3).permutation(np.arange(60) % 4 == 0).astype(int)
        names = [f"{number % 3}_{image:02}" for image in range(60)]
        groups = [f"{number % 3}_{image // 2:02}" for image in range(60)]
        probability = 1 / (1 + np.exp(-(2 * labels - 1 + random.normal(size=60))))
        table = {"image_id": names, "group": groups, "split": subset, "label": labels, "probability": probability}
        tables.append(pd.DataFrame(table))
    threshold, temperature = POINTS[fold or 0]
    facts = {
        "recipe": "A", "seed": seed, "fold": fold, "model": "resnet50", "commits": {"val": "a", "test": "b"},
        "operating_point": {"rule": "youden", "threshold": threshold, "temperature": temperature},
        "located": [], "detected": [], "settings": SETTINGS | {"split.fold": fold} | (rule or YOUDEN),
    }  # fmt: skip
    return RunRecord(
        facts, pd.concat(tables), pd.DataFrame(columns=BOX_COLUMNS), pd.DataFrame(columns=CANDIDATE_COLUMNS)
    )


@pytest.fixture
def folds() -> list[RunRecord]:
    """The records of a recipe and seed with three folds."""
    return [made_up_record(1, fold) for fold in range(3)]


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
