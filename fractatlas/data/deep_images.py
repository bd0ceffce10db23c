"""Read the images whose samples Pillow reduces or changes: PNG and PPM with 16-bit colours, JPEG 2000 above 8 bits.

Pillow keeps the high byte of 16 bits, so that colours which hold 10 or 12 bits would be almost black. Of JPEG 2000 with
9 bits, it turns some of the brightest pixels black.
"""

import io

import imagecodecs
import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from fractatlas.data.grey_levels import TRANSPOSITIONS, samples_to_image
from fractatlas.data.image_limits import TRUNCATED, TRUNCATED_HEADER, UnreadableError

ORIENTATION = 0x0112  # EXIF tag
J2K_START, J2K_END = b"\xff\x4f\xff\x51", b"\xff\xd9"


def is_reduced(image: ImageFile, content: bytes) -> bool:
    """Return whether Pillow would reduce the samples of an opened image with this content to 8 bits."""
    match image.format:
        case "PNG":
            return content[24] == 16 and content[25] in (2, 4, 6)
        case "JPEG2000":
            return max(_j2k_precisions(content)) > 8
        case "PPM":
            arguments = image.tile[0].args  # mode and maximum
            return content[:2] in (b"P3", b"P6") and isinstance(arguments, tuple) and int(arguments[-1]) > 255
    return False


def read_reduced(image: ImageFile, content: bytes) -> Image.Image:
    """Decode an image for which ``is_reduced`` is true; return it upright, in mode ``L``.

    Raises:
        UnreadableError: the content is truncated or damaged.
        Exception: another error of the decoder.
    """
    bits = 16
    if image.format == "PNG":
        samples = imagecodecs.png_decode(content)
    elif image.format == "JPEG2000":
        if J2K_END not in content[-64:]:
            raise UnreadableError(TRUNCATED)
        samples = imagecodecs.jpeg2k_decode(content)
        bits = max(_j2k_precisions(content))
    else:
        samples = _read_ppm(image, content)
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    alpha = samples[..., -1] if channels in (2, 4) else None
    grey_or_colours = samples[..., :3] if channels >= 3 else samples.reshape(*samples.shape[:2], channels)[..., 0]
    grey = samples_to_image(grey_or_colours, bits, colour=channels >= 3, alpha=alpha)
    orientation = image.getexif().get(ORIENTATION, 1)
    return grey.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else grey


def _j2k_precisions(content: bytes) -> list[int]:
    """Return the bits of each component of a JPEG 2000 codestream (ISO 15444-1, A.5.1)."""
    size = content.find(J2K_START) + 2  # the marker SIZ
    count = int.from_bytes(content[size + 38 : size + 40])
    depths = content[size + 40 : size + 40 + 3 * count : 3]
    if size < 2 or not depths:
        raise UnreadableError(TRUNCATED_HEADER)
    return [(depth & 0x7F) + 1 for depth in depths]


def _read_ppm(image: ImageFile, content: bytes) -> np.ndarray:
    """Read 16-bit colours; Pillow has read the header."""
    offset, count = image.tile[0].offset, image.width * image.height * 3
    if content.startswith(b"P6"):
        data = content[offset : offset + 2 * count]
        samples = np.frombuffer(data[: len(data) // 2 * 2], dtype=">u2").astype(np.uint16)
    else:
        rows = (line.partition(b"#")[0] for line in io.BytesIO(content[offset:]))
        samples = np.array(b" ".join(rows).split()[:count], dtype=np.uint16)
    if samples.size < count:
        raise UnreadableError(TRUNCATED)
    return samples.reshape(image.height, image.width, 3)
