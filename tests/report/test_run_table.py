import json
import os

import pytest
import yaml

from fractatlas.errors import InputError
from fractatlas.report.run_table import find_runs, name_runs, run_table


@pytest.fixture
def make_run(tmp_path):
    def make(task: str, model: str, random: list[str], run: int = 1):
        score = {"value": 0.9, "low": 0.8, "high": 0.95}
        names = ("accuracy", "auroc", "average_precision", "sensitivity", "specificity")
        val = {"n": 528, "positives": 93, "majority_rate": 0.8239} | dict.fromkeys(names, score)
        weights = {"file": "w.pth", "loaded": 10, "of": 20, "random": random}
        metrics = {"task_name": task, "model": model, "weights": weights, "val": val, "test": val | {"auroc": None}}
        folder = tmp_path / task / "runs" / str(run)
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "predictions.csv").write_text("image_id,label,probability\na,1,0.9\n")
        return folder

    return make


def test_the_table_shows_scores_reference_accuracy_and_majority_rate(make_run):
    folders = [make_run("baseline_resnet", "resnet50", ["layer4", "head"]), make_run("mine", "densenet121", ["head"])]
    lines = run_table(folders).splitlines()
    head, _, val, test, other, _ = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    row = dict(zip(head, val, strict=True))
    assert (row["run"], row["network"]) == ("baseline_resnet", "resnet50, random layer4")
    assert (row["accuracy"], row["reference report"], row["majority rate"]) == ("90.00 [80.0, 95.0]", "82.54", "82.39")
    assert row["AUROC"] == "0.900 [0.800, 0.950]"
    assert dict(zip(head, test, strict=True))["AUROC"] == "undefined"
    assert dict(zip(head, other, strict=True))["reference report"] == ""
    assert other[:2] == ["mine", "densenet121"]


def test_runs_without_a_network_are_in_the_table(run_folder):
    assert "| made_up | external predictions |" in run_table([run_folder])


def test_rows_state_the_seed_and_the_settings_in_which_runs_differ(make_run):
    common = {"task_name": "task", "paths": {"root": "."}, "monitor": "val/auroc"}
    folders = []
    for job, (seed, optimizer) in enumerate(((0, "Adam"), (1, "SGD"))):
        folder = make_run("sweep", "resnet50", [], job)
        model = {"variant": "resnet50", "dropout": 0.5}
        parts = {"_target_": f"torch.optim.{optimizer}", "_partial_": True, "lr": 0.0001234567 + seed}
        config = common | {"seed": seed, "model": model, "optimizer": parts, "task_name": f"task{job}"}
        config["callbacks"] = {"early_stopping": {"monitor": ("${monitor}", "val/auroc")[job]}, "last": {"every": job}}
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
        folders.append(folder)
    lines = run_table(folders).splitlines()
    head, _, one, _, two, _ = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert head[:4] == ["run", "network", "seed", "settings that differ"]
    assert one[:4] == ["sweep/0", "resnet50", "0", "optimizer=Adam, optimizer.lr=0.0001235"]
    assert two[:4] == ["sweep/1", "resnet50", "1", "optimizer=SGD, optimizer.lr=1"]


def test_rows_state_the_precision_that_a_training_chose(make_run):
    folders = []
    for job, precision in enumerate(("32-true", "bf16-mixed")):
        folder = make_run("sweep", "resnet50", [], job)
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"model": {}, "trainer": {"precision": "auto"}}))
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(metrics | {"precision": precision}))
        folders.append(folder)
    text = run_table(folders)
    assert "| trainer.precision=32-true " in text
    assert "| trainer.precision=bf16-mixed " in text


def test_the_newest_finished_run_of_a_task_is_found(make_run, tmp_path):
    folder = make_run("task", "resnet50", [])
    os.mkdir(folder.parent / "2")  # not finished
    assert find_runs([tmp_path / "task"]) == find_runs([folder]) == [folder]
    with pytest.raises(InputError, match="nowhere: no finished run"):
        find_runs([tmp_path / "nowhere"])


def test_the_folder_of_a_sweep_stands_for_its_finished_runs(make_run, tmp_path):
    jobs = [make_run("task", "resnet50", [], job) for job in (10, 9, 0)]
    os.mkdir(jobs[0].parent / "11")  # not finished
    assert find_runs([jobs[0].parent, jobs[1]]) == [jobs[2], jobs[1], jobs[0]]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["logs/a/runs/1", "logs/b/runs/1"], ["a", "b"]),
        (["logs/a/runs/1", "logs/a/runs/2"], ["a/1", "a/2"]),
        (["logs/a/runs/1", "logs/b"], ["a", "b"]),
        (["sweep/0", "sweep/1"], ["0", "1"]),
        (["one/0", "two/0", "two/1"], ["one/0", "two/0", "two/1"]),
        (["one/sweep/0", "two/sweep/0"], ["one/sweep/0", "two/sweep/0"]),
    ],
)
def test_names_of_runs_are_the_shortest_part_of_the_path_that_distinguishes_them(tmp_path, folders, names):
    paths = [tmp_path / folder for folder in folders]
    assert name_runs(paths) == dict(zip(names, paths, strict=True))
    same = [tmp_path / "logs" / "a" / "1", tmp_path / "logs" / "a" / "runs" / "1"]
    assert len(name_runs(same)) == 2


def test_a_row_with_other_images_than_the_first_is_marked(make_run):
    folders = [make_run(name, "resnet50", []) for name in ("one", "two", "three")]
    (folders[2] / "predictions.csv").write_text("image_id,label,probability\nb,1,0.9\n")
    assert "†" not in run_table(folders[:2])
    text = run_table(folders)
    rows = [line for line in text.splitlines() if line.startswith("| three")]
    assert ["528 (93) †" in row for row in rows] == [False, True]  # val, test
    assert text.count("528 (93) †") == 1
    assert text.splitlines()[-1].startswith("† The images differ from those of the first row with this subset")


def test_a_row_states_how_many_images_of_the_subset_were_scored(make_run):
    folder = make_run("one", "resnet50", [])
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["test"] |= {"n": 24, "positives": 5, "n_subset": 528}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert "| 24 of 528 (5) " in run_table([folder])
