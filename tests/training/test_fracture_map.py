"""A fracture map that is trained on phantoms shows where their fractures are."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from fractatlas import load_model
from fractatlas.data.images import decode
from fractatlas.data.sources import phantom
from fractatlas.data.sources.fracatlas import FracAtlas
from fractatlas.evaluation.localisation import place
from fractatlas.training.fit import train

pytestmark = pytest.mark.integration
SIDE = 128


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    phantom.generate(folder, images=800, seed=1)
    return folder


@pytest.fixture(scope="module")
def run(configuration, root, tmp_path_factory) -> Path:
    """The run of ``experiment=demo_densenet_map`` on half of its images."""
    folder = tmp_path_factory.mktemp("run")
    train(configuration(
        folder, "experiment=demo_densenet_map", f"data.root={root}", f"preprocess.resize={SIDE}",
        f"preprocess.crop={SIDE}", "trainer.max_epochs=8", "report=true",
    ))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def found(run, root) -> pd.DataFrame:
    """The fractured test images whose box with the highest score is on the fracture, and this box."""
    model, boxes = load_model(run), FracAtlas(root).boxes()
    split = pd.read_csv(run / "split.csv").merge(
        pd.read_csv(run / "catalogue.csv")[["image_id", "path"]], on="image_id"
    )
    rows = []
    for row in split[(split["split"] == "test") & (split["label"] == 1)].itertuples():
        image = decode((root / row.path).read_bytes())
        best = model.predict(image).boxes[:1]
        if len(best) and overlap(best[0], boxes[row.image_id][0]) > 0:
            rows.append({"image": image, "box": best[0], "truth": boxes[row.image_id][0]})
    assert len(rows) > 20
    return pd.DataFrame(rows)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:4], other[2:4]) - np.maximum(one[:2], other[:2])
    return float(np.prod(sides.clip(0)))


def test_the_maximum_of_the_map_is_in_a_box(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["heatmaps"] == "fracture map"
    assert metrics["localisation"]["test"]["all"]["hit"]["value"] > 0.6
    assert metrics["detection"]["test"]["froc"]["1"]["value"] > 0.6
    assert metrics["test"]["auroc"]["value"] > 0.8


def test_the_mirror_image_has_its_box_at_the_mirrored_place(run, found):
    model = load_model(run)
    near = []
    for row in found.itertuples():
        mirrored = model.predict(ImageOps.mirror(row.image)).boxes[:1]
        if len(mirrored):
            left, top, right, bottom = mirrored[0][:4]
            width = row.image.width
            near.append(overlap(np.array([width - right, top, width - left, bottom]), row.box) > 0)
    assert np.mean(near) > 0.8


def test_boxes_are_in_pixels_of_the_upright_image(run, found, tmp_path):
    model = load_model(run)
    for row in found.head(5).itertuples():
        turned, file = row.image.transpose(Image.Transpose.ROTATE_90), tmp_path / "turned.png"
        exif = Image.Exif()
        exif[0x0112] = 6  # the viewer turns the stored image by 90 degrees clockwise
        turned.save(file, exif=exif)
        np.testing.assert_allclose(model.predict(file).boxes, model.predict(row.image).boxes)


def test_heatmaps_of_the_report_are_those_of_the_loaded_model(run, root):
    model = load_model(run)
    with np.load(run / "heatmaps.npz") as file:
        rows = list(zip(file["image_id"].tolist(), file["heat"], file["view"], strict=True))
    paths = pd.read_csv(run / "catalogue.csv").set_index("image_id")["path"]
    for name, heat, view in rows[:16]:
        predicted = model.predict(root / paths[name]).heatmap
        np.testing.assert_allclose(predicted, place(heat, view, *predicted.shape[::-1]), atol=1e-3)


def test_onnx_gives_the_map(run, tmp_path):
    pytest.importorskip("onnxscript")
    from fractatlas.inference.onnx import export_onnx

    assert export_onnx(run / "checkpoints" / "best.ckpt", tmp_path / "model.onnx") < 1e-4  # the map is compared, too


@pytest.mark.parametrize("loss", ["focal", "dice"])
def test_each_loss_finds_fractures(configuration, root, tmp_path, loss):
    train(configuration(
        tmp_path, "experiment=demo_densenet_map", f"data.root={root}", "trainer.max_epochs=5", f"map.loss={loss}",
        "map.pooling=logsumexp", f"preprocess.resize={SIDE}", f"preprocess.crop={SIDE}", "monitor=val/hit",
        "test=false",
    ))  # fmt: skip
    history = json.loads((tmp_path / "metrics.json").read_text())["history"]
    assert max(row["val/hit"] for row in history) > 0.3
