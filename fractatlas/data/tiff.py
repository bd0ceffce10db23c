"""Read TIFF files of every sample format.

Pillow reads the kinds for which ``_pillow_reads`` is true. It reduces 16-bit colours to their high byte and misreads
signed 8-bit and large unsigned 32-bit samples; tifffile reads these and all other kinds.
"""

import io
import logging

import numpy as np
from PIL import Image
from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from fractatlas.data.file_kinds import CONVERT
from fractatlas.data.grey_levels import TRANSPOSITIONS, samples_to_image
from fractatlas.data.image_limits import TRUNCATED, TRUNCATED_HEADER, UnreadableError, memory_lock, refuse_large

MAX_PAGES = 1000
REDUCED, MASK = 1, 4  # bits of NewSubfileType: a smaller copy of another page, a transparency mask
# Compressions that are decoded to a known number of bytes: a small file cannot fill the memory.
COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 34925: "LZMA", 50000: "zstd"}
PILLOW_ONLY = {2, 3, 4, 6, 7}  # fax and JPEG
MAX_SAMPLES = 16
GDAL_NODATA = 42113  # tag: the sample of pixels without a value, as text

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # the reason of ``UnreadableError`` is enough


def read_tiff(content: bytes) -> Image.Image:
    """Read the only full page of a TIFF file; thumbnails, pyramid levels and masks are ignored.

    Returns:
        Upright image of mode ``L``, or of a mode that Pillow converts to it.

    Raises:
        UnreadableError: the file has no or several full pages, is truncated, or of a kind that is not supported.
        Exception: another error of tifffile or Pillow for damaged files.
    """
    try:
        file = TiffFile(io.BytesIO(content))
    except Exception:
        raise UnreadableError(TRUNCATED_HEADER) from None
    with file:
        page, number = _full_page(file)
        refuse_large(page.imagewidth, page.imagelength)
        if len(page.dataoffsets) != len(page.databytecounts):
            raise UnreadableError("damaged: the numbers of strips and of their sizes differ; copy it again")
        if any(start + size > len(content) for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)):
            raise UnreadableError(TRUNCATED)
        orientation = _value(page, "Orientation", 1)
        with memory_lock(page.imagewidth, page.imagelength):
            if _pillow_reads(page):
                return _read_with_pillow(content, number)
            if page.compression not in COMPRESSIONS:
                raise UnreadableError(f"TIFF compression {_name(page.compression)} is not supported; {CONVERT}")
            image = _read_samples(page)
    return image.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else image


def _full_page(file: TiffFile) -> tuple[TiffPage, int]:
    pages, number = [], -1
    for number, frame in enumerate(file.pages):
        if number == MAX_PAGES:
            raise UnreadableError(f"more than {MAX_PAGES:,} pages in one file; {CONVERT}")
        page = frame.aspage()
        kind = page.tags["NewSubfileType"].value if "NewSubfileType" in page.tags else 0
        if not kind & (REDUCED | MASK) and _value(page, "SubfileType", 1) != 2:
            pages.append((page, number))
    if number < 0:
        raise UnreadableError(TRUNCATED_HEADER)
    if not pages:
        raise UnreadableError("TIFF file without a full page; export the image again")
    if len(pages) > 1:
        raise UnreadableError(f"several images in one file ({len(pages)} pages); save each as its own file")
    return pages[0]


def _pillow_reads(page: TiffPage) -> bool:
    """Return whether Pillow reads the samples unchanged: unsigned ones of up to 8 bits in the usual layouts."""
    if page.compression in PILLOW_ONLY:
        return True
    plain = page.photometric in (0, 1, 2, 3, 5) and page.bitspersample in (1, 2, 4, 8) and page.sampleformat == 1
    usual = page.samplesperpixel == 1 or (
        page.bitspersample == 8 and page.photometric in (2, 5) and page.planarconfig == 1 and not page.extrasamples
    )
    compressed = page.compression in COMPRESSIONS
    same_values = page.fillorder == 1 and GDAL_NODATA not in page.tags
    return (plain and usual and compressed and same_values) or page.photometric in (6, 8)


def _read_with_pillow(content: bytes, number: int) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=("TIFF",)) as image:
        image.seek(number)
        if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"):
            raise UnreadableError(f"TIFF image of mode {image.mode} with this compression is not supported; {CONVERT}")
        image.load()  # applies the orientation
        if image.mode == "LAB":
            return image.getchannel(0)
        if image.mode == "1":
            return image.convert("L")
        return image.copy()


def _read_samples(page: TiffPage) -> Image.Image:
    """Decode all samples with tifffile and convert them to grey."""
    bits, photometric, samples = page.bitspersample, page.photometric, page.samplesperpixel
    if isinstance(bits, tuple):
        raise UnreadableError(f"TIFF with samples of {' and '.join(map(str, bits))} bits is not supported; {CONVERT}")
    # Readers disagree on the byte order of 24 bits.
    if page.dtype is None or (bits > 16 and bits not in (32, 64, 128)):
        raise UnreadableError(f"TIFF with sample format {page.sampleformat} of {bits} bits is not supported; {CONVERT}")
    needed = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4}.get(photometric)
    if needed is None or not needed <= samples <= MAX_SAMPLES:
        name = f"{_name(photometric)} with {samples} samples per pixel"
        raise UnreadableError(f"TIFF with photometric interpretation {name} is not supported; {CONVERT}")
    if not all(page.databytecounts):
        raise UnreadableError("damaged: strips or tiles without data; export the image again")
    separate, depth, length, width, contiguous = page.shaped
    if depth != 1:
        raise UnreadableError(f"several images in one file (a volume of {depth} images); save each as its own file")
    pixels = page.asarray(maxworkers=1).reshape(separate, length, width, contiguous)
    planes = [pixels[plane, :, :, sample] for plane in range(separate) for sample in range(contiguous)]
    planes = [plane.astype(np.uint8) if plane.dtype.kind == "b" else plane for plane in planes]
    alpha = next((plane for plane, kind in zip(planes[needed:], page.extrasamples, strict=False) if kind == 2), None)
    if photometric == PHOTOMETRIC.PALETTE:
        if page.colormap is None or planes[0].dtype.kind != "u":
            raise UnreadableError("TIFF with a palette that is missing; export the image again")
        # The colours have 16 bits; some programs write 8.
        colours = page.colormap if page.colormap.max() < 256 else page.colormap >> 8
        return samples_to_image(np.moveaxis(colours[:, planes[0]], 0, -1).astype(np.uint8), 8, colour=True)
    if photometric == PHOTOMETRIC.SEPARATED:
        if planes[0].dtype.kind != "u":
            raise UnreadableError(f"TIFF with CMYK samples that are not unsigned integers; {CONVERT}")
        planes, bits = _inks_to_colours(planes, bits), 8 if bits <= 8 else 16
    grey_or_colours = np.stack(planes[:3], axis=-1) if needed > 1 else planes[0]
    nodata = None if photometric == PHOTOMETRIC.SEPARATED else _nodata(page)
    return samples_to_image(grey_or_colours, bits, needed > 1, alpha, photometric == PHOTOMETRIC.MINISWHITE, nodata)


def _inks_to_colours(planes: list[np.ndarray], bits: int) -> list[np.ndarray]:
    """Convert cyan, magenta, yellow and black to red, green and blue of 8 or 16 bits."""
    paper = [1 - plane / (2.0**bits - 1) for plane in planes[:4]]
    full, kind = (255, np.uint8) if bits <= 8 else (65535, np.uint16)
    return [np.rint(full * ink * paper[3]).astype(kind) for ink in paper[:3]]


def _nodata(page: TiffPage) -> float | None:
    try:
        return float(page.tags[GDAL_NODATA].value)
    except (KeyError, TypeError, ValueError):
        return None


def _value(page: TiffPage, name: str, default: int) -> int:
    value = page.tags[name].value if name in page.tags else default
    return int(value) if isinstance(value, int) else default


def _name(value: object) -> str:
    return getattr(value, "name", None) or str(value)
