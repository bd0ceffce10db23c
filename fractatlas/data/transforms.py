"""From a decoded radiograph to what the network sees: geometry on the way in, normalisation on the batch."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from fractatlas.errors import InputError


class Preprocess:
    """Resize the shorter side, crop the centre; later, on a batch, three channels with ImageNet's mean and std.

    The geometry runs on one 8-bit channel, since a radiograph's three are equal, and gives the pixels that
    torchvision's ``Resize`` and ``CenterCrop`` give on the image as RGB.

    Args:
        resize: pixels of the shorter side.
        crop: pixels of the square cut from the centre; at most ``resize``.
        mean: of red, green and blue, where white is 1.
        std: likewise.

    Raises:
        InputError: ``crop`` is larger than ``resize``.
    """

    def __init__(self, resize: int, crop: int, mean: Sequence[float], std: Sequence[float]):
        if crop > resize:
            raise InputError(f"preprocess.crop={crop} should be at most preprocess.resize={resize}")
        self.geometry = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(crop)])
        self.mean = torch.tensor(mean).view(1, 3, 1, 1)
        self.std = torch.tensor(std).view(1, 3, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        """Give the pixels of one image of mode ``L``: uint8 (1, crop, crop)."""
        return v2.functional.pil_to_tensor(self.geometry(image))

    def boxes(self, boxes: np.ndarray, width: int, height: int) -> Tensor:
        """Move ``boxes``, (n, 4) left, top, right, bottom in an image of ``width`` x ``height``, along: float (n, 4).

        A box that the crop leaves outside comes back with no area.
        """
        return self.geometry(tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn a batch of uint8 (n, 1, h, w) into float32 (n, 3, h, w), on the device that it is on."""
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return (pixels.to(torch.float32) / 255 - mean) / std

    def denormalise(self, images: Tensor) -> Tensor:
        """Undo ``normalise``, for people: uint8 (n, 3, h, w)."""
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def light_augmentation(flip: float, degrees: float, brightness: float, contrast: float) -> nn.Module:
    """Mirror left and right, turn a little, change brightness and contrast a little; for one uint8 (1, h, w) image."""
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(flip),
            v2.RandomRotation(degrees, interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(brightness=brightness, contrast=contrast),
        ]
    )
