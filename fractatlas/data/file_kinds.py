"""Recognise the kind of a file from its first bytes."""

import struct
import zlib
from itertools import product

from pydicom.datadict import dictionary_has_tag

START = 560  # bytes that ``unreadable_image`` needs
CONVERT = "convert it to PNG or DICOM"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Images that this package reads.
READABLE = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", *TIFF)
# Images, arrays and volumes that it does not read: start, name, remedy.
UNREADABLE = (
    (b"\xff\x0a", "JPEG XL image", CONVERT),
    (b"\0\0\0\x0cJXL ", "JPEG XL image", CONVERT),
    (b"II\xbc", "JPEG XR image", CONVERT),
    (b"8BPS", "Photoshop document", CONVERT),
    (b"v/1\x01", "OpenEXR image", CONVERT),
    (b"\0\0\x01\0", "icon", CONVERT),
    (b"icns", "Apple icon", CONVERT),
    (b"DDS ", "DirectDraw image (.dds)", CONVERT),
    (b"DanM", "Microsoft Paint image (.msp)", CONVERT),
    (b"LinS", "Microsoft Paint image (.msp)", CONVERT),
    (b"Image type: ", "IFUNC image (.im)", CONVERT),
    *((b"\x01\xda" + bytes(kind), "SGI image", CONVERT) for kind in product((0, 1), (1, 2))),
    *((b"\n" + bytes(kind), "PCX image", CONVERT) for kind in product((0, 2, 3, 4, 5), (1,), (1, 2, 4, 8))),
    (b"\x93NUMPY", "NumPy array (.npy)", CONVERT),
    (b"NRRD0", "NRRD volume", "convert each image to PNG or DICOM"),
    (b"ObjectType = Image", "MetaImage volume (.mha, .mhd)", "convert each image to PNG or DICOM"),
    (b"SIMPLE  =", "FITS image", CONVERT),
    (b"\x89HDF\r\n\x1a\n", "HDF5 file", "convert each image to PNG or DICOM"),
    (b"MATLAB 7.3 MAT", "MATLAB file", "convert each image to PNG or DICOM"),
    (b"MATLAB 5.0 MAT", "MATLAB file", "convert each image to PNG or DICOM"),
)
TARGA_END = b"TRUEVISION-XFILE.\0"
NIFTI = ("NIfTI volume", "convert each image to PNG or DICOM")
# Other files for which the reason is not "not an image".
OTHER = (
    (b"PK\x03\x04", "zip archive", "give it as input=FILE.zip, or unpack it"),
    (b"PK\x05\x06", "empty zip archive", "give another file"),
    (b"Rar!\x1a\x07", "RAR archive", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive", "unpack it"),
    (b"\xfd7zXZ\0", "xz archive", "unpack it"),
    (b"BZh", "bzip2 archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "Zstandard archive", "unpack it"),
    (b"\x1f\x8b", "gzip archive", "unpack it"),
    (b"%PDF-", "PDF document", "export its pages as PNG"),
    (b"%!PS", "PostScript document", "export its pages as PNG"),
    (b"version https://git-lfs", "Git LFS pointer", "download the file with git lfs pull"),
)
HTML = (b"<!doctype html", b"<html")
HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
VIDEO = (b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V ")
PNM = b"123456Ff"


def is_dicom(start: bytes) -> bool:
    """Return whether ``start``, the first 132 bytes of a file, is DICOM with or without the preamble."""
    if start[128:132] == b"DICM":
        return True
    if len(start) < 8 or start[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return False
    group, element = struct.unpack(">HH" if start[0] == 0 else "<HH", start[:4])
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    short = int.from_bytes(start[4:8], "big" if start[0] == 0 else "little") < 256  # implicit length of the first value
    return (explicit or short) and (element == 0 or dictionary_has_tag((group, element)))


def is_tiff(start: bytes) -> bool:
    """Return whether ``start``, the first four bytes of a file, is TIFF or BigTIFF."""
    return start.startswith(TIFF)


def is_readable_image(start: bytes) -> bool:
    """Return whether ``start``, the first ``START`` bytes of a file, begin an image that is read, other than DICOM."""
    return (
        start.startswith(READABLE)
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[:2] == b"BM" and start[6:10] == bytes(4) and start[14:18] in _BITMAP_HEADERS)
        or (start[:1] == b"P" and start[1:2] in map(bytes, zip(PNM, strict=True)) and start[2:3].isspace())
        or (start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis"))
    )


_BITMAP_HEADERS = [struct.pack("<I", size) for size in (12, 16, 40, 52, 56, 64, 108, 124)]


def unreadable_image(start: bytes) -> str:
    """Return what an image, array or volume that this package cannot read is, with the remedy; ``""`` for other files.

    Args:
        start: the first ``START`` bytes of a file.
    """
    for magic, name, remedy in UNREADABLE:
        if start.startswith(magic):
            return f"{name}; {remedy}"
    if start[4:8] == b"ftyp" and start[8:12] in HEIF:
        # The brands mif1 and msf1 are shared by HEIC and AVIF; the compatible brands distinguish them.
        return "" if b"avif" in start[16:64] else f"HEIC image; {CONVERT}"
    if start.startswith(b"#define ") and b"_width " in start.partition(b"\n")[0] and b"_bits" in start:
        return f"X bitmap (.xbm); {CONVERT}"
    if start.startswith(b"PK\x03\x04") and start[30:].startswith(b".npy", int.from_bytes(start[26:28], "little") - 4):
        return "NumPy archive (.npz); convert each image to PNG or DICOM"
    unpacked = _gunzip(start) if start.startswith(b"\x1f\x8b") else start
    if unpacked[344:348] in (b"n+1\0", b"ni1\0") or unpacked[4:8] in (b"n+2\0", b"ni2\0"):
        return "; ".join(NIFTI)
    return ""


def other_kind(content: bytes) -> str:
    """Return what a file that is not a readable image is, with the remedy; ``"not an image"`` if it is unknown."""
    for magic, name, remedy in OTHER:
        if content.startswith(magic):
            return f"not an image but a {name}; {remedy}"
    if content.endswith(TARGA_END):
        return f"Targa image (.tga); {CONVERT}"
    start = content[:START]
    if start[257:262] == b"ustar":
        return "not an image but a tar archive; unpack it"
    if start.lstrip()[:14].lower().startswith(HTML):
        return "not an image but a web page; download the file again"
    if (start[4:8] == b"ftyp" and start[8:12] in VIDEO) or (start[:4] == b"RIFF" and start[8:12] == b"AVI "):
        return "not an image but a video; export the frame as PNG"
    if start.lstrip()[:4] == b"<svg" or (start.startswith(b"<?xml") and b"<svg" in start):
        return "not an image but a drawing (SVG); export it as PNG"
    return "not an image"


def unsupported_jpeg(content: bytes) -> str:
    """Return what is unusual in the frame header of a JPEG that Pillow does not open, or ``""``."""
    position = 2
    while content[position : position + 1] == b"\xff" and position + 9 < len(content):
        marker, length = content[position + 1], int.from_bytes(content[position + 2 : position + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision = content[position + 4]
            if marker in (0xC3, 0xC7, 0xCB, 0xCF):
                return f"lossless JPEG; {CONVERT}"
            if marker > 0xC8:
                return f"JPEG with arithmetic coding; {CONVERT}"
            return f"JPEG of {precision} bits; {CONVERT}" if precision != 8 else ""
        if marker == 0xF7:
            return f"JPEG-LS image; {CONVERT}"
        position += 2 + length
    return ""


def _gunzip(start: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(start, 512)
    except zlib.error:
        return b""
