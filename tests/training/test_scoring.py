import json
import subprocess

import pytest
from hydra import compose, initialize_config_dir

from fractatlas.config.schema import TrainConfig
from fractatlas.config.validation import validate
from fractatlas.training import scoring
from fractatlas.training.fit import train
from tests.conftest import REPOSITORY


@pytest.mark.integration
@pytest.mark.timeout(3600)
def test_heatmaps_of_a_network_trained_on_labels_point_at_the_fracture(tmp_path):
    """Takes five minutes on two idle cores. Cells of 32 pixels need a larger image than the 128 pixels of the demo."""
    options = ("experiment=demo_resnet", "trainer=cpu", "preprocess.resize=256", "preprocess.crop=256")
    paths = (f"data.root={tmp_path}/phantoms", f"paths.root={tmp_path}", f"paths.output_dir={tmp_path}/run")
    with initialize_config_dir(str(REPOSITORY / "conf"), job_name="test"):
        config = validate(compose("train", [*options, *paths, f"paths.cache_dir={tmp_path}/cache"]), TrainConfig)
    train(config)
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["localisation"]["test"]["all"]
    # Measured: hit 0.35 [0.25, 0.44], centre 0.07, chance 0.008; share 0.055, chance 0.008.
    assert scores["hit_minus_centre"]["low"] > 0.05
    assert scores["share"]["low"] > 3 * scores["share_chance"]["value"]


@pytest.mark.parametrize(("file", "dirty"), [("fractatlas/code.py", "-dirty"), ("experiments/table.md", "")])
def test_the_commit_is_dirty_after_a_change_of_the_code(file, dirty, tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    for name in ("fractatlas/code.py", "experiments/table.md", "conf/a.yaml"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("a\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    commit = git("rev-parse", "--short", "HEAD")
    monkeypatch.setattr(scoring, "__file__", str(tmp_path / "fractatlas" / "scoring.py"))
    assert scoring._versions()["commit"] == commit
    (tmp_path / file).write_text("b\n")
    assert scoring._versions()["commit"] == commit + dirty


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert scoring._versions()["commit"] == "unknown"
