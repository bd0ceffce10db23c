"""A checkpoint loaded and used from Python."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fractatlas import load_model
from fractatlas.data.images import UnreadableError
from fractatlas.errors import InputError
from tests.data.test_images import dicom
from tests.inference.conftest import predict_into


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint)


def grey(file) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("L"))


def test_a_list_gives_the_predictions_of_the_run_in_its_order(model, finished_run, phantoms):
    expected = pd.read_csv(finished_run / "predictions.csv").iloc[::-1]
    paths = pd.read_csv(finished_run / "catalogue.csv").set_index("image_id")["path"][expected["image_id"]]
    found = model.predict([phantoms / path for path in paths], batch_size=7, heatmaps=False)
    for name in ("probability", "probability_calibrated"):
        assert [getattr(one, name) for one in found] == pytest.approx(expected[name].tolist(), abs=1e-6)
    threshold = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)["operating_point"][
        "threshold"
    ]
    assert [one.fractured for one in found] == [one.probability >= threshold for one in found]
    assert len({one.fractured for one in found}) == 2
    assert all(one.heatmap is None for one in found)
    assert model.predict([]) == []


def test_batches_give_exactly_the_table_of_predict(model, checkpoint, readable, tmp_path):
    folder = readable[0].parent
    table, _ = predict_into(tmp_path, f"ckpt={checkpoint}", f"input={folder}")
    found = model.predict(table["path"], batch_size=16)
    assert [one.probability for one in found] == table["probability"].tolist()
    assert [one.probability_calibrated for one in found] == table["probability_calibrated"].tolist()
    assert [one.fractured for one in found] == table["prediction"].astype(bool).tolist()


def test_path_pil_image_and_dicom_give_the_same_prediction(model, readable, tmp_path):
    pixels = grey(readable[0])
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    dicom(tmp_path / "image.dcm", pixels)
    expected = model.predict(image)
    for radiograph in (str(tmp_path / "image.png"), tmp_path / "image.dcm", image.convert("RGB")):
        found = model.predict(radiograph)
        assert found.probability == expected.probability
        assert (found.heatmap == expected.heatmap).all()


def test_a_pil_image_is_turned_upright(model, readable, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey(readable[0])).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        found = model.predict(turned)
        assert found.heatmap.shape == turned.size
    assert found.probability == model.predict(tmp_path / "turned.png").probability


def test_the_heatmap_covers_the_image_and_is_zero_outside_the_crop(model, readable):
    wide = Image.new("L", (400, 100))
    wide.paste(Image.open(readable[0]).resize((100, 100)), (150, 0))
    heatmap = model.predict(wide).heatmap
    assert heatmap.shape == (100, 400)
    assert heatmap.dtype == np.float32
    assert heatmap.min() >= 0
    assert not heatmap[:, :149].any()
    assert not heatmap[:, 251:].any()


@pytest.mark.parametrize("mode", ["I;16", "F", "RGBA"])
def test_pil_images_that_pillow_would_convert_with_losses_are_rejected(model, mode):
    with pytest.raises(InputError, match=f"mode {mode}: convert it to mode L, or give the path"):
        model.predict(Image.new(mode, (80, 80)))


@pytest.mark.parametrize("wrong", [3, None, np.zeros((8, 8)), torch.zeros(8, 8), b"image.jpg", [3], [np.zeros((8, 8))]])
def test_what_is_not_a_radiograph_is_refused_with_a_remedy(model, wrong):
    name = type(wrong[0] if isinstance(wrong, list) else wrong).__name__
    with pytest.raises(InputError, match=rf"predict got a {name}; give a path, a PIL image \(PIL.Image.fromarray"):
        model.predict(wrong)


def test_an_unreadable_file_is_named(model, readable, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(UnreadableError, match="text.jpg: not an image"):
        model.predict([readable[0], tmp_path / "text.jpg"])


def test_a_network_without_a_fracture_map_has_no_boxes(model, readable):
    assert model.predict(readable[0]).boxes is None


@pytest.mark.usefixtures("fracture_map")
def test_boxes_are_returned_with_and_without_heatmaps(model):
    pixels = np.zeros((400, 400), dtype=np.uint8)
    pixels[100:150, 250:300] = 255
    pixels[300:350, 50:100] = 180
    image = Image.fromarray(pixels)
    with_heat, without = model.predict(image), model.predict(image, heatmaps=False)
    np.testing.assert_allclose(with_heat.boxes[:, :4], [[250, 100, 300, 150], [50, 300, 100, 350]], atol=20)
    assert (with_heat.boxes == without.boxes).all()
    assert with_heat.boxes[0, 4] > with_heat.boxes[1, 4] >= model.box_threshold
    assert without.heatmap is None
    assert with_heat.heatmap.shape == (400, 400)
    assert with_heat.heatmap[125, 275] > 0.9
    empty = model.predict(Image.fromarray(np.zeros((400, 400), dtype=np.uint8))).boxes
    assert (empty.shape, empty.dtype) == ((0, 5), np.float64)


def test_without_an_operating_point_nothing_is_calibrated(checkpoint, readable, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["operating_point"]
    torch.save(content, tmp_path / "bare.ckpt")
    for found in load_model(tmp_path / "bare.ckpt").predict(readable[:9]):
        assert found.probability_calibrated == pytest.approx(found.probability, abs=1e-12)
        assert found.fractured == (found.probability >= 0.5)


def test_a_diverged_network_is_an_error(checkpoint, readable, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    weights = content["state_dict"]
    weights |= {name: torch.full_like(value, torch.nan) for name, value in weights.items() if "classifier" in name}
    torch.save(content, tmp_path / "nan.ckpt")
    with pytest.raises(InputError, match="nan.ckpt: its outputs are not finite"):
        load_model(tmp_path / "nan.ckpt").predict(readable[0])
