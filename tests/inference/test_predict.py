"""``fractatlas predict``: tables, overlays, errors and interruptions."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from fractatlas.cli.main import main
from fractatlas.config.overrides import prepare
from fractatlas.config.schema import EvaluateConfig, PredictConfig
from fractatlas.data.image_limits import TRUNCATED, UnreadableError
from fractatlas.data.transforms import resize_and_crop
from fractatlas.errors import InputError
from fractatlas.inference.predict import draw_overlay, read_ahead, write_overlay
from tests.conftest import REPOSITORY
from tests.data.test_images import dicom, one_colour, saved
from tests.inference.conftest import predict_into


def test_the_table_lists_the_predictions_of_the_run_by_path(finished_run, checkpoint, phantoms, tmp_path):
    of_run = pd.read_csv(finished_run / "predictions.csv")
    paths = pd.read_csv(finished_run / "catalogue.csv").set_index("image_id")["path"]
    for name in paths[of_run["image_id"]]:
        (tmp_path / "in" / Path(name).name).parent.mkdir(exist_ok=True)
        shutil.copy(phantoms / name, tmp_path / "in")
    table, unreadable = predict_into(tmp_path, f"ckpt={checkpoint}", f"input={tmp_path / 'in'}")
    assert unreadable == 0
    assert list(table) == ["path", "probability", "probability_calibrated", "prediction", "modality"]
    assert table["path"].tolist() == sorted(table["path"])
    of_run = of_run.set_index("image_id").loc[[Path(path).name for path in table["path"]]]
    for name in ("probability", "probability_calibrated"):
        assert np.abs(table[name].to_numpy() - of_run[name].to_numpy()).max() < 1e-6
    threshold = torch.load(checkpoint, weights_only=True)["operating_point"]["threshold"]
    assert (table["prediction"] == (table["probability"] >= threshold)).all()
    assert table["prediction"].nunique() == 2


def test_a_run_folder_stands_for_its_best_checkpoint(finished_run, checkpoint, readable, tmp_path):
    one, other = (predict_into(tmp_path / name, f"ckpt={given}", f"input={readable[0]}")[0]
                  for name, given in (("run", finished_run), ("file", checkpoint)))  # fmt: skip
    assert one.equals(other)


def test_one_image_is_reported_with_its_probability_and_removed_overlays_are_counted(
    checkpoint, readable, tmp_path, caplog
):
    caplog.set_level("INFO")
    predict_into(tmp_path, f"ckpt={checkpoint}", f"input={readable[0]}", "heatmaps=true")
    table, _ = predict_into(tmp_path, f"ckpt={checkpoint}", f"input={readable[0]}")
    decision = "fractured" if table["prediction"].item() else "not fractured"
    assert f"{readable[0]}: probability {table['probability'].item():.4f}, {decision}" in caplog.messages
    assert "1 image to read" in caplog.messages
    assert any(text.startswith("1 image, ") and text.endswith(f"results in {tmp_path}") for text in caplog.messages)
    assert f"removed 1 overlay of an earlier prediction from {tmp_path / 'overlays'}" in caplog.messages
    assert not list((tmp_path / "overlays").iterdir())


def test_one_overlay_is_drawn_for_each_row(checkpoint, phantoms, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("Hüfte (links)#1.jpg", "b.jpg"):
        shutil.copy(next((phantoms / "images" / "Fractured").iterdir()), folder / name)
    table, _ = predict_into(tmp_path, f"ckpt={checkpoint}", f"input={folder}", "heatmaps=true")
    drawn = sorted((tmp_path / "overlays").iterdir())
    assert [file.name for file in drawn] == ["00001_Hüfte_links_1.jpg", "00002_b.jpg"]
    assert len(table) == 2
    with Image.open(drawn[0]) as picture, Image.open(folder / "b.jpg") as original:
        assert picture.mode == "RGB"
        width, height = (round(side * 512 / min(original.size)) for side in original.size)
        assert picture.width == width
        strip = np.asarray(picture)[height:]  # with the probability and the colour key
        assert 20 < len(strip) < 120
        assert strip.max() > 200


@pytest.mark.parametrize(("probability", "coloured"), [(0.0, False), (0.9, True)])
def test_the_drawn_heat_is_proportional_to_the_probability(phantoms, tmp_path, probability, coloured):
    image, file = next((phantoms / "images" / "Fractured").iterdir()), tmp_path / "overlays" / "1.jpg"
    heat = np.zeros((2, 2), dtype=np.float32)
    heat[0, 0] = 3
    preprocess = resize_and_crop(resize=64, crop=64, mean=[0.5] * 3, std=[0.5] * 3)
    write_overlay(file, draw_overlay(str(image), heat, preprocess, probability))
    with Image.open(file) as picture:
        assert (np.ptp(np.asarray(picture, dtype=int), axis=2).max() > 40) == coloured


@pytest.mark.parametrize(("box_threshold", "coloured"), [(0.5, False), (0.05, True)])
def test_a_fracture_map_is_drawn_in_proportion_to_the_box_threshold(phantoms, tmp_path, box_threshold, coloured):
    image, file = next((phantoms / "images" / "Fractured").iterdir()), tmp_path / "overlays" / "1.jpg"
    heat = np.array([[0.1, 0.0], [0.0, 0.0]], dtype=np.float32)
    preprocess = resize_and_crop(resize=64, crop=64, mean=[0.5] * 3, std=[0.5] * 3)
    write_overlay(file, draw_overlay(str(image), heat, preprocess, 0.9, np.zeros((0, 5)), box_threshold))
    with Image.open(file) as picture:
        radiograph = np.asarray(picture, dtype=int)[:512]
    assert (np.ptp(radiograph, axis=2).max() > 40) == coloured


@pytest.fixture
def squares(tmp_path) -> Path:
    """Three dark images of 400 x 600 pixels: with a bright square, with two that EXIF turns, and with none."""
    folder = tmp_path / "squares"
    folder.mkdir()
    pixels = np.zeros((400, 600), dtype=np.uint8)
    pixels[0, 0] = 1  # an image of one grey level is refused
    Image.fromarray(pixels).save(folder / "c.png")
    pixels[200:250, 300:350] = 255
    Image.fromarray(pixels).save(folder / "a.png")
    pixels[100:150, 150:200] = 153
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(pixels).save(folder / "b.png", exif=exif)
    return folder


@pytest.mark.usefixtures("fracture_map")
def test_the_boxes_of_a_fracture_map_are_in_pixels_of_the_upright_image(checkpoint, squares, tmp_path, caplog):
    caplog.set_level("INFO")
    predict_into(tmp_path, f"ckpt={checkpoint}", f"input={squares}", "box_threshold=0.4", "heatmaps=true")
    boxes = pd.read_csv(tmp_path / "boxes.csv")
    assert list(boxes) == ["path", "left", "top", "right", "bottom", "score"]
    assert [Path(path).name for path in boxes["path"]] == ["a.png", "b.png", "b.png"]
    expected = [[300, 200, 350, 250, 1], [250, 150, 300, 200, 1], [400, 250, 450, 300, 0.6]]
    np.testing.assert_allclose(boxes.iloc[:, 1:].to_numpy()[:, :4], np.array(expected)[:, :4], atol=20)
    np.testing.assert_allclose(boxes["score"], [1, 1, 0.6], atol=0.1)
    assert "3 boxes in 2 images (boxes.csv)" in caplog.messages
    for name, count in (("00001_a.jpg", 1), ("00003_c.jpg", 0)):
        with Image.open(tmp_path / "overlays" / name) as picture:
            radiograph = np.asarray(picture, dtype=int)[:512]
        magenta = (radiograph[..., 0] > 180) & (radiograph[..., 1] < 140) & (radiograph[..., 2] > 180)
        assert (magenta.sum() > 100) == bool(count)


@pytest.mark.usefixtures("fracture_map")
def test_the_threshold_of_boxes_is_the_checkpoints_unless_it_is_given(checkpoint, squares, tmp_path, caplog):
    content = torch.load(checkpoint, weights_only=True)
    content["operating_point"]["box_threshold"] = 0.8
    torch.save(content, tmp_path / "with.ckpt")
    content["operating_point"]["box_threshold"] = 0.99999
    torch.save(content, tmp_path / "high.ckpt")
    del content["operating_point"]["box_threshold"]
    torch.save(content, tmp_path / "without.ckpt")
    image = f"input={squares}/b.png"
    for number, (name, *overrides) in enumerate(
        (("with",), ("with", "box_threshold=0.3"), ("without",), ("high", f"input={squares}/c.png"))
    ):
        caplog.clear()
        predict_into(tmp_path, f"ckpt={tmp_path}/{name}.ckpt", image, *overrides)
        assert len(pd.read_csv(tmp_path / "boxes.csv")) == (1, 2, 2, 0)[number]
        warned = f"{tmp_path}/without.ckpt stores no box_threshold, so 0.5 is used"
        assert (warned in caplog.messages) == (name == "without")


def test_boxes_of_an_earlier_call_are_deleted_and_networks_without_a_map_write_none(checkpoint, readable, tmp_path):
    (tmp_path / "boxes.csv").write_text("path")
    predict_into(tmp_path, f"ckpt={checkpoint}", f"input={readable[0]}")
    assert not (tmp_path / "boxes.csv").exists()
    with pytest.raises(InputError, match=r"box_threshold=0.5: the network has no fracture map"):
        predict_into(tmp_path, f"ckpt={checkpoint}", f"input={readable[0]}", "box_threshold=0.5")


@pytest.mark.usefixtures("fracture_map")
def test_grad_cam_of_a_network_with_a_map_is_drawn_on_request_without_boxes(checkpoint, squares, tmp_path, monkeypatch):
    drawn = {}

    def record(path, heat, preprocess, probability, boxes, box_threshold):
        drawn[Path(path).name] = (heat, boxes)
        return draw_overlay(path, heat, preprocess, probability, boxes, box_threshold)

    monkeypatch.setattr("fractatlas.inference.predict.draw_overlay", record)
    predict_into(tmp_path, f"ckpt={checkpoint}", f"input={squares}", "heatmaps=true", "gradcam=true")
    assert not (tmp_path / "boxes.csv").exists()
    shapes = {name: (heat.shape, boxes) for name, (heat, boxes) in drawn.items()}
    assert shapes == dict.fromkeys(("a.png", "b.png", "c.png"), ((16, 16), None))
    predict_into(tmp_path, f"ckpt={checkpoint}", f"input={squares}/a.png", "heatmaps=true", "box_threshold=0.5")
    assert drawn["a.png"][0].shape == (8, 8)
    assert len(drawn["a.png"][1]) == 1


def test_without_an_operating_point_the_threshold_is_0_5(checkpoint, phantoms, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["operating_point"]
    torch.save(content, tmp_path / "bare.ckpt")
    table, _ = predict_into(tmp_path, f"ckpt={tmp_path}/bare.ckpt", f"input={phantoms}/images/Fractured")
    assert list(table) == ["path", "probability", "prediction", "modality"]
    assert (table["prediction"] == (table["probability"] >= 0.5)).all()


@pytest.mark.fault(
    "predict.py on a folder with broken, 16-bit, inverted and very large files",
    "readable files predicted, the others listed",
)
def test_readable_files_of_a_folder_are_predicted_and_unreadable_ones_listed(
    checkpoint, readable, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    folder = tmp_path / "in ö"
    folder.mkdir()
    for path in readable[:5]:
        shutil.copy(path, folder)
    pixels = np.asarray(Image.open(readable[0]).convert("L"))
    Image.fromarray(pixels).convert("RGBA").save(folder / "rgba.png")
    stored = pixels.astype(np.uint16) * 16
    dicom(folder / "16bit.dcm", stored, BitsStored=12)
    dicom(folder / "negative.dcm", stored.max() + stored.min() - stored, BitsStored=12,
          PhotometricInterpretation="MONOCHROME1")  # fmt: skip
    dicom(folder / "IM0001", pixels)
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.jpg").write_bytes(readable[0].read_bytes()[:3000])
    (folder / "empty.png").touch()
    (folder / "list.csv").write_text("path\n")
    one_colour(folder / "large.png", 11_000)
    table, unreadable = predict_into(tmp_path / "run", f"ckpt={checkpoint}", "input=in ö")
    assert unreadable == 4
    errors = pd.read_csv(tmp_path / "run" / "errors.csv")
    names = [*(path.name for path in readable[:5]), "rgba.png", "16bit.dcm", "negative.dcm", "IM0001"]
    assert table["path"].tolist() == sorted(f"in ö/{name}" for name in names)
    assert dict(errors.to_numpy().tolist()) == {
        "in ö/cut.jpg": TRUNCATED,
        "in ö/empty.png": "empty file",
        "in ö/large.png": "11000 x 11000 pixels is above the limit of 100,000,000 pixels",
        "in ö/text.jpg": "not an image",
    }
    assert "skipped 1 other file (1 .csv)" in caplog.text
    assert "9 images, " in caplog.text
    assert "4 could not be read" in caplog.text
    probability = table.set_index(table["path"].str.removeprefix("in ö/"))["probability"]
    assert probability["16bit.dcm"] == pytest.approx(probability["negative.dcm"], abs=1e-6)
    assert probability["IM0001"] == pytest.approx(probability["rgba.png"], abs=1e-6)


def test_dicom_images_that_are_not_radiographs_are_counted_in_one_warning(checkpoint, readable, tmp_path, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.asarray(Image.open(readable[0]).convert("L"))
    for name, modality in (("a", "DX"), ("b", "CT"), ("c", "CT"), ("d", "US")):
        dicom(folder / f"{name}.dcm", pixels, Modality=modality)
    dicom(folder / "e.dcm", pixels, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT")
    shutil.copy(readable[0], folder / "f.jpg")
    table, _ = predict_into(tmp_path / "run", f"ckpt={checkpoint}", f"input={folder}")
    assert table["modality"].fillna("").tolist() == ["DX", "CT", "CT", "US", "SC", ""]
    (warning,) = [text for text in caplog.messages if "modality" in text]
    assert warning.startswith(
        "4 DICOM images have a modality other than those of bone radiographs (CR, DX, RG, RF, XA): 2 CT, 1 US, 1 SC;"
    )
    caplog.clear()
    predict_into(tmp_path / "run", f"ckpt={checkpoint}", f"input={folder}/[af].*")
    assert not [text for text in caplog.messages if "modality" in text]


def test_images_of_an_archive_are_predicted_and_drawn(checkpoint, readable, tmp_path):
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(readable[0], "x/a.jpg")
        file.writestr("x/b.png", b"text")
        file.writestr("black.png", saved(Image.new("L", (9, 9)), "PNG"))
    table, unreadable = predict_into(tmp_path, f"ckpt={checkpoint}", f"input={archive}", "heatmaps=true")
    single, _ = predict_into(tmp_path / "single", f"ckpt={checkpoint}", f"input={readable[0]}")
    assert table["path"].tolist() == [f"{archive}/x/a.jpg"]
    assert table["probability"].item() == pytest.approx(single["probability"].item(), abs=1e-9)
    assert unreadable == 2
    assert dict(pd.read_csv(tmp_path / "errors.csv").to_numpy().tolist()) == {
        f"{archive}/black.png": "every pixel has the same value, so it shows nothing",
        f"{archive}/x/b.png": "not an image",
    }
    assert [file.name for file in (tmp_path / "overlays").iterdir()] == ["00001_a.jpg"]


def predict_command(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    """Run ``fractatlas predict`` in ``folder`` and in this process."""
    for name in ("FRACATLAS_VERB", "HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(sys, "argv", ["fractatlas", "predict", *arguments])
    monkeypatch.chdir(folder)
    main()


def test_unreadable_files_give_exit_status_2(checkpoint, readable, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    shutil.copy(readable[0], tmp_path / "in")
    (tmp_path / "in" / "text.jpg").write_text("no image")
    with pytest.raises(SystemExit) as end:
        predict_command(monkeypatch, tmp_path, f"ckpt={checkpoint}", "input=in", "trainer=cpu")
    assert end.value.code == 2
    (run,) = (tmp_path / "logs" / "predict" / "runs").iterdir()
    assert len(pd.read_csv(run / "predictions.csv")) == len(pd.read_csv(run / "errors.csv")) == 1


@pytest.mark.fault("predict with a wrong argument", "one line, nothing written")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ckpt needs a value"),
        (["ckpt=x", "input="], "input needs a value"),
        (["ckpt=x", "input=nowhere"], "input=nowhere: no file or folder matches"),
        (["ckpt=x", "input=.", "heatmap=true"], "unknown key 'heatmap'"),
        (["ckpt=x", "input=.", "gradcam=true", "box_threshold=0.5"], "box_threshold=0.5: no effect with gradcam=true"),
        (["ckpt=x", "input=.", "box_threshold=1.5"], "box_threshold=1.5"),
    ],
)
def test_a_wrong_argument_is_reported_in_one_line(arguments, message, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as end:
        predict_command(monkeypatch, tmp_path, *arguments)
    assert "\n" not in str(end.value)
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize(
    ("file", "message"), [("nowhere.ckpt", "nowhere.ckpt: no such file"), ("dataset.csv", "is not a PyTorch file")]
)
def test_a_file_that_is_not_a_checkpoint_is_reported_before_anything_is_written(phantoms, tmp_path, file, message):
    checkpoint = phantoms / file if file == "dataset.csv" else file
    with pytest.raises(InputError, match=message):
        predict_into(tmp_path, f"ckpt={checkpoint}", f"input={phantoms}")
    assert not list(tmp_path.rglob("*.csv"))


def test_the_files_of_an_earlier_call_are_deleted(checkpoint, phantoms, catalogue, readable, tmp_path):
    truncated = catalogue.loc[catalogue["excluded"] == "truncated", "path"].iloc[0]
    table, unreadable = predict_into(tmp_path, f"ckpt={checkpoint}", f"input={phantoms / truncated}")
    assert (len(table), unreadable) == (0, 1)
    assert "path" in table
    assert pd.read_csv(tmp_path / "errors.csv").to_numpy().tolist() == [[str(phantoms / truncated), TRUNCATED]]
    table, unreadable = predict_into(tmp_path, f"ckpt={checkpoint}", f"input={readable[0]}")
    assert (len(table), unreadable) == (1, 0)
    assert not (tmp_path / "errors.csv").exists()


@pytest.mark.fault("hostile file names (quotes, newlines, not UTF-8, formulas)", "the table contains them unchanged")
def test_any_file_name_is_written_unchanged(checkpoint, readable, tmp_path):
    folder = tmp_path / "in"
    names = ["a\nb.jpg", "a\rb.jpg", 'a"b.jpg', "a,b;.jpg", "=1+1.jpg", " ö ( ~ ' # ${x} .jpg", "NA.jpg"]
    folder.mkdir()
    for name in names:
        shutil.copy(readable[0], folder / name)
    shutil.copy(readable[0], os.fsencode(folder) + b"/R\xf6ntgen.jpg")  # not UTF-8
    table, unreadable = predict_into(tmp_path, f"ckpt={checkpoint}", f"input={folder}")
    assert unreadable == 0
    assert set(table["path"]) == {f"{folder}/{name}" for name in [*names, "R\\udcf6ntgen.jpg"]}


NAMES = ["Röntgen (alt)", "it's", 'a"b', "a=b", "a,b", "[1]", "{a}", "${x}", "\\${x}", "a#b", "x ", "**/*.jpg", "1",
         "null", "true", "glob(*)", "a:b", "-1", "a\\", "'a','b'", "a\nb\\\n"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_literally(name):
    once = prepare([f"input={name}"], PredictConfig)
    assert prepare(once, PredictConfig) == once  # Lightning starts a second process with the output of prepare
    config = OmegaConf.create({"input": OverridesParser.create().parse_override(once[0]).value()})
    assert OmegaConf.to_container(config, resolve=True) == {"input": name}


def test_a_home_folder_is_expanded_and_quotes_for_hydra_are_kept(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert prepare(["input=~/x", "ckpt='a=b'"], PredictConfig) == ["input='/home/me/x'", "ckpt='a=b'"]
    assert prepare(["ckpt=~/a=b"], EvaluateConfig) == ["ckpt='/home/me/a=b'"]
    assert prepare(["-m", "ckpt=a,b"], EvaluateConfig) == ["-m", "ckpt=a,b"]


def test_images_are_read_at_most_the_given_number_ahead(monkeypatch):
    read = []
    monkeypatch.setattr("fractatlas.inference.predict.read_input", lambda path: read.append(path) or path)
    images = read_ahead((str(number) for number in range(1000)), lambda path: path, threads=4, ahead=8)
    assert [next(images)[0] for _ in range(10)] == [str(number) for number in range(10)]
    time.sleep(0.1)
    assert len(read) <= 10 + 8
    images.close()
    assert len(read) <= 10 + 8


def test_unreadable_images_keep_their_place_in_the_order(tmp_path):
    Image.linear_gradient("L").save(tmp_path / "b.png")
    found = list(read_ahead([str(tmp_path / name) for name in "ab"] + [f"{tmp_path}/b.png"], lambda image: 1, 2, 2))
    assert [isinstance(image, UnreadableError) for _, image in found] == [True, True, False]


@pytest.mark.integration
@pytest.mark.fault("Ctrl-C while predicting", "no partial table")
def test_ctrl_c_leaves_no_table(checkpoint, phantoms, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(phantoms / "images", folder)
    for number in range(40):
        shutil.copytree(phantoms / "images", folder / str(number))
    line = [sys.executable, str(REPOSITORY / "predict.py"), f"ckpt={checkpoint}", "input=in", "trainer=cpu"]
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:  # fmt: skip
        assert any("images to read" in line for line in process.stdout)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)
        output = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert re.fullmatch(r"interrupted.*\n", output[1]), output
    assert not list(tmp_path.glob("logs/predict/runs/*/*.csv"))
