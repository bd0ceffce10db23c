"""Convert sample values of any type to 8-bit grey levels."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from fractatlas.data.image_limits import TRANSPARENT, UnreadableError

CLIPPED = 0.1  # per cent of the pixels that contrast stretching makes black, and per cent that it makes white
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R 601)
# The transposition that makes an image upright, by EXIF or TIFF orientation.
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def samples_to_image(
    samples: np.ndarray,
    bits: int,
    colour: bool = False,
    alpha: np.ndarray | None = None,
    inverted: bool = False,
    nodata: float | None = None,
) -> Image.Image:
    """Convert samples of any type to an image of mode ``L``.

    Unsigned samples of up to 8 bits are scaled from their full range. All others are stretched: the darkest and the
    brightest ``CLIPPED`` per cent of the pixels become black and white. Stretching from minimum to maximum would
    darken an image that has one hot pixel. Pixels without a value (NaN, infinite or ``nodata``) become black and are
    not counted.

    Args:
        samples: integers or floats, (height, width), or (height, width, 3) if ``colour``.
        bits: per sample.
        colour: whether the samples are red, green and blue; they become luminance.
        alpha: (height, width), unassociated opacity of the same type as ``samples``: 1.0, or the largest value of
            ``bits``, where opaque. Transparent pixels become black.
        inverted: whether the largest sample is black.
        nodata: the sample of pixels without a value.

    Raises:
        UnreadableError: the samples are complex, no pixel has a value, or all are transparent.
    """
    if samples.dtype.kind == "c":
        raise UnreadableError("complex samples are not an image; convert it to a grey PNG")
    valid = _valid(samples, colour, nodata)
    if valid is not None:
        samples = np.where(valid[..., None] if colour else valid, samples, samples[valid].min())
    narrow = samples.dtype.kind == "u" and bits <= 8
    if narrow:
        samples = grey_levels(samples, 0, 2**bits - 1)
        if colour:
            samples = np.asarray(Image.fromarray(samples).convert("L"))
    elif colour:
        samples = _luminance(samples)
    if alpha is not None and alpha.max() <= 0:
        raise UnreadableError(TRANSPARENT)
    if alpha is not None and alpha.min() != alpha.max():
        opaque = {"f": 1, "i": 2 ** (bits - 1) - 1}.get(alpha.dtype.kind, 2**bits - 1)
        if inverted:
            samples, inverted = (255 if narrow else float(samples.max())) - samples.astype(np.float64), False
        samples = samples * np.clip(np.nan_to_num(alpha / opaque), 0, 1)
        samples = np.rint(samples).astype(np.uint8) if narrow else samples
    if narrow:
        image = Image.fromarray(255 - samples if inverted else np.ascontiguousarray(samples))
    else:
        black, white = stretch_limits(samples if valid is None else samples[valid])
        image = map_to_image(samples, lambda values: grey_levels(values, black, white, inverted))
    return image if valid is None else Image.fromarray(np.where(valid, np.asarray(image), np.uint8(0)))


def _valid(samples: np.ndarray, colour: bool, nodata: float | None) -> np.ndarray | None:
    """Return which pixels have a value, bool (height, width); ``None`` if all have one."""
    if samples.dtype.kind != "f" and nodata is None:
        return None
    finite, known = np.isfinite(samples), samples != nodata  # all true if ``nodata`` is None
    valid = finite.all(axis=-1) & known.any(axis=-1) if colour else finite & known
    if not valid.any():
        raise UnreadableError("no pixel has a value, so it shows nothing")
    return None if valid.all() else valid


def _luminance(samples: np.ndarray) -> np.ndarray:
    """Return the luminance of (height, width, 3): uint16 for uint16, to save memory, otherwise float64."""
    short = samples.dtype == np.uint16
    grey = np.zeros(samples.shape[:2], dtype=np.float32 if short else np.float64)
    for channel, weight in enumerate(LUMINANCE):
        grey += samples[..., channel] * grey.dtype.type(weight)
    return np.rint(grey).astype(np.uint16) if short else grey


def stretch_limits(pixels: np.ndarray) -> tuple[float, float]:
    """Return the values that become black and white; equal numbers of pixels are below and above them."""
    clipped = int(pixels.size * CLIPPED / 100)
    ordered = np.partition(pixels, (0, clipped, pixels.size - 1 - clipped, pixels.size - 1), axis=None)
    low, high = ordered[clipped], ordered[-1 - clipped]
    return (low, high) if low < high else (ordered[0], ordered[-1])


def map_to_image(pixels: np.ndarray, grey: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """Apply ``grey`` (values in, uint8 out) to all pixels; for up to 16 bits by a lookup table, to save memory."""
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f" or int(high) - int(low) >= 2**16:
        return Image.fromarray(grey(pixels))
    table = np.zeros(2**16, dtype=np.uint8)
    # Offsets from the minimum, because 64-bit minima exceed the range of numpy's arange.
    values = np.arange(int(high) - int(low) + 1).astype(pixels.dtype) + low
    table[: len(values)] = grey(values)
    above_low = pixels.astype(np.uint16) - np.uint16(int(low) % 2**16)
    levels = np.empty(pixels.shape, dtype=np.uint8)
    for row, indices in zip(levels, above_low, strict=True):  # row by row: np.take converts indices to 64 bits
        np.take(table, indices, out=row, mode="clip")
    return Image.fromarray(levels)


def grey_levels(values: np.ndarray, black: float, white: float, inverted: bool = False) -> np.ndarray:
    """Map ``black`` to 0 and ``white`` to 255, or the reverse if inverted, clipped; return uint8 of the same shape."""
    if black == white:
        return np.zeros(values.shape, dtype=np.uint8)
    if inverted:
        black, white = white, black
    grey = np.subtract(values, float(black), dtype=np.float64)
    grey *= 255 / (float(white) - float(black))
    grey += 0.5  # round half up, so that an inverted image has exactly the mirrored levels
    return np.clip(grey, 0, 255, out=grey).astype(np.uint8)


def refuse_constant(image: Image.Image, reason: str = "every pixel has the same value, so it shows nothing") -> None:
    """Raise ``UnreadableError`` with ``reason`` if all pixels of an image of mode ``L`` are equal."""
    middle = image.crop((0, image.height // 2, image.width, image.height // 2 + 1))
    for part in (middle, image):  # one row decides almost always
        low, high = part.getextrema()
        if low != high:
            return
    raise UnreadableError(reason)
