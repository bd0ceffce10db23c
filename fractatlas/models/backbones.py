"""torchvision's DenseNets and ResNets with an output layer of one logit."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock

from fractatlas.errors import InputError
from fractatlas.models.fracture_map import FractureMap
from fractatlas.models.pretrained import load_head, load_trunk

# Variants for tests and for the demo; torchvision has the others.
TINY = {
    "densenet_tiny": partial(tv.DenseNet, growth_rate=16, block_config=(2, 2, 4, 2), num_init_features=32, bn_size=2),
    "resnet_tiny": partial(tv.ResNet, BasicBlock, [1, 1, 1, 1]),
}


class Backbone(nn.Module):
    """A network: a trunk of five stages and a head of one logit.

    Args:
        network: a torchvision classifier whose last layer is the head: dropout and a linear layer of one output.
        head: the name of that layer.
        stages: for each stage, the dotted names of its modules, in order.
        loaded_weights: the report of ``load_trunk``.
        freeze: which stages are not trained: ``none``, ``trunk`` (all), or the number of stages, counted from the
            input. BatchNorm layers of frozen stages keep their running statistics.
        stage_decay: the learning rate of each stage divided by that of the next one; the head has the full rate
            (Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, ACL 2018).
        mirror: in evaluation mode, return the mean logit of an image and its mirror image.
        channels_last: keep weights and images in channels-last memory order, which is faster on most hardware.
        compile: compile the network with ``torch.compile`` in training mode; evaluation mode never uses compiled code.
        pyramid: the name of the module whose children are the stages, and by stride, the name of the last child of this
            stride; a map needs it.
        map: function from ``in_channels`` to a ``FractureMap``; ``None``: the network has no map.

    Attributes:
        map: the ``FractureMap``, or ``None``.
    """

    def __init__(
        self,
        network: nn.Module,
        head: str,
        stages: dict[str, list[str]],
        loaded_weights: dict[str, Any],
        freeze: Literal["none", "trunk"] | int,
        stage_decay: float,
        mirror: bool,
        channels_last: bool,
        compile: bool,
        pyramid: tuple[str, dict[int, str]] | None = None,
        map: Callable[..., FractureMap] | None = None,
    ):
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        self.head_name, self.stages, self.loaded_weights = head, stages, loaded_weights
        self.stage_decay, self.mirror = stage_decay, mirror
        count = {"none": 0, "trunk": len(stages)}[freeze] if isinstance(freeze, str) else freeze
        self._extractor: tuple[IntermediateLayerGetter, ...] = ()
        self._frozen = [network.get_submodule(name) for stage in list(stages)[:count] for name in stages[stage]]
        for module in self._frozen:
            module.requires_grad_(False)
        self.map: FractureMap | None = None
        if map is not None:
            self._add_map(map, pyramid)
        if compile:
            for module in (self.network, *self._extractor):
                module.compile()  # in place, so that the names of the weights do not change
        self.train()

    def _add_map(self, make: Callable[..., FractureMap], pyramid: tuple[str, dict[int, str]] | None) -> None:
        if pyramid is None:
            raise InputError(f"map: {type(self.network).__name__} names no stages for it; use map=none")
        name, layers = pyramid
        stride = make.keywords["stride"]  # type: ignore[attr-defined]
        extractor = IntermediateLayerGetter(
            self.network.get_submodule(name), {layer: layer for step, layer in layers.items() if step >= stride}
        )
        with torch.no_grad():
            maps = extractor.eval()(torch.zeros(1, 3, 64, 64).contiguous(memory_format=self.memory_format))
        self.map = make(in_channels=[features.shape[1] for features in maps.values()])
        self.map.to(memory_format=self.memory_format)
        self._extractor = (extractor,)  # in a tuple, because its modules belong to the network

    @property
    def head(self) -> nn.Linear:
        """The linear layer from the channel means of the last feature maps to the logit."""
        return cast(nn.Linear, cast(nn.Sequential, self.network.get_submodule(self.head_name))[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float (n, 3, h, w), to logits of a fracture (n,)."""
        if self.map is not None:
            return self.with_map(images)[0]
        images = images.contiguous(memory_format=self.memory_format)
        if self.training:
            return self.network(images).squeeze(1)
        network = self.network.forward  # not compiled: the same results as without compilation, and hooks run
        logits = network(images)
        if self.mirror:
            logits = (logits + network(images.flip(-1))) / 2
        return logits.squeeze(1)

    def with_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised images, float (n, 3, h, w), to logits of a fracture, and to the fracture map; needs a map.

        Returns:
            The logits of the images (n,), and those of the cells, float32 (n, h / stride, w / stride). Both are means
            with the mirror image if ``forward`` returns the mean.
        """
        images = images.contiguous(memory_format=self.memory_format)
        if self.training:
            return self._classify_and_locate(images, self._extractor[0])
        extract = self._extractor[0].forward  # not compiled, as in ``forward``
        logits, cells = self._classify_and_locate(images, extract)
        if self.mirror:
            mirrored_logits, mirrored_cells = self._classify_and_locate(images.flip(-1), extract)
            logits, cells = (logits + mirrored_logits) / 2, (cells + mirrored_cells.flip(-1)) / 2
        return logits, cells

    def _classify_and_locate(self, images: Tensor, extract: Callable[[Tensor], dict]) -> tuple[Tensor, Tensor]:
        assert self.map is not None
        features = list(extract(images).values())
        logits = self.network.get_submodule(self.head_name)(features[-1].relu().mean(dim=(2, 3))).squeeze(1)
        cells = self.map(features)
        return logits + self.map.pool(cells), cells

    def with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map normalised images, float (n, 3, h, w), to logits (n,) and the feature maps from which they are computed.

        Returns:
            The logits, and a list of float32 (n, c, h / 32, w / 32), 0 and above: the maps of the images and, if the
            backbone also processes them, of the mirror images.
        """
        outputs: list[Tensor] = []
        last = self.network.get_submodule(list(self.stages.values())[-1][-1])
        hook = last.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            logits = self(images)
        finally:
            hook.remove()
        # A DenseNet applies its last ReLU after the hook and in place, so that outputs may be rectified or not.
        return logits, [output.relu().float() for output in outputs]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the trainable parameters in groups: ``params``, and ``scale``, a factor of their learning rate."""
        if self.stage_decay == 1:
            return [{"params": [p for p in self.parameters() if p.requires_grad], "scale": 1.0}]
        layers = {**self.stages, "head": [self.head_name]}
        groups = []
        for depth, (name, modules) in enumerate(reversed(layers.items())):
            parameters = [p for module in modules for p in self.network.get_submodule(module).parameters()]
            if trainable := [p for p in parameters if p.requires_grad]:
                groups.append({"params": trainable, "scale": self.stage_decay**depth, "name": name})
        if self.map is not None:
            groups.append({"params": list(self.map.parameters()), "scale": 1.0, "name": "map"})
        return groups

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode as ``nn.Module`` does, but keep frozen stages in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def densenet(
    variant: str, weights: str | None, weights_dir: str, dropout: float, head: str | None = None, **options: Any
) -> Backbone:
    """Build a DenseNet (Huang et al., Densely Connected Convolutional Networks, CVPR 2017).

    Args:
        variant: torchvision's name, or ``densenet_tiny``.
        weights, weights_dir: as for ``load_trunk``.
        dropout: probability of dropout before the linear layer of the head.
        head: as for ``load_head``.
        options: ``freeze, stage_decay, mirror, channels_last, compile, map`` of ``Backbone``.

    Raises:
        InputError: the weights are not available or do not fit.
    """
    network = _build_network(variant)
    network.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(network.classifier.in_features, 1))
    stages = {"stem": ["features.conv0", "features.norm0"]}
    stages |= {f"block{n}": [f"features.denseblock{n}", f"features.transition{n}"] for n in (1, 2, 3)}
    stages["block4"] = ["features.denseblock4", "features.norm5"]
    loaded = load_trunk(network, variant, stages, weights, weights_dir)
    layers = {4: "denseblock1", 8: "denseblock2", 16: "denseblock3", 32: "norm5"}
    backbone = Backbone(network, "classifier", stages, loaded, pyramid=("features", layers), **options)
    load_head(backbone, variant, "classifier", weights, head)
    return backbone


def resnet(
    variant: str, weights: str | None, weights_dir: str, dropout: float, head: str | None = None, **options: Any
) -> Backbone:
    """Build a ResNet (He et al., Deep Residual Learning for Image Recognition, CVPR 2016).

    Arguments and errors as for ``densenet``; ``variant`` is torchvision's name, or ``resnet_tiny``.
    """
    network = _build_network(variant)
    network.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(network.fc.in_features, 1))
    stages = {"stem": ["conv1", "bn1"]} | {f"layer{n}": [f"layer{n}"] for n in (1, 2, 3, 4)}
    loaded = load_trunk(network, variant, stages, weights, weights_dir)
    layers = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}
    backbone = Backbone(network, "fc", stages, loaded, pyramid=("", layers), **options)
    load_head(backbone, variant, "fc", weights, head)
    return backbone


def _build_network(variant: str) -> Any:
    return TINY[variant]() if variant in TINY else tv.get_model(variant)
