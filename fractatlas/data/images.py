"""Read image files of any format, DICOM included, as upright 8-bit grey images.

A file is decoded completely or refused with a short reason. No decoder runs in a mode that tolerates damage.
"""

import io
import stat
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fractatlas.data.deep_images import is_reduced, read_reduced
from fractatlas.data.dicom import read_dicom
from fractatlas.data.file_kinds import (
    START,
    is_dicom,
    is_readable_image,
    is_tiff,
    other_kind,
    unreadable_image,
    unsupported_jpeg,
)
from fractatlas.data.grey_levels import refuse_constant, samples_to_image
from fractatlas.data.image_limits import (
    MAX_BYTES,
    TRANSPARENT,
    TRUNCATED,
    TRUNCATED_HEADER,
    UnreadableError,
    memory_lock,
    refuse_large,
    too_large,
)

# Excluded: formats that start other programs (EPS) and icons, cursors and fonts.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "WEBP")
TRUNCATION_MESSAGES = ("runcated", "less than expected", "not enough image data", "broken data stream",
                       "unexpected end", "but only got", "could not create decoder object", "input stream too small",
                       "corrupted strip", "corrupted tile")  # fmt: skip

INTERNAL_ERRORS = (ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, RecursionError, struct.error,
                   TypeError)  # fmt: skip

Image.MAX_IMAGE_PIXELS = None  # ``too_large`` replaces Pillow's limit, whose message does not contain the size


def decode(content: bytes) -> Image.Image:
    """Decode the content of a JPEG, PNG or similar file to an upright image of mode ``L``.

    The JPEG decoder returns the luminance directly. This takes half the time of converting from RGB and differs from
    it by at most one grey level.

    Raises:
        OSError: the content is unreadable, truncated or ``too_large``.
    """
    with Image.open(io.BytesIO(content)) as image:
        if reason := too_large(*image.size):
            raise OSError(reason)
        image.draft("L", image.size)
        return ImageOps.exif_transpose(image).convert("L")


def read_radiograph(file: Path) -> Image.Image:
    """Read an image file of any format; the content determines the format, not the file name.

    - JPEG, PNG, AVIF, BMP, GIF, JPEG 2000, PPM, TIFF, WebP: the EXIF orientation is applied, colours become luminance
      (ITU-R 601), transparent pixels become black. Samples of more than 8 bits, and signed ones, are stretched: the
      darkest and the brightest 0.1 per cent of the pixels become black and white. Pixels without a value (NaN,
      infinite, GDAL_NODATA) become black. Of a TIFF file, thumbnails and pyramid levels are ignored.
    - DICOM with one frame: the modality LUT or rescale is applied, then the VOI LUT or the first valid window. Without
      both, values of more than 8 bits are stretched as above, without the padding. MONOCHROME1 is inverted.

    Args:
        file: path of the image. Of an image that is ``too_large``, only the header is decoded.

    Returns:
        Upright image of mode ``L``. Of a DICOM file, ``info["modality"]`` is its modality, such as ``"DX"``.

    Raises:
        UnreadableError: the file is missing, not a regular file, empty, truncated, damaged, too large, not an image, of
            a kind that is not supported, shows one grey level only, or has several frames.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            raise UnreadableError(f"not a file but a {'folder' if file.is_dir() else 'pipe, socket or device'}")
        if status.st_size > MAX_BYTES:
            raise UnreadableError(f"{status.st_size} bytes is above the limit of {MAX_BYTES}")
        content = file.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and file.is_symlink()
        reason = "a link to a file that does not exist" if missing else _one_line(error.strerror or error)
        raise UnreadableError(reason) from None
    return read_content(content)


def read_content(content: bytes) -> Image.Image:
    """Read the content of an image file as ``read_radiograph`` reads the file; raise ``UnreadableError`` likewise."""
    if not content:
        raise UnreadableError("empty file")
    start = content[:START]
    try:
        if is_dicom(start):
            image = read_dicom(content)
        elif reason := unreadable_image(start):
            raise UnreadableError(reason)
        else:
            image = _read_image(content)
        refuse_constant(image)
        return image
    except UnreadableError as error:
        raise UnreadableError(" ".join(str(error).split())) from None  # a value of the file can have line breaks
    except MemoryError:
        raise UnreadableError("does not fit into memory") from None
    except UnidentifiedImageError:
        if not is_readable_image(start):
            raise UnreadableError(other_kind(content)) from None
        jpeg = unsupported_jpeg(content) if start.startswith(b"\xff\xd8") else ""
        raise UnreadableError(jpeg or TRUNCATED_HEADER) from None
    except Exception as error:  # decoders raise many types of exception for damaged files
        message = _one_line(error)
        if any(words in message for words in TRUNCATION_MESSAGES):
            raise UnreadableError(TRUNCATED) from None
        # The words of these are about code, not about the file.
        internal = isinstance(error, INTERNAL_ERRORS) or not message
        reason = "cannot be decoded" if internal else f"damaged: {message}"
        raise UnreadableError(f"{reason}; copy it again, or convert it to PNG or DICOM") from None


def _read_image(content: bytes) -> Image.Image:
    if is_tiff(content):
        from fractatlas.data.tiff import read_tiff  # loads tifffile, which other images do not need

        return _to_grey(read_tiff(content))
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        refuse_large(*image.size)
        # The JPEG of a camera may contain a preview as a second image (MPO).
        count = getattr(image, "n_frames", 1)
        if count > 1 and image.format != "MPO":
            raise UnreadableError(f"several images in one file ({count}); save each as its own file")
        with memory_lock(*image.size):
            if is_reduced(image, content):
                return read_reduced(image, content)
            if image.mode.startswith(("I", "F")):
                return samples_to_image(np.asarray(ImageOps.exif_transpose(image)), 16)
            if image.has_transparency_data:
                return _to_grey(ImageOps.exif_transpose(image))
            return decode(content)


def _to_grey(image: Image.Image) -> Image.Image:
    """Convert an upright image of up to 8 bits to mode ``L``; transparent pixels become black."""
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        if colours.getchannel("A").getextrema()[1] == 0:
            raise UnreadableError(TRANSPARENT)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), colours)
    return image.convert("L")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:120]
