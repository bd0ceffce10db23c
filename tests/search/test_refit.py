import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fractatlas.errors import InputError
from fractatlas.evaluation import metrics
from fractatlas.search import refit, runs


@pytest.fixture
def study(tmp_path) -> Path:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "best.yaml").write_text("# @package _global_\n")
    return tmp_path


@pytest.fixture
def commands(monkeypatch) -> list[tuple]:
    """The commands that were run; each leaves what the real one leaves."""
    ran = []

    def run(run: Path, script: str, *arguments: str) -> None:
        ran.append((script, *arguments))
        options = dict(argument.split("=", 1) for argument in arguments)
        folder = Path(options["hydra.run.dir"])
        folder.mkdir(parents=True)
        random = np.random.default_rng(len(ran))
        labels = random.integers(0, 2, 60)
        probability = 0.5 * labels + 0.5 * random.random(60)
        table = pd.DataFrame({"group": np.arange(60), "label": labels, "probability": probability})
        part = "test" if script == "evaluate.py" else "val"
        (folder / "metrics.json").write_text(json.dumps({part: metrics.evaluate(table)}))

    monkeypatch.setattr(runs, "_run", run)
    return ran


def test_the_test_part_is_scored_when_all_seeds_are_trained(study, commands):
    table = refit.refit(study, seeds=3)
    assert [line[0] for line in commands] == ["train.py"] * 3 + ["evaluate.py"] * 3
    assert all("test=false" in line for line in commands[:3])
    assert list(table["seed"]) == [0, 1, 2]
    assert (table["accuracy_low"] <= table["accuracy"]).all()
    assert "mean ± sd" in (study / "refit" / "test.md").read_text()
    pd.testing.assert_frame_equal(pd.read_csv(study / "refit" / "test.csv"), table)


def test_what_is_done_is_not_done_again(study, commands):
    refit.refit(study, seeds=1)
    first = len(commands)
    refit.refit(study, seeds=1)
    assert len(commands) == first


def test_another_winner_is_not_mixed_in(study, commands):
    refit.refit(study, seeds=1)
    (study / "experiment" / "best.yaml").write_text("# another\n")
    with pytest.raises(InputError, match="begun with another winner"):
        refit.refit(study, seeds=1)


def test_a_search_without_a_winner_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no experiment/best\.yaml"):
        refit.refit(tmp_path, seeds=1)
