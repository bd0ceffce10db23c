"""The tables of ``experiments/`` are those that are computed from the committed predictions."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.evaluation.metrics import resampled
from fractatlas.evaluation.predictions_table import read_predictions
from fractatlas.experiments import plan as plan_module
from fractatlas.experiments import plan_tables
from fractatlas.experiments.plan import read_plan, run_plan
from fractatlas.experiments.run_records import folder_name
from tests.conftest import REPOSITORY

EXPERIMENTS = REPOSITORY / "experiments"
PREDICTIONS = [folder for folder in sorted(EXPERIMENTS.glob("*/*/predictions")) if folder.is_dir()]
RECORDED = [folder.parent for folder in PREDICTIONS if any(folder.glob("*.json"))]
EARLIER = [folder.parent for folder in PREDICTIONS if not any(folder.glob("*.json"))]  # without records


def name_of(folder: Path) -> str:
    return str(folder.relative_to(EXPERIMENTS))


@pytest.mark.parametrize("folder", EARLIER, ids=name_of)
def test_scores_of_earlier_versions_follow_from_the_predictions(folder):
    table = pd.read_csv(folder / "recipes.csv", dtype={"recipe": str})
    rows = table[~table["recipe"].str.contains(", ensemble of ")]
    seeds = read_plan(folder.with_suffix(".yaml")).seeds
    assert set(rows["seeds"]) == {len(seeds)}
    for row in rows.itertuples():
        files = [folder / "predictions" / f"{folder_name(row.recipe)}_seed_{seed}.csv" for seed in seeds]
        tables = [one[one["split"] == row.subset] for one in map(read_predictions, files)]
        assert {(len(one), one["label"].sum()) for one in tables} == {(row.n, row.positives)}
        scores = [resampled(one, 0.5, bootstrap_weights(one["group"], 1)[:1]) for one in tables]
        for name in ("accuracy", "auroc", "average_precision", "sensitivity", "specificity", "brier"):
            mean = np.mean([values[name][0] for values in scores])
            assert getattr(row, name) == pytest.approx(mean, abs=1e-6), (row.recipe, row.subset, name)


def test_experiments_have_records_or_predictions_of_an_earlier_version():
    assert {"03_stronger/cpu_224px", "06_precision/cpu_128px"} <= {*map(name_of, EARLIER)}
    assert {"01_baseline/random", "03_stronger/folds"} <= {*map(name_of, RECORDED)}


@pytest.mark.parametrize("folder", RECORDED, ids=name_of)
def test_a_plan_does_not_train_runs_with_a_committed_record(folder, tmp_path, monkeypatch):
    missing = []
    monkeypatch.setattr(plan_module, "finish_runs", lambda runs, *arguments: missing.extend(runs))
    monkeypatch.setattr(plan_tables.PlanTables, "write", lambda *arguments: True)
    run_plan(folder.with_suffix(".yaml"), folder, tmp_path)
    plan = read_plan(folder.with_suffix(".yaml"))
    total = len(plan.names) * len(plan.seeds) * len(plan.test_folds)
    assert len(missing) == total - len([*(folder / "predictions").glob("*.json")])


def is_small(folder: Path) -> bool:
    return len(list((folder / "predictions").glob("*.json"))) < 3


@pytest.mark.parametrize(
    "folder",
    [pytest.param(folder, marks=[] if is_small(folder) else pytest.mark.integration) for folder in RECORDED],
    ids=name_of,
)
def test_every_table_is_computed_from_the_records(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_tables, "write_pooled", lambda *arguments: None)  # not in the repository
    plan, out = folder.with_suffix(".yaml"), tmp_path / "out"
    shutil.copytree(folder / "predictions", out / "predictions")
    run_plan(plan, out, tmp_path / "logs", tables=True)
    committed = {file.name: file for file in folder.iterdir() if file.is_file()}
    assert {file.name for file in out.iterdir() if file.is_file()} == {*committed}
    for name in [name for name in committed if name.endswith(".csv")]:
        found, expected = (pd.read_csv(root / name) for root in (out, folder))
        pd.testing.assert_frame_equal(found, expected, rtol=1e-6, check_dtype=False)
    for name in [name for name in committed if name.endswith(".md")]:
        assert (out / name).read_text() == committed[name].read_text(), name
