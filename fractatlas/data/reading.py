"""Any image file, DICOM included, to the pixels that a network is fed with: one channel of 8 bits, upright.

What an ordinary JPEG or PNG gives is ``inspection.decode``'s, to the pixel. Nothing is decoded tolerantly: a file is
read whole or refused with a short reason.
"""

import io
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.datadict import dictionary_has_tag
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from fractatlas.data.decoding import DecoderDiedError, decode_apart
from fractatlas.data.inspection import decode, too_large

MAX_BYTES = 2**30
LARGE = 20_000_000  # pixels from which on images are decoded one at a time, whatever the number of threads
RANGE = 0.1  # per cent of the pixels that may lie beyond either end of a stretched range
# Without those that start other programs (EPS) or are no pictures of their own (icons, cursors, fonts).
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
CUT_SHORT = ("runcated", "less than expected", "not enough image data", "broken data stream", "unexpected end",
             "but only got", "could not create decoder object")  # fmt: skip
DICOM_HEADER = 132  # bytes after which a DICOM file is recognised

_one_large = threading.Lock()


class UnreadableError(Exception):
    """A file that cannot be read as one radiograph; the message is the reason, in a few words."""


def read_radiograph(file: Path) -> Image.Image:
    """Read an image file of any kind; its content says which, not its name.

    - JPEG, PNG, BMP, GIF, JPEG 2000, PPM, TIFF, WebP: EXIF's orientation applied, colours to luminance (ITU-R 601),
      transparent pixels over black. Grey of more than 8 bits is stretched, so that ``RANGE`` per cent of the pixels
      come out black and white at least: least and greatest value would leave a picture dark for one hot pixel.
    - DICOM of one frame: modality LUT or rescale, then VOI LUT or the first window; without one, stretched likewise
      (8 bits stay as they are, padding does not count); MONOCHROME1 inverted.

    Args:
        file: to read; only the header, where its image is ``too_large``.

    Returns:
        Mode ``L``.

    Raises:
        UnreadableError: it is empty, truncated, no image, of several frames or too large.
    """
    try:
        size = file.stat().st_size
        if not size:
            raise UnreadableError("empty file")
        if size > MAX_BYTES:
            raise UnreadableError(f"{size} bytes is above the limit of {MAX_BYTES}")
        content = file.read_bytes()
    except OSError as error:
        raise UnreadableError(_line(error.strerror or error)) from None
    try:
        return _read_dicom(content) if is_dicom(content[:DICOM_HEADER]) else _read_image(content)
    except UnreadableError:
        raise
    except MemoryError:
        raise UnreadableError("does not fit into memory") from None
    except UnidentifiedImageError:
        raise UnreadableError(
            "truncated, or a broken header" if content.startswith(MAGIC) else "not an image"
        ) from None
    except Exception as error:  # a broken file can make a decoder fail in any way
        said = _line(error)
        if any(words in said for words in CUT_SHORT):
            raise UnreadableError("truncated") from None
        raise UnreadableError(f"broken, or of a kind that is not read: {said or type(error).__name__}") from None


def is_dicom(start: bytes) -> bool:
    """Whether a file that begins with ``start`` (``DICOM_HEADER`` bytes) is DICOM, with or without the preamble."""
    if start[128:132] == b"DICM":
        return True
    if len(start) < 8 or start[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return False
    order = "big" if start[0] == 0 else "little"
    group, element = int.from_bytes(start[:2], order), int.from_bytes(start[2:4], order)
    return element == 0 or dictionary_has_tag((group, element))


def _read_image(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        _refuse_large(*image.size)
        # A camera's JPEG may carry a preview as a second picture (MPO).
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise UnreadableError("several images in one file")
        with _one_large if image.width * image.height > LARGE else nullcontext():
            if image.mode.startswith(("I", "F")):
                inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0  # white is zero
                values = np.asarray(ImageOps.exif_transpose(image))
                if not np.isfinite(values).all():
                    raise UnreadableError("pixels that are not finite numbers")
                black, white = _range(values)
                return _image(values, lambda some: _grey_levels(some, black, white, inverted))
            if image.has_transparency_data:
                upright = ImageOps.exif_transpose(image).convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", upright.size, "black"), upright).convert("L")
            return decode(content)


def _read_dicom(content: bytes) -> Image.Image:
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise UnreadableError("a DICOM file without an image")
    _refuse_large(dataset.Columns, dataset.Rows)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise UnreadableError(f"{dataset.NumberOfFrames} frames in one file")
    if not dataset.get("PixelData"):
        raise UnreadableError("truncated")  # there should be an image, and the reader met the end of the file first
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLELossless:
        # Some decoders fill up what is missing. Every codestream of the JPEG family ends with the same marker.
        ending = get_frame(dataset.PixelData, 0, number_of_frames=1)[-64:]
        if b"\xff\xd9" not in ending:
            raise UnreadableError("truncated")
    with _one_large if dataset.Columns * dataset.Rows > LARGE else nullcontext():
        try:
            pixels = decode_apart(content) if syntax.is_encapsulated else dataset.pixel_array  # YBR comes as RGB
        except DecoderDiedError:
            raise UnreadableError(f"broken: its decoder crashes ({syntax.name})") from None
        except RuntimeError:  # lists what every decoder said
            raise UnreadableError(f"cannot be decoded: {syntax.name}") from None
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, dataset)
            return Image.fromarray((pixels >> 8 * (pixels.dtype.itemsize - 1)).astype(np.uint8)).convert("L")
        if dataset.SamplesPerPixel == 3:
            return Image.fromarray(_grey_levels(pixels, 0, 2**dataset.BitsStored - 1)).convert("L")
        if dataset.SamplesPerPixel != 1 or not dataset.PhotometricInterpretation.startswith("MONOCHROME"):
            raise UnreadableError(f"pixels of kind {dataset.PhotometricInterpretation} are not read")
        pixels = _stored_bits(pixels, dataset)
        return _image(pixels, lambda stored: _displayed(stored, pixels, dataset))


def _stored_bits(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """The pixels without what else old files keep in the unused bits (overlays); integers of the same type."""
    unused = 8 * pixels.dtype.itemsize - dataset.BitsStored
    above = max(0, 8 * pixels.dtype.itemsize - 1 - dataset.get("HighBit", dataset.BitsStored - 1))
    return (pixels << above) >> unused


def _displayed(stored: np.ndarray, pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Grey as a viewer shows it at first (DICOM PS3.4, N.2), of some ``stored`` values of an image with ``pixels``."""
    values = apply_modality_lut(stored, dataset)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    if dataset.get("VOILUTSequence"):
        _, _, bits = dataset.VOILUTSequence[0].LUTDescriptor
        return _grey_levels(apply_voi(np.rint(values).astype(np.int32), dataset), 0, 2**bits - 1, inverted)
    if _has_window(dataset):
        with np.errstate(over="ignore"):
            ends = apply_windowing(np.array([-1e12, 1e12]), dataset)
            return _grey_levels(apply_windowing(values, dataset), *ends, inverted)
    if dataset.BitsStored == 8 and np.array_equal(values, stored):
        return _grey_levels(values, 0, 255, inverted)
    if (padding := dataset.get("PixelPaddingValue")) is not None:
        low, high = sorted((padding, dataset.get("PixelPaddingRangeLimit", padding)))
        shown = pixels[(pixels < low) | (pixels > high)]
        pixels = shown if shown.size else pixels
    return _grey_levels(values, *np.sort(apply_modality_lut(np.array(_range(pixels)), dataset)), inverted)


def _has_window(dataset: Dataset) -> bool:
    """Whether there is a window that the standard allows; one of no width counts as none."""
    center, width = (np.atleast_1d(np.array(dataset.get(name), float))[:1] for name in ("WindowCenter", "WindowWidth"))
    least = 1 if dataset.get("VOILUTFunction", "LINEAR") == "LINEAR" else np.nextafter(0, 1)
    return bool(np.isfinite(center).all() and (width >= least).all() and center.size and width.size)


def _range(pixels: np.ndarray) -> tuple[float, float]:
    """The values that become black and white; of a negative, the same ones mirrored."""
    beyond = int(pixels.size * RANGE / 100)
    ordered = np.partition(pixels, (0, beyond, pixels.size - 1 - beyond, pixels.size - 1), axis=None)
    low, high = ordered[beyond], ordered[-1 - beyond]
    return (low, high) if low < high else (ordered[0], ordered[-1])


def _image(pixels: np.ndarray, grey: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """Turn pixels into an image by ``grey`` (values in, uint8 out), of up to 16 bits by way of a table: it is small."""
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f" or int(high) - int(low) >= 2**16:
        return Image.fromarray(grey(pixels))
    table = np.zeros(2**16, dtype=np.uint8)
    table[: int(high) - int(low) + 1] = grey(np.arange(int(low), int(high) + 1))
    above_low = pixels.astype(np.uint16) - np.uint16(int(low) % 2**16)
    levels = np.empty(pixels.shape, dtype=np.uint8)
    for row, line in zip(levels, above_low, strict=True):  # at once, numpy would widen the whole image to 64 bits
        np.take(table, line, out=row, mode="clip")
    return Image.fromarray(levels)


def _grey_levels(values: np.ndarray, black: float, white: float, inverted: bool = False) -> np.ndarray:
    """Map ``black`` to 0 and ``white`` to 255, or the reverse, clipped: uint8 of the same shape."""
    if black == white:
        return np.zeros(values.shape, dtype=np.uint8)
    if inverted:
        black, white = white, black
    grey = np.subtract(values, float(black), dtype=np.float64)
    grey *= 255 / (float(white) - float(black))
    grey += 0.5  # half a level rounds up, so that a negative's levels are exactly the mirrored ones
    return np.clip(grey, 0, 255, out=grey).astype(np.uint8)


def _refuse_large(width: int, height: int) -> None:
    if reason := too_large(width, height):
        raise UnreadableError(reason)


def _line(text: object) -> str:
    return " ".join(str(text).split())[:120]
