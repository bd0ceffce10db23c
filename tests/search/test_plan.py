import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from fractatlas.errors import InputError
from fractatlas.search import plan as plans
from fractatlas.search import runs
from tests.conftest import REPOSITORY, SMALL

PLANS = sorted((REPOSITORY / "experiments").glob("*/*.yaml"))


@pytest.fixture
def written(tmp_path):
    """Write a plan and give its path."""

    def write(**content: object) -> Path:
        file = tmp_path / "experiments" / "small.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


@pytest.fixture
def commands(monkeypatch) -> list[tuple]:
    """The commands that were run; each leaves what the real one leaves, better by what ``quality=`` says."""
    ran = []

    def run(run: Path, script: str, *arguments: str) -> None:
        ran.append((script, *arguments))
        options = dict(argument.split("=", 1) for argument in arguments)
        folder = Path(options["hydra.run.dir"])
        part = "test" if script == "evaluate.py" else "val"
        random = np.random.default_rng(int(options.get("seed", len(ran))))
        labels = np.arange(80) % 2
        probability = np.clip(
            0.5 + float(options.get("quality", 0.2)) * (labels - 0.5) + random.normal(0, 0.1, 80), 0, 1
        )
        table = pd.DataFrame({"image_id": [f"{part}{n}" for n in range(80)], "group": np.arange(80), "split": part,
                              "label": labels, "probability": probability})  # fmt: skip
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        (folder / "split.csv").touch()
        table.to_csv(folder / "predictions.csv", index=False)
        asked = [argument for argument in arguments if not argument.startswith("hydra.")]
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(asked))
        rule = {"_target_": "fractatlas.evaluation.operating_point.fixed", "_partial_": True, "value": 0.5}
        config = {"model": {}, "task_name": "baseline_resnet", "preprocess": {"resize": 146, "crop": 128},
                  "split": {"_target_": "fractatlas.data.splits.grouped_split"}, "threshold": rule}  # fmt: skip
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config if part == "val" else {}))
        record = {"model": "resnet50", "operating_point": {"threshold": 0.5}, "versions": {"commit": "abc"}}
        (folder / "metrics.json").write_text(json.dumps(record))

    monkeypatch.setattr(runs, "_run", run)
    return ran


def test_the_test_part_is_scored_when_all_seeds_of_a_recipe_are_trained(written, commands, tmp_path):
    plan = plans.read_plan(written(seeds=[0, 1], recipes={"A b": ["x=1"], "C": ["x=2"]}))
    plans.carry_out(plan, tmp_path / "out", tmp_path / "logs")
    assert [line[0] for line in commands] == (["train.py"] * 2 + ["evaluate.py"] * 2) * 2
    assert commands[1] == ("train.py", "x=1", "seed=1", "test=false", f"hydra.run.dir={tmp_path}/logs/a_b/seed_1")
    table = pd.read_csv(tmp_path / "out" / "recipes.csv")
    assert list(table["recipe"].unique()) == ["A b", "A b, ensemble of 2", "C", "C, ensemble of 2"]
    assert list(table["part"]) == ["val", "test"] * 4
    assert (table["auroc_low"] <= table["auroc"]).all()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"recipes.csv", "recipes.md", "recipes.png"}


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(written, commands, tmp_path):
    plan = plans.read_plan(written(seeds=[0], recipes={"A": ["x=1"]}))
    plans.carry_out(plan, tmp_path / "out", tmp_path / "logs")
    before = (tmp_path / "out" / "recipes.csv").read_text()
    plans.carry_out(plan, tmp_path / "out", tmp_path / "logs")
    assert len(commands) == 2
    assert (tmp_path / "out" / "recipes.csv").read_text() == before
    plan.recipes["A"] = ["x=3"]
    with pytest.raises(InputError, match=r"other settings \(x=1 x=3\)"):
        plans.carry_out(plan, tmp_path / "out", tmp_path / "logs")


def test_a_step_stands_on_those_that_were_kept_and_reads_no_test_part(written, commands, tmp_path):
    steps = {"start": ["quality=0.1", "y=0"], "worse": ["quality=0.02", "z=1"], "better": ["quality=0.3", "y=2"]}
    plan = plans.read_plan(written(seeds=[0, 1], common=["w=1"], steps=steps))
    plans.carry_out(plan, tmp_path / "out", tmp_path / "logs")
    assert all(line[0] == "train.py" and "test=false" in line for line in commands)
    assert commands[4][1:5] == ("w=1", "quality=0.3", "y=2", "seed=0")
    table = pd.read_csv(tmp_path / "out" / "steps.csv", index_col="recipe")
    assert list(table["kept"]) == [True, False, True]
    assert table.loc["better", "auroc_difference"] == pytest.approx(
        table.loc["better", "auroc"] - table.loc["start", "auroc"]
    )
    assert table.loc["better", "auroc_difference_p"] < 0.05
    assert "no" in (tmp_path / "out" / "steps.md").read_text()


def test_a_mean_over_seeds_is_the_mean_of_their_scores(written, commands, tmp_path):
    for seeds in ([0], [1], [0, 1]):
        plan = plans.read_plan(written(seeds=seeds, recipes={"A": []}))
        plans.carry_out(plan, tmp_path / f"out{seeds}", tmp_path / "logs")
    one, other, both = (pd.read_csv(tmp_path / f"out{seeds}" / "recipes.csv").iloc[0] for seeds in ([0], [1], [0, 1]))
    assert both["auroc"] == pytest.approx((one["auroc"] + other["auroc"]) / 2)
    assert both["auroc_sd"] == pytest.approx(np.std([one["auroc"], other["auroc"]], ddof=1))
    assert both["auroc_high"] - both["auroc_low"] < one["auroc_high"] - one["auroc_low"] + 0.05


def test_rows_that_are_not_asked_for_stay_as_they_are(written, commands, tmp_path):
    steps = {"start": ["quality=0.1"], "better": ["quality=0.3"]}
    plan = plans.read_plan(written(seeds=[0, 1], recipes={"A": ["x=1"], "B, b": ["x=2"], "C": []}, steps=steps))
    out, logs = tmp_path / "out", tmp_path / "logs"
    plans.carry_out(plan, out, logs, only=["B, b"])
    assert not (out / "steps.csv").exists()
    assert set(pd.read_csv(out / "recipes.csv")["recipe"]) == {"B, b", "B, b, ensemble of 2"}
    plans.carry_out(plan, out, logs, only=["C", "start"])
    assert list(pd.read_csv(out / "steps.csv")["recipe"]) == ["start"]
    plans.carry_out(plan, out, logs)
    whole = {file.name: file.read_text() for file in out.glob("*.[cm]*")}
    count = len(commands)
    plans.carry_out(plan, out, logs, only=["A", "start"])
    assert {file.name: file.read_text() for file in out.glob("*.[cm]*")} == whole
    assert list(pd.read_csv(out / "recipes.csv")["recipe"].str[0].unique()) == ["A", "B", "C"]
    assert len(commands) == count


def test_a_mistake_that_was_mended_is_no_other_setting(written, commands, tmp_path):
    refused = tmp_path / "logs" / "a" / "seed_0" / ".hydra"  # what a value that the schema refuses leaves
    refused.mkdir(parents=True)
    (refused / "overrides.yaml").write_text("[x=0, seed=0, test=false]")
    plans.carry_out(plans.read_plan(written(seeds=[0], recipes={"A": ["x=1"]})), tmp_path / "out", tmp_path / "logs")
    assert commands[0][1] == "x=1"


@pytest.mark.fault("Ctrl-C or SIGTERM while a plan trains", "the run under way is let stop in its own way")
@pytest.mark.parametrize(("number", "everyone", "status"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 75)])
def test_a_plan_that_is_asked_to_stop_lets_its_run_stop(tmp_path, number, everyone, status):
    (tmp_path / "train.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(number, frame):\n"
        "    time.sleep(1)\n"  # longer than subprocess.run waits
        "    pathlib.Path('saved').touch()\n"
        "    sys.exit({signal.SIGINT: 130, signal.SIGTERM: 75}[number])\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, stop)\n"
        "pathlib.Path('begun').touch()\n"
        "time.sleep(60)\n"
    )
    code = (
        "import pathlib, signal; from fractatlas.search import runs; runs.SCRIPTS = pathlib.Path('.')\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runs.train(pathlib.Path('run'))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.05)
        (os.killpg if everyone else os.kill)(process.pid, number)
        said = process.stderr.read()
    assert process.returncode == status
    assert said == "stopped; the same command goes on\n"
    assert (tmp_path / "saved").exists()


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_trained(written, commands, tmp_path):
    plan = written(seeds=[0], recipes={"A": []})
    with pytest.raises(SystemExit, match="Not a directory"):
        plans.main([str(plan), "--out", str(plan / "out")])
    assert not commands


@pytest.mark.fault("a plan that is none", "refused in one line")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "seeds: Field required"),
        ("- a", "not YAML"),
        ("seeds: ${", "not YAML"),
        ("seeds: [0", "line "),
        ("seeds: [0]\nrecipes: {A: [], A: []}", "duplicate key A"),
        ("seeds: [0, 0]\nrecipes: {A: []}", "a seed is there twice"),
        ("seeds: [0]\nrecipes: {a b: [], a-b: []}", "'a-b' and 'a b' would share a folder"),
        ("seeds: [0]\nrecipes: {'...': []}", "needs a letter or a digit"),
        ("seeds: [0]\nrecipes: {A: []}\nsteps: {A: []}", "is a step and a recipe"),
        ("seeds: [0]\nrecipes: {A: [test=true]}", "test=true is the plan's to say"),
        ("seeds: [0]\nrecipes: {A: ['optimizer.lr=1,2']}", "A: optimizer.lr=1,2: one value, or -m"),
        ("seeds: [0]\nrecipes: {A: []}\nsteps: {B: [optimizer.lrr=1]}", "B: unknown key 'optimizer.lrr'"),
        ("seeds: []\nrecipes: {A: []}", "needs a seed"),
        ("seeds: [0]", "a recipe or a step"),
        ("seeds: [x]\nrecipes: {A: []}", "seeds.0"),
        ("seeds: [0]\nrecipe: {A: []}", "recipe: unknown key; a plan has seeds, common, recipes, steps"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(tmp_path, text, says, monkeypatch):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        plans.main([str(tmp_path / "plan.yaml")])
    assert says in str(ended.value)
    assert "\n" not in str(ended.value)


def test_a_recipe_that_is_not_in_the_plan_is_refused_with_those_that_are(written):
    with pytest.raises(SystemExit, match="it has A"):
        plans.main([str(written(seeds=[0], recipes={"A": []})), "--only", "B"])


@pytest.mark.parametrize("file", PLANS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_run_of_a_committed_plan_composes(file):
    plans.check_options(plans.read_plan(file))


@pytest.mark.slow
def test_a_plan_on_phantoms_from_command_to_table(phantoms, tmp_path, monkeypatch):
    small = [*SMALL, f"data.root={phantoms}", "trainer.max_epochs=1"]
    file = tmp_path / "small.yaml"
    content = {"seeds": [0], "common": small,
               "recipes": {"plain": []}, "steps": {"start": [], "mirror": ["model.mirror=true"]}}  # fmt: skip
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    plans.main([str(file)])
    table = pd.read_csv(tmp_path / "small" / "recipes.csv")
    record = json.loads((tmp_path / f"logs/plans/{tmp_path.name}/small/plain/seed_0/metrics.json").read_text())
    assert table.loc[0, "auroc"] == record["val"]["auroc"]["value"]
    assert table.loc[0, "auroc_low"] == record["val"]["auroc"]["low"]
    steps = pd.read_csv(tmp_path / "small" / "steps.csv")
    assert steps.loc[0, "auroc"] == table.loc[0, "auroc"]
    assert np.isfinite(steps.loc[1, "auroc_difference"])
