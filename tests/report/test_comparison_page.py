import json
import re
import shutil

import pandas as pd
import pytest
import yaml

from fractatlas.errors import InputError
from fractatlas.evaluation import metrics
from fractatlas.evaluation.markdown import METRIC_TITLES
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.report.comparison_page import common_scores, disjoint_pairs, write_comparison
from tests.conftest import made_up_predictions


@pytest.fixture
def runs(run_folder, tmp_path):
    """Three runs that differ only in their seed; the third has better predictions."""
    folders = []
    for seed, skill in ((0, 1.5), (1, 1.5), (2, 6.0)):
        folder = tmp_path / "logs" / "task" / "runs" / str(seed)
        shutil.copytree(run_folder, folder)
        split = pd.read_csv(folder / "split.csv")
        predictions = made_up_predictions(split[split["split"] != "train"], seed, skill)
        predictions.to_csv(folder / "predictions.csv", index=False)
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"model": {"dropout": 0.5}, "seed": seed}))
        metrics = json.loads((folder / "metrics.json").read_text())
        score = {"value": 0.5 + seed / 10, "low": 0.1, "high": 0.9}
        metrics["test"] = {"n": 1, "positives": 1, "majority_rate": 0.6} | dict.fromkeys(METRIC_TITLES, score)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        folders.append(folder)
    return folders


def test_every_pair_of_runs_is_compared_and_seeds_are_averaged(runs, tmp_path):
    named, differences = write_comparison(tmp_path / "out", runs)
    assert list(named) == ["task/0 (seed=0)", "task/1 (seed=1)", "task/2 (seed=2)"]
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    pd.testing.assert_frame_equal(table, differences)
    table = table.set_index(["subset", "run", "other", "metric"])
    better = table.loc[("test", "task/0 (seed=0)", "task/2 (seed=2)", "auroc")]
    similar = table.loc[("test", "task/0 (seed=0)", "task/1 (seed=1)", "auroc")]
    assert better["difference"] == pytest.approx(better["second"] - better["first"])
    assert better["low"] > 0
    assert better["p"] < 0.05 < similar["p"]
    text = (tmp_path / "out" / "comparison.html").read_text()
    assert "Mean over 3 seeds: test" in text
    assert '<td class="n">0.600<td class="n">0.100' in text
    assert "http" not in text


def test_headings_of_means_over_seeds_are_unique(runs, tmp_path):
    others = []
    for run in runs[:2]:
        other = run.parent.parent.parent / "other" / "runs" / run.name
        shutil.copytree(run, other)
        config = {"model": {"dropout": 0.1}, "seed": int(run.name)}
        (other / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
        others.append(other)
    write_comparison(tmp_path / "out", [*runs, *others])
    headings = re.findall("<h2[^>]*>(Mean over .*?)</h2>", (tmp_path / "out" / "comparison.html").read_text())
    assert len(headings) == len(set(headings)) > 2


def test_fewer_than_two_finished_runs_are_refused(runs, tmp_path):
    with pytest.raises(InputError, match="at least two different runs"):
        write_comparison(tmp_path / "out", [runs[0], runs[0]])
    with pytest.raises(InputError, match="nowhere: no finished run"):
        write_comparison(tmp_path / "out", [runs[0], tmp_path / "nowhere"])


def test_jobs_of_the_same_name_in_two_sweeps_are_all_compared(runs, tmp_path):
    sweeps = tmp_path / "one", tmp_path / "two"
    for sweep in sweeps:
        for seed, run in enumerate(runs):
            shutil.copytree(run, sweep / str(seed))
    (sweeps[0] / "3").mkdir()  # not finished
    named, differences = write_comparison(tmp_path / "out", [*sweeps, sweeps[0] / "1"])
    assert list(named) == [f"{sweep}/{seed} (seed={seed})" for sweep in ("one", "two") for seed in range(3)]
    assert len(differences[["run", "other"]].drop_duplicates()) == 15
    assert disjoint_pairs(named, differences) == []


def test_a_pair_without_an_image_in_common_is_named_on_the_page(runs, tmp_path):
    file = runs[0] / "predictions.csv"
    table = pd.read_csv(file)
    table.assign(image_id="other_" + table["image_id"].astype(str)).to_csv(file, index=False)
    named, differences = write_comparison(tmp_path / "out", runs)
    first, second, third = named
    assert disjoint_pairs(named, differences) == [(first, second), (first, third)]
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "Pairs without an image in common, which are not compared:" in page
    assert f"<li>{first} and {third}" in page
    assert f"<li>{second} and {third}" not in page


def test_scores_of_runs_with_different_images_are_of_the_common_images(runs, tmp_path):
    file = runs[0] / "predictions.csv"
    table = pd.read_csv(file)
    removed = table[(table["split"] == "test") & (table["label"] == 1)].index[0]
    table.drop(index=removed).to_csv(file, index=False)
    named, _ = write_comparison(tmp_path / "out", runs)
    scores, notes = common_scores(named)
    n = (table["split"] == "test").sum()
    assert [score["n"] for score in scores["test"].values()] == [n - 1] * 3
    first = next(iter(named.values()))
    assert scores["val"] == {name: run.metrics["val"] for name, run in named.items()}
    expected = metrics.evaluate(first.predictions[first.predictions["split"] == "test"], first.threshold)
    assert next(iter(scores["test"].values()))["auroc"] == expected["auroc"]
    (note,) = notes
    assert note.startswith(
        f"test: scores are of the {n - 1} images that all runs have predicted (task/0 (seed=0) {n - 1},"
    )
    assert note in (tmp_path / "out" / "comparison.html").read_text()


def test_runs_without_a_common_image_are_not_compared_in_the_table_of_scores(runs, tmp_path):
    file = runs[0] / "predictions.csv"
    table = pd.read_csv(file)
    table.assign(image_id="other_" + table["image_id"].astype(str)).to_csv(file, index=False)
    _, notes = common_scores({name: RunFolder(run) for name, run in zip("abc", runs, strict=True)})
    assert [note.split(" (")[0] for note in notes] == [
        f"{name}: no image is common to all runs" for name in ("val", "test")
    ]
