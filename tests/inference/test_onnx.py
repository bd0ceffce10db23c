"""``fractatlas export`` and the ONNX file that it writes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fractatlas
from fractatlas import load_model
from fractatlas.build import build, build_classifier
from fractatlas.cli import export as export_command
from fractatlas.data.images import decode
from fractatlas.errors import InputError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from fractatlas.inference.onnx import IMAGES, export_onnx  # noqa: E402


def export(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run ``fractatlas export`` in this process."""
    monkeypatch.setattr(sys, "argv", ["fractatlas export", *map(str, arguments)])
    export_command.export()


@pytest.fixture(
    scope="module",
    params=["densenet", *(pytest.param(name, marks=pytest.mark.integration) for name in ("resnet", "map"))],
)
def checkpoint(request, configuration, catalogue, readable, tmp_path_factory) -> Path:
    """The checkpoint of an untrained network, in a run folder."""
    run = tmp_path_factory.mktemp("run") / "Lauf (1)=ö"
    family = "densenet" if request.param == "map" else request.param
    with_map = ["map=fpn", "map.channels=8"] if request.param == "map" else []
    config = configuration(run.parent, f"model={family}", f"model.variant={family}_tiny", *with_map)
    torch.manual_seed(0)
    classifier = build_classifier(config).eval()
    with torch.no_grad():  # an untrained network returns nearly the same logit for every image: spread them
        head = classifier.backbone.network.get_submodule(classifier.backbone.head_name)[1]
        logits = classifier(network_inputs(build(config["preprocess"]), readable[:100]))
        head.bias.copy_((head.bias - logits.mean()) / logits.std())
        head.weight.div_(logits.std())
    content = {"state_dict": classifier.state_dict(), "config": config, "epoch": 0}
    content["operating_point"] = {"threshold": 0.25, "temperature": 1.5, "rule": "youden"}
    (run / "checkpoints").mkdir(parents=True)
    torch.save(content, run / "checkpoints" / "best.ckpt")
    catalogue.to_csv(run / "catalogue.csv", index=False)
    return run / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def exported(checkpoint) -> tuple[Path, list[bytes]]:
    """The ONNX file, and the image files that were read for the comparison."""
    decoded: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fractatlas.inference.onnx.read_content", lambda content: decoded.append(content) or decode(content)
        )
        export(patch, f"ckpt={checkpoint}")
    return checkpoint.with_suffix(".onnx"), decoded


def network_inputs(preprocess, files: list[Path]) -> torch.Tensor:
    return preprocess.normalise(torch.stack([preprocess(decode(file.read_bytes())) for file in files]))


def test_onnx_runtime_gives_the_probabilities_of_the_checkpoint_on_100_images(checkpoint, exported, readable):
    model = load_model(checkpoint)
    images = network_inputs(model.preprocess, readable[:100])
    with torch.no_grad():
        expected = model.classifier(images)
    assert expected.sigmoid().std() > 0.1
    session = onnxruntime.InferenceSession(exported[0])
    for size in (1, 7, 100):
        for rows in torch.arange(100).split(size):
            logit, probability = session.run(["logit", "probability"], {"image": images[rows].numpy()})
            np.testing.assert_allclose(logit, expected[rows].numpy(), atol=1e-3)
            np.testing.assert_allclose(probability, expected[rows].sigmoid().numpy(), atol=1e-4)
    if model.backbone.map is not None:
        with torch.no_grad():
            cells = model.backbone.with_map(images[:8])[1].sigmoid().numpy()
        np.testing.assert_allclose(session.run(["map"], {"image": images[:8].numpy()})[0], cells, atol=1e-4)


def test_the_command_prints_one_line(checkpoint, tmp_path, monkeypatch, capfd):
    output = tmp_path / "new" / "model.onnx"

    def write(_: Path, file: Path, trusted_targets: list[str]) -> float:
        file.parent.mkdir()
        file.write_bytes(bytes(500_000))
        return 1e-7

    monkeypatch.setattr("fractatlas.inference.onnx.export_onnx", write)
    export(monkeypatch, f"ckpt={checkpoint}", f"output={output}")
    line = f"{output} (0.5 MB): probabilities differ from the checkpoint's by at most 1.0e-07\n"
    assert capfd.readouterr() == (line, "")


def test_a_run_folder_stands_for_its_best_checkpoint(checkpoint, monkeypatch):
    exported = []

    def record(source: Path, output: Path, trusted_targets: list[str]) -> float:
        exported.append((source, output))
        output.touch()
        return 0.0

    monkeypatch.setattr("fractatlas.inference.onnx.export_onnx", record)
    export(monkeypatch, f"ckpt={checkpoint.parents[1]}", f"output={checkpoint.parents[1] / 'other.onnx'}")
    assert exported == [(checkpoint, checkpoint.parents[1] / "other.onnx")]


def test_the_one_file_contains_weights_and_metadata(checkpoint, exported):
    file, _ = exported
    config = load_model(checkpoint).config
    assert sorted(beside.name for beside in file.parent.iterdir()) == ["best.ckpt", "best.onnx"]
    content = onnx.load(file, load_external_data=False)
    onnx.checker.check_model(content)
    metadata = {entry.key: entry.value for entry in content.metadata_props}
    normalisation = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    geometry = {"geometry": "resize_and_crop", "resize": 64, "crop": 64}
    assert json.loads(metadata.pop("preprocess")) == geometry | normalisation
    assert metadata == {"model": config["model"]["variant"], "version": fractatlas.__version__,
                        "threshold": "0.25", "temperature": "1.5", "rule": "youden"}  # fmt: skip
    (image,) = content.graph.input
    assert image.name == "image"
    assert [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim][1:] == [3, 64, 64]
    assert not image.type.tensor_type.shape.dim[0].dim_value


def test_images_of_the_run_are_compared(exported, readable):
    _, decoded = exported
    assert decoded == [file.read_bytes() for file in readable[:IMAGES]]


def test_a_network_without_finite_outputs_is_not_exported(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    weights = content["state_dict"]
    weights |= {name: torch.full_like(value, torch.nan) for name, value in weights.items() if name.endswith("1.bias")}
    torch.save(content, tmp_path / "nan.ckpt")
    with pytest.raises(InputError, match="differ by nan, more than 1e-04"):
        export_onnx(tmp_path / "nan.ckpt", tmp_path / "out" / "model.onnx")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.fault("export with a wrong argument", "one line, nothing written")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ckpt needs a value"),
        (["ckpt="], "ckpt=: should be key=value"),
        (["best.ckpt"], "best.ckpt: should be key=value; the keys are ckpt, output"),
        (["ckpt=FILE", "outptu=a.onnx"], "unknown key 'outptu'; did you mean 'output'?"),
        (["ckpt=nowhere.ckpt"], "ckpt=nowhere.ckpt: no such file"),
        (["ckpt=FOLDER"], "has no checkpoints/best.ckpt; give the run folder of a training"),
        (["ckpt=FILE", "output=FOLDER"], "is a folder; give a file in it"),
        (["ckpt=FILE", "output=FILE/a.onnx"], "cannot write to .*some.ckpt; choose another file"),
        (["ckpt=FILE"], "is not a PyTorch file"),
    ],
)
def test_a_wrong_argument_is_reported_in_one_line(arguments, message, tmp_path, monkeypatch):
    (tmp_path / "some.ckpt").write_bytes(b"junk")
    arguments = [
        text.replace("FILE", str(tmp_path / "some.ckpt")).replace("FOLDER", str(tmp_path)) for text in arguments
    ]
    with pytest.raises(SystemExit, match=f"^error: .*({message})") as raised:
        export(monkeypatch, *arguments)
    assert "\n" not in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["some.ckpt"]


def test_missing_packages_are_reported_with_the_command_that_installs_them(tmp_path, monkeypatch):
    (tmp_path / "best.ckpt").touch()
    monkeypatch.setattr("fractatlas.cli.export.PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(SystemExit, match="^error: export needs no_such_package: pip install no_such_package$"):
        export(monkeypatch, f"ckpt={tmp_path / 'best.ckpt'}")
