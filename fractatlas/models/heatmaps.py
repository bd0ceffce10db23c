"""Heatmaps of the fracture logit, out of the forward pass that gives it.

Grad-CAM (Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV
2017) weights the last feature maps by the mean gradient of the logit. Here the logit is linear in the maps' means, so
that these gradients are the head's weights over the number of cells: Grad-CAM is the class activation map (Zhou et
al., Learning Deep Features for Discriminative Localization, CVPR 2016) up to a positive factor, without a backward
pass.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fractatlas.files import whole
from fractatlas.models.backbones import Backbone

CELL = 4  # pixels of the network's input for a cell of the maps that are handed on


def with_heatmaps(backbone: Backbone, images: Tensor) -> tuple[Tensor, Tensor]:
    """Map normalised images, float (n, 3, size, size), to logits (n,) and heat as ``lay_out`` gives it.

    Where the backbone looks at the mirror image, too, heat is the mean of the two, as the logit is.
    """
    logits, heats = activation_maps(backbone, images)
    seen = [lay_out(heat, backbone, images.shape[-1]) for heat in heats]
    return logits, seen[0] if len(seen) == 1 else (seen[0] + seen[1].flip(-1)) / 2


def activation_maps(backbone: Backbone, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Map normalised images, float (n, 3, h, w), to logits (n,) and heat float32 (n, h / 32, w / 32).

    Heat is ``relu(sum over c of w_c A_c)``: what each cell of the last feature maps adds to the logit, where it adds.
    Its cells do not tile the image; see ``lay_out``. There is one for the image and, where the backbone looks at it,
    one for its mirror image.
    """
    last = backbone.network.get_submodule(list(backbone.stages.values())[-1][-1])
    caught: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, inputs, output: caught.append(output))
    try:
        logits = backbone(images)
    finally:
        hook.remove()
    # Both trunks end in a ReLU. DenseNet's comes after its last module, and in place, so that it may be done or not.
    weights = backbone.network.get_submodule(backbone.head_name)[-1].weight[0].float()
    return logits, [torch.einsum("nchw,c->nhw", maps.relu().float(), weights).relu() for maps in caught]


def receptive_grid(backbone: Backbone) -> tuple[float, float]:
    """Where the last feature maps look: the pixel in the middle of the first cell's receptive field, and the step.

    Araujo et al., Computing Receptive Fields of Convolutional Neural Networks, Distill 2019. A strided convolution
    that is padded on both sides looks at every other pixel from the very first on, so that all cells of a ResNet look
    half a cell further up and to the left than they would if they tiled the image. A DenseNet's pooling mends most of
    it.
    """
    first, step = 0.0, 1.0
    for name, module in backbone.network.named_modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and "downsample" not in name:  # a way around
            size, stride, padding = (_side(getattr(module, key)) for key in ("kernel_size", "stride", "padding"))
            first += ((size - 1) / 2 - padding) * step
            step *= stride
    return first, step


def _side(value: int | tuple[int, int]) -> int:
    return value if isinstance(value, int) else value[0]


def lay_out(heat: Tensor, backbone: Backbone, size: int) -> Tensor:
    """Give heat of ``activation_maps``, (n, h, w), on cells that tile the ``size`` x ``size`` pixels of the input.

    Returns:
        float32 (n, size / CELL, size / CELL), bilinear between the middles of the receptive fields.
    """
    first, step = receptive_grid(backbone)
    tiles = size // CELL
    middles = (torch.arange(tiles, device=heat.device) + 0.5) * size / tiles - 0.5
    at = ((middles - first) / step).clamp(0, heat.shape[1] - 1)
    shares = (1 - (at[:, None] - torch.arange(heat.shape[1], device=heat.device)).abs()).clamp(min=0)
    return torch.einsum("ph,nhw,qw->npq", shares, heat, shares)


@torch.no_grad()
def part_heatmaps(
    backbone: Backbone,
    batches: Iterable[dict[str, Tensor]],
    normalise: Callable[[Tensor], Tensor],
    device: torch.device | str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run a network over batches, in evaluation mode.

    Args:
        backbone: on ``device``; left in the mode that it came in.
        batches: ``image`` uint8 (n, 1, size, size) and ``index`` int64 (n,), as a loader of ``RadiographDataModule``
            gives them.
        normalise: ``Preprocess.normalise``.
        device: where to compute.

    Returns:
        ``index`` int64 (n,), logits float32 (n,) and heat float32 of ``lay_out``, in the order of the batches.
    """
    mode = backbone.training
    backbone.eval()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        for batch in batches:
            logits, heat = with_heatmaps(backbone, normalise(batch["image"].to(device)))
            found.append((batch["index"].cpu(), logits.float().cpu(), heat.cpu()))
    finally:
        backbone.train(mode)
    return tuple(torch.cat(values).numpy() for values in zip(*found, strict=True))


def write_heatmaps(path: Path, image_ids: Sequence[str], heat: np.ndarray, views: np.ndarray) -> None:
    """Write the file that ``evaluation.localisation.read_heatmaps`` reads.

    Args:
        path: the ``.npz`` to write.
        image_ids: n of them.
        heat: float16 or float32 (n, h, w), finite, 0 and above, on any scale; the cells tile the view.
        views: (n, 4), ``Preprocess.view`` of each image.
    """
    arrays = {
        "image_id": np.asarray(image_ids, dtype=np.str_),
        "heat": heat if heat.dtype == np.float16 else heat.astype(np.float32),
        "view": np.asarray(views, dtype=np.float32).reshape(-1, 4),
    }
    with whole(path) as temporary, temporary.open("wb") as file:  # to a name, NumPy would add a suffix of its own
        np.savez_compressed(file, **arrays)
