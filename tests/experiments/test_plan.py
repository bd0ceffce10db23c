import copy
import functools
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from fractatlas.config.overrides import compose_config
from fractatlas.errors import InputError
from fractatlas.evaluation import bootstrap, paired_comparison
from fractatlas.evaluation.operating_point import calibrate
from fractatlas.experiments import (
    control_tables,
    plan_tables,
    pooled_folder,
    result_tables,
    results_figure,
    strata_tables,
    train_and_score,
)
from fractatlas.experiments import plan as plan_module
from fractatlas.experiments.plan import check_options, read_plan, run_plan
from fractatlas.experiments.train_and_score import Commands
from fractatlas.report import report_page
from tests.conftest import REPOSITORY, SMALL

PLANS = sorted((REPOSITORY / "experiments").glob("*/*.yaml"))


@functools.cache
def composed(options: tuple[str, ...]) -> dict:
    return compose_config(options)


def compose_once(options: Sequence[str]) -> dict:
    """Compose a configuration, or return the earlier one, unless files of the test can have changed."""
    changing = any(option.startswith("--config-dir") for option in options)
    return compose_config(options) if changing else copy.deepcopy(composed(tuple(options)))


@pytest.fixture
def write_plan(tmp_path):
    """Write a plan and return its path."""

    def write(**content: object) -> Path:
        file = tmp_path / "experiments" / "small.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


@pytest.fixture
def commands(monkeypatch) -> list[tuple]:
    """Replace training and evaluation; return the list of commands.

    Each command leaves the files of a real one. The larger ``optimizer.lr``, the better are the predictions. Each of
    the folds of ``split=kfold`` has 40 images, and the validation subset of a fold is the next one.
    """
    called = []

    def run_command(commands: Commands, run: Path, verb: str, *arguments: str) -> None:
        called.append((verb, *arguments))
        options = dict(argument.split("=", 1) for argument in arguments)
        folder, subset = Path(options["hydra.run.dir"]), "test" if verb == "evaluate" else "val"
        (folder / ".hydra").mkdir(parents=True)
        quality = 0.2
        if verb == "train":
            config = compose_once([one for one in arguments if not one.startswith("hydra.")])
            quality = config["optimizer"]["lr"]
            (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
            (folder / "split.csv").touch()
        random = np.random.default_rng(int(options.get("seed", len(called))))
        labels = np.arange(80) % 2
        probability = np.clip(0.5 + quality * (labels - 0.5) + random.normal(0, 0.1, 80), 0, 1)
        names = [f"{subset}{number}" for number in range(80)]
        columns = {"image_id": names, "group": names, "split": subset, "label": labels, "probability": probability}
        table, temperature = pd.DataFrame(columns), 1.0
        trained = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())["split"]
        if folds := trained.get("folds"):
            fold = (trained["fold"] + (subset == "val")) % folds
            names = [f"{fold}_{number}" for number in range(40)]
            table, temperature = table[:40].assign(image_id=names, group=names), 1.0 + trained["fold"]
        table.to_csv(folder / "predictions.csv", index=False)
        point = {"rule": "fixed", "threshold": 0.5, "temperature": temperature}
        record = {"model": "resnet50", "operating_point": point, "versions": {"commit": "abc"}, "device": "1 x cpu"}
        (folder / "metrics.json").write_text(json.dumps(record))

    monkeypatch.setattr(Commands, "run", run_command)
    return called


@pytest.fixture
def run(tmp_path, commands, monkeypatch):
    """Run a plan with fake commands, tables in ``out``, and runs in ``logs``.

    Intervals have few resamples, figures are small, and configurations are composed once, to save time.
    """
    few = functools.partial(bootstrap.bootstrap_weights, resamples=100)
    for module in (
        result_tables, results_figure, pooled_folder, paired_comparison, report_page, control_tables, strata_tables,
    ):  # fmt: skip
        monkeypatch.setattr(module, "bootstrap_weights", lambda groups, resamples=0: few(groups))
    monkeypatch.setattr(results_figure, "DOTS", 40)
    for module in (plan_module, train_and_score):
        monkeypatch.setattr(module, "compose_config", compose_once)

    def run(file: Path, **options) -> Path:
        return run_plan(file, **{"out": tmp_path / "out", "logs": tmp_path / "logs", **options})

    return run


def test_test_subset_of_each_run_is_scored_once_after_its_training(write_plan, run, commands, tmp_path):
    recipes = {"A b": ["optimizer.lr=0.1"], "C": ["optimizer.lr=0.2"]}
    out = run(write_plan(seeds=[0, 1], recipes=recipes))
    assert [command[0] for command in commands] == ["train", "evaluate"] * 4
    run = tmp_path / "logs" / "a_b" / "seed_1"
    assert commands[2] == ("train", "optimizer.lr=0.1", "seed=1", "test=false", f"hydra.run.dir={run}")
    checkpoint = f"ckpt={run}/checkpoints/best.ckpt"
    assert commands[3] == ("evaluate", checkpoint, "subset=test", f"hydra.run.dir={run}/test")
    table = pd.read_csv(out / "recipes.csv")
    assert list(table["recipe"].unique()) == ["A b", "A b, ensemble of 2", "C", "C, ensemble of 2"]
    assert list(table["subset"]) == ["val", "test"] * 4
    assert (table["auroc_low"] <= table["auroc"]).all()
    tables = {f"{name}.{ending}" for name in ("recipes", "runs", "differences") for ending in ("csv", "md")}
    assert {file.name for file in out.iterdir()} == {*tables, "recipes.png", "results.png", "results.md", "predictions"}
    differences = pd.read_csv(out / "differences.csv")
    assert set(zip(differences["first"], differences["second"], strict=True)) == {("A b", "C")}
    assert set(differences["score"]) == {"accuracy", "auroc", "average_precision"}


def test_tables_can_be_computed_from_the_predictions_next_to_them(write_plan, run):
    out = run(write_plan(seeds=[0, 1], recipes={"A b": ["optimizer.lr=0.1"]}, steps={"S": ["optimizer.lr=0.2"]}))
    files = {file.name: pd.read_csv(file) for file in (out / "predictions").glob("*.csv")}
    assert set(files) == {"a_b_seed_0.csv", "a_b_seed_1.csv", "s_seed_0.csv", "s_seed_1.csv"}
    assert set(files["s_seed_0.csv"]["split"]) == {"val"}
    scores = pd.read_csv(out / "recipes.csv").set_index(["recipe", "subset"])["auroc"]
    for subset in ("val", "test"):
        tables = [files[f"a_b_seed_{seed}.csv"].set_index("split").loc[subset] for seed in (0, 1)]
        areas = [roc_auc_score(table["label"], table["probability"]) for table in tables]
        assert scores["A b", subset] == pytest.approx(np.mean(areas))
        runs = pd.read_csv(out / "runs.csv").query("recipe == 'A b' and subset == @subset")
        assert runs["auroc"].tolist() == pytest.approx(areas)


def test_finished_runs_are_kept_and_other_settings_are_refused(write_plan, run, commands, tmp_path):
    plan = write_plan(seeds=[0], recipes={"A": ["optimizer.lr=0.1"]})
    out = run(plan)
    before = (out / "recipes.csv").read_text()
    run(plan)
    assert len(commands) == 2
    assert (out / "recipes.csv").read_text() == before
    write_plan(seeds=[0], recipes={"A": ["optimizer.lr=0.3", "data.num_workers=0", f"paths.weights={tmp_path}"]})
    with pytest.raises(InputError, match=r"a_seed_0.json .*other settings: optimizer.lr was 0.1, is 0.3; move or del"):
        run(plan)
    shutil.rmtree(out / "predictions")  # the run folder is compared, too
    with pytest.raises(InputError, match=r"seed_0 was started with other settings: optimizer.lr was 0.1, is 0.3; move"):
        run(plan)
    write_plan(seeds=[0], recipes={"A": ["optimizer.lr=0.1", "trainer.max_epochs=9"]})
    with pytest.raises(InputError, match=r"trainer.max_epochs was \d+, is 9"):
        run(plan)


def test_experiments_in_config_dir_are_used_and_their_changes_are_noticed(write_plan, run, commands, tmp_path):
    folder = tmp_path / "experiments" / "with space" / "experiment"
    folder.mkdir(parents=True)
    (folder / "best.yaml").write_text("# @package _global_\ntask_name: four_best\noptimizer:\n  lr: 0.3\n")
    plan = write_plan(config_dir="with space", seeds=[0], recipes={"trial 7": ["experiment=best"]})
    run(plan)
    assert commands[0][1:3] == (f"--config-dir={folder.parent}", "experiment=best")
    assert (tmp_path / "logs" / "trial_7" / "seed_0" / "metrics.json").is_file()
    run(plan)
    (folder / "best.yaml").write_text("# @package _global_\ntask_name: four_best\noptimizer:\n  lr: 0.2\n")
    with pytest.raises(InputError, match=r"optimizer.lr was 0.3, is 0.2"):
        run(plan)


def test_step_is_trained_on_top_of_the_kept_ones_without_the_test_subset(write_plan, run, commands):
    steps = {
        "start": ["optimizer.lr=0.1", "model.dropout=0"],
        "worse": ["optimizer.lr=0.02", "model.mirror=true"],
        "better": ["optimizer.lr=0.3", "model.dropout=0.2"],
    }
    out = run(write_plan(seeds=[0, 1], common=["data.batch_size=8"], steps=steps))
    assert all(command[0] == "train" and "test=false" in command for command in commands)
    assert commands[4][1:5] == ("data.batch_size=8", "optimizer.lr=0.3", "model.dropout=0.2", "seed=0")
    table = pd.read_csv(out / "steps.csv", index_col="recipe")
    assert list(table["kept"]) == [True, False, True]
    difference = table.loc["better", "auroc"] - table.loc["start", "auroc"]
    assert table.loc["better", "auroc_difference"] == pytest.approx(difference)
    assert table.loc["better", "auroc_difference_p"] < 0.05
    assert "| no " in (out / "steps.md").read_text()


def test_scores_are_means_over_seeds(write_plan, run, tmp_path):
    rows = []
    for seeds in ([0], [1], [0, 1]):
        plan = write_plan(seeds=seeds, common=["optimizer.lr=0.2"], recipes={"A": []})
        rows.append(pd.read_csv(run(plan, out=tmp_path / f"out{seeds}") / "recipes.csv").iloc[0])
    one, other, both = rows
    assert both["auroc"] == pytest.approx((one["auroc"] + other["auroc"]) / 2)
    assert both["auroc_sd"] == pytest.approx(np.std([one["auroc"], other["auroc"]], ddof=1))
    assert both["auroc_high"] - both["auroc_low"] < one["auroc_high"] - one["auroc_low"] + 0.05


def test_rows_that_are_not_requested_are_kept(write_plan, run, commands):
    steps = {"start": ["optimizer.lr=0.1"], "better": ["optimizer.lr=0.3"]}
    recipes = {"A": ["model.dropout=0.1"], "B, b": ["model.dropout=0.2"], "C": []}
    plan = write_plan(seeds=[0, 1], recipes=recipes, steps=steps)
    out = run(plan, only=["B, b"])
    assert not (out / "steps.csv").exists()
    assert set(pd.read_csv(out / "recipes.csv")["recipe"]) == {"B, b", "B, b, ensemble of 2"}
    run(plan, only=["C", "start"])
    assert list(pd.read_csv(out / "steps.csv")["recipe"]) == ["start"]
    run(plan)
    complete = {file.name: file.read_text() for file in out.glob("*.[cm]*")}
    count = len(commands)
    run(plan, only=["A", "start"])
    assert {file.name: file.read_text() for file in out.glob("*.[cm]*")} == complete
    assert list(pd.read_csv(out / "recipes.csv")["recipe"].str[0].unique()) == ["A", "B", "C"]
    assert len(commands) == count


def test_runs_are_taken_as_done_when_their_run_folders_are_gone(write_plan, run, commands, tmp_path):
    steps = {"start": ["optimizer.lr=0.1"], "better": ["optimizer.lr=0.3"]}
    plan = write_plan(seeds=[0, 1], recipes={"A": [], "B": ["optimizer.lr=0.2"]}, steps=steps)
    out = run(plan)
    count, complete = len(commands), {file.name: file.read_text() for file in out.glob("*.[cm]*")}
    shutil.rmtree(tmp_path / "logs")
    for file in out.glob("*.*"):
        file.unlink()
    run(plan)
    assert len(commands) == count
    assert not (tmp_path / "logs").exists()
    assert {file.name: file.read_text() for file in out.glob("*.[cm]*")} == complete
    write_plan(seeds=[0, 1, 2], recipes={"A": []})  # only what is missing is trained
    run(plan)
    assert [command[0] for command in commands[count:]] == ["train", "evaluate"]
    assert "seed=2" in commands[count]


def test_tables_are_written_without_training(write_plan, run, commands, tmp_path):
    plan = write_plan(seeds=[0, 1], recipes={"A": [], "B": ["optimizer.lr=0.2"]}, steps={"S": []})
    with pytest.raises(
        InputError, match=r"small.yaml: no record in .*out/predictions, and no finished run in .*logs; run f"
    ):
        run(plan, tables=True)
    assert not commands
    out = run(plan)
    count, complete = len(commands), {file.name: file.read_text() for file in out.glob("*.[cm]*")}
    for file in [*out.glob("*.*"), *(out / "predictions").iterdir()]:
        file.unlink()
    run(plan, tables=True)  # from the run folders, such as those of an earlier version
    assert {file.name: file.read_text() for file in out.glob("*.[cm]*")} == complete
    shutil.rmtree(tmp_path / "logs")
    write_plan(seeds=[0, 1], recipes={"A": ["optimizer.lr=9"], "B": []}, steps={"S": []})
    run(plan, tables=True)  # tables of results do not depend on what the plan would train today
    assert {file.name: file.read_text() for file in out.glob("*.[cm]*")} == complete
    assert len(commands) == count


def test_recipe_with_an_unfinished_run_is_scored_on_its_finished_seeds(write_plan, run, tmp_path, caplog):
    plan = write_plan(seeds=[0, 1], recipes={"A": [], "B": ["optimizer.lr=0.2"]})
    out = run(plan)
    for file in [*out.glob("*.*"), *(out / "predictions").glob("b_seed_1*")]:
        file.unlink()
    shutil.rmtree(tmp_path / "logs")
    with caplog.at_level("INFO"):
        run(plan, tables=True)
    assert caplog.messages == ["Not finished: B: 1 of 2 runs. Scores are those of finished runs."]
    for name in ("recipes", "differences"):
        assert caplog.messages[0] in (out / f"{name}.md").read_text()
    recipes = pd.read_csv(out / "recipes.csv")
    assert list(recipes["recipe"].unique()) == ["A", "A, ensemble of 2", "B"]
    assert recipes.query("recipe == 'B'")["seeds"].tolist() == [1, 1]


def test_each_fold_is_trained_and_scores_are_those_of_all_images(write_plan, run, commands, tmp_path):
    recipes = {"A": ["optimizer.lr=0.1"], "B": ["optimizer.lr=0.3"]}
    plan = write_plan(seeds=[1, 2], folds=3, recipes=recipes, ensembles={"Both": ["B", "A"]})
    out = run(plan)
    folder = tmp_path / "logs" / "a" / "seed_2_fold_1"
    options = ("split=kfold", "split.folds=3", "split.fold=1", "seed=2", "test=false", f"hydra.run.dir={folder}")
    assert commands[8] == ("train", "optimizer.lr=0.1", *options)
    assert len(commands) == 2 * 2 * 3 * 2
    recipes = pd.read_csv(out / "recipes.csv")
    rows = ["A", "A, ensemble of 2", "B", "B, ensemble of 2", "Both, ensemble of 4"]
    assert list(recipes["recipe"].unique()) == rows
    assert set(recipes["n"]) == {120}
    assert recipes["seeds"].tolist() == [2] * 10
    assert set(recipes["split"]) == {"3 folds"}
    runs = pd.read_csv(out / "runs.csv")
    assert runs.groupby(["recipe", "seed", "subset"])["n"].apply(list).tolist() == [[40, 40, 40, 120]] * 8
    assert runs["temperature"][:3].tolist() == [1, 2, 3]
    differences = pd.read_csv(out / "differences.csv")
    assert (differences["n"] == 120).all()
    pairs = differences.query("score == 'auroc' and subset == 'val'").set_index(["first", "second"])
    assert pairs.loc[("A", "B"), "low"] > 0
    assert list(pairs.index) == [("A", "B"), ("B", "Both, ensemble of 4"), ("A", "Both, ensemble of 4")]
    of_ensemble = recipes.query("recipe == 'Both, ensemble of 4' and subset == 'val'").iloc[0]
    assert pairs.loc[("A", "Both, ensemble of 4"), "second_value"] == pytest.approx(of_ensemble["auroc"])
    for name in ("a", "b"):
        files = {file.name for file in (out / "pooled" / name).iterdir()}
        assert {"report.html", "metrics.json", "predictions.csv", "model_card.md", "strata.csv"} <= files
    scores = json.loads((out / "pooled" / "b" / "metrics.json").read_text())["test"]
    ensemble = recipes.query("recipe == 'B, ensemble of 2' and subset == 'test'").iloc[0]
    assert (scores["auroc"]["value"], scores["n"]) == (pytest.approx(ensemble["auroc"]), 120)
    assert "Each of 3 folds is test for one network" in (out / "pooled" / "b" / "model_card.md").read_text()
    complete = {file: file.read_text() for file in out.rglob("*.*") if file.suffix in (".csv", ".md", ".html", ".json")}
    shutil.rmtree(tmp_path / "logs")
    shutil.rmtree(out / "pooled")
    run(plan, tables=True)
    assert {file: file.read_text() for file in complete} == complete


def test_recipes_with_some_of_the_folds_are_pooled_over_these_and_compared(
    write_plan, run, commands, tmp_path, monkeypatch
):
    recipes = {"A": ["optimizer.lr=0.1"], "B": ["optimizer.lr=0.3"], "C": ["optimizer.lr=0.4"]}
    plan = write_plan(seeds=[1, 2], folds=3, recipes=recipes, ensembles={"A and B": ["A", "B"]})
    with monkeypatch.context() as patched:
        patched.setattr(plan_module.PlanTables, "write", lambda *arguments: True)
        out = run(plan)
    shutil.rmtree(tmp_path / "logs")
    for name in ("b_*_fold_1*", "b_seed_1_fold_2*", "c_seed_2_fold_2*"):
        for file in (out / "predictions").glob(name):
            file.unlink()
    count = len(commands)
    run(plan, tables=True)
    assert len(commands) == count
    table = pd.read_csv(out / "recipes.csv", keep_default_na=False).set_index(["recipe", "subset"])
    assert table.xs("test", level="subset")[["seeds", "folds", "n"]].to_numpy().tolist() == [
        [2, "3 of 3", 120], [2, "3 of 3", 120], [1, "1 of 3", 40], [1, "3 of 3", 120],
    ]  # fmt: skip
    runs = pd.read_csv(out / "runs.csv", keep_default_na=False)
    pooled = runs.query("subset == 'test' and recipe == 'C' and fold == ''")
    assert pooled[["seed", "folds", "n"]].to_numpy().tolist() == [[1, "3 of 3", 120], [2, "2 of 3", 80]]
    text = (out / "recipes.md").read_text()
    assert "B: 3 of 6 runs; C: 5 of 6 runs" in text
    assert "Not scored, because a recipe is not finished: A and B." in text
    differences = pd.read_csv(out / "differences.csv").query("score == 'auroc' and subset == 'test'")
    assert differences[["first", "second", "folds", "n"]].to_numpy().tolist() == [
        ["A", "B", "1 of 3", 40], ["A", "C", "3 of 3", 120], ["B", "C", "1 of 3", 40],
    ]  # fmt: skip
    images = [f"0_{number}" for number in range(40)]
    areas = []
    for name in ("b_seed_1_fold_0", "c_seed_1_fold_0"):
        table = pd.read_csv(out / "predictions" / f"{name}.csv").query("split == 'test'")
        areas.append(roc_auc_score(table["label"], table["probability"]))
        assert set(table["image_id"]) == set(images)
    assert differences[["first_value", "second_value"]].iloc[2].tolist() == pytest.approx(areas)
    page, card = ((out / "pooled" / "b" / name).read_text() for name in ("report.html", "model_card.md"))
    assert "B (1 of 3 folds)" in page
    assert "Fold 0 of 3 (counted from 0): each is test for one network" in card
    assert "1 network, 1 for each seed" in card


def test_a_plan_chooses_thresholds_again_from_the_validation_predictions(write_plan, run, commands):
    content = {"seeds": [1], "folds": 3, "recipes": {"A": ["optimizer.lr=0.1"]}}
    out = run(write_plan(**content))
    fixed, count = pd.read_csv(out / "runs.csv"), len(commands)
    run(write_plan(**content, threshold="accuracy"))
    assert len(commands) == count
    assert "Decision threshold: the highest accuracy on the validation subset." in (out / "recipes.md").read_text()
    chosen = pd.read_csv(out / "runs.csv")
    assert set(fixed["threshold"]) == {0.5}
    for row in chosen[chosen["fold"].notna()].itertuples():
        table = pd.read_csv(out / "predictions" / f"a_seed_1_fold_{row.fold:.0f}.csv")
        accuracies = {
            score: ((table["probability"] >= score) == table["label"])[table["split"] == "val"].mean()
            for score in table.loc[table["split"] == "val", "probability"]
        }
        if row.subset == "val":
            assert row.accuracy == pytest.approx(max(accuracies.values()))
        decided = table[table["split"] == row.subset]
        probability = calibrate(decided["probability"], 1.0 + row.fold)
        assert row.accuracy == pytest.approx(((probability >= row.threshold) == decided["label"]).mean())
    columns = ["auroc", "average_precision"]
    pd.testing.assert_frame_equal(chosen[columns], fixed[columns])
    with pytest.raises(InputError, match=r"small.yaml: threshold=best: no such choice; the choices are accuracy, fix"):
        run(write_plan(**content, threshold="best"))


def write_images(out: Path) -> None:
    """Write the properties of the images of three folds of the fake commands: hardware is known from the label."""
    names = [f"{fold}_{number}" for fold in range(3) for number in range(40)]
    labels, noise = np.arange(40) % 2, np.random.default_rng(0).integers(100, 900, 120)
    table = {"image_id": names, "width": noise, "height": 500, "multiscan": noise % 2, "hardware": [*labels] * 3}
    (out / "predictions").mkdir(parents=True)
    pd.DataFrame(table).to_csv(out / "predictions" / "images.csv.gz", index=False)


@pytest.fixture
def without_pages(monkeypatch):
    """Omit the pages of pooled predictions, to save time."""
    monkeypatch.setattr(plan_tables, "write_pooled", lambda *arguments: None)


@pytest.mark.usefixtures("without_pages")
def test_recipes_with_folds_are_scored_by_stratum_and_compared_with_controls(write_plan, run, tmp_path, monkeypatch):
    scored = []
    for module, name in ((strata_tables, "score_strata"), (control_tables, "fit_controls"),
                         (control_tables, "compare_with_controls")):  # fmt: skip
        compute = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, c=compute: (scored.append(n), c(*a))[1])
    write_images(tmp_path / "out")
    recipes = {"A": ["optimizer.lr=0.1"], "B": ["optimizer.lr=0.3"]}
    plan = write_plan(seeds=[1, 2], folds=3, recipes=recipes, variants={"V": ["optimizer.lr=0.2"]})
    out = run(plan)
    assert [scored.count(name) for name in ("score_strata", "fit_controls", "compare_with_controls")] == [2, 1, 2]
    strata = pd.read_csv(out / "strata.csv")
    assert strata["recipe"].tolist() == ["A"] * 5 + ["B"] * 5
    assert strata[["attribute", "stratum"]].drop_duplicates().to_numpy().tolist() == [
        ["all", "all"], ["hardware", "no"], ["hardware", "yes"], ["several scans", "no"], ["several scans", "yes"],
    ]  # fmt: skip
    recipes = pd.read_csv(out / "recipes.csv").query("subset == 'test'").set_index("recipe")["auroc"]
    assert strata.query("stratum == 'all'")["auroc"].tolist() == pytest.approx(recipes[["A", "B"]].tolist())
    controls = pd.read_csv(out / "controls.csv", keep_default_na=False)
    assert controls[["control", "recipe", "seeds", "folds", "n"]].to_numpy().tolist() == [
        *([name, "", "", "3 of 3", 120] for name in ("size", "hardware")),
        *([name, recipe, "2", "3 of 3", 120] for recipe in "AB" for name in ("size", "hardware")),
    ]
    assert float(controls["auroc"][1]) == 1
    assert float(controls["auroc_difference"][5]) == pytest.approx(recipes["B"] - 1)
    complete = {file: file.read_text() for file in out.glob("*.[cm]*")}
    run(plan, tables=True)
    assert {file: file.read_text() for file in complete} == complete


@pytest.mark.usefixtures("without_pages")
def test_controls_need_a_recipe_with_all_folds(write_plan, run, tmp_path):
    write_images(tmp_path / "out")
    plan = write_plan(seeds=[1, 2], folds=3, recipes={"A": ["optimizer.lr=0.1"], "B": ["optimizer.lr=0.3"]})
    out = run(plan)
    shutil.rmtree(tmp_path / "logs")

    def remove(*names: str) -> None:
        for file in [
            out / "strata.csv",
            out / "controls.csv",
            *(out / "predictions" / f"{name}.json" for name in names),
        ]:
            file.unlink()
        run(plan, tables=True)

    remove("a_seed_1_fold_0", "a_seed_2_fold_1", "b_seed_1_fold_2")
    strata = pd.read_csv(out / "strata.csv").query("stratum == 'all'")
    assert strata[["recipe", "seeds", "folds", "n"]].to_numpy().tolist() == [
        ["A", 1, "2 of 3", 80], ["B", 1, "3 of 3", 120],
    ]  # fmt: skip
    controls = pd.read_csv(out / "controls.csv", keep_default_na=False)
    assert controls["recipe"].tolist() == ["", "", "B", "B"]
    for name in ("strata", "controls"):
        assert "Not finished: A: 4 of 6 runs; B: 5 of 6 runs." in (out / f"{name}.md").read_text()
    remove("b_seed_2_fold_0")
    assert not (out / "controls.csv").exists()
    assert (out / "strata.csv").exists()


@pytest.mark.usefixtures("without_pages")
def test_without_folds_or_properties_there_are_no_strata_and_no_controls(write_plan, run, tmp_path):
    write_images(tmp_path / "out")
    outs = [run(write_plan(seeds=[1], recipes={"A": []}))]
    outs.append(run(write_plan(seeds=[1], folds=3, recipes={"A": []}), out=tmp_path / "b", logs=tmp_path / "logs_b"))
    for out in outs:
        assert {"recipes.csv"} == {file.name for file in out.glob("*.csv")} - {"runs.csv"}


def test_more_than_five_recipes_are_compared_with_the_first_only(write_plan, run):
    out = run(write_plan(seeds=[0], recipes={name: [] for name in "ABCDEF"}))
    pairs = pd.read_csv(out / "differences.csv")[["first", "second"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [["A", name] for name in "BCDEF"]


def test_variants_are_scored_on_validation_and_compared_with_the_first(write_plan, run, commands, tmp_path):
    variants = {"start": ["optimizer.lr=0.1"], "better": ["optimizer.lr=0.3"], "worse": ["optimizer.lr=0.02"]}
    out = run(write_plan(seeds=[0, 1], variants=variants, recipes={"A": [], "B": ["optimizer.lr=0.1"]}))
    assert [command[0] for command in commands] == ["train"] * 6 + ["train", "evaluate"] * 4
    table = pd.read_csv(out / "variants.csv").set_index("recipe")
    assert list(table.index) == list(variants)
    assert set(table["subset"]) == {"val"}
    differences = pd.read_csv(out / "differences.csv").query("score == 'auroc'")
    assert differences[["first", "second", "subset"]].to_numpy().tolist() == [
        ["start", "better", "val"], ["start", "worse", "val"], ["A", "B", "val"], ["A", "B", "test"],
    ]  # fmt: skip
    found = differences.set_index("second")
    assert found.loc["better", "difference"] == pytest.approx(table["auroc"]["better"] - table["auroc"]["start"])
    assert found.loc["worse", "high"] < 0 < found.loc["better", "low"]
    assert {file.name for file in out.glob("variants.*")} == {"variants.csv", "variants.md", "variants.png"}
    run(write_plan(seeds=[0, 1], variants=variants | {"new": ["optimizer.lr=0.5"]}), only=["new"])
    assert [command[0] for command in commands[14:]] == ["train"] * 2
    assert list(pd.read_csv(out / "variants.csv")["recipe"]) == [*variants, "new"]


def test_runs_of_recipes_and_variants_are_trained_at_the_same_time(write_plan, run, commands, monkeypatch, caplog):
    fake, together = Commands.run, threading.Barrier(3)
    lock = threading.Lock()  # the fake command is not made for several threads

    def command(commands: Commands, folder: Path, verb: str, *arguments: str) -> None:
        assert commands.to_files
        if verb == "train":
            together.wait(timeout=30)
        with lock:
            fake(commands, folder, verb, *arguments)

    monkeypatch.setattr(Commands, "run", command)
    with caplog.at_level("INFO"):
        out = run(write_plan(seeds=[0, 1], recipes={"A": [], "B": ["optimizer.lr=0.1"]}, variants={"V": []}), jobs=3)
    assert sorted(command[0] for command in commands) == ["evaluate"] * 4 + ["train"] * 6
    assert [message.split(" (")[1] for message in caplog.messages if message.startswith("finished: ")] == [
        f"{number} of 6 runs)" for number in range(1, 7)
    ]
    assert set(pd.read_csv(out / "recipes.csv")["recipe"]) == {"A", "A, ensemble of 2", "B", "B, ensemble of 2"}
    assert list(pd.read_csv(out / "variants.csv")["recipe"]) == ["V"]


def test_only_runs_of_one_step_are_trained_at_the_same_time(write_plan, run, commands):
    steps = {"start": ["optimizer.lr=0.1"], "worse": ["optimizer.lr=0.02"], "better": ["model.dropout=0.2"]}
    run(write_plan(seeds=[0], steps=steps), jobs=4)
    assert [command[1:3] for command in commands[1:]] == [
        ("optimizer.lr=0.02", "seed=0"), ("optimizer.lr=0.1", "model.dropout=0.2"),
    ]  # fmt: skip


def test_what_has_not_changed_is_scored_once(write_plan, run, commands, monkeypatch):
    scored = []
    for name in ("recipe_rows", "difference_rows", "run_rows"):
        compute = getattr(result_tables, name)
        monkeypatch.setattr(result_tables, name, lambda *a, n=name, c=compute: (scored.append(n), c(*a))[1])
    run(write_plan(seeds=[0], recipes={"A": [], "B": ["optimizer.lr=0.1"], "C": ["optimizer.lr=0.2"]}))
    assert [scored.count(name) for name in ("recipe_rows", "difference_rows")] == [3, 3]


def test_stopped_plan_with_folds_continues_with_the_next_fold(write_plan, run, commands, tmp_path, monkeypatch):
    plan = write_plan(seeds=[1], folds=3, recipes={"A": []})
    fake = Commands.run

    def stopped(commands: Commands, run: Path, verb: str, *arguments: str) -> None:
        if "split.fold=2" in arguments:
            raise SystemExit(75)
        fake(commands, run, verb, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Commands, "run", stopped)
        with pytest.raises(SystemExit):
            run(plan)
    shutil.rmtree(tmp_path / "logs")
    run(plan)
    assert [command[0] for command in commands] == ["train", "evaluate"] * 3
    assert ["split.fold=2" in command for command in commands[4:]] == [True, False]


def test_folder_of_a_run_that_never_began_is_used(write_plan, run, commands, tmp_path):
    (tmp_path / "logs" / "a" / "seed_0").mkdir(parents=True)  # Hydra creates it before the configuration is checked
    (tmp_path / "logs" / "a" / "seed_0" / "train.log").touch()
    run(write_plan(seeds=[0], recipes={"A": ["optimizer.lr=0.1"]}))
    assert commands[0][1] == "optimizer.lr=0.1"


def test_output_folder_that_cannot_be_created_is_reported_before_training(write_plan, run, commands):
    plan = write_plan(seeds=[0], recipes={"A": []})
    with pytest.raises(NotADirectoryError):
        run(plan, out=plan / "out")
    assert not commands


@pytest.mark.fault("an invalid plan", "refused in one line")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; should be YAML with seeds and recipes"),
        ("- a", "should be YAML with seeds and recipes"),
        ("seeds: ${", "should be YAML with seeds and recipes"),
        ("seeds: [0", "line "),
        ("seeds: [0]\nrecipes: {A: [], A: []}", "duplicate key A"),
        ("seeds: [0, 0]\nrecipes: {A: []}", "seeds contains 0 twice; remove one"),
        ("seeds: [0]\nrecipes: {a b: [], a-b: []}", "'a-b' and 'a b' would have the same folder"),
        ("seeds: [0]\nrecipes: {'...': []}", "should contain a letter or a digit"),
        ("seeds: [0]\nrecipes: {A: []}\nsteps: {A: []}", "is a step and a recipe"),
        ("seeds: [0]\nvariants: {A: []}\nsteps: {A: []}", "is a step and a variant"),
        ("seeds: [0]\nvariants: {A b: []}\nrecipes: {A-b: []}", "would have the same folder"),
        ("seeds: [0]\nrecipes: {A: [], B: []}\nensembles: {A: [A, B]}", "'A' is a recipe and an ensemble; rename"),
        ("seeds: [0]\nrecipes: {A: [], B: []}\nensembles: {C: [A, D]}", "ensemble 'C': 'D' is not a recipe; quote"),
        ("seeds: [0]\nrecipes: {A: []}\nensembles: [A]", "ensembles: should be names with lists, such as"),
        ("seeds: [0]\nrecipes: {A: []}\nensembles: {C: A}", "ensembles.C: should be a list; write it in brackets"),
        ("seeds: [0]\nrecipes: {A: []}\nensembles: {C: [1]}", "ensembles.C.0: should be text; quote numbers"),
        ("seeds: [0]\nrecipes: {A: []}\nensembles: {C: [A]}", "ensemble 'C': should be a list of two or more"),
        ("seeds: [0]\nensembles: {C: [A, B]}", "needs a seed, and a recipe, a variant or a step"),
        ("seeds: [0]\nvariants: {A: [optimizer.lrr=1]}", "A: unknown key 'optimizer.lrr'"),
        ("seeds: [0]\nvariants: {A: [seed=1]}", "seed=1: remove it"),
        ("seeds: [0]\nrecipes: {A: [test=true]}", "test=true: remove it"),
        ("seeds: [0]\nrecipes: {A: ['optimizer.lr=1,2']}", "A: optimizer.lr=1,2: several values need -m"),
        ("seeds: [0]\nrecipes: {A: []}\nsteps: {B: [optimizer.lrr=1]}", "B: unknown key 'optimizer.lrr'"),
        ("seeds: []\nrecipes: {A: []}", "needs a seed"),
        ("seeds: [0]", "a recipe, a variant or a step"),
        ("seeds: [x]\nrecipes: {A: []}", "seeds.0"),
        (
            "seeds: [0]\nrecipe: {A: []}",
            "recipe: unknown key; a plan has seeds, folds, threshold, config_dir, common, recipes, variants, steps, "
            "ensembles",
        ),
        ("seeds: [0]\nfolds: 2\nrecipes: {A: []}", "folds: Input should be greater than or equal to 3"),
        ("seeds: [0]\nfolds: 5\nrecipes: {A: [split.fold=1]}", "split.fold=1: remove it, or remove folds"),
        ("seeds: [0]\nrecipes: {A: []}\nconfig_dir: nowhere", "config_dir: no folder"),
        ("seeds: [0]\nrecipes: {A: [experiment=best]}\nconfig_dir: .", "A: experiment=best: no such choice"),
    ],
)
def test_invalid_plan_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        run_plan(tmp_path / "plan.yaml", logs=tmp_path / "logs")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_recipe_is_refused_with_the_names_of_the_plan(write_plan, run):
    with pytest.raises(InputError, match="--only B: not in .*; its rows are A"):
        run(write_plan(seeds=[0], recipes={"A": []}), only=["B"])
    with pytest.raises(InputError, match="--only C: ensembles are not trained; use --tables"):
        run(write_plan(seeds=[0], recipes={"A": [], "B": []}, ensembles={"C": ["A", "B"]}), only=["C"])


@pytest.mark.parametrize("file", PLANS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_run_of_the_project_s_plans_composes(file):
    check_options(read_plan(file))


@pytest.mark.integration
def test_plan_on_phantoms(phantoms, tmp_path, monkeypatch):
    small = [*SMALL, f"data.root={phantoms}", "trainer.max_epochs=1"]
    recipes, steps = {"plain": []}, {"start": [], "mirror": ["model.mirror=true"]}
    file = tmp_path / "small.yaml"
    content = {"seeds": [0], "common": small, "recipes": recipes, "steps": steps}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time nothing is trained
        out = run_plan(file)
    recipes = pd.read_csv(out / "recipes.csv")
    record = json.loads((tmp_path / f"logs/plans/{tmp_path.name}/small/plain/seed_0/metrics.json").read_text())
    assert recipes.loc[0, "auroc"] == pytest.approx(record["val"]["auroc"]["value"])
    assert recipes.loc[0, "auroc_low"] == pytest.approx(record["val"]["auroc"]["low"])
    steps = pd.read_csv(out / "steps.csv")
    assert steps.loc[0, "auroc"] == recipes.loc[0, "auroc"]
    assert np.isfinite(steps.loc[1, "auroc_difference"])
