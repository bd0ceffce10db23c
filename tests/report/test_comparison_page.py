import json
import shutil

import pandas as pd
import pytest
import yaml

from fractatlas.errors import InputError
from fractatlas.evaluation.markdown import METRIC_TITLES
from fractatlas.report.comparison_page import write_comparison
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
    assert list(named) == ["task/0", "task/1", "task/2"]
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    pd.testing.assert_frame_equal(table, differences)
    table = table.set_index(["subset", "run", "other", "metric"])
    better = table.loc[("test", "task/0", "task/2", "auroc")]
    similar = table.loc[("test", "task/0", "task/1", "auroc")]
    assert better["difference"] == pytest.approx(better["second"] - better["first"])
    assert better["low"] > 0
    assert better["p"] < 0.05 < similar["p"]
    text = (tmp_path / "out" / "comparison.html").read_text()
    assert "Mean over 3 seeds: test" in text
    assert '<td class="n">0.600<td class="n">0.100' in text
    assert "http" not in text


def test_fewer_than_two_finished_runs_are_refused(runs, tmp_path):
    with pytest.raises(InputError, match="at least two different runs"):
        write_comparison(tmp_path / "out", [runs[0], runs[0]])
    with pytest.raises(InputError, match="nowhere: no finished run"):
        write_comparison(tmp_path / "out", [runs[0], tmp_path / "nowhere"])
