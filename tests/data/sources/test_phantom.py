import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from fractatlas.data.sources import phantom
from fractatlas.data.sources.fracatlas import BODY_PARTS, VIEWS


def contents(root) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        phantom.generate(tmp_path / name, images=60, seed=seed)
    one, same, other = (contents(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same
    assert set(one) != set(other) or one != other


def test_the_number_and_the_folder_of_generated_images_are_logged(tmp_path, caplog):
    with caplog.at_level("INFO"):
        phantom.generate(tmp_path / "here", images=60, seed=0)
    assert caplog.messages == [f"generating 60 phantoms in {tmp_path / 'here'}"]


def test_two_processes_can_generate_the_same_folder(tmp_path, monkeypatch):
    phantom.generate(tmp_path / "one", images=60, seed=0)
    make_coco = phantom._coco

    def generate_meanwhile(rows):
        monkeypatch.setattr(phantom, "_coco", make_coco)
        phantom.generate(tmp_path / "both", images=60, seed=0)
        return make_coco(rows)

    monkeypatch.setattr(phantom, "_coco", generate_meanwhile)
    phantom.generate(tmp_path / "both", images=60, seed=0)
    assert contents(tmp_path / "both") == contents(tmp_path / "one")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "both"}


def test_a_generation_that_fails_leaves_no_files(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("stopped")

    monkeypatch.setattr(phantom.json, "dumps", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        phantom.generate(tmp_path / "phantoms", images=60, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_fractures_are_as_small_as_in_fracatlas():
    longer = []
    for number in range(60):
        drawn = phantom.draw(np.random.default_rng([9, number]), fractured=True)
        assert len(drawn.boxes) == 1
        scale = 256 / min(drawn.pixels.shape)
        longer.append(scale * (drawn.boxes[0, 2:] - drawn.boxes[0, :2]).max())
    assert 15 < np.median(longer) < 35


def test_phantoms_have_several_body_parts_views_sizes_and_modes(phantoms, catalogue):
    assert (catalogue[[*BODY_PARTS[:4], *VIEWS]].sum() > 0).all()
    assert catalogue[["width", "height"]].drop_duplicates().shape[0] > 3
    modes = {Image.open(phantoms / path).mode for path in catalogue["path"]}
    assert modes == {"RGB", "L"}
    assert (catalogue["excluded"] == "truncated").sum() >= 2


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_a_linear_model_on_small_images_cannot_classify_phantoms(tmp_path):
    labels = np.arange(700) % 5 < 2
    pictures = []
    for number, fractured in enumerate(labels):
        drawn = phantom.draw(np.random.default_rng([5, number]), bool(fractured))
        pictures.append(np.asarray(Image.fromarray(drawn.pixels).resize((64, 64))).ravel() / 255 - 0.5)
    for strength in (1e-4, 1e-2):
        model = LogisticRegression(C=strength, max_iter=100)
        scores = cross_val_predict(model, np.stack(pictures), labels, cv=4, method="decision_function")
        assert roc_auc_score(labels, scores) <= 0.65


@pytest.mark.integration
def test_ctrl_c_during_the_generation_leaves_no_folder_and_no_traceback_of_a_worker(tmp_path):
    code = f"from fractatlas.data.sources.phantom import generate; generate(Path({str(tmp_path / 'a')!r}), 4000, 0)"
    line = [sys.executable, "-c", f"from pathlib import Path\nif __name__ == '__main__':\n    {code}"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True) as child:
        while not any(tmp_path.glob(".a.*/images/*/*")):
            assert child.poll() is None
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does, to all processes
        _, errors = child.communicate(timeout=60)
    assert errors.count("Traceback") == 1, errors  # that of this process, which the command line replaces by a line
    assert not list(tmp_path.iterdir())
