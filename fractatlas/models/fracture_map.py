"""The fracture map: a second output of a network, the logit of a fracture for each cell of the image.

A feature pyramid (Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017) combines the feature maps of
several stages. Its levels are added at the finest resolution, as in a semantic FPN (Kirillov et al., Panoptic Feature
Pyramid Networks, CVPR 2019), and a convolution computes one logit for each cell.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from torchvision.ops import FeaturePyramidNetwork, sigmoid_focal_loss

PRIOR_LOGIT = -4.595  # logit of 0.01, the initial probability of every cell, as in Lin et al. (focal loss, 2017)
TOP_SHARE = 0.005  # share of the cells that top-k pooling averages: 8 of 40 x 40 cells
COVERED = 0.25  # a cell belongs to a fracture if at least this share of its area does


class FractureMap(nn.Module):
    """Compute the map from feature maps, its loss, and its contribution to the logit of the image.

    Args:
        in_channels: channels of the feature maps, from fine to coarse.
        stride: side of a cell in pixels of the network's input.
        channels: of the pyramid.
        pooling: how the map contributes to the logit of the image: ``topk``: the mean of the ``TOP_SHARE`` highest
            logits; ``logsumexp``: the logarithm of the mean of exponentials (Pinheiro and Collobert, From Image-level
            to Pixel-level Labeling with Convolutional Networks, CVPR 2015); ``none``: it does not.
        loss: ``focal`` (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017) or ``dice`` (Milletari et al.,
            V-Net, 3DV 2016).
        weight: of the map's loss; the loss of the image has weight 1.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        stride: Literal[4, 8],
        channels: int,
        pooling: Literal["topk", "logsumexp", "none"],
        loss: Literal["focal", "dice"],
        weight: float,
    ):
        super().__init__()
        self.stride, self.pooling, self.weight = stride, pooling, weight
        self._loss = {"focal": _focal_loss, "dice": _dice_loss}[loss]
        # The stages of a DenseNet end before a BatchNorm and a ReLU.
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in in_channels)
        self.pyramid = FeaturePyramidNetwork(list(in_channels), channels, norm_layer=nn.BatchNorm2d)
        self.output = nn.Conv2d(channels, 1, 1)
        nn.init.normal_(self.output.weight, std=0.01)
        self.output.bias = nn.Parameter(torch.full((1,), PRIOR_LOGIT))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map features, float (n, c, h, w) from fine to coarse, to logits of the finest cells, float32 (n, h, w)."""
        normalised = [norm(maps).relu() for norm, maps in zip(self.norms, features, strict=True)]
        levels = [*self.pyramid(OrderedDict(zip("0123", normalised, strict=False))).values()]
        size = levels[0].shape[-2:]
        combined = levels[0]
        for level in levels[1:]:
            combined = combined + interpolate(level, size, mode="bilinear", align_corners=False)
        return self.output(combined.relu()).squeeze(1).float()

    def pool(self, logits: Tensor) -> Tensor:
        """Return what map logits, float (n, h, w), add to the logits of the images: (n,), about 0 at first."""
        cells = logits.flatten(1)
        if self.pooling == "none":
            return cells.new_zeros(len(cells))
        if self.pooling == "topk":
            pooled = cells.topk(max(1, round(TOP_SHARE * cells.shape[1])), dim=1).values.mean(dim=1)
        else:
            pooled = cells.logsumexp(dim=1) - torch.tensor(float(cells.shape[1])).log()
        return pooled - PRIOR_LOGIT

    def loss(self, logits: Tensor, outlines: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the map, a scalar.

        A fractured image without an outline is ignored, because the place of its fracture is not known. An image that
        is not fractured is a target, too: none of its cells belongs to a fracture.

        Args:
            logits: float32 (n, h, w).
            outlines: (n, height, width), of any type, above 0 in the pixels of a fracture, at the size of the input.
            labels: (n,), 1 for a fractured image, otherwise 0.
        """
        targets = cell_targets(outlines, logits.shape[-2:])
        known = (labels == 0) | (outlines.flatten(1).amax(dim=1) > 0)
        if not known.any():
            return logits.sum() * 0  # keeps the graph, which DDP requires
        return self._loss(logits[known], targets[known])


def cell_targets(outlines: Tensor, size: Sequence[int]) -> Tensor:
    """Return which cells belong to a fracture: float32 (n, *size), 0 or 1.

    These are the cells that an outline covers by at least ``COVERED``, and the cell of an image that it covers most, so
    that a fracture smaller than a cell is not lost.
    """
    height, width = size
    covered = adaptive_avg_pool2d((outlines > 0).float(), (height, width))
    most = covered.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    return ((covered >= COVERED) | (covered >= most)).float()


def _focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2, reduction="sum") / targets.sum().clamp(min=1)


def _dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """One minus the Dice coefficient of the whole batch, because most images have no fracture."""
    probabilities = logits.sigmoid()
    return 1 - (2 * (probabilities * targets).sum() + 1) / (probabilities.sum() + targets.sum() + 1)


def hottest_cell_is_in_box(logits: Tensor, boxes: Tensor) -> Tensor:
    """Return whether the centre of the cell with the highest logit is in a box: bool (n,).

    Args:
        logits: (n, h, w).
        boxes: (n, height, width), above 0 in the pixels of a box, at the size of the input.
    """
    cells, pixels = logits.shape[-2:], boxes.shape[-2:]
    hottest = logits.flatten(1).argmax(dim=1)
    row, column = hottest // cells[1], hottest % cells[1]
    y, x = ((2 * row + 1) * pixels[0] // (2 * cells[0])), ((2 * column + 1) * pixels[1] // (2 * cells[1]))
    return boxes[torch.arange(len(boxes), device=boxes.device), y, x] > 0
