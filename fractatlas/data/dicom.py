"""Read DICOM files with one frame as grey images, and return what kind of object a file contains.

Optional attributes that are absent, empty or invalid are ignored alike.
"""

import io
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments, get_frame
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from fractatlas.data.decoder_subprocess import DecoderCrashedError, decode_in_subprocess
from fractatlas.data.grey_levels import grey_levels, map_to_image, refuse_constant, samples_to_image, stretch_limits
from fractatlas.data.image_limits import TRUNCATED, UnreadableError, memory_lock, refuse_large
from fractatlas.wording import plural

# Values of Modality that radiographs of bones have: computed, digital and film radiography, fluoroscopy, angiography.
RADIOGRAPHS = ("CR", "DX", "RG", "RF", "XA")
SECONDARY_CAPTURE = "SC"
SECONDARY_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"  # SOP class; those of its multi-frame objects append a number
# Objects whose pixels are not an image of a body: segmentation (two classes), dose, parametric maps.
NO_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.481.2",
    "1.2.840.10008.5.1.4.1.1.30",
}  # fmt: skip
# Modality by SOP class, of a file without the attribute.
MODALITIES = {
    "1": "CR", "1.1": "DX", "1.1.1": "DX", "1.2": "MG", "1.2.1": "MG", "1.3": "IO", "1.3.1": "IO", "2": "CT",
    "2.1": "CT", "3.1": "US", "4": "MR", "4.1": "MR", "6.1": "US", "12.1": "XA", "12.1.1": "XA", "12.2": "RF",
    "12.2.1": "RF", "20": "NM", "128": "PT", "481.1": "RTIMAGE",
}  # fmt: skip
IMAGE_CLASSES = "1.2.840.10008.5.1.4.1.1."
VIDEO = ("MPEG", "HEVC", "SMPTE")
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
FRAME_ATTRIBUTES = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction",
                    "VOILUTSequence", "ModalityLUTSequence")  # fmt: skip
ITEM = b"\xfe\xff\x00\xe0"  # tag with which compressed pixels begin
CODESTREAMS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")  # first bytes of JPEG, JPEG-LS and JPEG 2000
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # the reason of ``UnreadableError`` is enough


@dataclass(frozen=True)
class PixelFormat:
    """How the samples of a DICOM image are stored; invalid values of the file are replaced.

    Attributes:
        rows: height in pixels.
        columns: width in pixels.
        samples: 1 or 3 per pixel.
        allocated: bits per sample in the file.
        stored: bits per sample that belong to the image.
        high: index of the highest of these bits.
        signed: whether samples are in two's complement.
        photometric: photometric interpretation.
        planar: 1 if the colours are stored one after the other, 0 if each pixel has its colours together.
    """

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    planar: int


@dataclass(frozen=True)
class LookupTable:
    """A lookup table of a DICOM file: ``values[i]`` (uint16) of ``bits`` bits replaces the value ``first + i``."""

    first: int
    bits: int
    values: np.ndarray

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Look up integers or floats; values outside the table take its first or last entry."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.values) - 1)
        return self.values[index.astype(np.int64)]


def read_dicom(content: bytes) -> Image.Image:
    """Read the content of a DICOM file with one frame.

    Returns:
        Image of mode ``L``. ``info["modality"]`` is the ``modality`` of the file.

    Raises:
        UnreadableError: the file has no image, several frames, is truncated, damaged or not supported, or the display
            window shows nothing.
        Exception: another error of pydicom for damaged files.
    """
    if _data_set_start(content) >= len(content):
        raise UnreadableError(TRUNCATED)
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    except struct.error:  # the file ends within the length of an element
        raise UnreadableError(TRUNCATED) from None
    _require_pixels(dataset, content)
    pixel_format = _pixel_format(dataset)
    refuse_large(pixel_format.columns, pixel_format.rows)
    frames = _integer(dataset, "NumberOfFrames") or 1
    if frames > 1:
        raise UnreadableError(f"{frames} frames in one file; save each as its own file")
    _set_frame_attributes(dataset)
    with memory_lock(pixel_format.columns, pixel_format.rows):
        image = _render(_decode(dataset, pixel_format, _transfer_syntax(dataset)), pixel_format, dataset)
    image.info["modality"] = modality(dataset)
    return image


def is_other_modality(modality: str) -> bool:
    """Return whether the modality of a DICOM file is known and not one of bone radiographs."""
    return bool(modality) and modality not in RADIOGRAPHS


def modality(dataset: Dataset) -> str:
    """Return ``SECONDARY_CAPTURE`` for objects of that class, or the attribute Modality, or that of the SOP class.

    A secondary capture is an image that another program drew: a digitised film, but also a screen or a report. The
    result is ``"unknown"`` if the file has neither the attribute nor a class of ``MODALITIES``.
    """
    uid = str(dataset.get("SOPClassUID") or "")
    if uid == SECONDARY_CAPTURES or uid.startswith(f"{SECONDARY_CAPTURES}."):
        return SECONDARY_CAPTURE
    of_class = MODALITIES.get(uid.removeprefix(IMAGE_CLASSES), "unknown")
    return str(dataset.get("Modality") or "").strip().upper() or of_class


def _require_pixels(dataset: Dataset, content: bytes) -> None:
    """Raise ``UnreadableError`` unless the file has Rows, Columns and PixelData."""
    if _has_other_byte_order(dataset, content):
        raise UnreadableError("the byte order is not that of the transfer syntax; export the file again")
    if _is_cut(dataset, content) and not dataset.get("PixelData"):
        raise UnreadableError(TRUNCATED)
    kind = _kind(dataset)
    named = f" ({kind})" if kind else ""
    if dataset.get("SOPClassUID") in NO_IMAGES:
        raise UnreadableError(f"DICOM file without an image of a body{named}; remove it")
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise UnreadableError("DICOM with float samples is not supported; export the file with integers")
    if dataset.get("PixelData"):
        if min(_integer(dataset, name) or 0 for name in ("Rows", "Columns")) <= 0:
            raise UnreadableError("DICOM file without the size of its image (Rows, Columns); export it again")
    elif "Rows" in dataset or "PixelData" in dataset or "Image" in kind:
        raise UnreadableError(f"DICOM file without its pixels{named}; copy or export it again")
    else:
        raise UnreadableError(f"DICOM file without an image{named}; remove it")


def _has_other_byte_order(dataset: Dataset, content: bytes) -> bool:
    """Return whether the data set begins with group 0008 in the byte order that the transfer syntax does not have."""
    start, syntax = _data_set_start(content), dataset.get("file_meta", Dataset()).get("TransferSyntaxUID")
    if not start or syntax == DeflatedExplicitVRLittleEndian:
        return False
    return content[start : start + 2] == (b"\x08\0" if syntax == ExplicitVRBigEndian else b"\0\x08")


def _data_set_start(content: bytes) -> int:
    """Return the position after the file meta information; 0 if its length is not stated."""
    stated = content[128:140] == b"DICM\x02\0\0\0UL\x04\0"
    return 144 + int.from_bytes(content[140:144], "little") if stated else 0


def _kind(dataset: Dataset) -> str:
    """Return the name of the object's class, or its modality, or ``""``."""
    uid = dataset.get("SOPClassUID") or dataset.get("file_meta", Dataset()).get("MediaStorageSOPClassUID")
    name = UID(str(uid)).name if uid else ""
    return name if name and not name[0].isdigit() else str(dataset.get("Modality") or "")


def _is_cut(dataset: Dataset, content: bytes) -> bool:
    """Return whether the file ends within an element, before values are converted and lose their positions.

    pydicom returns an empty data set if the file ends within an element of undefined length, such as compressed pixels.
    """
    if not len(dataset):
        return True
    if dataset.get("file_meta", Dataset()).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return False
    last = dataset.get_item(max(dataset.keys()))
    end = getattr(last, "value_tell", None)
    length = getattr(last, "length", None)
    return end is not None and length not in (None, 0xFFFFFFFF) and end + length != len(content)


def _transfer_syntax(dataset: Dataset) -> UID:
    if syntax := dataset.file_meta.get("TransferSyntaxUID"):
        return syntax
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else explicit


def _pixel_format(dataset: Dataset) -> PixelFormat:
    allocated = _integer(dataset, "BitsAllocated") or 0
    if not 1 <= allocated <= 64:
        raise UnreadableError(f"invalid BitsAllocated {allocated}; export the file again")
    stored = _integer(dataset, "BitsStored") or 0
    stored = stored if 1 <= stored <= allocated else allocated
    high = _integer(dataset, "HighBit")
    high = high if high is not None and stored - 1 <= high < allocated else stored - 1
    samples = _integer(dataset, "SamplesPerPixel") or 1
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    photometric = photometric or ("RGB" if samples == 3 else "MONOCHROME2")
    needed = 3 if photometric in COLOURS else 1
    if needed == 1 and photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"):
        raise UnreadableError(
            f"photometric interpretation {photometric} is not supported; export the file as MONOCHROME2"
        )
    if samples != needed:
        raise UnreadableError(
            f"{plural(samples, 'sample')} per pixel, but {photometric} has {needed}; export the file again"
        )
    rows, columns = (_integer(dataset, name) or 0 for name in ("Rows", "Columns"))
    signed = _integer(dataset, "PixelRepresentation") == 1 and photometric.startswith("MONOCHROME")
    planar = int(_integer(dataset, "PlanarConfiguration") == 1)
    return PixelFormat(rows, columns, samples, allocated, stored, high, signed, photometric, planar)


def _decode(dataset: Dataset, pixel_format: PixelFormat, syntax: UID) -> np.ndarray:
    """Return the samples, (rows, columns) or (rows, columns, 3), integers without unused bits, colours as RGB."""
    pixels: bytes = dataset.PixelData
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise UnreadableError(f"transfer syntax {syntax} is not supported; export it as Explicit VR Little Endian")
    if any(word in syntax.name for word in VIDEO):
        raise UnreadableError(f"video ({syntax.name}); export the frame as a still image")
    jpeg = syntax.is_encapsulated and syntax != RLELossless
    compressed = pixels.startswith(ITEM) if syntax.is_encapsulated else dataset["PixelData"].is_undefined_length
    if compressed != syntax.is_encapsulated:
        raise UnreadableError(
            f"the pixels are {'' if compressed else 'not '}compressed, against the transfer syntax ({syntax.name}); "
            "export the file again"
        )
    if compressed:
        try:
            fragments = [*generate_fragments(pixels)][1:]  # the first is the table of offsets
        except ValueError:
            raise UnreadableError("damaged: the compressed pixels are not in fragments; copy it again") from None
        frames = sum(fragment.startswith(CODESTREAMS) for fragment in fragments) if jpeg else len(fragments)
        if frames > 1:
            raise UnreadableError(f"{frames} frames in one file; save each as its own file")
    if jpeg:
        # Some decoders fill in missing data without an error. Every codestream of the JPEG family ends with FF D9.
        if b"\xff\xd9" not in get_frame(pixels, 0, number_of_frames=1)[-64:]:
            raise UnreadableError(TRUNCATED)
    elif not syntax.is_encapsulated:
        _check_length(pixels, pixel_format)
    options: dict[str, Any] = {
        "rows": pixel_format.rows,
        "columns": pixel_format.columns,
        "samples_per_pixel": pixel_format.samples,
        "bits_allocated": pixel_format.allocated,
        "bits_stored": pixel_format.stored,
        "pixel_representation": int(pixel_format.signed),
        "photometric_interpretation": pixel_format.photometric,
        "planar_configuration": pixel_format.planar,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_vr": dataset["PixelData"].VR,
    }
    try:
        if jpeg:
            samples = decode_in_subprocess(pixels, str(syntax), options)
        elif not syntax.is_encapsulated and pixel_format.allocated not in (1, 8, 16, 32, 64):
            samples = _unpack(pixels, pixel_format)
        else:
            # pydicom would remove the highest bits instead of those outside of the image.
            options |= {"correct_unused_bits": False, "allow_excess_frames": False}
            options |= {} if syntax.is_encapsulated else {"view_only": True}
            samples, _ = get_decoder(syntax).as_array(pixels, **options)
    except DecoderCrashedError:
        raise UnreadableError(f"damaged: the decoder crashes ({syntax.name}); copy it again") from None
    except (RuntimeError, NotImplementedError):  # the message lists the errors of all decoders
        raise UnreadableError(
            f"cannot be decoded: {syntax.name}, {pixel_format.stored} bits; export it as Explicit VR Little Endian"
        ) from None
    if jpeg and not pixel_format.signed:
        return samples
    return _stored_bits(samples, pixel_format.stored, pixel_format.stored - 1 if jpeg else pixel_format.high)


def _check_length(pixels: bytes, pixel_format: PixelFormat) -> None:
    """Require the length of one frame, which may be followed by other data, but not by further frames."""
    samples = 2 if pixel_format.photometric == "YBR_FULL_422" else pixel_format.samples
    needed = pixel_format.rows * pixel_format.columns * samples * pixel_format.allocated
    frames, rest = divmod(8 * len(pixels), needed)
    if frames < 1:
        raise UnreadableError(TRUNCATED)
    if frames > 1 and rest < 16 and needed > 8:  # the length is padded to an even number of bytes
        raise UnreadableError(f"{frames} frames in one file; save each as its own file")


def _unpack(pixels: bytes, pixel_format: PixelFormat) -> np.ndarray:
    """Unpack samples of a number of bits that no type has, such as 12 or 24, stored one after the other."""
    size, allocated = pixel_format.rows * pixel_format.columns * pixel_format.samples, pixel_format.allocated
    unpacked = np.empty(size, dtype=np.uint64 if allocated > 32 else np.uint32 if allocated > 16 else np.uint16)
    block = 2**16  # samples; a multiple of 8, so that each block starts with a byte
    for start in range(0, size, block):
        first, count = start * allocated // 8, min(block, size - start)
        piece = np.frombuffer(pixels, np.uint8, -(-count * allocated // 8), first)
        bits = np.unpackbits(piece, bitorder="little")[: count * allocated].reshape(count, allocated)
        part = np.zeros(count, dtype=unpacked.dtype)
        for bit in range(allocated):
            part |= bits[:, bit].astype(unpacked.dtype) << unpacked.dtype.type(bit)
        unpacked[start : start + count] = part
    if pixel_format.signed:
        unpacked = unpacked.view(f"i{unpacked.dtype.itemsize}")
    shape = (pixel_format.rows, pixel_format.columns)
    if pixel_format.samples == 1:
        return unpacked.reshape(shape)
    if pixel_format.planar:
        return np.moveaxis(unpacked.reshape(3, *shape), 0, -1)
    return unpacked.reshape(*shape, 3)


def _stored_bits(samples: np.ndarray, stored: int, high: int) -> np.ndarray:
    """Move the ``stored`` bits up to bit ``high`` to the right end; clear the others, where old files have overlays."""
    size = 8 * samples.dtype.itemsize
    above, unused = max(0, size - 1 - high), max(0, size - stored)
    return (samples << above) >> unused if above or unused else samples


def _render(samples: np.ndarray, pixel_format: PixelFormat, dataset: Dataset) -> Image.Image:
    """Convert samples to the grey levels of a viewer (DICOM PS3.4, N.2)."""
    if pixel_format.samples == 3:
        return samples_to_image(samples, pixel_format.stored, colour=True)
    if pixel_format.photometric == "PALETTE COLOR":
        return samples_to_image(_palette_colours(samples, dataset), 8, colour=True)
    inverted = pixel_format.photometric == "MONOCHROME1"
    is_shown = _outside_padding(samples, dataset)
    shown = samples if is_shown is None else samples[is_shown]
    rescale, table = _rescale(dataset), _table(dataset, "ModalityLUTSequence", pixel_format.signed)

    def values_of(stored: np.ndarray) -> np.ndarray:
        if table is not None:
            return table.apply(stored)
        return stored if rescale == (1, 0) else stored * rescale[0] + rescale[1]

    signed = bool(min(values_of(np.array([shown.min(), shown.max()]))) < 0)
    if (voi := _table(dataset, "VOILUTSequence", signed)) is not None:
        image = map_to_image(
            samples, lambda stored: grey_levels(voi.apply(values_of(stored)), 0, 2**voi.bits - 1, inverted)
        )
        used = "VOI lookup table"
    elif (window := _window(dataset)) is not None:
        image = map_to_image(samples, lambda stored: window.grey_levels(values_of(stored), inverted))
        used = f"display window (centre {window.center:g}, width {window.width:g})"
    elif pixel_format.stored <= 8 and not pixel_format.signed and table is None and rescale == (1, 0):
        if pixel_format.stored == 8:
            levels = samples.astype(np.uint8, copy=False)
            return Image.fromarray(255 - levels if inverted else levels)
        return map_to_image(samples, lambda stored: grey_levels(stored, 0, 2**pixel_format.stored - 1, inverted))
    else:
        if table is not None:  # it need not be monotonic
            black, white = stretch_limits(table.apply(shown))
        else:
            black, white = np.sort(values_of(np.array(stretch_limits(shown))))
        return map_to_image(samples, lambda stored: grey_levels(values_of(stored), black, white, inverted))
    if shown.min() != shown.max():
        reason = f"the {used} shows every pixel as the same grey; export the file with another one"
        visible = image if is_shown is None else Image.fromarray(np.asarray(image)[is_shown][None])
        refuse_constant(visible, reason)
    return image


@dataclass(frozen=True)
class Window:
    """A window of values that are displayed, and its function (DICOM PS3.3, C.11.2.1.2)."""

    center: float
    width: float
    function: str

    def grey_levels(self, values: np.ndarray, inverted: bool) -> np.ndarray:
        """Return the grey levels of values; uint8 of the same shape."""
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):
                return grey_levels(1 / (1 + np.exp(-4 * (values - self.center) / self.width)), 0, 1, inverted)
        if self.function == "LINEAR_EXACT":
            return grey_levels(values, self.center - self.width / 2, self.center + self.width / 2, inverted)
        if self.width == 1:
            return grey_levels(values > self.center - 0.5, 0, 1, inverted)
        black = self.center - 0.5 - (self.width - 1) / 2
        return grey_levels(values, black, black + self.width - 1, inverted)


def _window(dataset: Dataset) -> Window | None:
    """Return the first valid window."""
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    function = function if function in ("SIGMOID", "LINEAR_EXACT") else "LINEAR"
    for center, width in zip(_numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth"), strict=False):
        if np.isfinite([center, width]).all() and (width >= 1 or (width > 0 and function != "LINEAR")):
            return Window(center, width, function)
    return None


def _rescale(dataset: Dataset) -> tuple[float, float]:
    """Return RescaleSlope and RescaleIntercept; (1, 0) if one is missing or invalid, or the slope is 0."""
    slope, intercept = (_first_number(dataset, name) for name in ("RescaleSlope", "RescaleIntercept"))
    return (1, 0) if slope is None or intercept is None or slope == 0 else (slope, intercept)


def _outside_padding(samples: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """Return which samples are not padding; ``None`` if all or none are."""
    padding = _integer(dataset, "PixelPaddingValue")
    if padding is None:
        return None
    limit = _integer(dataset, "PixelPaddingRangeLimit")
    low, high = sorted((padding, padding if limit is None else limit))
    outside = (samples < low) | (samples > high)
    return None if outside.all() or not outside.any() else outside


def _table(dataset: Dataset, name: str, signed: bool) -> LookupTable | None:
    """Return the first lookup table of a sequence, unless it is missing or invalid."""
    try:
        item = dataset[name].value[0]
    except Exception:  # absent, empty or not a sequence
        return None
    return _lookup_table(item, "LUTDescriptor", "LUTData", signed, dataset.original_encoding[1] is not False)


def _lookup_table(item: Dataset, descriptor: str, data: str, signed: bool, little: bool) -> LookupTable | None:
    numbers = _numbers(item, descriptor)
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        return None
    entries, first, bits = (int(number) for number in numbers)
    entries = entries % 2**16 or 2**16  # the value representation SS makes 32,768 and more negative
    first = first - 2**16 if signed and first >= 2**15 else first
    try:
        content = item.get(data)
    except Exception:  # pydicom raises several types of exception for values that it cannot convert
        return None
    if not isinstance(content, bytes):
        words = _numbers(item, data)
        if not words or not np.isfinite(words).all():
            return None
        content, little = (np.array(words, dtype=np.int64) % 2**16).astype("<u2").tobytes(), True
    if len(content) >= 2 * entries:
        values = np.frombuffer(content, "<u2" if little else ">u2", entries).astype(np.uint16)
    elif len(content) == entries + entries % 2 and (bits <= 8 or data != "LUTData"):  # two entries in each word
        values = np.frombuffer(content, np.uint8, entries).astype(np.uint16)
    else:
        return None
    needed = int(values.max()).bit_length()
    return LookupTable(first, max(bits, needed) if 8 <= bits <= 16 else max(8, needed), values)


def _palette_colours(samples: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Return the colours of a palette, uint8 (rows, columns, 3)."""
    channels = []
    for name in ("Red", "Green", "Blue"):
        descriptor, data = f"{name}PaletteColorLookupTableDescriptor", f"{name}PaletteColorLookupTableData"
        table = _lookup_table(dataset, descriptor, data, False, dataset.original_encoding[1] is not False)
        if table is None:
            try:
                colours = apply_color_lut(samples, dataset)  # it reads segmented palettes
            except Exception:  # pydicom raises several types of exception
                raise UnreadableError("palette that is missing or incomplete; export the file again") from None
            break
        channels.append(table.apply(samples))
    else:
        colours = np.stack(channels, axis=-1)
    # Some files state 16 bits and store 8.
    return (colours >> (8 if colours.max() > 255 else 0)).astype(np.uint8)


def _set_frame_attributes(dataset: Dataset) -> None:
    """Copy the attributes of the only frame of a multi-frame object to the place of a single-frame object."""
    for groups in FUNCTIONAL_GROUPS:
        try:
            macros = [element.value[0] for element in dataset[groups].value[0] if element.VR == "SQ" and element.value]
        except Exception:  # absent, empty or not a sequence
            continue
        for macro in macros:
            for name in FRAME_ATTRIBUTES:
                if name in macro and dataset.get(name) in (None, ""):
                    dataset[name] = macro[name]


def _numbers(dataset: Dataset, name: str) -> list[float]:
    """Return the values of an attribute, NaN for each that is not a number; ``[]`` if it is absent or invalid."""
    try:
        value = dataset.get(name)
        values = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        return [_float(number) for number in values]
    except Exception:  # pydicom raises several types of exception for values that it cannot convert
        return []


def _float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")


def _first_number(dataset: Dataset, name: str) -> float | None:
    numbers = _numbers(dataset, name)
    return numbers[0] if numbers and np.isfinite(numbers[0]) else None


def _integer(dataset: Dataset, name: str) -> int | None:
    number = _first_number(dataset, name)
    return None if number is None or number != int(number) else int(number)
