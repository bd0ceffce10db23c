import json

import numpy as np
import pytest
import torch

import fractatlas
from fractatlas import export as module
from fractatlas.data.inspection import decode
from fractatlas.errors import InputError
from fractatlas.export import export, main, parse
from fractatlas.training.run import build, build_classifier

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def images_of(config, catalogue, phantoms):
    """The first 100 phantoms, as the network gets them."""
    preprocess = build(config["preprocess"])
    paths = catalogue.loc[catalogue["excluded"] == "", "path"][:100]
    return preprocess.normalise(torch.stack([preprocess(decode((phantoms / path).read_bytes())) for path in paths]))


@pytest.fixture(params=["densenet", "resnet"])
def made(request, configuration, catalogue, phantoms, tmp_path):
    """A run folder with a checkpoint of an untrained network, and that network."""
    run = tmp_path / "Lauf (1)=ö"
    config = configuration(tmp_path / "run", f"model={request.param}", f"model.variant={request.param}_tiny")
    torch.manual_seed(0)
    classifier = build_classifier(config)
    classifier.eval()
    with torch.no_grad():  # an untrained network gives every image nearly the same answer: spread them
        head = classifier.backbone.network.get_submodule(classifier.backbone.head_name)[1]
        logits = classifier(images_of(config, catalogue, phantoms))
        head.bias.copy_((head.bias - logits.mean()) / logits.std())
        head.weight.div_(logits.std())
    checkpoint = {"state_dict": classifier.state_dict(), "config": config, "epoch": 0}
    checkpoint["operating_point"] = {"threshold": 0.25, "temperature": 1.5, "rule": "youden"}
    (run / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, run / "checkpoints" / "best.ckpt")
    catalogue.to_csv(run / "catalogue.csv", index=False)
    return run, classifier, config


def test_onnx_runtime_gives_the_checkpoints_probabilities_on_100_images(made, catalogue, phantoms, capfd):
    run, classifier, config = made
    main([f"ckpt={run}/checkpoints/best.ckpt"])
    said = capfd.readouterr()
    assert said.out.startswith(f"{run}/checkpoints/best.onnx (")
    assert (said.out.count("\n"), said.err) == (1, "")

    images = images_of(config, catalogue, phantoms)
    with torch.no_grad():
        expected = classifier(images)
    assert expected.sigmoid().std() > 0.1
    session = onnxruntime.InferenceSession(run / "checkpoints" / "best.onnx")
    for size in (1, 7, 100):
        for rows in torch.arange(100).split(size):
            logit, probability = session.run(["logit", "probability"], {"image": images[rows].numpy()})
            np.testing.assert_allclose(logit, expected[rows].numpy(), atol=1e-3)
            np.testing.assert_allclose(probability, expected[rows].sigmoid().numpy(), atol=1e-4)


def test_the_file_is_one_and_says_how_to_use_it(made, tmp_path):
    run, _, config = made
    output = tmp_path / "elsewhere" / "model.onnx"
    export(run / "checkpoints" / "best.ckpt", output)
    assert [file.name for file in output.parent.iterdir()] == ["model.onnx"]
    content = onnx.load(output, load_external_data=False)
    onnx.checker.check_model(content)
    said = {entry.key: entry.value for entry in content.metadata_props}
    normalisation = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    geometry = {"geometry": "resize_and_crop", "resize": 64, "crop": 64}
    assert json.loads(said.pop("preprocess")) == geometry | normalisation
    assert said == {"model": config["model"]["variant"], "version": fractatlas.__version__,
                    "threshold": "0.25", "temperature": "1.5", "rule": "youden"}  # fmt: skip
    (image,) = content.graph.input
    assert image.name == "image"
    assert [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim][1:] == [3, 64, 64]
    assert not image.type.tensor_type.shape.dim[0].dim_value


def test_another_answer_is_an_error_and_no_file(made, monkeypatch, tmp_path):
    import fractatlas.models.onnx as writer

    run, _, _ = made
    monkeypatch.setattr(writer, "_difference", lambda *args: float("nan"))
    with pytest.raises(InputError, match="differ from PyTorch's by nan, more than 1e-04"):
        export(run / "checkpoints" / "best.ckpt", tmp_path / "out" / "model.onnx")
    assert not list((tmp_path / "out").iterdir())


def test_the_images_of_the_run_are_compared_where_they_are_still_there(made):
    run, _, config = made
    assert len(module._images(run / "checkpoints" / "best.ckpt", config)) == 2 * module.IMAGES
    config["data"]["root"] = "/nowhere"
    assert len(module._images(run / "checkpoints" / "best.ckpt", config)) == module.IMAGES


@pytest.mark.fault("export with a mistake in its arguments", "one line, nothing written")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "ckpt needs a value"),
        (["ckpt="], "ckpt=: should be key=value"),
        (["best.ckpt"], "best.ckpt: should be key=value; there are ckpt, output"),
        (["ckpt=FILE", "outptu=a.onnx"], "unknown key 'outptu'; did you mean 'output'?"),
        (["ckpt=nowhere.ckpt"], "no file nowhere.ckpt"),
        (["ckpt=FILE", "output=FOLDER"], "is a folder; name a file in it"),
        (["ckpt=FILE", "output=FILE/a.onnx"], "cannot write to .*some.ckpt; name another file"),
        (["ckpt=FILE"], "is not a PyTorch file"),
    ],
)
def test_a_mistake_is_answered_in_one_line(arguments, says, tmp_path):
    (tmp_path / "some.ckpt").write_bytes(b"junk")
    arguments = [
        text.replace("FILE", str(tmp_path / "some.ckpt")).replace("FOLDER", str(tmp_path)) for text in arguments
    ]
    with pytest.raises(SystemExit, match=f"^error: .*({says})") as raised:
        main(arguments)
    assert "\n" not in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["some.ckpt"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "best.ckpt").touch()
    monkeypatch.setattr(module, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(SystemExit, match="^error: export needs no_such_package: pip install no_such_package$"):
        main([f"ckpt={tmp_path / 'best.ckpt'}"])


def test_the_file_lies_beside_its_checkpoint_unless_named(tmp_path):
    (tmp_path / "a=b.ckpt").touch()
    assert parse([f"ckpt={tmp_path}/a=b.ckpt"]) == (tmp_path / "a=b.ckpt", tmp_path / "a=b.onnx")
