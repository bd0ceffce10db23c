from typing import get_args

import pytest
import torch

from fractatlas.config import schema
from fractatlas.models.backbones import densenet, resnet

REST = {
    "weights": None,
    "weights_dir": "",
    "dropout": 0.0,
    "stage_decay": 1.0,
    "mirror": False,
    "channels_last": True,
    "compile": False,
}


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        *((densenet, name) for name in get_args(schema.DenseNet.__annotations__["variant"])),
        *((resnet, name) for name in get_args(schema.ResNet.__annotations__["variant"])),
    ],
)
def test_every_variant_returns_one_logit_per_image_and_its_stages_cover_the_trunk(family, variant):
    with torch.device("meta"):  # computes shapes only
        network = family(variant, freeze="none", **REST)
        assert network(torch.empty(2, 3, 64, 64)).shape == (2,)
    in_stages = {key for names in network.stages.values() for name in names for key in network.network.state_dict()
                 if key.startswith(f"{name}.")}  # fmt: skip
    outside = set(network.network.state_dict()) - in_stages
    assert len(network.stages) == 5
    assert outside == {f"{network.head_name}.1.weight", f"{network.head_name}.1.bias"}


@pytest.mark.parametrize(("family", "variant"), [(densenet, "densenet_tiny"), (resnet, "resnet_tiny")])
@pytest.mark.parametrize("freeze", ["none", 2, "trunk"])
def test_frozen_stages_do_not_change_and_the_others_do(family, variant, freeze):
    torch.manual_seed(0)
    network = family(variant, freeze=freeze, **REST)
    before = {key: value.clone() for key, value in network.network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network.eval().train()
    network(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    count = {"none": 0, "trunk": 5}.get(freeze, freeze)
    for number, names in enumerate(network.stages.values()):
        changed = [
            not torch.equal(value, before[key])
            for key, value in network.network.state_dict().items()
            if any(key.startswith(f"{name}.") for name in names)
        ]
        # These are weights and running statistics of BatchNorm.
        assert not any(changed) if number < count else all(changed)


def test_dropout_is_active_in_training_mode_only():
    network = densenet("densenet_tiny", freeze="none", **(REST | {"dropout": 0.5}))
    images = torch.randn(2, 3, 64, 64)
    network.eval()
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


def test_channels_last_changes_the_memory_order_but_no_value():
    torch.manual_seed(0)
    last = resnet("resnet_tiny", freeze="none", **REST).eval()
    first = resnet("resnet_tiny", freeze="none", **(REST | {"channels_last": False})).eval()
    first.load_state_dict(last.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(last(images), first(images), rtol=1e-4, atol=1e-4)
    assert last.network.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("family", "variant"), [(densenet, "densenet_tiny"), (resnet, "resnet_tiny")])
def test_every_trainable_parameter_is_in_the_group_of_its_stage(family, variant):
    network = family(variant, freeze=1, **(REST | {"stage_decay": 0.5}))
    groups = network.parameter_groups()
    assert {group["name"]: group["scale"] for group in groups} == {
        "head": 1.0, **{name: 0.5**depth for depth, name in enumerate(reversed(list(network.stages)[1:]), start=1)},
    }  # fmt: skip
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_mirror_averages_the_logits_of_image_and_mirror_image_in_evaluation_mode_only():
    torch.manual_seed(0)
    network = resnet("resnet_tiny", freeze="none", **(REST | {"mirror": True}))
    images = torch.randn(3, 3, 64, 64)
    network.eval()
    torch.testing.assert_close(network(images), network(images.flip(-1)))
    network.mirror, mean = False, network(images)
    torch.testing.assert_close(mean, (network(images) + network(images.flip(-1))) / 2)
    network.mirror = True
    network.train()
    assert not torch.allclose(network(images), network(images.flip(-1)))
