"""torchvision's DenseNets and ResNets with one logit: the network half of ``conf/model``."""

from functools import partial
from typing import Any

import torch
import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from fractatlas.models.weights import load_trunk

DENSENETS = {
    "densenet121": tv.densenet121,
    "densenet161": tv.densenet161,
    "densenet169": tv.densenet169,
    "densenet201": tv.densenet201,
    "densenet_tiny": partial(tv.DenseNet, growth_rate=16, block_config=(2, 2, 4, 2), num_init_features=32, bn_size=2),
}
RESNETS = {
    "resnet18": tv.resnet18,
    "resnet34": tv.resnet34,
    "resnet50": tv.resnet50,
    "resnet101": tv.resnet101,
    "resnet152": tv.resnet152,
    "resnet_tiny": partial(tv.ResNet, BasicBlock, [1, 1, 1, 1]),
}


class Backbone(nn.Module):
    """A trunk in five stages and a head of one logit.

    Args:
        network: a torchvision classifier whose last layer is already the one-logit head.
        head: the name of that layer.
        stages: for each stage, the dotted names of its modules, in order.
        freeze: ``none``, ``trunk``, or how many of the stages, from the input on, do not learn. A frozen stage's
            BatchNorm keeps its running statistics, too.
        stage_decay: the learning rate of each stage as a share of that of the one after it, the head's being whole
            (Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, ACL 2018).
        mirror: in evaluation mode, give the mean logit of an image and its mirror image.
        channels_last: keep weights and images in channels-last memory order, which is faster on most hardware.
        loaded: what ``load_trunk`` says of the weights.
    """

    def __init__(
        self,
        network: nn.Module,
        head: str,
        stages: dict[str, list[str]],
        freeze: str | int,
        stage_decay: float,
        mirror: bool,
        channels_last: bool,
        loaded: dict[str, Any],
    ):
        super().__init__()
        self.loaded = loaded
        count = {"none": 0, "trunk": len(stages)}.get(freeze, freeze)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        self.head_name, self.stages = head, stages
        self.stage_decay, self.mirror = stage_decay, mirror
        frozen = [name for stage in list(stages)[:count] for name in stages[stage]]
        self._frozen = [network.get_submodule(name) for name in frozen]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Map float (n, 3, h, w) to the logit of a fracture, (n,)."""
        images = images.contiguous(memory_format=self.memory_format)
        logits = self.network(images)
        if self.mirror and not self.training:
            logits = (logits + self.network(images.flip(-1))) / 2
        return logits.squeeze(1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What learns, for an optimizer: ``params``, and ``scale``, by which to multiply their learning rate."""
        if self.stage_decay == 1:
            return [{"params": [p for p in self.parameters() if p.requires_grad], "scale": 1.0}]
        layers = {**self.stages, "head": [self.head_name]}
        groups = []
        for depth, (name, modules) in enumerate(reversed(layers.items())):
            found = [p for module in modules for p in self.network.get_submodule(module).parameters()]
            if learning := [p for p in found if p.requires_grad]:
                groups.append({"params": learning, "scale": self.stage_decay**depth, "name": name})
        return groups

    def train(self, mode: bool = True) -> "Backbone":
        """As in ``nn.Module``, but frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def densenet(
    variant: str,
    weights: str | None,
    weights_dir: str,
    dropout: float,
    freeze: str | int,
    stage_decay: float,
    mirror: bool,
    channels_last: bool,
) -> Backbone:
    """Huang et al., Densely Connected Convolutional Networks, CVPR 2017.

    Args:
        variant: a key of ``DENSENETS``.
        weights: see ``load_trunk``.
        weights_dir: likewise.
        dropout: probability, before the one-logit head.
        freeze: see ``Backbone``.
        stage_decay: likewise.
        mirror: likewise.
        channels_last: likewise.

    Raises:
        InputError: the weights cannot be had or do not fit.
    """
    network = DENSENETS[variant]()
    network.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(network.classifier.in_features, 1))
    stages = {"stem": ["features.conv0", "features.norm0"]}
    stages |= {f"block{n}": [f"features.denseblock{n}", f"features.transition{n}"] for n in (1, 2, 3)}
    stages["block4"] = ["features.denseblock4", "features.norm5"]
    loaded = load_trunk(network, variant, stages, weights, weights_dir)
    return Backbone(network, "classifier", stages, freeze, stage_decay, mirror, channels_last, loaded)


def resnet(
    variant: str,
    weights: str | None,
    weights_dir: str,
    dropout: float,
    freeze: str | int,
    stage_decay: float,
    mirror: bool,
    channels_last: bool,
) -> Backbone:
    """He et al., Deep Residual Learning for Image Recognition, CVPR 2016.

    Args and errors as ``densenet``; ``variant`` is a key of ``RESNETS``.
    """
    network = RESNETS[variant]()
    network.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(network.fc.in_features, 1))
    stages = {"stem": ["conv1", "bn1"]} | {f"layer{n}": [f"layer{n}"] for n in (1, 2, 3, 4)}
    loaded = load_trunk(network, variant, stages, weights, weights_dir)
    return Backbone(network, "fc", stages, freeze, stage_decay, mirror, channels_last, loaded)
