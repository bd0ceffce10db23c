import json
import shutil

import pandas as pd
import pytest
import yaml

from fractatlas.report import compare
from tests.report.conftest import made_up_predictions


@pytest.fixture
def runs(run, tmp_path):
    """Three runs of one configuration with other seeds; the third is better."""
    folders = []
    for seed, skill in ((0, 1.5), (1, 1.5), (2, 6.0)):
        folder = tmp_path / "logs" / "task" / "runs" / str(seed)
        shutil.copytree(run, folder)
        split = pd.read_csv(folder / "split.csv")
        made_up_predictions(split[split["split"] != "train"], seed, skill).to_csv(
            folder / "predictions.csv", index=False
        )
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"model": {"dropout": 0.5}, "seed": seed}))
        record = json.loads((folder / "metrics.json").read_text())
        score = {"value": 0.5 + seed / 10, "low": 0.1, "high": 0.9}
        record["test"] = {"n": 1, "positives": 1, "majority_rate": 0.6} | dict.fromkeys(compare.HEADLINE, score)
        (folder / "metrics.json").write_text(json.dumps(record))
        folders.append(folder)
    return folders


def test_every_two_runs_are_compared_and_seeds_are_averaged(runs, tmp_path, capsys):
    compare.main([*map(str, runs), "--out", str(tmp_path / "out")])
    table = pd.read_csv(tmp_path / "out" / "comparison.csv").set_index(["part", "run", "other", "metric"])
    better = table.loc[("test", "task/0", "task/2", "auroc")]
    alike = table.loc[("test", "task/0", "task/1", "auroc")]
    assert better["difference"] == pytest.approx(better["second"] - better["first"])
    assert better["low"] > 0
    assert better["p"] < 0.05 < alike["p"]
    text = (tmp_path / "out" / "comparison.html").read_text()
    assert "3 seeds, test" in text
    assert '<td class="n">0.600<td class="n">0.100' in text


@pytest.mark.parametrize("arguments", [["nowhere", "nothing"], []])
def test_what_cannot_be_compared_is_refused_in_one_line(arguments, runs):
    with pytest.raises(SystemExit) as ended:
        compare.main([str(runs[0]), *arguments])
    assert str(ended.value).startswith("error: ")
    assert "\n" not in str(ended.value)
