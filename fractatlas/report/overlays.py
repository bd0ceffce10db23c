"""A radiograph with its heatmap and the boxes of its fractures."""

import numpy as np
from PIL import Image, ImageDraw

OPACITY = 0.55  # where it is hottest, so that the bone still shows
BOX = (64, 224, 255)


def overlay(image: Image.Image, heat: np.ndarray | None, boxes: np.ndarray | None = None) -> Image.Image:
    """Draw heat, the hotter the more opaque, and boxes over a radiograph.

    Args:
        image: of mode ``L``, upright.
        heat: (height, width) in 0..1, as ``evaluation.localisation.place`` gives it for the image's size, divided by
            what shall count as hottest; ``None`` draws none.
        boxes: (n, 4), left, top, right, bottom in the image's pixels.

    Returns:
        An image of mode ``RGB`` and the same size.
    """
    import matplotlib  # only now, since not every report has pictures

    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    if heat is not None:
        heat = np.clip(heat, 0, 1).astype(np.float32)
        opacity = OPACITY * heat[..., None]
        colours = matplotlib.colormaps["turbo"](heat, bytes=True)[..., :3]
        pixels = (1 - opacity) * pixels + opacity * colours
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    pen, thickness = ImageDraw.Draw(drawn), max(1, round(min(image.size) / 200))
    for left, top, right, bottom in () if boxes is None else np.asarray(boxes, dtype=float):
        corners = np.sort([[left, top], [right - 1, bottom - 1]], axis=0)  # the right and bottom edge are outside
        pen.rectangle(corners.round().astype(int).ravel().tolist(), outline=BOX, width=thickness)
    return drawn
