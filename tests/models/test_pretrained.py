import pickle
from functools import partial
from urllib.error import URLError

import pytest
import torch
from torchvision.models import densenet121

from fractatlas.errors import InputError
from fractatlas.models.backbones import densenet, resnet
from fractatlas.models.checkpoint import read_checkpoint
from fractatlas.models.fracture_map import FractureMap

REST = {
    "weights_dir": "",
    "dropout": 0.0,
    "freeze": "none",
    "stage_decay": 1.0,
    "mirror": False,
    "channels_last": True,
    "compile": False,
}


def tiny(weights, **changes):
    return densenet("densenet_tiny", weights=weights, **(REST | changes))


def trunk(network) -> dict[str, torch.Tensor]:
    return {key: value for key, value in network.network.state_dict().items() if not key.startswith("classifier")}


def test_half_precision_weights_are_loaded_as_float32(tmp_path, caplog):
    source = trunk(tiny(None))
    torch.save({key: value.half() if value.ndim == 4 else value for key, value in source.items()}, tmp_path / "w.pth")
    with caplog.at_level("INFO"):
        loaded = trunk(tiny(str(tmp_path / "w.pth")))
    for key, value in source.items():
        assert loaded[key].dtype == value.dtype
        torch.testing.assert_close(loaded[key], value.half().to(value.dtype) if value.ndim == 4 else value)
    assert f"{len(source)} of {len(source)} trunk tensors" in caplog.text
    assert caplog.text.strip().endswith("random: head")


def test_the_stages_that_a_file_lacks_are_reported_as_random(tmp_path, caplog):
    source = {key: value for key, value in trunk(tiny(None)).items() if "denseblock4" not in key}
    torch.save(source, tmp_path / "w.pth")
    with caplog.at_level("INFO"):
        loaded = trunk(tiny(str(tmp_path / "w.pth")))
    assert all(torch.equal(loaded[key], value) for key, value in source.items())
    assert caplog.text.strip().endswith("random: block4, head")


def test_the_old_layer_names_of_torchvisions_densenet_files_are_read(tmp_path):
    new = densenet121().state_dict()
    old = {
        key.replace(".norm1.", ".norm.1.").replace(".conv1.", ".conv.1.").replace(".norm2.", ".norm.2.").replace(
            ".conv2.", ".conv.2."): value
        for key, value in new.items()
        if not key.endswith("num_batches_tracked")
    }  # fmt: skip
    assert set(old) - set(new)
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    loaded = trunk(densenet("densenet121", weights="imagenet", **(REST | {"weights_dir": str(tmp_path)})))
    assert all(torch.equal(loaded[key], new[key]) for key in loaded)


def test_the_trunk_of_a_checkpoint_is_loaded(tmp_path):
    source = tiny(None)
    state = {f"backbone.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "best.ckpt")
    loaded = trunk(tiny(str(tmp_path / "best.ckpt")))
    assert all(torch.equal(loaded[key], value) for key, value in trunk(source).items())


def save_checkpoint(backbone, file, variant="densenet_tiny", data=None):
    """Write the parts of a checkpoint that start another network."""
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    torch.save({"state_dict": state, "config": {"model": {"variant": variant}, "data": data or {}}}, file)
    return str(file)


def test_the_head_of_a_checkpoint_is_kept_or_new(tmp_path, caplog):
    source = tiny(None)
    file = save_checkpoint(source, tmp_path / "best.ckpt")
    kept, new = tiny(file, head="keep"), tiny(file, head="new")
    assert torch.equal(kept.head.weight, source.head.weight)
    assert torch.equal(kept.head.bias, source.head.bias)
    assert not torch.equal(new.head.weight, source.head.weight)
    assert torch.equal(new.network.features.conv0.weight, source.network.features.conv0.weight)
    assert (kept.loaded_weights["random"], new.loaded_weights["random"]) == ([], ["head"])


@pytest.mark.parametrize(("head", "end"), [("keep", "trunk tensors, head loaded; random: none"),
                                           ("new", "trunk tensors loaded; random: head")])  # fmt: skip
def test_one_line_states_what_was_loaded(tmp_path, caplog, head, end):
    file = save_checkpoint(tiny(None), tmp_path / "best.ckpt")
    caplog.set_level("INFO")
    tiny(file, head=head)
    (line,) = (text for text in caplog.messages if "trunk tensors" in text or "head" in text)
    assert line.endswith(end)


def test_a_network_that_was_trained_for_another_finding_is_a_warning(tmp_path, caplog):
    file = save_checkpoint(tiny(None), tmp_path / "best.ckpt", data={"_target_": "fractatlas.data.sources.mura.Mura"})
    tiny(file)
    assert "this network was trained to detect abnormality, not fracture" in caplog.text


def test_the_fracture_map_of_a_checkpoint_is_loaded_if_both_networks_have_one(tmp_path, caplog):
    options = {"channels": 8, "pooling": "topk", "loss": "focal", "weight": 1.0}
    make = partial(FractureMap, stride=8, **options)
    source = tiny(None, map=make)
    file = save_checkpoint(source, tmp_path / "best.ckpt")
    loaded = tiny(file, map=make).map.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in source.map.state_dict().items())
    assert tiny(file).map is None
    caplog.set_level("INFO")
    tiny(file, map=partial(FractureMap, stride=8, **(options | {"channels": 16})))
    assert "has no fracture map of this shape: the map starts from random weights" in caplog.text


def test_a_head_that_the_file_lacks_and_another_variant_are_refused(tmp_path):
    torch.save(trunk(tiny(None)), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"model.head=keep: .*w.pth has no head of this network; use model.head=new"):
        tiny(str(tmp_path / "w.pth"), head="keep")
    file = save_checkpoint(tiny(None), tmp_path / "best.ckpt")
    with pytest.raises(
        InputError, match="a checkpoint of a densenet_tiny, the network is a densenet121; use model.variant"
    ):
        densenet("densenet121", weights=file, **REST)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.fault("weights file with code in its pickle", "refused, the code is not executed")
@pytest.mark.parametrize("save", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))])
def test_a_weights_file_that_contains_code_is_refused_and_the_code_not_executed(tmp_path, save):
    save({"a": Payload(tmp_path / "executed")}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="is refused: loading it would execute code"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.fault("weights of another architecture", "refused in one line")
def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(trunk(tiny(None)), tmp_path / "dense.pth")
    with pytest.raises(InputError, match="none of .* tensors belongs to a resnet_tiny"):
        resnet("resnet_tiny", weights=str(tmp_path / "dense.pth"), **REST)
    with pytest.raises(InputError, match=r"features.conv0.weight has shape \(32, 3, 7, 7\), should be "):
        densenet("densenet121", weights=str(tmp_path / "dense.pth"), **REST)


@pytest.mark.fault("broken weights file", "refused in one line")
@pytest.mark.parametrize("content", [b"", b"junk", b"no weights", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_no_weights_file_is_refused(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(InputError, match="is not a PyTorch file"):
        tiny(str(tmp_path / "w.pth"))


def test_a_file_without_tensors_and_a_missing_file_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="contains no tensors"):
        tiny(str(tmp_path / "w.pth"))
    with pytest.raises(InputError, match="nowhere.pth: no such file"):
        tiny(str(tmp_path / "nowhere.pth"))


def test_a_failed_download_error_contains_file_folder_and_alternatives(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(InputError) as raised:
        resnet("resnet18", weights="imagenet", **(REST | {"weights_dir": str(tmp_path)}))
    message = str(raised.value)
    assert "\n" not in message
    for words in ("resnet18-f37072fd.pth", str(tmp_path), "FRACATLAS_WEIGHTS=DIR", "model.weights=null"):
        assert words in message


def test_two_files_of_one_variant_are_refused(tmp_path):
    for name in ("resnet18-a.pth", "resnet18-b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"\(resnet18-a.pth, resnet18-b.pth\); choose one"):
        resnet("resnet18", weights="imagenet", **(REST | {"weights_dir": str(tmp_path)}))


def test_a_tiny_network_has_no_imagenet_weights(tmp_path):
    with pytest.raises(InputError, match="use model.weights=null"):
        tiny("imagenet", weights_dir=str(tmp_path))


def test_real_imagenet_weights_are_loaded(pretrained, caplog):
    folder = {"weights_dir": str(pretrained)}
    with caplog.at_level("INFO"):
        densenet("densenet169", weights="imagenet", **(REST | folder))
        resnet("resnet50", weights="imagenet", **(REST | folder))
    assert "densenet169: 844 of 844 trunk tensors" in caplog.text
    assert "resnet50: 215 of 265 trunk tensors" in caplog.text
    assert "random: layer4, head" in caplog.text
