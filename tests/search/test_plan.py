import json
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

    def run(script: str, *arguments: str) -> None:
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
        (folder / ".hydra").mkdir(parents=True)
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


@pytest.mark.fault("a plan that is none", "refused in one line")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not YAML"),
        ("seeds: [0", "not YAML"),
        ("seeds: []\nrecipes: {A: []}", "needs a seed"),
        ("seeds: [0]", "a recipe or a step"),
        ("seeds: [x]\nrecipes: {A: []}", "seeds.0"),
        ("seeds: [0]\nrecipe: {A: []}", "recipe: Unexpected keyword"),
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
    from hydra import compose, initialize_config_dir

    from fractatlas.config import TrainConfig, check

    plan, kept = plans.read_plan(file), []
    asked = [plans.combine(plan.common, options) for options in plan.recipes.values()]
    for options in plan.steps.values():
        kept = plans.combine(kept, options)
        asked.append(plans.combine(plan.common, kept))
    with initialize_config_dir(str(REPOSITORY / "conf")):
        for options in asked:
            check(compose("train", [*options, "paths.root=.", "paths.output_dir=."]), TrainConfig)


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
