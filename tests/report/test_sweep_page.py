import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from fractatlas.report.sweep_page import (
    best_job,
    format_duration,
    jobs_table,
    read_jobs,
    seed_means,
    write_job,
    write_sweep,
)


@pytest.fixture
def add_job(tmp_path):
    """Add a job to the grid in ``tmp_path``; without a ``value`` it has no scores."""

    def add(overrides: dict, value: float | None = None, state: str = "finished", **more) -> Path:
        folder = tmp_path / (
            more.pop("name", None) or ",".join(f"{key}={setting}" for key, setting in overrides.items())
        )
        pairs = [f"{key}={setting}" for key, setting in overrides.items()]
        write_job(folder, {"overrides": pairs, "state": state, "seconds": 90.0} | more.pop("job", {}))
        config = {"model": overrides.get("model", "x"), "seed": int(overrides.get("seed", 0)), "data": {"root": "d"}}
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config | more.pop("config", {})))
        if value is not None:
            score = {"value": value, "low": value - 0.1, "high": value + 0.1}
            scores = {"n": 50, "positives": 9, "majority_rate": 0.82, "accuracy": score, "auroc": score}
            monitor = {"name": more.pop("monitor", "val/auroc"), "value": value, "epoch": 1}
            (folder / "metrics.json").write_text(json.dumps({"monitor": monitor, "val": scores, "test": scores}))
        return folder

    return add


def test_one_row_per_job_with_settings_scores_and_state(add_job, tmp_path):
    add_job({"model": "resnet", "optimizer.lr": "1e-3", "test": "true"}, 0.9)
    add_job({"model": "resnet", "optimizer.lr": "2e-4", "test": "true"}, 0.8)
    add_job({"model": "densenet", "optimizer.lr": "1e-3", "test": "true"}, state="failed", job={"reason": "no | data"})
    best = write_sweep(tmp_path)
    assert best == "model=resnet,optimizer.lr=1e-3,test=true, val/auroc 0.9000 [0.8000, 1.0000]"
    table = pd.read_csv(tmp_path / "sweep.csv")
    assert list(table.columns[:9]) == [
        "job", "model", "optimizer.lr", "state", "reason", "seconds", "best", "monitor", "monitor_value"
    ]  # fmt: skip
    assert table["state"].tolist() == ["failed", "finished", "finished"]
    assert table["optimizer.lr"].tolist() == [0.001, 0.0002, 0.001]
    assert table["best"].tolist() == [False, False, True]
    assert table.loc[2, ["val_n", "val_positives", "val_majority_rate"]].tolist() == [50, 9, 0.82]
    assert table.loc[2, ["test_auroc", "test_auroc_low", "test_auroc_high"]].tolist() == pytest.approx([0.9, 0.8, 1.0])
    markdown = (tmp_path / "sweep.md").read_text()
    assert "no \\| data" in markdown
    assert "**finished, best**" in markdown
    assert "0.900 [0.800, 1.000]" in markdown
    assert "90 s" in markdown
    page = (tmp_path / "sweep.html").read_text()
    assert "3 jobs: 2 finished, 1 failed." in page
    assert page.count('class="significant"') == 1
    assert "http" not in page


def test_rows_are_in_the_order_of_values_and_the_seed_is_last(add_job, tmp_path):
    for seed in (10, 9):
        for rate in ("1e-3", "1e-4", "0.01"):
            add_job({"seed": seed, "optimizer.lr": rate})
    rows = [(job.settings["optimizer.lr"], job.settings["seed"]) for job in read_jobs(tmp_path)]
    assert rows == [("1e-4", "9"), ("1e-4", "10"), ("1e-3", "9"), ("1e-3", "10"), ("0.01", "9"), ("0.01", "10")]
    assert list(read_jobs(tmp_path)[0].settings) == ["optimizer.lr", "seed"]


def test_means_are_over_jobs_that_differ_only_in_their_seed(add_job, tmp_path):
    for seed, value in enumerate((0.7, 0.8, 0.75)):
        add_job({"model": "resnet", "seed": seed}, value)
    for seed, value in enumerate((0.9, 0.8)):
        add_job({"model": "densenet", "seed": seed}, value)
    add_job({"model": "densenet", "seed": 2}, state="failed")
    one, other = seed_means(read_jobs(tmp_path))
    assert (one["settings"], one["seeds"]) == ({"model": "densenet"}, [0, 1])
    assert one["scores"]["val", "auroc"] == pytest.approx((0.85, 0.8, 0.9))
    assert (other["settings"], other["seeds"]) == ({"model": "resnet"}, [0, 1, 2])
    assert other["scores"]["test", "accuracy"] == pytest.approx((0.75, 0.7, 0.8))
    write_sweep(tmp_path)
    assert "| densenet | 0, 1    | 0.850 (0.800 to 0.900)" in (tmp_path / "sweep.md").read_text()
    assert "Means over seeds" in (tmp_path / "sweep.html").read_text()


@pytest.mark.parametrize(
    "config", [{"callbacks": {"average": {"decay": 0.9}}}, {"data": {"root": "e"}}, {"trainer": {"max_epochs": 3}}]
)
def test_jobs_that_differ_in_more_than_the_seed_are_not_averaged(add_job, tmp_path, config):
    """For example, jobs of one folder whose experiment file has changed in between."""
    add_job({"seed": 1}, 0.7)
    add_job({"seed": 2}, 0.8, config=config)
    assert seed_means(read_jobs(tmp_path)) == []


def test_jobs_with_one_seed_are_not_averaged(add_job, tmp_path):
    """For example, a grid of numbers of workers, or evaluations of two subsets of one run."""
    add_job({"data.num_workers": 0, "seed": 1}, 0.7)
    add_job({"data.num_workers": 2, "seed": 1}, 0.7)
    assert seed_means(read_jobs(tmp_path)) == []


@pytest.mark.parametrize(
    ("monitor", "score"),
    [
        ("val/auroc", "0.9000 [0.8000, 1.0000]"),
        ("val/accuracy", "0.9000 [0.8000, 1.0000], majority rate 0.8200"),
        ("val/loss", "0.8000"),
    ],
)
def test_the_best_score_has_its_interval_and_an_accuracy_the_majority_rate(add_job, tmp_path, monitor, score):
    for seed, value in ((1, 0.8), (2, 0.9)):
        add_job({"seed": seed}, value, monitor=monitor)
    best = "seed=1" if monitor == "val/loss" else "seed=2"
    assert write_sweep(tmp_path) == f"{best}, {monitor} {score}"
    assert f"{best}</a>, {score}.</p>" in (tmp_path / "sweep.html").read_text()


def test_the_smallest_loss_is_the_best(add_job, tmp_path):
    for seed, value in enumerate((0.4, 0.3, 0.5)):
        add_job({"model": "a", "seed": seed}, value, monitor="val/loss")
        add_job({"model": "b", "seed": seed}, value + 0.2, monitor="val/loss")
    assert best_job(read_jobs(tmp_path)).name == "model=a,seed=1"
    assert [row["settings"]["model"] for row in seed_means(read_jobs(tmp_path))] == ["a", "b"]


def test_no_job_is_the_best_if_they_select_by_different_metrics(add_job, tmp_path):
    add_job({"monitor": "val/auroc"}, 0.9, name="0")
    assert best_job(read_jobs(tmp_path)) is None  # there is one only
    add_job({"monitor": "val/loss"}, 0.3, name="1", monitor="val/loss")
    assert best_job(read_jobs(tmp_path)) is None
    assert write_sweep(tmp_path) == ""
    assert not jobs_table(read_jobs(tmp_path))["best"].any()


def test_a_job_whose_process_was_killed_is_interrupted(add_job, tmp_path):
    add_job({"seed": 1}, state="running")
    (tmp_path / add_job({"seed": 2}, 0.5) / "checkpoints").mkdir()
    (tmp_path / "seed=2" / "metrics.json").unlink()  # as resume=RUN does
    assert [job.state for job in read_jobs(tmp_path)] == ["interrupted", "interrupted"]


def test_jobs_with_other_images_are_marked_and_not_compared(add_job, tmp_path):
    for split, images, value in (("a", "12", 0.7), ("b", "12", 0.8)):
        rows = "".join(f"{subset}{name},1,0.5,{subset}\n" for name in images for subset in ("val", "test"))
        (add_job({"split": split}, value) / "predictions.csv").write_text(f"image_id,label,probability,split\n{rows}")
    assert "**finished, best**" in (write_sweep(tmp_path), (tmp_path / "sweep.md").read_text())[1]
    rows = "".join(f"{subset}{name},1,0.5,{subset}\n" for name in "13" for subset in ("val", "test"))
    (add_job({"split": "c"}, 0.9) / "predictions.csv").write_text(f"image_id,label,probability,split\n{rows}")
    assert write_sweep(tmp_path) == ""
    markdown, page = (tmp_path / "sweep.md").read_text(), (tmp_path / "sweep.html").read_text()
    assert "| c       | finished † |" in markdown
    assert "† The images differ" in markdown
    assert page.count("†") == 2
    assert "best" not in markdown


def test_names_and_reasons_are_escaped(add_job, tmp_path):
    add_job({"task_name": "<b>"}, state="failed", name="a", job={"reason": "<script>alert(1)</script>"})
    add_job({"task_name": "c"}, state="waiting", name="b")
    write_sweep(tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    assert "<b>" not in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.2, "0 s"), (119, "119 s"), (600, "10 min"), (12000, "3 h 20 min")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
