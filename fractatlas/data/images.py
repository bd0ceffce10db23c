"""Read image files of any format, DICOM included, as upright 8-bit grey images.

A file is decoded completely or refused with a short reason. No decoder runs in a mode that tolerates damage.
"""

import io
import struct
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from pydicom.datadict import dictionary_has_tag
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from fractatlas.data.decoder_subprocess import DecoderCrashedError, decode_in_subprocess

MAX_BYTES = 2**30
LARGE = 20_000_000  # pixels; larger images are decoded one at a time, to limit memory
CLIPPED = 0.1  # per cent of the pixels that contrast stretching makes black, and per cent that it makes white
# Excluded: formats that start other programs (EPS) and icons, cursors and fonts.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
TRUNCATION_MESSAGES = ("runcated", "less than expected", "not enough image data", "broken data stream",
                       "unexpected end", "but only got", "could not create decoder object")  # fmt: skip
DICOM_HEADER = 132  # bytes that ``is_dicom`` needs

MAX_PIXELS = 100_000_000  # a chest radiograph has 10 to 20 million
MAX_SIDE = 30_000  # pixels; a radiograph of a whole leg has about 15,000

Image.MAX_IMAGE_PIXELS = None  # ``too_large`` replaces Pillow's limit, whose message does not contain the size

_large_image_lock = threading.Lock()


class UnreadableError(Exception):
    """Report that a file cannot be read as one radiograph; the message is the reason in a few words."""


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


def too_large(width: int, height: int) -> str:
    """Return why an image of this size in pixels is refused, or ``""`` if it is within the limits."""
    if max(width, height) > MAX_SIDE:
        return f"{width} x {height} pixels is above the limit of {MAX_SIDE:,} pixels a side"
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels is above the limit of {MAX_PIXELS:,} pixels"
    return ""


def read_radiograph(file: Path) -> Image.Image:
    """Read an image file of any format; the content determines the format, not the file name.

    - JPEG, PNG, BMP, GIF, JPEG 2000, PPM, TIFF, WebP: the EXIF orientation is applied, colours become luminance
      (ITU-R 601), transparent pixels become black. Grey values of more than 8 bits are stretched: the darkest and the
      brightest ``CLIPPED`` per cent become black and white. Stretching from minimum to maximum would darken an image
      that has one hot pixel.
    - DICOM with one frame: the modality LUT or rescale is applied, then the VOI LUT or the first window. Without a
      window, values of more than 8 bits are stretched as above, without the padding. MONOCHROME1 is inverted.

    Args:
        file: path of the image. Of an image that is ``too_large``, only the header is decoded.

    Returns:
        Upright image of mode ``L``.

    Raises:
        UnreadableError: the file is missing, empty, truncated, damaged, too large, not an image, or has several frames.
    """
    try:
        size = file.stat().st_size
        if not size:
            raise UnreadableError("empty file")
        if size > MAX_BYTES:
            raise UnreadableError(f"{size} bytes is above the limit of {MAX_BYTES}")
        content = file.read_bytes()
    except OSError as error:
        raise UnreadableError(_one_line(error.strerror or error)) from None
    return read_content(content)


def read_content(content: bytes) -> Image.Image:
    """Read the content of an image file as ``read_radiograph`` reads the file; raise ``UnreadableError`` likewise."""
    try:
        return _read_dicom(content) if is_dicom(content[:DICOM_HEADER]) else _read_image(content)
    except UnreadableError:
        raise
    except MemoryError:
        raise UnreadableError("does not fit into memory") from None
    except UnidentifiedImageError:
        reason = "truncated, or a damaged header" if content.startswith(MAGIC) else "not an image"
        raise UnreadableError(reason) from None
    except Exception as error:  # decoders raise many types of exception for damaged files
        message = _one_line(error)
        if any(words in message for words in TRUNCATION_MESSAGES):
            raise UnreadableError("truncated") from None
        raise UnreadableError(f"damaged or not supported: {message or type(error).__name__}") from None


def is_dicom(start: bytes) -> bool:
    """Return whether ``start``, the first ``DICOM_HEADER`` bytes of a file, is DICOM with or without the preamble."""
    if start[128:132] == b"DICM":
        return True
    if len(start) < 8 or start[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return False
    group, element = struct.unpack(">HH" if start[0] == 0 else "<HH", start[:4])
    return element == 0 or dictionary_has_tag((group, element))


def _read_image(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        _refuse_large(*image.size)
        # The JPEG of a camera may contain a preview as a second image (MPO).
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise UnreadableError("several images in one file")
        with _large_image_lock if image.width * image.height > LARGE else nullcontext():
            if image.mode.startswith(("I", "F")):
                inverted = isinstance(image, TiffImageFile) and image.tag_v2.get(262) == 0  # white is zero
                values = np.asarray(ImageOps.exif_transpose(image))
                if not np.isfinite(values).all():
                    raise UnreadableError("pixel values that are not finite numbers")
                black, white = _stretch_limits(values)
                return _map_to_image(values, lambda stored: _grey_levels(stored, black, white, inverted))
            if image.has_transparency_data:
                upright = ImageOps.exif_transpose(image).convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", upright.size, "black"), upright).convert("L")
            return decode(content)


def _read_dicom(content: bytes) -> Image.Image:
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise UnreadableError("DICOM file without an image")
    _refuse_large(dataset.Columns, dataset.Rows)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise UnreadableError(f"{dataset.NumberOfFrames} frames in one file")
    if not dataset.get("PixelData"):
        raise UnreadableError("truncated")  # the header describes an image, but the file ends before it
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLELossless:
        # Some decoders fill in missing data without an error. Every codestream of the JPEG family ends with FF D9.
        ending = get_frame(dataset.PixelData, 0, number_of_frames=1)[-64:]
        if b"\xff\xd9" not in ending:
            raise UnreadableError("truncated")
    with _large_image_lock if dataset.Columns * dataset.Rows > LARGE else nullcontext():
        try:
            # Both convert YBR to RGB.
            pixels = decode_in_subprocess(content) if syntax.is_encapsulated else dataset.pixel_array
        except DecoderCrashedError:
            raise UnreadableError(f"damaged: the decoder crashes ({syntax.name})") from None
        except RuntimeError:  # its message lists the errors of all decoders
            raise UnreadableError(f"cannot be decoded: {syntax.name}") from None
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, dataset)
            return Image.fromarray((pixels >> 8 * (pixels.dtype.itemsize - 1)).astype(np.uint8)).convert("L")
        if dataset.SamplesPerPixel == 3:
            return Image.fromarray(_grey_levels(pixels, 0, 2**dataset.BitsStored - 1)).convert("L")
        if dataset.SamplesPerPixel != 1 or not dataset.PhotometricInterpretation.startswith("MONOCHROME"):
            raise UnreadableError(f"photometric interpretation {dataset.PhotometricInterpretation} is not supported")
        pixels = _stored_bits(pixels, dataset)
        return _map_to_image(pixels, lambda stored: _displayed_grey(stored, pixels, dataset))


def _stored_bits(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Clear the unused bits, in which old files store overlays; return integers of the same type."""
    unused = 8 * pixels.dtype.itemsize - dataset.BitsStored
    above = max(0, 8 * pixels.dtype.itemsize - 1 - dataset.get("HighBit", dataset.BitsStored - 1))
    return (pixels << above) >> unused


def _displayed_grey(stored: np.ndarray, pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Convert ``stored`` values of an image with ``pixels`` to the grey levels of a viewer (DICOM PS3.4, N.2)."""
    values = apply_modality_lut(stored, dataset)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    if dataset.get("VOILUTSequence"):
        _, _, bits = dataset.VOILUTSequence[0].LUTDescriptor
        return _grey_levels(apply_voi(np.rint(values).astype(np.int32), dataset), 0, 2**bits - 1, inverted)
    if _has_window(dataset):
        with np.errstate(over="ignore"):
            black, white = apply_windowing(np.array([-1e12, 1e12]), dataset)
            return _grey_levels(apply_windowing(values, dataset), black, white, inverted)
    if dataset.BitsStored == 8 and np.array_equal(values, stored):
        return _grey_levels(values, 0, 255, inverted)
    if (padding := dataset.get("PixelPaddingValue")) is not None:
        low, high = sorted((padding, dataset.get("PixelPaddingRangeLimit", padding)))
        shown = pixels[(pixels < low) | (pixels > high)]
        pixels = shown if shown.size else pixels
    black, white = np.sort(apply_modality_lut(np.array(_stretch_limits(pixels)), dataset))
    return _grey_levels(values, black, white, inverted)


def _has_window(dataset: Dataset) -> bool:
    """Return whether the first window is valid according to the standard; a window of width 0 is not."""
    center, width = (np.atleast_1d(np.array(dataset.get(name), float))[:1] for name in ("WindowCenter", "WindowWidth"))
    least = 1 if dataset.get("VOILUTFunction", "LINEAR") == "LINEAR" else np.nextafter(0, 1)
    return bool(np.isfinite(center).all() and (width >= least).all() and center.size and width.size)


def _stretch_limits(pixels: np.ndarray) -> tuple[float, float]:
    """Return the values that become black and white; equal numbers of pixels are below and above them."""
    clipped = int(pixels.size * CLIPPED / 100)
    ordered = np.partition(pixels, (0, clipped, pixels.size - 1 - clipped, pixels.size - 1), axis=None)
    low, high = ordered[clipped], ordered[-1 - clipped]
    return (low, high) if low < high else (ordered[0], ordered[-1])


def _map_to_image(pixels: np.ndarray, grey: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """Apply ``grey`` (values in, uint8 out) to all pixels; for up to 16 bits by a lookup table, to save memory."""
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f" or int(high) - int(low) >= 2**16:
        return Image.fromarray(grey(pixels))
    table = np.zeros(2**16, dtype=np.uint8)
    table[: int(high) - int(low) + 1] = grey(np.arange(int(low), int(high) + 1))
    above_low = pixels.astype(np.uint16) - np.uint16(int(low) % 2**16)
    levels = np.empty(pixels.shape, dtype=np.uint8)
    for row, indices in zip(levels, above_low, strict=True):  # row by row: np.take converts indices to 64 bits
        np.take(table, indices, out=row, mode="clip")
    return Image.fromarray(levels)


def _grey_levels(values: np.ndarray, black: float, white: float, inverted: bool = False) -> np.ndarray:
    """Map ``black`` to 0 and ``white`` to 255, or the reverse if inverted, clipped; return uint8 of the same shape."""
    if black == white:
        return np.zeros(values.shape, dtype=np.uint8)
    if inverted:
        black, white = white, black
    grey = np.subtract(values, float(black), dtype=np.float64)
    grey *= 255 / (float(white) - float(black))
    grey += 0.5  # round half up, so that an inverted image has exactly the mirrored levels
    return np.clip(grey, 0, 255, out=grey).astype(np.uint8)


def _refuse_large(width: int, height: int) -> None:
    if reason := too_large(width, height):
        raise UnreadableError(reason)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:120]
