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
    """Give every radiograph one square size; later, on a batch, three channels with ImageNet's mean and std.

    The geometry runs on one 8-bit channel, since a radiograph's three are equal.

    Args:
        geometry: of torchvision's v2; moves boxes along with pixels, and its ``repr`` says all that it does.
        size: pixels of the square that it gives.
        mean: of red, green and blue, where white is 1.
        std: likewise.
    """

    def __init__(self, geometry: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]):
        self.geometry, self.size = geometry, size
        # (value / 255 - mean) / std, as value * scale + shift
        self.scale, self.shift = 1 / (255 * torch.tensor(std)), -torch.tensor(mean) / torch.tensor(std)

    def __call__(self, image: Image.Image) -> Tensor:
        """Give the pixels of one image of mode ``L``: uint8 (1, size, size)."""
        return v2.functional.pil_to_tensor(self.geometry(image))

    def boxes(self, boxes: np.ndarray, width: int, height: int) -> Tensor:
        """Move ``boxes``, (n, 4) left, top, right, bottom in an image of ``width`` x ``height``, along: float (n, 4).

        A box that the crop leaves outside comes back with no area.
        """
        return self.geometry(tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)))

    def view(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Tell what the square shows of an image of ``width`` x ``height``: left, top, right, bottom in its pixels.

        A crop's view lies within the image, a letterbox's reaches beyond it.
        """
        side = min(width, height) / 1024  # so small that no crop cuts it
        centre = np.array([width, height]) / 2
        moved = self.boxes(np.concatenate([centre - side / 2, centre + side / 2])[None], width, height).numpy()[0]
        # The geometry scales and shifts: a box in the middle tells how.
        scale = (moved[2:] - moved[:2]) / side
        left, top = centre - (moved[:2] + moved[2:]) / 2 / scale
        right, bottom = np.array([left, top]) + self.size / scale
        return float(left), float(top), float(right), float(bottom)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn a batch of uint8 (n, 1, h, w) into float32 (n, 3, h, w), on the device that it is on."""
        grey = pixels.to(torch.float32)
        images = grey.new_empty((len(grey), 3, *grey.shape[2:]))
        for channel in range(3):  # one fused pass each, from one channel; on a CPU faster than all three broadcast
            scale, shift = self.scale[channel].item(), self.shift[channel]
            torch.add(shift.to(grey.device), grey, alpha=scale, out=images[:, channel : channel + 1])
        return images

    def denormalise(self, images: Tensor) -> Tensor:
        """Undo ``normalise``, for people: uint8 (n, 3, h, w)."""
        scale, shift = (values.view(1, 3, 1, 1).to(images.device) for values in (self.scale, self.shift))
        return ((images - shift) / scale).round().clamp(0, 255).to(torch.uint8)


def resize_and_crop(resize: int, crop: int, mean: Sequence[float], std: Sequence[float]) -> Preprocess:
    """Resize the shorter side to ``resize`` and cut ``crop`` x ``crop`` from the centre, as torchvision does.

    Raises:
        InputError: ``crop`` is larger than ``resize``.
    """
    if crop > resize:
        raise InputError(f"preprocess.crop={crop} should be at most preprocess.resize={resize}")
    return Preprocess(v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(crop)]), crop, mean, std)


def letterbox(size: int, fill: int, mean: Sequence[float], std: Sequence[float]) -> Preprocess:
    """Resize the longer side to ``size`` and pad the shorter one on both sides with grey ``fill`` (0 to 255)."""
    return Preprocess(Letterbox(size, fill), size, mean, std)


class Letterbox(v2.Transform):
    """Fit an image, or its boxes, into the middle of a square."""

    def __init__(self, size: int, fill: int):
        super().__init__()
        self.size, self.fill = size, fill

    def make_params(self, flat_inputs: list) -> dict[str, list[int]]:
        """The size to resize to, and what to add left, top, right and bottom."""
        sides = v2.functional.get_size(flat_inputs[0])
        height, width = (max(1, side * self.size // max(sides)) for side in sides)
        left, top = (self.size - width) // 2, (self.size - height) // 2
        return {"size": [height, width], "padding": [left, top, self.size - width - left, self.size - height - top]}

    def transform(self, inpt: object, params: dict[str, list[int]]) -> object:
        """Resize, then pad."""
        resized = v2.functional.resize(inpt, params["size"], antialias=True)
        return v2.functional.pad(resized, params["padding"], fill=self.fill)

    def extra_repr(self) -> str:
        """What tells one letterbox from another."""
        return f"size={self.size}, fill={self.fill}"


def light_augmentation(flip: float, degrees: float, brightness: float, contrast: float) -> nn.Module:
    """Mirror left and right, turn a little, change brightness and contrast a little; for one uint8 (1, h, w) image."""
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(flip),
            v2.RandomRotation(degrees, interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(brightness=brightness, contrast=contrast),
        ]
    )
