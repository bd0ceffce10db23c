import json
import os

import pytest

from fractatlas.errors import InputError
from fractatlas.report.run_table import newest_run, run_table


@pytest.fixture
def make_run(tmp_path):
    def make(task: str, model: str, random: list[str]):
        score = {"value": 0.9, "low": 0.8, "high": 0.95}
        names = ("accuracy", "auroc", "average_precision", "sensitivity", "specificity")
        val = {"n": 528, "positives": 93, "majority_rate": 0.8239} | dict.fromkeys(names, score)
        weights = {"file": "w.pth", "loaded": 10, "of": 20, "random": random}
        metrics = {"task_name": task, "model": model, "weights": weights, "val": val, "test": val | {"auroc": None}}
        folder = tmp_path / task / "runs" / "1"
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
    assert row["run"] == "baseline_resnet (resnet50, random layer4)"
    assert (row["accuracy"], row["reference report"], row["majority rate"]) == ("90.00 [80.0, 95.0]", "82.54", "82.39")
    assert row["AUROC"] == "0.900 [0.800, 0.950]"
    assert dict(zip(head, test, strict=True))["AUROC"] == "undefined"
    assert dict(zip(head, other, strict=True))["reference report"] == ""
    assert other[0] == "mine (densenet121)"


def test_runs_without_a_network_are_in_the_table(run_folder):
    assert "| baseline_densenet (external predictions) | val" in run_table([run_folder])


def test_the_newest_finished_run_of_a_task_is_found(make_run, tmp_path):
    folder = make_run("task", "resnet50", [])
    os.mkdir(folder.parent / "2")  # not finished
    assert newest_run(tmp_path / "task") == newest_run(folder) == folder
    with pytest.raises(InputError, match="nowhere: no finished run"):
        newest_run(tmp_path / "nowhere")
