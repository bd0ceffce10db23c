"""``predict.py`` as a user types it, and its loop."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from fractatlas.cli import prepare
from fractatlas.config import EvaluateConfig, PredictConfig, check
from fractatlas.data.inputs import find_inputs
from fractatlas.data.reading import UnreadableError
from fractatlas.data.transforms import resize_and_crop
from fractatlas.prediction import predict, read_ahead, write_overlay
from fractatlas.training.run import train
from tests.conftest import REPOSITORY
from tests.data.test_reading import dicom, one_colour
from tests.test_commands import PLAIN, command, refused


@pytest.fixture(scope="module")
def finished(configuration, tmp_path_factory) -> Path:
    """The folder of a finished run, and in it the checkpoint."""
    run = tmp_path_factory.mktemp("run")
    train(configuration(run, "trainer.max_epochs=1", "optimizer.lr=0.01", "threshold=youden"))
    return run


@pytest.fixture(scope="module")
def checkpoint(finished) -> Path:
    return finished / "checkpoints" / "best.ckpt"


def predicted(run: Path, *overrides: str) -> tuple[pd.DataFrame, int]:
    """Predict without a command line."""
    here = (f"paths.root={run}", f"paths.output_dir={run}", "trainer=cpu", "batch_size=16", "threads=2")
    with initialize_config_dir(str(REPOSITORY / "conf"), job_name="test"):
        config = check(compose("predict", [*here, *prepare(overrides, PredictConfig)]), PredictConfig)
    failed = predict(config, find_inputs(config["input"]))
    return pd.read_csv(run / "predictions.csv"), failed


def test_probabilities_are_those_of_the_run(finished, checkpoint, phantoms, tmp_path):
    of_run = pd.read_csv(finished / "predictions.csv")
    paths = pd.read_csv(finished / "catalogue.csv").set_index("image_id")["path"]
    for name in paths[of_run["image_id"]]:
        (tmp_path / "in" / Path(name).name).parent.mkdir(exist_ok=True)
        shutil.copy(phantoms / name, tmp_path / "in")
    table, failed = predicted(tmp_path, f"ckpt={checkpoint}", f"input={tmp_path / 'in'}")
    assert failed == 0
    assert list(table) == ["path", "probability", "probability_calibrated", "prediction"]
    assert table["path"].tolist() == sorted(table["path"])
    of_run = of_run.set_index("image_id").loc[[Path(path).name for path in table["path"]]]
    for name in ("probability", "probability_calibrated"):
        assert np.abs(table[name].to_numpy() - of_run[name].to_numpy()).max() < 1e-6
    threshold = torch.load(checkpoint, weights_only=True)["operating_point"]["threshold"]
    assert (table["prediction"] == (table["probability"] >= threshold)).all()
    assert table["prediction"].nunique() == 2


def test_overlays_are_drawn_on_request_one_for_each_row(checkpoint, phantoms, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("Hüfte (links)#1.jpg", "b.jpg"):
        shutil.copy(next((phantoms / "images" / "Fractured").iterdir()), folder / name)
    table, _ = predicted(tmp_path, f"ckpt={checkpoint}", f"input={folder}", "heatmaps=true")
    drawn = sorted((tmp_path / "overlays").iterdir())
    assert [file.name for file in drawn] == ["00001_Hüfte_links_1.jpg", "00002_b.jpg"]
    assert len(table) == 2
    with Image.open(drawn[0]) as picture, Image.open(folder / "b.jpg") as original:
        assert picture.mode == "RGB"
        assert min(picture.size) == 512
        assert picture.width / picture.height == pytest.approx(original.width / original.height, abs=0.01)


@pytest.mark.parametrize(("probability", "coloured"), [(0.0, False), (0.9, True)])
def test_an_overlay_is_as_hot_as_a_fracture_is_probable(phantoms, tmp_path, probability, coloured):
    image, file = next((phantoms / "images" / "Fractured").iterdir()), tmp_path / "overlays" / "1.jpg"
    heat = np.zeros((2, 2), dtype=np.float32)
    heat[0, 0] = 3
    preprocess = resize_and_crop(resize=64, crop=64, mean=[0.5] * 3, std=[0.5] * 3)
    write_overlay(file, str(image), heat, preprocess, probability)
    with Image.open(file) as picture:
        assert (np.ptp(np.asarray(picture, dtype=int), axis=2).max() > 40) == coloured


def test_without_an_operating_point_the_threshold_is_one_half(checkpoint, phantoms, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["operating_point"]
    torch.save(content, tmp_path / "bare.ckpt")
    table, _ = predicted(tmp_path, f"ckpt={tmp_path}/bare.ckpt", f"input={phantoms}/images/Fractured")
    assert list(table) == ["path", "probability", "prediction"]
    assert (table["prediction"] == (table["probability"] >= 0.5)).all()


@pytest.mark.fault(
    "predict.py on a folder with broken, deep, inverted and enormous files",
    "the good predicted, the bad listed, status 2",
)
def test_a_folder_with_hostile_files_is_done_to_its_end(checkpoint, phantoms, catalogue, tmp_path):
    folder = tmp_path / "in ö"
    folder.mkdir()
    good = catalogue.loc[catalogue["excluded"] == "", "path"][:5]
    for path in good:
        shutil.copy(phantoms / path, folder)
    pixels = np.asarray(Image.open(phantoms / good.iloc[0]).convert("L"))
    Image.fromarray(pixels).convert("RGBA").save(folder / "rgba.png")
    deep = pixels.astype(np.uint16) * 16
    dicom(folder / "deep.dcm", deep, BitsStored=12)
    dicom(folder / "negative.dcm", deep.max() + deep.min() - deep, BitsStored=12,
          PhotometricInterpretation="MONOCHROME1")  # fmt: skip
    dicom(folder / "IM0001", pixels)
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.jpg").write_bytes((phantoms / good.iloc[0]).read_bytes()[:3000])
    (folder / "empty.png").touch()
    (folder / "list.csv").write_text("path\n")
    one_colour(folder / "enormous.png", 20_000)
    result = command("predict.py", f"ckpt={checkpoint}", "input=in ö", "trainer=cpu", folder=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    (run,) = (tmp_path / "logs" / "predict" / "runs").iterdir()
    table, errors = pd.read_csv(run / "predictions.csv"), pd.read_csv(run / "errors.csv")
    readable = [*(Path(path).name for path in good), "rgba.png", "deep.dcm", "negative.dcm", "IM0001"]
    assert table["path"].tolist() == sorted(f"in ö/{name}" for name in readable)
    assert dict(errors.to_numpy().tolist()) == {
        "in ö/cut.jpg": "truncated",
        "in ö/empty.png": "empty file",
        "in ö/enormous.png": "20000 x 20000 pixels is above the limit of 100,000,000 pixels",
        "in ö/text.jpg": "not an image",
    }
    assert "9 images" in result.stdout
    assert "4 could not be read" in result.stdout
    assert "passed over: 1 other files (1 .csv)" in result.stdout
    probability = table.set_index(table["path"].str.removeprefix("in ö/"))["probability"]
    assert probability["deep.dcm"] == pytest.approx(probability["negative.dcm"], abs=1e-6)
    assert probability["IM0001"] == pytest.approx(probability["rgba.png"], abs=1e-6)


@pytest.mark.fault("predict.py with a mistake in its arguments", "one line, nothing written")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "ckpt needs a value"),
        (["ckpt=x", "input="], "input needs a value"),
        (["ckpt=x", "input=nowhere"], "input=nowhere: no such file or folder"),
        (["ckpt=x", "input=.", "heatmap=true"], "unknown key 'heatmap'"),
        (["ckpt=nowhere.ckpt", "input={phantoms}"], "no file nowhere.ckpt"),
        (["ckpt={phantoms}/dataset.csv", "input={phantoms}"], "is not a PyTorch file"),
    ],
)
def test_a_mistake_is_answered_in_one_line(arguments, says, phantoms, tmp_path):
    arguments = [argument.format(phantoms=phantoms) for argument in arguments]
    assert says in refused(command("predict.py", *arguments, folder=tmp_path))
    assert not list(tmp_path.rglob("*.csv"))


def test_what_an_earlier_call_left_does_not_stay(checkpoint, phantoms, catalogue, tmp_path):
    good = catalogue.loc[catalogue["excluded"] == "", "path"].iloc[0]
    truncated = catalogue.loc[catalogue["excluded"] == "truncated", "path"].iloc[0]
    table, failed = predicted(tmp_path, f"ckpt={checkpoint}", f"input={phantoms / truncated}")
    assert (len(table), failed) == (0, 1)
    assert "path" in table
    assert pd.read_csv(tmp_path / "errors.csv").to_numpy().tolist() == [[str(phantoms / truncated), "truncated"]]
    table, failed = predicted(tmp_path, f"ckpt={checkpoint}", f"input={phantoms / good}")
    assert (len(table), failed) == (1, 0)
    assert not (tmp_path / "errors.csv").exists()


@pytest.mark.fault("hostile file names (quotes, newlines, not UTF-8, formulas)", "back out of the table as they are")
def test_any_name_comes_back_out_of_the_table(checkpoint, phantoms, catalogue, tmp_path):
    source = phantoms / catalogue.loc[catalogue["excluded"] == "", "path"].iloc[0]
    folder = tmp_path / "in"
    names = ["a\nb.jpg", "a\rb.jpg", 'a"b.jpg', "a,b;.jpg", "=1+1.jpg", " ö ( ~ ' # ${x} .jpg", "NA.jpg"]
    folder.mkdir()
    for name in names:
        shutil.copy(source, folder / name)
    shutil.copy(source, os.fsencode(folder) + b"/R\xf6ntgen.jpg")  # no UTF-8
    table, failed = predicted(tmp_path, f"ckpt={checkpoint}", f"input={folder}")
    assert failed == 0
    assert set(table["path"]) == {f"{folder}/{name}" for name in [*names, "R\\udcf6ntgen.jpg"]}


NAMES = ["Röntgen (alt)", "it's", 'a"b', "a=b", "a,b", "[1]", "{a}", "${x}", "\\${x}", "a#b", "x ", "**/*.jpg", "1",
         "null", "true", "glob(*)", "a:b", "-1", "a\\", "'a','b'", "a\nb\\\n"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_was_typed(name):
    once = prepare([f"input={name}"], PredictConfig)
    assert prepare(once, PredictConfig) == once  # Lightning starts a second process with what the first made of it
    config = OmegaConf.create({"input": OverridesParser.create().parse_override(once[0]).value()})
    assert OmegaConf.to_container(config, resolve=True) == {"input": name}


def test_a_home_folder_is_expanded_and_quotes_for_hydra_stay(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert prepare(["input=~/x", "ckpt='a=b'"], PredictConfig) == ["input='/home/me/x'", "ckpt='a=b'"]
    assert prepare(["ckpt=~/a=b"], EvaluateConfig) == ["ckpt='/home/me/a=b'"]
    assert prepare(["-m", "ckpt=a,b"], EvaluateConfig) == ["-m", "ckpt=a,b"]


def test_reading_is_never_far_ahead_of_the_network(monkeypatch):
    read = []
    monkeypatch.setattr("fractatlas.prediction.read_radiograph", lambda path: read.append(path) or path)
    images = read_ahead((str(number) for number in range(1000)), lambda path: path, threads=4, ahead=8)
    assert [next(images)[0] for _ in range(10)] == [str(number) for number in range(10)]
    time.sleep(0.1)
    assert len(read) <= 10 + 8
    images.close()
    assert len(read) <= 10 + 8


def test_an_unreadable_image_takes_its_place_in_the_order(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "b.png")
    found = list(read_ahead([str(tmp_path / name) for name in "ab"] + [f"{tmp_path}/b.png"], lambda image: 1, 2, 2))
    assert [isinstance(image, UnreadableError) for _, image in found] == [True, True, False]


@pytest.mark.fault("Ctrl-C while predicting", "no half table")
def test_ctrl_c_leaves_no_table(checkpoint, phantoms, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(phantoms / "images", folder)
    for number in range(40):
        shutil.copytree(phantoms / "images", folder / str(number))
    line = [sys.executable, str(REPOSITORY / "predict.py"), f"ckpt={checkpoint}", "input=in", "trainer=cpu"]
    with subprocess.Popen(line, cwd=tmp_path, env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:  # fmt: skip
        assert any("images to read" in line for line in process.stdout)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert re.fullmatch(r"interrupted: .*\n", said[1]), said
    assert not list(tmp_path.glob("logs/predict/runs/*/*.csv"))
