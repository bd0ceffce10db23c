"""Heatmaps: the fracture map of a network, or Grad-CAM of the fracture logit, computed in the forward pass.

Grad-CAM (Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV
2017) weights the last feature maps by the mean gradient of the logit. Here the logit is linear in the means of the
maps, so these gradients are the weights of the head divided by the number of cells. Grad-CAM therefore equals the class
activation map (Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016) up to a positive factor,
and needs no backward pass.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fractatlas.evaluation.localisation import FRACTURE_MAP, GRADCAM, Heatmaps
from fractatlas.io import atomic_path
from fractatlas.models.backbones import Backbone

CELL = 4  # side of a heatmap's cell in pixels of the network's input


def has_map(backbone: Backbone) -> bool:
    """Return whether the heatmaps of a network are its fracture map, which consists of probabilities."""
    return backbone.map is not None


def heatmap_kind(backbone: Backbone, gradcam: bool = False) -> str:
    """Return what ``with_heatmaps`` computes: ``FRACTURE_MAP`` or ``GRADCAM``."""
    return FRACTURE_MAP if has_map(backbone) and not gradcam else GRADCAM


def with_heatmaps(backbone: Backbone, images: Tensor, gradcam: bool = False) -> tuple[Tensor, Tensor]:
    """Map normalised images, float (n, 3, size, size), to logits (n,) and heatmaps.

    Args:
        backbone: the network.
        images: the batch.
        gradcam: whether to compute Grad-CAM also for a network that has a fracture map.

    Returns:
        The logits, and heatmaps: the probabilities of the fracture map, float32 (n, h, w), whose cells tile the input,
        or without a map, Grad-CAM as ``tile_input`` returns it. If the backbone averages the logits of the image and
        its mirror image, the heatmap is the average of both, too.
    """
    if has_map(backbone) and not gradcam:
        logits, cells = backbone.with_map(images)
        return logits, cells.sigmoid()
    logits, maps = activation_maps(backbone, images)
    tiled = [tile_input(one, backbone, images.shape[-1]) for one in maps]
    return logits, tiled[0] if len(tiled) == 1 else (tiled[0] + tiled[1].flip(-1)) / 2


def activation_maps(backbone: Backbone, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Map normalised images, float (n, 3, h, w), to logits (n,) and class activation maps.

    Returns:
        The logits, and for each of the feature maps ``A`` of ``Backbone.with_features`` the map float32 (n, h / 32,
        w / 32) ``relu(sum over c of w_c A_c)``: the positive contribution of each cell to the logit. Its cells do not
        tile the image; see ``tile_input``.
    """
    logits, features = backbone.with_features(images)
    weights = backbone.head.weight[0].float()
    return logits, [torch.einsum("nchw,c->nhw", maps, weights).relu() for maps in features]


def receptive_grid(backbone: Backbone) -> tuple[float, float]:
    """Return the centre of the receptive field of the first cell of the last feature maps, and the step to the next.

    Both are in pixels of the input (Araujo et al., Computing Receptive Fields of Convolutional Neural Networks, Distill
    2019). A strided convolution with padding on both sides starts at the first pixel. The receptive fields of a ResNet
    are therefore half a cell further up and left than cells that tile the image. The pooling layers of a DenseNet undo
    most of this shift.
    """
    first, step = 0.0, 1.0
    for name, module in backbone.network.named_modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and "downsample" not in name:  # parallel branch
            sides = (getattr(module, key) for key in ("kernel_size", "stride", "padding"))
            size, stride, padding = (side if isinstance(side, int) else side[0] for side in sides)
            first += ((size - 1) / 2 - padding) * step
            step *= stride
    return first, step


def tile_input(maps: Tensor, backbone: Backbone, size: int) -> Tensor:
    """Resample class activation maps (n, h, w) to cells that tile the ``size`` x ``size`` pixels of the input.

    Returns:
        float32 (n, size / CELL, size / CELL), bilinear between the centres of the receptive fields.
    """
    first, step = receptive_grid(backbone)
    tiles = size // CELL
    centres = (torch.arange(tiles, device=maps.device) + 0.5) * size / tiles - 0.5
    positions = ((centres - first) / step).clamp(0, maps.shape[1] - 1)
    weights = (1 - (positions[:, None] - torch.arange(maps.shape[1], device=maps.device)).abs()).clamp(min=0)
    return torch.einsum("ph,nhw,qw->npq", weights, maps, weights)


@torch.no_grad()
def compute_heatmaps(
    backbone: Backbone,
    batches: Iterable[dict[str, Tensor]],
    normalise: Callable[[Tensor], Tensor],
    device: torch.device | str,
    gradcam: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the heatmaps of batches in evaluation mode.

    Args:
        backbone: on ``device``; its mode is restored.
        batches: ``image`` uint8 (n, 1, size, size) and ``index`` int64 (n,), as the loaders of ``RadiographDataModule``
            yield them.
        normalise: ``Preprocess.normalise``.
        device: where to compute.
        gradcam: as in ``with_heatmaps``.

    Returns:
        ``index`` int64 (n,) and heatmaps float32 (n, size / CELL, size / CELL), in the order of the batches.
    """
    mode = backbone.training
    backbone.eval()
    indices, heatmaps = [], []
    for batch in batches:
        indices.append(batch["index"].cpu())
        heatmaps.append(with_heatmaps(backbone, normalise(batch["image"].to(device)), gradcam)[1].cpu())
    backbone.train(mode)
    return torch.cat(indices).numpy(), torch.cat(heatmaps).numpy()


def write_heatmaps(path: Path, heatmaps: Heatmaps) -> None:
    """Write the ``.npz`` file that ``evaluation.localisation.read_heatmaps`` reads."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:  # NumPy appends .npz to a name, not to a file
        np.savez_compressed(file, **vars(heatmaps))
