"""Read every legal combination of sample formats: ``python -m tests.robustness.reading --table tests/reading.md``.

Small files of each kind are generated from known samples. What ``read_content`` returns is compared with the rendering
of an independent reader: ``dcm2pnm`` of DCMTK for DICOM, and for other formats this module's own arithmetic on the
samples that were written, after libtiff or libspng has read back the same samples, or on those that imagecodecs decodes
from a lossy file. Files of kinds that are not
supported must be refused with the true reason.
"""

import argparse
import io
import itertools
import logging
import re
import shutil
import struct
import subprocess
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from fractatlas.data.images import UnreadableError, read_content

DCMTK = shutil.which("dcm2pnm")
ROWS, COLUMNS = 18, 23  # odd, so that packed samples end within a byte
WEIGHTS = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Case:
    """One generated file.

    Attributes:
        kind: row of the table.
        name: what distinguishes the file from others of its kind.
        content: of the file, or a function that makes it.
        expected: uint8 (rows, columns), or a function that returns it; a regular expression of the refusal.
    """

    kind: str
    name: str
    content: bytes | Callable[[], bytes]
    expected: np.ndarray | Callable[[bytes], np.ndarray] | str
    samples: np.ndarray | None = None  # in the file, (rows, columns, channels), to be read back independently


@dataclass
class Row:
    """Results of one kind: numbers of files, refusals by reason, and differences in grey levels."""

    tried: int = 0
    confirmed: int = 0  # by the independent reader, which does not read all files
    right: int = 0
    refused: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  # files that DCMTK does not render
    largest: int = 0
    above_one: int = 0  # pixels

    @property
    def expected_refusals(self) -> int:
        return self.tried - self.right - len(self.wrong) - len(self.unread)


# What each kind is made with, and which reader it is compared with.
DCM2PNM = "dcm2pnm (DCMTK)"
KINDS: dict[str, tuple[str, str]] = {
    "DICOM, native samples": ("BitsAllocated x BitsStored x HighBit x PixelRepresentation x photometric, random unused "
                              "bits, a window", DCM2PNM),
    "DICOM, transfer syntaxes": ("little and big endian, implicit, deflated; dcmcrle, dcmcjpeg, dcmcjpls", DCM2PNM),
    "DICOM, rescale, windows, lookup tables": ("slope, intercept, window, function, VOI and modality tables, "
                                               "PresentationLUTShape", DCM2PNM),
    "DICOM, empty and invalid attributes": ("each optional attribute empty or nonsensical", "the file without it"),
    "DICOM, more than 8 bits without a window": ("BitsStored x PixelRepresentation x photometric", "numpy"),
    "DICOM, colours": ("RGB and palettes; planar or not; 8 and 16 bits", "numpy"),
    "TIFF": ("SampleFormat x BitsPerSample x byte order x planar x photometric x compression", "libtiff, numpy"),
    "TIFF, pixels without a value": ("NaN, infinity, GDAL_NODATA; SampleFormat x photometric", "numpy"),
    "PNG": ("colour type x bit depth", "libspng, numpy"),
    "JPEG 2000": ("channels x precision", "numpy"),
    "PPM and PGM": ("plain or binary x maximum", "numpy"),
    "JPEG": ("grey or colours x baseline or progressive x subsampling x quality; Exif orientation", "imagecodecs"),
    "BMP, GIF, WebP, AVIF": ("1 bit, grey, palette, colours, alpha x lossless or lossy x subsampling", "imagecodecs"),
    "TIFF with thumbnails, pyramids, orientation": ("NewSubfileType, SubfileType, Orientation 1 to 8", "numpy"),
    "not supported": ("first bytes, or a generated file", "-"),
}  # fmt: skip


def pattern(bits: int, signed: bool = False, channels: int = 1, share: float = 1) -> np.ndarray:
    """Return samples (rows, columns, channels), int64, that cover ``share`` of the range of ``bits``."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    planes = []
    for channel in range(channels):
        plane = (
            (x * (3 + channel) + y * (7 - channel) + x * y % 11) / (3 * COLUMNS + 7 * ROWS + 11) * (0.4 + 0.6 * (x > y))
        )
        plane = (plane - plane.min()) / np.ptp(plane)
        planes.append(np.rint(plane * (2.0**bits - 1) * share) if bits < 50 else plane * 2.0**bits * 0.999 * share)
    values = np.stack(planes, axis=-1)
    if bits == 64:
        return values.astype(np.uint64) if not signed else (values - 2.0**63).astype(np.int64)
    return values.astype(np.int64) - (2 ** (bits - 1) if signed else 0)


def stretched(values: np.ndarray, inverted: bool = False) -> np.ndarray:
    """Return the documented rendering of samples of more than 8 bits."""
    ordered = np.sort(values, axis=None).astype(np.float64)
    clipped = int(len(ordered) * 0.001)
    low, high = ordered[clipped], ordered[len(ordered) - 1 - clipped]
    share = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    return np.floor((1 - share if inverted else share) * 255 + 0.5).astype(np.uint8)


def dicom(samples: np.ndarray, allocated: int, stored: int, high: int, signed: bool,
          syntax: str = ExplicitVRLittleEndian, noise: bool = True, **elements) -> bytes:  # fmt: skip
    """Return a DICOM file; the unused bits are random."""
    low = high + 1 - stored
    words = (samples.astype(np.int64).astype(np.uint64) & np.uint64(2**stored - 1)) << np.uint64(low)
    if noise:
        unused = np.uint64((2**allocated - 1) ^ ((2**stored - 1) << low))
        words |= np.random.default_rng(allocated * 64 + high).integers(0, 2**63, words.shape, dtype=np.uint64) & unused
    if allocated in (8, 16, 32, 64):
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        data = words.astype(f"{order}u{allocated // 8}").tobytes()
        if allocated == 8 and order == ">":  # OW: bytes are swapped within words
            data = np.frombuffer(data + b"\0" * (len(data) % 2), "<u2").astype(">u2").tobytes()
    else:
        bits = (words.reshape(-1, 1) >> np.arange(allocated, dtype=np.uint64)) & np.uint64(1)
        data = np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4", "CR"
    dataset.Rows, dataset.Columns = samples.shape[:2]
    dataset.SamplesPerPixel = samples.shape[2] if samples.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if dataset.SamplesPerPixel == 3 else "MONOCHROME2"
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, high
    dataset.PixelRepresentation = int(signed)
    dataset.add_new(0x7FE00010, "OW", data + b"\0" * (len(data) % 2))
    for name, value in elements.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def dcm2pnm(content: bytes, *options: str) -> np.ndarray:
    """Return the rendering of DCMTK with the first window or VOI table of the file."""
    syntax = str(pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).file_meta.TransferSyntaxUID)
    program = "dcml2pnm" if syntax in JPEGLSTransferSyntaxes else "dcm2pnm"
    program = "dcmj2pnm" if syntax.startswith("1.2.840.10008.1.2.4.") and program == "dcm2pnm" else program
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.dcm").write_bytes(content)
        line = [program, "+op", *(options or ("+Wi", "1")), f"{folder}/a.dcm", f"{folder}/a.pgm"]
        subprocess.run(line, check=True, capture_output=True)
        return np.asarray(Image.open(f"{folder}/a.pgm"))


def windowed(values: np.ndarray, center: float, width: float, function: str, inverted: bool) -> np.ndarray:
    """Return the rendering of DICOM PS3.3, C.11.2.1."""
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (values - center) / width))
    elif function == "LINEAR_EXACT":
        share = (values - center) / width + 0.5
    else:
        share = (values - (center - 0.5)) / (width - 1) + 0.5
    share = np.clip(share, 0, 1)
    return np.floor((1 - share if inverted else share) * 255 + 0.5).astype(np.uint8)


def dcmtk(program: str, content: bytes, *options: str) -> bytes:
    """Return what a program of DCMTK makes of a DICOM file."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.dcm").write_bytes(content)
        subprocess.run([program, *options, f"{folder}/a.dcm", f"{folder}/b.dcm"], check=True, capture_output=True)
        return Path(folder, "b.dcm").read_bytes()


def window(stored: int, signed: bool) -> dict:
    """Return the window of all values; of one bit, the narrowest window whose rendering is clear."""
    return (
        {"WindowCenter": 1, "WindowWidth": 2}
        if stored == 1
        else {"WindowCenter": 0 if signed else 2 ** (stored - 1), "WindowWidth": 2**stored}
    )


def native_cases() -> Iterator[Case]:
    """Native DICOM samples in every position within the allocated bits."""
    layouts = [(allocated, stored, high) for allocated in (8, 12, 16) for stored in range(1, allocated + 1)
               for high in range(stored - 1, allocated)]  # fmt: skip
    layouts += [(allocated, stored, high) for allocated in (24, 32) for stored in (1, 2, 8, 10, 12, 16, 17, 24, 31, 32)
                if stored <= allocated for high in range(stored - 1, allocated)]  # fmt: skip
    for (allocated, stored, high), signed, number in itertools.product(layouts, (False, True), (1, 2)):
        if stored == 1 and signed:
            continue  # -1 and 0
        samples = pattern(stored, signed)[..., 0]
        content = partial(dicom, samples, allocated, stored, high, signed, **window(stored, signed),
                          PhotometricInterpretation=f"MONOCHROME{number}")  # fmt: skip
        name = f"{allocated} {stored} {high} {'signed' if signed else 'unsigned'} MONOCHROME{number}"
        yield Case("DICOM, native samples", name, content, dcm2pnm)
    for allocated, rows in itertools.product((8, 16), (7, 10, 17)):
        samples = pattern(allocated)[..., 0]
        content = partial(dicom, samples, allocated, allocated, allocated - 1, False, **window(allocated, False),
                          Rows=rows)  # fmt: skip
        yield Case("DICOM, native samples", f"{allocated} bits, {ROWS} rows of which {rows} are declared", content,
                   dcm2pnm)  # fmt: skip


def syntax_cases() -> Iterator[Case]:
    """Native and compressed transfer syntaxes."""
    kind = "DICOM, transfer syntaxes"
    for allocated, stored, signed in itertools.product((8, 16), range(2, 17), (False, True)):
        if stored > allocated:
            continue
        samples = pattern(stored, signed)[..., 0]
        for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
            for high in {stored - 1, allocated - 1}:
                content = partial(dicom, samples, allocated, stored, high, signed, syntax, **window(stored, signed))
                yield Case(kind, f"{syntax.name} {allocated} {stored} {high} {signed}", content, dcm2pnm)
        plain = dicom(samples, allocated, stored, stored - 1, signed, noise=False, **window(stored, signed))
        encoders = [("dcmcrle",), ("dcmcjpls",), ("dcmcjpeg", "+e1"), ("dcmcjpeg", "+el"), ("dcmcjpeg", "+eb"),
                    ("dcmcjpeg", "+ee"), ("dcmcjpeg", "+es"), ("dcmcjpeg", "+ep")]  # fmt: skip
        for program, *options in encoders:
            name = f"{program} {options} {allocated} {stored} {signed}"
            yield Case(kind, name, partial(dcmtk, program, plain, *options), dcm2pnm)
        if allocated == 16:
            high = dicom(samples, 16, stored, 15, signed, noise=False, **window(stored, signed))
            yield Case(kind, f"dcmcrle, HighBit 15, {stored} {signed}", partial(dcmtk, "dcmcrle", high), dcm2pnm)


def table(values: np.ndarray, first: int, bits: int, packed: bool = False) -> Dataset:
    """Return an item of a sequence of lookup tables."""
    item = Dataset()
    item.add_new(0x00283002, "US", [len(values) % 2**16, first % 2**16, bits])
    item.add_new(0x00283006, "OW", values.astype(np.uint8 if packed else "<u2").tobytes())
    return item


def display_cases() -> Iterator[Case]:
    """Rescale, windows and lookup tables."""
    kind = "DICOM, rescale, windows, lookup tables"
    for stored, signed, number in itertools.product((8, 10, 12, 16), (False, True), (1, 2)):
        samples, allocated = pattern(stored, signed)[..., 0], 8 if stored == 8 else 16
        base = {"PhotometricInterpretation": f"MONOCHROME{number}"}
        name = f"{stored} {'signed' if signed else 'unsigned'} MONOCHROME{number}"
        for slope, intercept in ((1, 0), (2, -1000), (0.25, 7.5), (-1, 100)):
            ends = np.array([samples.min(), samples.max()]) * slope + intercept
            for at, share, function in itertools.product(
                (0.3, 0.5), (0.2, 0.7, 1.1), ("LINEAR", "LINEAR_EXACT", "SIGMOID")
            ):
                elements = {
                    "RescaleSlope": slope, "RescaleIntercept": intercept, "VOILUTFunction": function,
                    "WindowCenter": f"{min(ends) + at * np.ptp(ends):.6g}",
                    "WindowWidth": f"{max(1, share * np.ptp(ends)):.6g}",
                }  # fmt: skip
                content = partial(dicom, samples, allocated, stored, stored - 1, signed, **base, **elements)
                # DCMTK rounds rescaled values, and takes LINEAR_EXACT for LINEAR.
                whole = function != "LINEAR_EXACT" and slope == int(slope)
                limits = float(elements["WindowCenter"]), float(elements["WindowWidth"])
                expected = windowed(samples * slope + intercept, *limits, function, number == 1)
                yield Case(kind, f"{name} {elements}", content, dcm2pnm if whole else expected)
        for shape in ("IDENTITY", "INVERSE"):
            # The standard requires IDENTITY for MONOCHROME2 and INVERSE for MONOCHROME1; otherwise, DCMTK follows it.
            elements = window(stored, signed) | {"PresentationLUTShape": shape}
            content = dicom(samples, allocated, stored, stored - 1, signed, **base, **elements)
            required = (shape == "INVERSE") == (number == 1)
            limits = elements["WindowCenter"], elements["WindowWidth"]
            yield Case(kind, f"{name} {shape}", content,
                       dcm2pnm if required else windowed(samples, *limits, "LINEAR", number == 1))  # fmt: skip
        if stored > 12:
            continue
        first, entries = int(samples.min()), 2**stored
        for bits, packed in ((8, True), (8, False), (10, False), (12, False), (16, False)):
            values = np.rint((2**bits - 1) * (np.arange(entries) / (entries - 1)) ** 0.7)
            elements = {"VOILUTSequence": [table(values, first, bits, packed)]}
            content = dicom(samples, allocated, stored, stored - 1, signed, **base, **elements)
            share = values[samples - first] / (2**bits - 1)
            expected = np.floor((1 - share if number == 1 else share) * 255 + 0.5).astype(np.uint8)
            yield Case(kind, f"{name} VOI table of {bits} bits{' packed' * packed}", content,
                       expected if packed or not DCMTK else (lambda content: dcm2pnm(content, "+Wl", "1")))  # fmt: skip
        values = np.rint(4095 * (np.arange(entries) / (entries - 1)) ** 1.5)
        elements = {"ModalityLUTSequence": [table(values, first, 12)], "WindowCenter": 2000, "WindowWidth": 3000}
        content = dicom(samples, allocated, stored, stored - 1, signed, **base, **elements)
        yield Case(kind, f"{name} modality table", content, dcm2pnm)


OPTIONAL = ("RescaleSlope", "RescaleIntercept", "VOILUTFunction", "HighBit", "PixelPaddingRangeLimit",
            "PixelPaddingValue", "WindowCenter", "WindowWidth", "NumberOfFrames", "VOILUTSequence",
            "ModalityLUTSequence", "PlanarConfiguration", "PixelRepresentation")  # fmt: skip


def short_table(entries: int) -> Dataset:
    """Return a table that declares 4,096 entries of 16 bits and holds fewer."""
    item = table((np.arange(entries) * 16).astype(np.uint16), 0, 16)
    item[0x00283002].value = [4096, 0, 16]
    return item


def invalid_cases() -> Iterator[Case]:
    """Optional attributes that are empty or nonsensical: the same as absent."""
    samples = pattern(12)[..., 0]
    expected = stretched(samples)
    empty_table = Dataset()
    empty_table.LUTDescriptor, empty_table.LUTData = [256, 0, 16], b""
    short_tables = [short_table(entries) for entries in (4095, 4000, 3000, 2049, 2048, 50)]
    nonsense: dict[str, list] = {name: [None] for name in OPTIONAL}
    nonsense |= {
        "VOILUTSequence": [[], [Dataset()], [empty_table], *([table] for table in short_tables)],
        "ModalityLUTSequence": [[], [Dataset()], [empty_table], *([table] for table in short_tables)],
        "RescaleSlope": [None, 0, "1\\2"], "HighBit": [None, 0, 99, 7], "VOILUTFunction": [None, "CUBIC"],
        "NumberOfFrames": [None, 0], "WindowWidth": [None, 0, -5],
    }  # fmt: skip
    partners = {"RescaleSlope": {"RescaleIntercept": 5}, "RescaleIntercept": {"RescaleSlope": 2},
                "WindowWidth": {"WindowCenter": 7}, "WindowCenter": {"WindowWidth": 7},
                "PixelPaddingRangeLimit": {"PixelPaddingValue": 5000}}  # fmt: skip
    for name, values in nonsense.items():
        for value in values:
            elements = partners.get(name, {}) | {name: value}
            content = dicom(samples, 16, 12, 11, False, noise=False, **elements)
            yield Case("DICOM, empty and invalid attributes", f"{name}={value}", content,
                       stretched(samples) if name != "PixelPaddingRangeLimit" else expected)  # fmt: skip
    limits = {"WindowCenter": 1500, "WindowWidth": 2000}
    shown = windowed(samples, 1500, 2000, "LINEAR", False)
    for name, elements in {
        "first window of width 0": {"WindowCenter": [7, 1500], "WindowWidth": [0, 2000]},
        "first window without a number": {"WindowCenter": ["", 1500], "WindowWidth": [5, 2000]},
        **{f"window and short VOI table {number}": limits | {"VOILUTSequence": [item]}
           for number, item in enumerate(short_tables)},
    }.items():  # fmt: skip
        content = dicom(samples, 16, 12, 11, False, noise=False, **elements)
        yield Case("DICOM, empty and invalid attributes", name, content, shown)
    for number in (1, 2):
        content = dicom(samples, 16, 12, 11, False, noise=False, PhotometricInterpretation=f"monochrome{number}")
        expected = stretched(samples, number == 1)
        yield Case("DICOM, empty and invalid attributes", f"monochrome{number}", content, expected)
    expected = stretched(samples)
    for name in OPTIONAL:
        content = dicom(samples, 16, 12, 11, False, noise=False)
        dataset = pydicom.dcmread(io.BytesIO(content))
        if name in dataset:
            del dataset[name]
        dataset.add_new(pydicom.datadict.tag_for_keyword(name), "OB", b"\xff\xfe\xfd\xfc")
        with tempfile.TemporaryDirectory() as folder:
            dataset.save_as(Path(folder, "a"))
            content = Path(folder, "a").read_bytes()
        yield Case("DICOM, empty and invalid attributes", f"{name} of other bytes", content, expected)


def stretched_cases() -> Iterator[Case]:
    """DICOM without a window; the range is any part of the stored bits."""
    for stored, signed, number, share in itertools.product(range(9, 33), (False, True), (1, 2), (1, 0.06)):
        samples, allocated = pattern(stored, signed, share=share)[..., 0], 16 if stored <= 16 else 32
        for high in {stored - 1, allocated - 1}:
            content = dicom(samples, allocated, stored, high, signed, PhotometricInterpretation=f"MONOCHROME{number}")
            name = f"{allocated} {stored} {high} {signed} {number}"
            yield Case("DICOM, more than 8 bits without a window", name, content, stretched(samples, number == 1))


def colour_cases() -> Iterator[Case]:
    """Coloured DICOM."""
    kind = "DICOM, colours"
    for allocated, stored, share, planar in ((8, 8, 1, 0), (8, 8, 1, 1), (16, 16, 1, 0), (16, 12, 1, 0),
                                             (16, 16, 1 / 16, 0),
                                             (16, 16, 1 / 16, 1), (16, 8, 1, 0)):  # fmt: skip
        colours = pattern(stored, channels=3, share=share)
        grey = colours @ WEIGHTS
        expected = np.rint(grey).astype(np.uint8) if stored <= 8 else stretched(np.rint(grey))
        content = dicom(colours, allocated, stored, stored - 1, False)
        if planar:
            dataset = pydicom.dcmread(io.BytesIO(content))
            dtype = np.uint8 if allocated == 8 else np.uint16
            dataset.PixelData = np.moveaxis(colours, -1, 0).astype(dtype).tobytes()
            dataset.PlanarConfiguration = 1
            file = io.BytesIO()
            dataset.save_as(file)
            content = file.getvalue()
        yield Case(kind, f"RGB {allocated} {stored} {share} {planar}", content, expected)
    indices = pattern(8)[..., 0]
    for bits in (8, 16):
        for largest in {255, 2**bits - 1}:
            ramp = np.rint(np.linspace(0, largest, 256) * 0.9)
            elements = {"PhotometricInterpretation": "PALETTE COLOR"}
            for name in ("Red", "Green", "Blue"):
                elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
                elements[f"{name}PaletteColorLookupTableData"] = ramp.astype(
                    "<u2" if bits == 16 else np.uint8
                ).tobytes()
            shown = ramp.astype(int)[indices] >> (8 if largest > 255 else 0)
            content = dicom(indices, 8, 8, 7, False, **elements)
            yield Case(kind, f"palette {bits} {largest}", content, shown.astype(np.uint8))


def tiff(planes: list[np.ndarray], bits: int, sample_format: int, order: str, photometric: int, planar: int = 1,
         compression: int = 1, extra: tuple[int, ...] = (), tags: dict[int, tuple[str, list[int]]] | None = None,
         tiled: bool = False, predictor: int = 1, big: bool = False) -> bytes:  # fmt: skip
    """Return a TIFF file of one page, or its pages if ``planes`` is a list of such arguments."""
    page = {"planes": planes, "bits": bits, "sample_format": sample_format, "photometric": photometric,
            "planar": planar, "compression": compression, "extra": extra, "tags": tags or {}, "tiled": tiled,
            "predictor": predictor}  # fmt: skip
    return tiff_file([page], order, big)


def packed(samples: np.ndarray, bits: int, sample_format: int, order: str) -> bytes:
    """Return samples (rows, values) in ``bits`` each; rows begin with a byte."""
    if bits in (8, 16, 32, 64):
        return samples.astype(f"{order}{'?uif'[sample_format]}{bits // 8}").tobytes()
    if sample_format == 3:  # 24 bits: sign, 7 bits of exponent, 16 of mantissa
        raise ValueError
    words = samples.astype(np.int64) & (2**bits - 1)
    if bits == 24:
        four = words.astype(f"{order}u4").tobytes()
        return (
            np.frombuffer(four, np.uint8).reshape(-1, 4)[:, 1:].tobytes()
            if order == ">"
            else (np.frombuffer(four, np.uint8).reshape(-1, 4)[:, :3].tobytes())
        )
    unpacked = (words[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(unpacked.astype(np.uint8).reshape(len(samples), -1), axis=1).tobytes()


def tiff_file(pages: list[dict], order: str, big: bool = False) -> bytes:
    """Return a TIFF (or BigTIFF) file."""
    mark, code = (b"II", "<") if order == "<" else (b"MM", ">")
    content = bytearray(
        mark + struct.pack(f"{code}H", 43 if big else 42) + (struct.pack(f"{code}HHQ", 8, 0, 0) if big else bytes(4))
    )
    link = 8 if big else 4
    word, size = ("Q", 8) if big else ("I", 4)
    for page in pages:
        planes, bits, tiled = page["planes"], page["bits"], page.get("tiled", False)
        rows, columns = planes[0].shape
        groups = [planes] if page.get("planar", 1) == 1 else [[plane] for plane in planes]
        blocks = []
        for group in groups:
            stacked = np.stack(group, axis=-1)
            if tiled:
                stacked = np.pad(stacked, ((0, -rows % 16), (0, -columns % 16), (0, 0)))
                pieces = [stacked[y : y + 16, x : x + 16] for y in range(0, rows, 16) for x in range(0, columns, 16)]
            else:
                pieces = [stacked[y : y + 7] for y in range(0, rows, 7)]
            if page.get("predictor", 1) == 2:
                pieces = [np.concatenate([piece[:, :1], np.diff(piece, axis=1)], axis=1) for piece in pieces]
            blocks += [packed(piece.reshape(len(piece), -1), bits, page["sample_format"], code) for piece in pieces]
        # PackBits packs each row for itself.
        encode = {1: bytes, 8: zlib.compress, 5: imagecodecs.lzw_encode, 32773: imagecodecs.packbits_encode,
                  50000: imagecodecs.zstd_encode}[page.get("compression", 1)]  # fmt: skip
        if page.get("compression", 1) == 32773:
            lengths = [len(block) // len(piece) for block, piece in zip(blocks, pieces * len(groups), strict=True)]
            blocks = [
                b"".join(encode(block[at : at + length]) for at in range(0, len(block), length))
                for block, length in zip(blocks, lengths, strict=True)
            ]
        else:
            blocks = [encode(block) for block in blocks]
        offsets = []
        for block in blocks:
            content += b"\0" * (len(content) % 2)
            offsets.append(len(content))
            content += block
        content += b"\0" * (len(content) % 2)
        count = len(planes)
        tags = {
            256: ("I", [columns]), 257: ("I", [rows]), 258: ("H", [bits] * count),
            259: ("H", [page.get("compression", 1)]), 262: ("H", [page["photometric"]]), 277: ("H", [count]),
            284: ("H", [page.get("planar", 1)]), 339: ("H", [page["sample_format"]] * count),
        }  # fmt: skip
        if tiled:
            tags |= {
                322: ("H", [16]),
                323: ("H", [16]),
                324: ("I", offsets),
                325: ("I", [len(block) for block in blocks]),
            }
        else:
            tags |= {273: ("I", offsets), 278: ("H", [7]), 279: ("I", [len(block) for block in blocks])}
        if page.get("predictor", 1) != 1:
            tags[317] = ("H", [page["predictor"]])
        if page.get("extra"):
            tags[338] = ("H", list(page["extra"]))
        tags |= page.get("tags") or {}
        entries = []
        for tag, (kind, values) in sorted(tags.items()):
            data = struct.pack(f"{code}{len(values)}{kind}", *values)
            if len(data) > size:
                position = len(content)
                content += data + b"\0" * (len(data) % 2)
                data = struct.pack(f"{code}{word}", position)
            field_type = {"B": 2, "H": 3, "I": 4}[kind]
            entries.append(struct.pack(f"{code}HH{word}", tag, field_type, len(values)) + data.ljust(size, b"\0"))
        directory = len(content)
        content[link : link + size] = struct.pack(f"{code}{word}", directory)
        content += struct.pack(f"{code}{'Q' if big else 'H'}", len(entries)) + b"".join(entries)
        link = len(content)
        content += bytes(size)
    return bytes(content)


def tiff_grey(planes: list[np.ndarray], bits: int, sample_format: int, photometric: int, extra: tuple[int, ...],
              ramp: np.ndarray | None) -> np.ndarray:  # fmt: skip
    """Return the documented rendering of TIFF samples."""
    narrow = sample_format == 1 and bits <= 8
    full = 2.0 ** (bits - (sample_format == 2)) - 1
    if photometric == 3:
        return ramp[planes[0]]
    if photometric == 5:
        inks = [1 - plane / full for plane in planes[:4]]
        top = 255 if bits <= 8 else 65535
        values = sum(weight * np.rint(top * ink * inks[3]) for weight, ink in zip(WEIGHTS, inks, strict=False))
        return np.rint(values).astype(np.uint8) if bits <= 8 else stretched(np.rint(values))
    if photometric == 2:
        scaled = [np.floor(plane / full * 255 + 0.5) if narrow else plane.astype(np.float64) for plane in planes[:3]]
        values = sum(weight * plane for weight, plane in zip(WEIGHTS, scaled, strict=True))
        alpha = planes[3] if 2 in extra else None
    else:
        values = planes[0] / full * 255 if narrow else planes[0].astype(np.float64)
        alpha = planes[1] if 2 in extra else None
    if photometric == 0 and alpha is not None:
        values = (255.0 if narrow else values.max()) - values
    if alpha is not None:
        values = values * np.clip(alpha / (1 if sample_format == 3 else full), 0, 1)
    inverted = photometric == 0 and alpha is None
    if narrow:
        return np.floor((255 - values if inverted else values) + 0.5).astype(np.uint8)
    return stretched(values, inverted)


def tiff_cases() -> Iterator[Case]:
    """TIFF of every sample format, layout and compression."""
    formats = [(1, bits) for bits in (1, 2, 4, 6, 8, 10, 12, 14, 16, 32, 64)]
    formats += [(2, bits) for bits in (8, 16, 32, 64)] + [(3, bits) for bits in (16, 32, 64)]
    layouts = [(0, 1, ()), (1, 1, ()), (1, 2, (0,)), (1, 2, (2,)), (0, 2, (2,)), (2, 3, ()), (2, 4, (0,)), (2, 4, (1,)),
               (2, 4, (2,)), (3, 1, ()), (5, 4, ())]  # fmt: skip
    storages = [
        (1, False, 1),
        (8, False, 1),
        (5, True, 1),
        (32773, False, 1),
        (8, True, 2),
        (5, False, 2),
        (50000, False, 1),
    ]
    for (sample_format, bits), (photometric, count, extra), order, planar in itertools.product(
        formats, layouts, "<>", (1, 2)
    ):
        if (photometric == 3 and (sample_format != 1 or bits > 8)) or (photometric == 5 and sample_format != 1):
            continue
        if planar == 2 and count == 1:
            continue
        if sample_format == 2 and 2 in extra:
            continue  # opacity is not signed
        for share in {1, 1 / 16} if bits == 16 and sample_format < 3 else {1}:
            if sample_format == 3:
                whole = pattern(20, channels=count) / 2.0**20
                stack = whole.astype(f"f{bits // 8}").astype(np.float64)
            else:
                stack = pattern(bits, sample_format == 2, count, share)
            planes = [np.ascontiguousarray(stack[..., channel]) for channel in range(count)]
            if extra == (0,):
                planes[-1] = np.ascontiguousarray(planes[-1][::-1])
                stack = np.stack(planes, axis=-1)
            ramp, tags = None, {}
            if photometric == 3:
                ramp = np.rint(np.linspace(10, 250, 2**bits)).astype(np.uint8)
                tags = {320: ("H", [int(value) * 257 for value in ramp] * 3)}
            expected = tiff_grey(planes, bits, sample_format, photometric, extra, ramp)
            for compression, tiled, predictor in storages:
                if predictor == 2 and (sample_format == 3 or bits not in (8, 16, 32, 64)):
                    continue
                if (compression, tiled, predictor) not in (storages[0], storages[(bits + photometric + planar) % 7]):
                    continue
                content = tiff(planes, bits, sample_format, order, photometric, planar, compression, extra, tags, tiled,
                               predictor, big=bits == 32)  # fmt: skip
                name = f"format {sample_format} bits {bits} {order} photometric {photometric} extra {extra}"
                name += f" planar {planar}"
                name = f"{name} compression {compression} tiled {tiled} share {share:.2g}"
                yield Case("TIFF", name, content, expected, stack if photometric != 5 else None)


def missing_cases() -> Iterator[Case]:
    """TIFF in which a corner has no value."""
    corner = np.zeros((ROWS, COLUMNS), dtype=bool)
    corner[:6, :9] = True
    formats = [(3, bits, value) for bits in (16, 32, 64) for value in (np.nan, np.inf, -np.inf, -9999)]
    formats += [(3, 32, float(np.finfo(np.float32).min)), (2, 16, -9999), (2, 32, -9999), (1, 8, 255), (1, 16, 65535),
                (1, 16, 0)]  # fmt: skip
    for (sample_format, bits, value), photometric, order in itertools.product(formats, (0, 1, 2), "<>"):
        count, kind = 3 if photometric == 2 else 1, np.int64 if sample_format < 3 else f"f{bits // 8}"
        stack = pattern(min(bits, 10), sample_format == 2, count).astype(kind)
        stack[corner] = value
        missing = corner | (stack == value).all(axis=-1)
        tags = {42113: ("B", [*f"{value!r}\0".encode()])} if np.isfinite(value) else {}
        planes = [stack[..., channel] for channel in range(count)]
        values = stack[..., 0].astype(np.float64) if count == 1 else stack.astype(np.float64) @ WEIGHTS
        if bits == 8:
            expected = np.rint(255 - values if photometric == 0 else values).astype(np.uint8)
        else:
            expected = np.zeros((ROWS, COLUMNS), dtype=np.uint8)
            expected[~missing] = stretched(values[~missing], photometric == 0)
        expected[missing] = 0
        yield Case("TIFF, pixels without a value", f"{sample_format} {bits} {value} {photometric} {order}",
                   tiff(planes, bits, sample_format, order, photometric, tags=tags), expected)  # fmt: skip


# What turns the stored pixels upright, by Orientation of TIFF and Exif.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud, 5: np.transpose,
    6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].T, 8: np.rot90,
}  # fmt: skip


def page_cases() -> Iterator[Case]:
    """TIFF with several pages, or turned."""
    kind = "TIFF with thumbnails, pyramids, orientation"
    for bits, order, orientation in itertools.product((8, 16, 32), "<>", range(1, 9)):
        plane = pattern(bits)[..., 0]
        grey = plane.astype(np.uint8) if bits == 8 else stretched(plane)
        full = {"planes": [plane], "bits": bits, "sample_format": 1, "photometric": 1}
        small = full | {"planes": [np.ascontiguousarray(plane[::2, ::2])]}
        turned = full | {"tags": {274: ("H", [orientation])}}
        yield Case(
            kind, f"orientation {orientation} {bits} {order}", tiff_file([turned], order), TURNS[orientation](grey)
        )
        reduced, old = small | {"tags": {254: ("I", [1])}}, small | {"tags": {255: ("H", [2])}}
        mask = small | {"tags": {254: ("I", [4])}}
        for name, pages in {"thumbnail after": [turned, reduced], "thumbnail before": [reduced, turned],
                            "pyramid": [turned, reduced, reduced], "mask": [turned, mask],
                            "old thumbnail": [turned, old]}.items():  # fmt: skip
            content = tiff_file(pages, order)
            yield Case(kind, f"{name} {orientation} {bits} {order}", content, TURNS[orientation](grey))


def png(samples: np.ndarray, depth: int, colour_type: int, palette: bytes = b"") -> bytes:
    """Return a PNG of samples (rows, columns, channels)."""
    rows = packed(samples.reshape(len(samples), -1), depth, 1, ">")
    size = len(rows) // len(samples)
    lines = b"".join(b"\0" + rows[start : start + size] for start in range(0, len(rows), size))

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, colour_type, 0, 0, 0)
    parts = [
        (b"IHDR", header),
        *([(b"PLTE", palette)] if palette else []),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def png_cases() -> Iterator[Case]:
    """PNG of every colour type and depth."""
    kinds = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (1, (1, 2, 4, 8)), 4: (2, (8, 16)), 6: (4, (8, 16))}
    for colour_type, (channels, depths) in kinds.items():
        for depth, share in itertools.product(depths, (1, 1 / 4, 1 / 16)):
            if depth < 8 and share < 1:
                continue
            samples = pattern(depth, channels=channels, share=share)
            if channels in (2, 4):
                samples[..., -1] = np.where(samples[..., -1] > samples[..., -1].mean(), 2**depth - 1, 2 ** (depth - 1))
            ramp = np.rint(np.linspace(10, 250, 2**depth)).astype(np.uint8) if colour_type == 3 else None
            palette = bytes(np.repeat(ramp, 3)) if colour_type == 3 else b""
            planes = [samples[..., channel] for channel in range(channels)]
            photometric = {0: 1, 2: 2, 3: 3, 4: 1, 6: 2}[colour_type]
            expected = tiff_grey(planes, depth, 1, photometric, (2,) if channels in (2, 4) else (), ramp)
            content = png(samples, depth, colour_type, palette)
            yield Case("PNG", f"colour type {colour_type} depth {depth} share {share}", content, expected,
                       samples if colour_type != 3 and depth >= 8 else None)  # fmt: skip


def j2k_cases() -> Iterator[Case]:
    """JPEG 2000 of every precision."""
    for channels, bits in itertools.product((1, 2, 3, 4), range(8, 17)):
        for share in {1, 1 / 16 if bits == 16 else 1}:
            samples = pattern(bits, channels=channels, share=share)
            if channels in (2, 4):
                samples[..., -1] = np.where(samples[..., -1] > samples[..., -1].mean(), 2**bits - 1, 2 ** (bits - 1))
            planes = [samples[..., channel] for channel in range(channels)]
            expected = tiff_grey(planes, bits, 1, 2 if channels > 2 else 1, (2,) if channels in (2, 4) else (), None)
            array = np.ascontiguousarray(samples.astype(np.uint8 if bits == 8 else np.uint16).squeeze())
            content = imagecodecs.jpeg2k_encode(array, level=0, reversible=True, bitspersample=bits, codecformat="jp2")
            yield Case("JPEG 2000", f"{channels} channels {bits} bits", content, expected)


def pnm_cases() -> Iterator[Case]:
    """PGM and PPM of 8 and 16 bits."""
    for magic, channels in ((b"P2", 1), (b"P3", 3), (b"P5", 1), (b"P6", 3)):
        for largest, share in ((255, 1), (4095, 1), (65535, 1), (65535, 1 / 16)):
            bits = (largest + 1).bit_length() - 1
            samples = pattern(bits, channels=channels, share=share)
            grey = samples @ WEIGHTS if channels == 3 else samples[..., 0]
            expected = np.rint(grey).astype(np.uint8) if bits == 8 else stretched(np.rint(grey))
            header = b"%s\n# a comment\n%d %d\n%d\n" % (magic, COLUMNS, ROWS, largest)
            if magic in (b"P2", b"P3"):
                data = " ".join(map(str, samples.reshape(-1))).encode() + b"\n"
            else:
                data = samples.astype(np.uint8 if bits == 8 else ">u2").tobytes()
            yield Case("PPM and PGM", f"{magic.decode()} {largest} {share}", header + data, expected)


def eight_bit_cases() -> Iterator[Case]:
    """Kinds of 8 bits, most of them lossy: the expected samples are those that imagecodecs decodes."""
    whole = Image.fromarray(pattern(8, channels=4).astype(np.uint8))
    modes = {"1": whole.convert("L").convert("1"), "P": whole.convert("RGB").quantize(200),
             **{mode: whole.convert(mode) for mode in ("L", "RGB", "LA", "RGBA")}}  # fmt: skip
    sampling = ("4:4:4", "4:2:2", "4:2:0")
    jpeg = [{"quality": quality, "progressive": progressive, "subsampling": subsampling}
            for quality, progressive, subsampling in itertools.product((60, 95), (False, True), sampling)]  # fmt: skip
    avif = [{"quality": quality, "subsampling": subsampling}
            for quality, subsampling in itertools.product((60, 100), (*sampling, "4:0:0"))]  # fmt: skip
    formats: dict[str, tuple[str, Callable, list[dict]]] = {
        "JPEG": ("1 L RGB", imagecodecs.jpeg8_decode, jpeg),
        "BMP": ("1 P L RGB", imagecodecs.bmp_decode, [{}]),
        "GIF": ("1 P L RGB", imagecodecs.gif_decode, [{"interlace": 0}, {"interlace": 1}]),
        "WEBP": ("1 P L RGB LA RGBA", imagecodecs.webp_decode, [{"lossless": True}, {"quality": 80}]),
        "AVIF": ("1 P L RGB LA RGBA", imagecodecs.avif_decode, avif),
    }

    def rendered(content: bytes, decode: Callable, orientation: int = 1) -> np.ndarray:
        samples = decode(content)
        planes = [*np.moveaxis(np.atleast_3d(samples).astype(np.int64), -1, 0)]
        alpha = (2,) if len(planes) in (2, 4) else ()
        return TURNS[orientation](tiff_grey(planes, 8, 1, 2 if len(planes) > 2 else 1, alpha, None))

    for name, (supported, decode, choices) in formats.items():
        kind = "JPEG" if name == "JPEG" else "BMP, GIF, WebP, AVIF"
        for mode, options in itertools.product(supported.split(), choices):
            content = saved(name, modes[mode], **options)
            yield Case(kind, f"{name} {mode} {options}", content, partial(rendered, decode=decode))
    for orientation in TURNS:
        exif = Image.Exif()
        exif[274] = orientation
        content = saved("JPEG", modes["RGB"], exif=exif)
        expected = partial(rendered, decode=imagecodecs.jpeg8_decode, orientation=orientation)
        yield Case("JPEG", f"JPEG of orientation {orientation}", content, expected)


def without_pixels(name: str, uid: str, **elements) -> bytes:
    """Return a DICOM object of a class that has no image of a body."""
    content = dicom(pattern(8)[..., 0], 8, 8, 7, False, SOPClassUID=uid, Modality=name, **elements)
    dataset = pydicom.dcmread(io.BytesIO(content))
    if name in ("SR", "PR", "KO", "CR"):
        del dataset["PixelData"]
    if name in ("SR", "PR", "KO"):
        del dataset["Rows"], dataset["Columns"]
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def saved(format_name: str, image: Image.Image, **options) -> bytes:
    """Return an image as Pillow saves it."""
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def refused_cases() -> Iterator[Case]:
    """Kinds that are not read, with the words of the refusal."""
    storage, grey = "1.2.840.10008.5.1.4.1.1.", pattern(8)[..., 0].astype(np.uint8)
    image, samples, colours = Image.fromarray(grey), pattern(12)[..., 0], pattern(8, channels=3)
    native = dicom(samples, 16, 12, 11, False)
    codestream = imagecodecs.jpeg2k_encode(samples.astype(np.uint16), level=0, bitspersample=12, codecformat="j2k")
    compressed = dicom(samples, 16, 12, 11, False, JPEG2000Lossless, PixelData=encapsulate([codestream]))
    transparent = np.dstack([grey, grey, grey, grey * 0])
    palette: dict = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Blue"):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        palette[f"{name}PaletteColorLookupTableData"] = bytes(range(256))
    cases = {
        "structured report": (without_pixels("SR", f"{storage}88.11"), r"without an image \(Basic Text SR Storage\)"),
        "presentation state": (without_pixels("PR", f"{storage}11.1"), r"without an image \(Grayscale Softcopy"),
        "key object selection": (without_pixels("KO", f"{storage}88.59"), r"without an image \(Key Object"),
        "segmentation": (without_pixels("SEG", f"{storage}66.4"), r"image of a body \(Segmentation Storage\)"),
        "dose": (without_pixels("RTDOSE", f"{storage}481.2"), r"image of a body \(RT Dose Storage\)"),
        "CR without pixels": (without_pixels("CR", f"{storage}1"), r"without its pixels .*; copy or export it again"),
        "two frames": (dicom(np.concatenate([samples, samples]), 16, 12, 11, False, Rows=ROWS, NumberOfFrames=2),
                       "2 frames in one file"),
        "two frames, not declared": (dicom(np.concatenate([samples, samples]), 16, 12, 11, False, Rows=ROWS),
                                     "2 frames in one file"),
        "two JPEG 2000 frames, not declared": (
            dicom(samples, 16, 12, 11, False, JPEG2000Lossless, PixelData=encapsulate([codestream, codestream])),
            "2 frames in one file",
        ),
        "two RLE frames, not declared": (
            dicom(samples, 16, 12, 11, False, RLELossless, PixelData=encapsulate([bytes(64), bytes(64)])),
            "2 frames in one file",
        ),
        "CR with empty pixels": (dicom(samples, 16, 12, 11, False, PixelData=b""),
                                 "without its pixels .*; copy or export it again"),
        "CR without rows": (dicom(samples, 16, 12, 11, False, Rows=None), r"size of its image .*; export it again"),
        "CR of 0 rows": (dicom(samples, 16, 12, 11, False, Rows=0), r"size of its image .*; export it again"),
        "CR with float samples": (
            without_pixels("CR", f"{storage}1", FloatPixelData=np.ones(grey.shape, np.float32).tobytes()),
            "float samples is not supported; export",
        ),
        "MONOCHROME2 of 3 samples": (dicom(colours, 8, 8, 7, False, PhotometricInterpretation="MONOCHROME2"),
                                     "3 samples per pixel, but MONOCHROME2 has 1; export the file again"),
        "RGB of 1 sample": (dicom(samples, 16, 12, 11, False, PhotometricInterpretation="RGB"),
                            "1 sample per pixel, but RGB has 3; export the file again"),
        "unknown photometric interpretation": (dicom(samples, 16, 12, 11, False, PhotometricInterpretation="HSV"),
                                               "interpretation HSV is not supported; export"),
        "photometric interpretation of two lines": (
            dicom(samples, 16, 12, 11, False, PhotometricInterpretation="H\nSV"), "interpretation H SV is not supported"
        ),
        "damaged fragments": (damaged_fragments(compressed),
                              "damaged: the compressed pixels are not in fragments; copy"),
        "palette without green": (dicom(pattern(8)[..., 0], 8, 8, 7, False, **palette),
                                  "palette that is missing or incomplete; export"),
        "compressed DICOM cut in its pixels": (compressed[:-200], "^truncated; copy it again$"),
        "compressed DICOM cut in its header": (compressed[:500], "^truncated; copy it again$"),
        "DICOM cut in its pixels": (native[:-200], "^truncated; copy it again$"),
        "DICOM cut after 300 bytes": (native[:300], "^truncated; copy it again$"),
        "DICOM cut after 132 bytes": (native[:132], "^truncated; copy it again$"),
        "native pixels labelled as RLE": (relabelled(native, RLELossless), "pixels are not compressed, against .*RLE"),
        "native pixels labelled as JPEG 2000": (relabelled(native, JPEG2000Lossless), "pixels are not compressed"),
        "JPEG 2000 labelled as native": (relabelled(compressed, ExplicitVRLittleEndian), "pixels are compressed"),
        "little endian labelled as big endian": (relabelled(native, ExplicitVRBigEndian), "byte order is not that of"),
        "big endian labelled as little endian": (
            relabelled(dicom(samples, 16, 12, 11, False, ExplicitVRBigEndian), ExplicitVRLittleEndian),
            "byte order is not that of",
        ),
        "HTJ2K": (relabelled(compressed, "1.2.840.10008.1.2.4.201"),
                  "cannot be decoded: High-Throughput JPEG 2000 .*; export it as Explicit VR"),
        "video": (dicom(samples, 16, 12, 11, False, "1.2.840.10008.1.2.4.102", PixelData=encapsulate([b"\0" * 8])),
                  r"video \(MPEG-4"),
        "unknown transfer syntax": (dicom(samples, 16, 12, 11, False).replace(b"10008.1.2.1\0", b"99999.1.2.1\0"),
                                    "transfer syntax 1.2.840.99999.1.2.1 is not supported"),
        "window outside the data": (dicom(samples, 16, 12, 11, False, WindowCenter=-900, WindowWidth=100),
                                    r"window \(centre -900, width 100\) shows every pixel as the same grey"),
        "all zero": (dicom(samples * 0, 16, 12, 11, False, noise=False), "every pixel has the same value"),
        "constant PNG": (saved("PNG", Image.new("L", (9, 9), 77)), "every pixel has the same value"),
        "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(600), "HEIC image; convert"),
        "JPEG XL": (imagecodecs.jpegxl_encode(grey), "JPEG XL image; convert"),
        "JPEG XL in a container": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(600), "JPEG XL image; convert"),
        "JPEG XR": (imagecodecs.jpegxr_encode(grey), "JPEG XR image; convert"),
        "JPEG of 12 bits": (imagecodecs.jpeg_encode(samples.astype(np.uint16), bitspersample=12),
                            "JPEG of 12 bits; convert"),
        "lossless JPEG": (imagecodecs.ljpeg_encode(samples.astype(np.uint16), bitspersample=12),
                          "lossless JPEG; convert"),
        "JPEG-LS": (imagecodecs.jpegls_encode(grey), "JPEG-LS image; convert"),
        "NumPy array": (saved_npy(grey), r"NumPy array \(.npy\); convert it to PNG"),
        "NIfTI": (struct.pack("<i", 348) + bytes(340) + b"n+1\0" + bytes(300), "NIfTI volume; convert"),
        "NIfTI, compressed": (imagecodecs.gzip_encode(struct.pack("<i", 348) + bytes(340) + b"n+1\0" + bytes(300)),
                              "NIfTI volume; convert"),
        "NumPy archive": (saved_npz(grey), r"NumPy archive \(.npz\); convert each image"),
        "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5 file; convert each image"),
        "MATLAB": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(99), "MATLAB file; convert each image"),
        "SGI": (saved("SGI", image), "SGI image; convert"),
        "PCX": (saved("PCX", image), "PCX image; convert"),
        "DDS": (saved("DDS", image.convert("RGB")), r"DirectDraw image \(.dds\); convert"),
        "ICNS": (saved("ICNS", image.resize((16, 16))), "Apple icon; convert"),
        "IM": (b"Image type: L image\r\nName: a\r\n" + bytes(512), r"IFUNC image \(.im\); convert"),
        "XBM": (saved("XBM", image.convert("1")), r"X bitmap \(.xbm\); convert"),
        "MSP": (saved("MSP", image.convert("1")), r"Microsoft Paint image \(.msp\); convert"),
        "TGA": (saved("TGA", image), r"Targa image \(.tga\); convert"),
        "transparent PNG": (imagecodecs.png_encode(transparent), "fully transparent"),
        "transparent PNG of 16 bits": (imagecodecs.png_encode(transparent.astype(np.uint16) * 257),
                                       "fully transparent"),
        "TIFF of NaN": (tiff([np.full((ROWS, COLUMNS), np.nan)], 32, 3, "<", 1), "no pixel has a value"),
        "NRRD": (b"NRRD0004\ntype: short\n", "NRRD volume; convert"),
        "zip": (b"PK\x03\x04" + bytes(99), "zip archive; give it as input=FILE.zip, or unpack it"),
        "RAR": (b"Rar!\x1a\x07\x01\0" + bytes(99), "RAR archive; unpack"),
        "gzip": (imagecodecs.gzip_encode(b"text"), "gzip archive; unpack"),
        "tar": (bytes(257) + b"ustar" + bytes(250), "tar archive; unpack"),
        "PDF": (b"%PDF-1.7\n", "PDF document; export its pages"),
        "web page": (b"<!DOCTYPE html><html>", "web page; download"),
        "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer; download"),
        "text": (b"image_id,label\n", "not an image"),
        "TIFF of two pages": (saved("TIFF", image, save_all=True, append_images=[image]),
                              r"several images in one file \(2 pages"),
        "animation": (saved("GIF", image, save_all=True, append_images=[image.rotate(180)]),
                      r"several images in one file \(2\)"),
        "empty file": (b"", "empty file"),
    }  # fmt: skip
    for name, (content, reason) in cases.items():
        yield Case("not supported", name, content, reason)


def damaged_fragments(content: bytes) -> bytes:
    """Return a DICOM file in which the tag of the last fragment of the pixels is zero."""
    position = content.rindex(b"\xfe\xff\x00\xe0")
    return content[:position] + bytes(4) + content[position + 4 :]


def relabelled(content: bytes, syntax: str) -> bytes:
    """Return a DICOM file with another transfer syntax in its header, and all else unchanged."""
    meta = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).file_meta
    data = content[144 + meta.FileMetaInformationGroupLength :]
    meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(file, meta)
    return content[:132] + file.getvalue() + data


def saved_npz(array: np.ndarray) -> bytes:
    """Return an array as ``numpy.savez`` writes it."""
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


def saved_npy(array: np.ndarray) -> bytes:
    """Return an array as ``numpy.save`` writes it."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


GENERATORS = (native_cases, syntax_cases, display_cases, invalid_cases, stretched_cases, colour_cases, tiff_cases,
              missing_cases, page_cases, png_cases, j2k_cases, pnm_cases, eight_bit_cases, refused_cases)  # fmt: skip
NEED_DCMTK = (native_cases, syntax_cases, display_cases)


def confirm(case: Case, content: bytes, row: Row) -> None:
    """Require that libtiff or libspng reads the samples that were meant, if it reads the file at all."""
    if case.samples is None:
        return
    try:
        samples = (imagecodecs.tiff_decode if case.kind == "TIFF" else imagecodecs.spng_decode)(content)
    except (imagecodecs.TiffError, imagecodecs.SpngError, ValueError, NotImplementedError):
        return
    expected = case.samples.squeeze()
    if samples.shape != expected.shape and samples.ndim == 3:  # planes one after the other
        samples = np.moveaxis(samples, 0, -1)
    if samples.shape != expected.shape or (samples.dtype.kind == "u" and (samples != expected).any()):
        row.wrong.append(f"{case.name}: the independent reader finds other samples")
    row.confirmed += 1


def try_case(case: Case, row: Row) -> None:
    """Read one file and add the result to the row of its kind."""
    try:
        content = case.content() if callable(case.content) else case.content
    except subprocess.CalledProcessError:
        return  # the encoder does not support this number of bits
    row.tried += 1
    confirm(case, content, row)
    try:
        image = np.asarray(read_content(content))
    except UnreadableError as error:
        row.refused[str(error)] += 1
        if not isinstance(case.expected, str) or not re.search(case.expected, str(error)):
            row.wrong.append(f"{case.name}: refused: {error}")
        return
    if isinstance(case.expected, str):
        row.wrong.append(f"{case.name}: not refused")
        return
    try:
        expected = case.expected(content) if callable(case.expected) else case.expected
    except subprocess.CalledProcessError as error:
        row.unread.append(f"{case.name}: {error.stderr.decode()}")
        return
    if image.shape != expected.shape:
        row.wrong.append(f"{case.name}: {image.shape}, not {expected.shape}")
        return
    difference = np.abs(image.astype(int) - expected)
    row.largest = max(row.largest, int(difference.max()))
    row.above_one += int((difference > 1).sum())
    if difference.max() > 1:
        row.wrong.append(f"{case.name}: {difference.max()} grey levels")
    else:
        row.right += 1


def run(every: int = 1, generators: tuple = GENERATORS) -> dict[str, Row]:
    """Read every ``every``-th file of each generator; without DCMTK, none of those that need it."""
    rows: dict[str, Row] = {}
    for generator in generators:
        if generator in NEED_DCMTK and not DCMTK:
            continue
        for case in itertools.islice(generator(), None, None, every if generator is not refused_cases else 1):
            try_case(case, rows.setdefault(case.kind, Row()))
    return rows


def markdown(rows: dict[str, Row]) -> str:
    """Return the table of a campaign."""
    lines = [
        "# Kinds of image files", "",
        "`python -m tests.robustness.reading --table tests/reading.md` generates these files, reads them and writes",
        "this table. The difference is the largest one of any pixel from the independent reader, in grey levels.", "",
        "| kind | made with | compared with | files | right | refused, as expected | wrong | largest difference | "
        "pixels above 1 |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for kind, row in rows.items():
        made, reader = KINDS[kind]
        reader += f" ({row.confirmed:,} files read back)" if row.confirmed else ""
        lines.append(f"| {kind} | {made} | {reader} | {row.tried:,} | {row.right:,} | {row.expected_refusals:,} | "
                     f"{len(row.wrong)} | {row.largest} | {row.above_one} |")  # fmt: skip
    lines += ["", "## Refusals", "", "| file | refused with |", "|---|---|"]
    for case in refused_cases():
        row = Row()
        try_case(case, row)
        lines.append(f"| {case.name} | {next(iter(row.refused), '**not refused**')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the campaign from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--every", type=int, default=1, help="read only every n-th file")
    parser.add_argument("--only", default="", help="read only the generators whose name contains this")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for library in ("pydicom", "tifffile"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    rows = run(options.every, tuple(generator for generator in GENERATORS if options.only in generator.__name__))
    for kind, row in rows.items():
        print(f"{kind}: {row.tried} files, {row.right} right, {len(row.wrong)} wrong, {row.expected_refusals} "
              f"refused as expected; largest difference {row.largest}, {row.above_one} pixels above 1; "
              f"{row.confirmed} confirmed")  # fmt: skip
        for fault in row.wrong[:40]:
            print(f"  WRONG {fault}")
        for fault in row.unread[:10]:
            print(f"  not rendered by DCMTK: {fault}")
        if kind != "not supported":
            for reason, count in row.refused.most_common(10):
                print(f"  refused {count} times: {reason}")
    if options.table:
        options.table.write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
