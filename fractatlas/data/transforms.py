"""Preprocess radiographs: geometry of the single image, normalisation of the batch, augmentation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from fractatlas.errors import InputError


class Preprocess:
    """Convert radiographs to squares of one size, and normalise batches with ImageNet's mean and standard deviation.

    The geometry is applied to one 8-bit channel, because the three channels of a radiograph are equal.

    Args:
        geometry: transform of torchvision v2 that also transforms bounding boxes. Its ``repr`` must contain all its
            settings, because it identifies the pixel cache.
        size: side of the resulting square in pixels.
        mean: of red, green and blue, for values from 0 to 1.
        std: standard deviation, likewise.
    """

    def __init__(self, geometry: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]):
        self.geometry, self.size = geometry, size
        # (value / 255 - mean) / std == value * scale + shift
        self.scale, self.shift = 1 / (255 * torch.tensor(std)), -torch.tensor(mean) / torch.tensor(std)

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform one image of mode ``L`` to uint8 (1, size, size)."""
        return v2.functional.pil_to_tensor(self.geometry(image))

    def boxes(self, boxes: np.ndarray, width: int, height: int) -> Tensor:
        """Transform boxes of an image of ``width`` x ``height`` pixels like the image.

        Args:
            boxes: (n, 4) left, top, right, bottom in pixels of the image.

        Returns:
            float (n, 4) in pixels of the square. A box outside a crop has no area.
        """
        return self.geometry(tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)))

    def view(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the region of an image of ``width`` x ``height`` that the square shows: left, top, right, bottom.

        The unit is a pixel of the image. The region of a crop is inside the image, that of a letterbox extends beyond.
        """
        side = min(width, height) / 1024  # a box in the middle that no crop cuts
        centre = np.array([width, height]) / 2
        moved = self.boxes(np.concatenate([centre - side / 2, centre + side / 2])[None], width, height).numpy()[0]
        # The geometry consists of a scale and a shift, which one box determines.
        scale = (moved[2:] - moved[:2]) / side
        left, top = centre - (moved[:2] + moved[2:]) / 2 / scale
        right, bottom = np.array([left, top]) + self.size / scale
        return float(left), float(top), float(right), float(bottom)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Convert grey levels from 0 to 255, (n, 1, h, w), to normalised float32 (n, 3, h, w) on the same device."""
        grey = pixels.to(torch.float32)
        images = grey.new_empty((len(grey), 3, *grey.shape[2:]))
        for channel in range(3):  # three fused operations are faster on a CPU than one broadcast
            scale, shift = self.scale[channel].item(), self.shift[channel]
            torch.add(shift.to(grey.device), grey, alpha=scale, out=images[:, channel : channel + 1])
        return images

    def denormalise(self, images: Tensor) -> Tensor:
        """Undo ``normalise``: return uint8 (n, 3, h, w)."""
        scale, shift = (values.view(1, 3, 1, 1).to(images.device) for values in (self.scale, self.shift))
        return ((images - shift) / scale).round().clamp(0, 255).to(torch.uint8)


def resize_and_crop(resize: int, crop: int, mean: Sequence[float], std: Sequence[float]) -> Preprocess:
    """Resize the shorter side to ``resize`` and crop the central ``crop`` x ``crop``, as torchvision does.

    Raises:
        InputError: ``crop`` is larger than ``resize``.
    """
    if crop > resize:
        raise InputError(f"preprocess.crop={crop} should be at most preprocess.resize={resize}")
    return Preprocess(v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(crop)]), crop, mean, std)


def letterbox(size: int, fill: int, mean: Sequence[float], std: Sequence[float]) -> Preprocess:
    """Resize the longer side to ``size`` and pad the shorter side on both ends with grey ``fill`` (0 to 255)."""
    return Preprocess(Letterbox(size, fill), size, mean, std)


class Letterbox(v2.Transform):
    """Fit an image or its boxes into the centre of a square."""

    def __init__(self, size: int, fill: int):
        super().__init__()
        self.size, self.fill = size, fill

    def make_params(self, flat_inputs: list) -> dict[str, list[int]]:
        """Return the size of the resized image and the padding left, top, right and bottom."""
        sides = v2.functional.get_size(flat_inputs[0])
        height, width = (max(1, side * self.size // max(sides)) for side in sides)
        left, top = (self.size - width) // 2, (self.size - height) // 2
        return {"size": [height, width], "padding": [left, top, self.size - width - left, self.size - height - top]}

    def transform(self, inpt: object, params: dict[str, list[int]]) -> object:
        """Resize, then pad."""
        resized = v2.functional.resize(inpt, params["size"], antialias=True)
        return v2.functional.pad(resized, params["padding"], fill=self.fill)

    def extra_repr(self) -> str:
        """Return the settings for ``repr``."""
        return f"size={self.size}, fill={self.fill}"


class BatchAugmentation(nn.Module):
    """Apply Kornia's augmentations to a batch of images and to its boxes and masks.

    The random numbers come from torch's global generator of the CPU; every image has its own.

    Args:
        transforms: augmentations of ``kornia.augmentation``.
    """

    def __init__(self, *transforms: Any):
        super().__init__()
        from kornia.augmentation import AugmentationSequential

        self.transforms = AugmentationSequential(*transforms)

    def forward(self, images: Tensor, boxes: list[Tensor] | None = None, masks: Tensor | None = None) -> Any:
        """Augment a batch.

        Args:
            images: uint8 (n, 1, h, w).
            boxes: for each image, float (m, 4): left, top, right, bottom in pixels. The box of a rotated box is the
                smallest upright one around it.
            masks: float (n, c, h, w), sampled with the nearest neighbour.

        Returns:
            The images, float32 (n, 1, h, w) from 0 to 255, then the boxes and the masks, if they were given.
        """
        values: dict[str, Any] = {"input": images / 255, "bbox_xyxy": boxes, "mask": masks}
        values = {name: value for name, value in values.items() if value is not None}
        augmented = self.transforms(*values.values(), data_keys=list(values))
        if len(values) == 1:
            return augmented * 255
        return augmented[0] * 255, *augmented[1:]


def light_augmentation(
    flip: float, degrees: float, brightness: float, contrast: float, scale: float = 0.0
) -> nn.Module:
    """Return a transform of a batch that flips, turns, scales and changes brightness and contrast of each image.

    Args:
        flip: probability of a horizontal flip.
        degrees: largest rotation in either direction.
        brightness: largest relative change.
        contrast: largest relative change.
        scale: largest relative enlargement and, inversely, reduction: 0.25 scales by 0.8 to 1.25.
    """
    import kornia.augmentation as augmentation  # takes half a second, and only this function uses it

    factors = (1 / (1 + scale), 1 + scale)
    return BatchAugmentation(
        augmentation.RandomHorizontalFlip(p=flip),
        augmentation.RandomAffine(degrees, scale=factors, p=1.0)
        if scale
        else augmentation.RandomRotation(degrees, p=1.0),
        # torchvision's formulas; the images of a batch share the order of the two steps, but not their strengths.
        augmentation.ColorJitter(brightness, contrast, p=1.0),
    )
