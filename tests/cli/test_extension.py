"""Classes of another package: accepted with ``trusted_targets`` only."""

import json
import re
import sys

import pytest
import torch

from fractatlas import load_model
from fractatlas.errors import InputError
from tests.cli.processes import refused
from tests.conftest import REPOSITORY, SMALL

MORE = """
from torch.optim.lr_scheduler import LambdaLR
from torchvision.transforms import v2


def linear(optimizer, total_steps):
    return LambdaLR(optimizer, lambda step: 1 - step / total_steps)


class Invert(v2.Transform):
    def transform(self, inpt, params):
        return v2.functional.invert(inpt)


def not_a_backbone():
    return nn.Linear(1, 1)
"""
EXTENDED = (
    *(option for option in SMALL if not option.startswith("model")), "data.root=phantoms", "trainer.max_epochs=1",
    "--config-dir=my_conf", "model=small", "loss=focal", "optimizer=sign", "scheduler._target_=mypackage.linear",
    "augment._target_=mypackage.Invert", "logger=own", "report=true",
)  # fmt: skip
TRUSTED = "trusted_targets=[mypackage,lightning.pytorch.loggers]"


@pytest.fixture(scope="module")
def package(folder):
    """The package and the configuration of the guide, with a schedule, an augmentation and a logger in addition."""
    guide = (REPOSITORY / "docs" / "howto" / "extension.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"^cat > (\S+) <<'\w+'\n(.*?)^(?:PYTHON|YAML)$", guide, re.MULTILINE | re.DOTALL))
    assert len(files) == 4
    files["mypackage/__init__.py"] += MORE
    files["my_conf/logger/own.yaml"] = "_target_: lightning.pytorch.loggers.CSVLogger\nsave_dir: ${paths.output_dir}\n"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
        sys.modules.pop("mypackage", None)


@pytest.fixture(scope="module")
def extended(fractatlas, package, folder):
    assert fractatlas("train", *EXTENDED, TRUSTED, "hydra.run.dir=extended") == 0
    return folder / "extended"


def test_six_groups_accept_classes_of_a_trusted_package(extended):
    metrics = json.loads((extended / "metrics.json").read_text())
    assert metrics["model"] == "small_network"
    assert metrics["test"]["n"] > 0
    card = (extended / "model_card.md").read_text(encoding="utf-8")
    for words in ("mypackage.small_network (width 8, dropout 0.1)", "The optimizer is mypackage.SignSGD (lr 0.001)",
                  "The learning-rate schedule is mypackage.linear", "The loss is mypackage.FocalLoss (gamma 2.0)",
                  "Training images are augmented by mypackage.Invert"):  # fmt: skip
        assert words in card
    assert (extended / "report.html").is_file()
    assert list(extended.rglob("metrics.csv"))  # of the logger
    assert not (extended / "tensorboard").exists()


def test_without_the_switch_the_classes_are_refused_with_its_name(fractatlas, package, folder):
    message = fractatlas("train", *EXTENDED, "hydra.run.dir=untrusted")
    assert isinstance(message, str)
    assert "model._target_=mypackage.small_network: should be one of" in message
    for line in message.splitlines():
        assert re.search(r"; if you trust the package (\S+), add trusted_targets=\[\1\]$", line)
    assert not (folder / "untrusted").exists()


@pytest.mark.fault("a checkpoint whose configuration names classes of another package", "refused without the switch")
def test_a_checkpoint_is_refused_unless_the_switch_is_given_again(fractatlas, extended, folder):
    checkpoint = extended / "checkpoints" / "best.ckpt"
    assert torch.load(checkpoint, weights_only=True)["config"]["trusted_targets"] == [
        "mypackage",
        "lightning.pytorch.loggers",
    ]
    image = next((folder / "phantoms" / "images").rglob("*.jpg"))
    for arguments in (("evaluate", f"ckpt={checkpoint}"), ("predict", f"ckpt={checkpoint}", f"input={image}"),
                      ("export", f"ckpt={checkpoint}")):  # fmt: skip
        message = fractatlas(*arguments)
        assert isinstance(message, str), arguments
        assert f"{checkpoint}: " in message
        assert "model._target_=mypackage.small_network: should be one of" in message
        assert "add trusted_targets=[mypackage]" in message
    with pytest.raises(InputError, match=r"best.ckpt: .*mypackage.*add trusted_targets=\[mypackage\]"):
        load_model(checkpoint)
    assert fractatlas("evaluate", f"ckpt={checkpoint}", TRUSTED, "trainer=cpu", "report=false") == 0
    assert fractatlas("predict", f"ckpt={checkpoint}", f"input={image}", TRUSTED, "trainer=cpu") == 0
    model = load_model(checkpoint, trusted_targets=["mypackage", "lightning.pytorch.loggers"])
    assert 0 < model.predict(image).probability < 1


def test_a_run_resumes_only_if_the_switch_is_given_again(fractatlas, extended):
    before = (extended / "metrics.json").read_bytes()
    message = fractatlas("train", f"resume={extended}", "trainer.max_epochs=2")
    assert isinstance(message, str)
    assert "add trusted_targets=[mypackage]" in message
    assert (extended / "metrics.json").read_bytes() == before
    assert fractatlas("train", f"resume={extended}", "trainer.max_epochs=2", TRUSTED) == 0
    assert len(json.loads((extended / "metrics.json").read_text())["history"]) == 2


def test_a_mistake_in_the_arguments_of_a_class_is_reported_in_one_line(fractatlas, package, folder):
    wrong = (*EXTENDED, TRUSTED, "hydra.run.dir=wrong")
    refused(fractatlas("train", *wrong, "+loss.gama=1"), "mypackage.FocalLoss: TypeError: ")
    refused(fractatlas("train", *wrong, "model._target_=mypackage.not_a_backbone", "~model.width", "~model.dropout"),
            "mypackage.not_a_backbone: returns a Linear; return a fractatlas.models.backbones.Backbone")  # fmt: skip
    assert not (folder / "wrong").exists()
