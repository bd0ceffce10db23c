import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from fractatlas import Ensemble, load_model
from fractatlas.errors import InputError
from fractatlas.experiments.crossval import write_plan
from fractatlas.experiments.plan import read_plan, run_plan
from tests.conftest import SMALL


def test_the_plan_has_one_recipe_with_the_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_plan(["experiment=demo_densenet", "folds=4", "seeds=[1, 2]", "out=here", "optimizer.lr=0.1"])
    assert str(file) == "here/crossval.yaml"
    plan = read_plan(file)
    assert (plan.seeds, plan.folds) == ([1, 2], 4)
    assert plan.recipes == {"demo_densenet": ["experiment=demo_densenet", "optimizer.lr=0.1"]}


def test_defaults_are_those_of_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "own.yaml").write_text("# @package _global_\ntask_name: mine\nseed: 7\n")
    file = write_plan(["--config-dir", "conf", "experiment=own", "split.seed=3"])
    assert str(file) == "logs/crossval/own/crossval.yaml"
    plan = read_plan(file)
    assert (plan.seeds, plan.folds, plan.config_dir) == ([7], 5, str(tmp_path / "conf"))
    assert write_plan(["data=phantom", "task_name=other"]).parent.name == "other"


def test_seeds_can_be_added_but_other_options_need_another_folder(tmp_path):
    out = f"out={tmp_path}"
    file = write_plan([out, "seeds=1", "optimizer.lr=0.1"])
    write_plan([out, "seeds=[1,2]", "optimizer.lr=0.1"])
    assert read_plan(file).seeds == [1, 2]
    text = file.read_text()
    for other in (["optimizer.lr=0.2"], ["optimizer.lr=0.1", "folds=3"]):
        with pytest.raises(InputError, match=r"crossval.yaml: contains another cross-validation .*; use another out"):
            write_plan([out, "seeds=1", *other])
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split=grouped"], "split=grouped: crossval sets this key; remove it"),
        (["split.fold=1"], "split.fold=1: crossval sets this key; remove it"),
        (["seed=1"], r"seed=1: crossval sets this key; use seeds=\[N,...\]"),
        (["-m", "optimizer.lr=0.1,0.2"], "-m: no such option; fractatlas crossval --help"),
        (["folds=2"], "folds: Input should be greater than or equal to 3"),
        (["folds=five"], "folds=five: should be a number"),
        (["seeds=[1,x]"], r"seeds=x: should be numbers such as \[1,2\]"),
        (["seeds=[1,1]"], "seeds contains 1 twice; remove one"),
        (["optimizer.lrr=1"], "unknown key 'optimizer.lrr'"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        write_plan([f"out={tmp_path / 'out'}", *arguments])
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
def test_cross_validation_of_a_network_with_a_fracture_map(phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [option for option in SMALL if not option.startswith("report")]
    options = [*small, f"data.root={phantoms}", "trainer.max_epochs=1", "map=fpn", "map.channels=8"]
    plan = write_plan(["folds=3", "seeds=[1]", "out=out", *options])
    out = run_plan(plan, plan.parent, plan.parent / "runs")
    tested = []
    for fold in range(3):
        split = pd.read_csv(out / "runs" / "train" / f"seed_1_fold_{fold}" / "split.csv")
        groups = {name: set(table["group"]) for name, table in split.groupby("split")}
        assert not groups["test"] & (groups["train"] | groups["val"])
        assert not groups["val"] & groups["train"]
        tested.append(split.loc[split["split"] == "test", ["image_id", "label", "group"]])
    tested = pd.concat(tested).sort_values("image_id", ignore_index=True)
    pooled = pd.read_csv(out / "pooled" / "train" / "predictions.csv")
    pd.testing.assert_frame_equal(pooled[["image_id", "label", "group"]], tested)
    assert set(tested["image_id"]) == set(split["image_id"])
    record = json.loads((out / "pooled" / "train" / "metrics.json").read_text())
    assert record["heatmaps"] == "fracture map"
    recipes = pd.read_csv(out / "recipes.csv").set_index("subset")
    for name in ("ap_30", "ap_50"):
        assert recipes.loc["test", name] == pytest.approx(record["detection"]["test"][name]["value"])
    assert recipes.loc["test", "froc"] == pytest.approx(record["detection"]["test"]["froc"]["1/2"]["value"])
    assert recipes.loc["test", "hit"] == pytest.approx(record["localisation"]["test"]["all"]["hit"]["value"])
    kinds = {"body part", "view", "hardware", "image size", "box size"}
    assert kinds <= set(pd.read_csv(out / "pooled" / "train" / "strata.csv")["attribute"])
    model = load_model(out)
    assert isinstance(model, Ensemble)
    assert len(model.members) == 3
    image = phantoms / "images" / "Fractured" / pooled.query("label == 1")["image_id"].iloc[0]
    assert np.isfinite(model.predict(image).heatmap).all()
    texts = {file: file.read_text() for file in out.rglob("*.*") if file.suffix in (".csv", ".md", ".html")
             and "runs" not in file.parts and "predictions" not in file.parts}  # fmt: skip
    assert str(phantoms) not in "".join(file.read_text() for file in (out / "predictions").glob("*.json"))
    shutil.rmtree(out / "runs")
    run_plan(plan, out, out / "runs")  # nothing is trained again
    assert not (out / "runs").exists()
    assert {file: file.read_text() for file in texts} == texts
    text = yaml.safe_load(plan.read_text())
    text["recipes"]["train"].append("optimizer.lr=0.5")
    plan.write_text(yaml.safe_dump(text))
    with pytest.raises(InputError, match=r"train_seed_1_fold_0.json was trained with other settings: optimizer.lr was"):
        run_plan(plan, out, out / "runs")
