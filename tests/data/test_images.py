import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from fractatlas.data.images import UnreadableError, decode, read_content, read_radiograph
from fractatlas.data.integrity import ORIENTATION

Y, X = np.mgrid[:60, :40]
PIXELS = ((X * 6 + Y * Y // 60) % 256).astype(np.uint8)
PIXELS[0, :2] = 0, 255
NOISE = np.random.default_rng(0).integers(0, 256, (60, 40), dtype=np.uint8)


def dicom(file: Path, pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **elements) -> Path:
    """Write a DICOM file of one frame."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    if "HighBit" not in elements:
        dataset.HighBit = dataset.BitsStored - 1
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file


def one_colour(file: Path, side: int) -> Path:
    """Write a black PNG of ``side`` x ``side`` pixels without creating the pixels in memory."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer, row = zlib.compressobj(1), bytes(side + 1)
    content = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))
    return file


def read(file: Path) -> np.ndarray:
    image = read_radiograph(file)
    assert image.mode == "L"
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_jpeg_and_png_give_the_pixels_that_training_uses(tmp_path, name, mode):
    colours = Image.fromarray(np.stack([PIXELS, PIXELS[::-1], NOISE], axis=-1)).convert(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    colours.save(tmp_path / name, exif=exif)
    pixels = read(tmp_path / name)
    assert pixels.shape == (40, 60)
    assert (pixels == np.asarray(decode((tmp_path / name).read_bytes()))).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.gif", "a.jp2", "a.pgm"])
def test_the_format_is_recognised_by_the_content_and_not_by_the_name(tmp_path, name):
    Image.fromarray(PIXELS).save(tmp_path / name)
    assert (read((tmp_path / name).rename(tmp_path / "a.jpg")) == PIXELS).all()


@pytest.mark.fault("image with palette, alpha or CMYK", "converted to grey")
@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "CMYK", "RGB"])
def test_each_colour_mode_is_converted_to_grey(tmp_path, mode):
    Image.fromarray(PIXELS).convert(mode).save(tmp_path / "a.tif")
    assert (read(tmp_path / "a.tif") == PIXELS).all()


def test_transparent_pixels_become_black(tmp_path):
    image = Image.fromarray(PIXELS).convert("RGBA")
    image.putalpha(Image.fromarray(np.where(X < 20, 0, 255).astype(np.uint8)))
    image.save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == np.where(X < 20, 0, PIXELS)).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("scaled", [PIXELS.astype(np.uint16) * 257, PIXELS.astype(np.uint16) * 8 + 300])
def test_16_bit_values_are_stretched_and_not_clipped(tmp_path, name, scaled):
    Image.fromarray(scaled).save(tmp_path / name)
    assert (read(tmp_path / name) == PIXELS).all()


def test_one_hot_pixel_does_not_darken_the_image(tmp_path):
    scaled = PIXELS.astype(np.uint16) * 16
    scaled[30, 20] = 65535
    Image.fromarray(scaled).save(tmp_path / "a.png")
    assert np.abs(read(tmp_path / "a.png").astype(int) - PIXELS)[:29].max() <= 3


def test_a_tiff_in_which_zero_is_white_is_inverted(tmp_path):
    Image.fromarray(65535 - PIXELS.astype(np.uint16) * 257).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert (read(tmp_path / "a.tif") == PIXELS).all()


@pytest.mark.fault("TIFF with NaN", "these pixels are black and do not change the others")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_float_values_are_stretched_and_those_that_are_not_finite_are_black(tmp_path, value):
    values = PIXELS / np.float32(3) - 7
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.abs(read(tmp_path / "a.tif").astype(int) - PIXELS).max() <= 1
    values[40:] = value
    Image.fromarray(values).save(tmp_path / "b.tif")
    pixels = read(tmp_path / "b.tif").astype(int)
    assert (pixels[40:] == 0).all()
    assert np.abs(pixels - PIXELS)[:40].max() <= 2
    Image.fromarray(values * np.nan).save(tmp_path / "c.tif")
    with pytest.raises(UnreadableError, match="no pixel has a value"):
        read(tmp_path / "c.tif")


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_the_nodata_value_of_a_tiff_is_black_in_all_its_colours_only(tmp_path, dtype):
    colours = np.repeat((PIXELS.astype(dtype) + 1)[..., None], 3, axis=-1)
    colours[:, :10] = 0
    colours[:, 10:12, 1] = 0
    nodata = {"photometric": "rgb", "extratags": [(42113, 2, 2, "0", True)]}
    tifffile.imwrite(tmp_path / "a.tif", colours, **nodata)
    pixels = read(tmp_path / "a.tif").astype(int)
    assert (pixels[:, :10] == 0).all()
    assert (pixels[9:50, 10:12] > 0).all()
    assert np.abs(pixels - PIXELS)[:, 12:].max() <= 2


def test_the_nodata_value_of_an_8_bit_tiff_is_black(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="minisblack", extratags=[(42113, 2, 4, "255", True)])
    assert (read(tmp_path / "a.tif") == np.where(PIXELS == 255, 0, PIXELS)).all()


def test_the_reader_of_tiff_writes_no_log(caplog):
    content = tiff_of(np.repeat(PIXELS[..., None].astype(np.uint16) * 257, 3, axis=-1))
    with pytest.raises(UnreadableError, match="truncated"):
        read_content(content[:220])  # within the values of tags
    assert not caplog.records


@pytest.mark.fault("animation or file of several pages", "refused with the reason")
def test_several_images_in_one_file_are_refused(tmp_path):
    several = {"save_all": True, "append_images": [Image.fromarray(NOISE)]}
    for name in ("a.gif", "a.tif", "a.png"):
        Image.fromarray(PIXELS).save(tmp_path / name, **several)
        with pytest.raises(UnreadableError, match="several images"):
            read(tmp_path / name)
    with pytest.raises(UnreadableError, match="2 frames"):
        read(dicom(tmp_path / "a.dcm", np.concatenate([PIXELS, NOISE]), NumberOfFrames=2, Rows=60))


@pytest.mark.fault("truncated image of each format", "refused with the reason")
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95, 0.98])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "a.jp2", "a.dcm"])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    noise = Image.fromarray(NOISE)
    if name == "a.dcm":
        noise.save(tmp_path / "a.jp2")
        dicom(tmp_path / name, NOISE, JPEG2000Lossless, PixelData=encapsulate([(tmp_path / "a.jp2").read_bytes()]))
    else:
        noise.save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UnreadableError, match="truncated|not an image"):
        read(tmp_path / name)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("left", [132, 142, 154, 200, 300, 303, 330, 440, 500, -2000, -200, -9])
def test_a_truncated_dicom_file_is_called_truncated(tmp_path, syntax, left):
    encoded = {
        RLELossless: lambda: encode_rle(NOISE),
        JPEG2000Lossless: lambda: imagecodecs.jpeg2k_encode(NOISE, level=0, codecformat="j2k"),
        JPEGLSLossless: lambda: imagecodecs.jpegls_encode(NOISE),
    }[syntax]()
    content = dicom(tmp_path / "a.dcm", NOISE, syntax, PixelData=encapsulate([encoded])).read_bytes()
    assert (np.asarray(read_content(content)) == NOISE).all()
    with pytest.raises(UnreadableError, match=r"^truncated; copy it again$"):
        read_content(content[:left])
    native = dicom(tmp_path / "a.dcm", NOISE).read_bytes()
    with pytest.raises(UnreadableError, match=r"^truncated; copy it again$"):
        read_content(native[:left])


def encode_rle(samples: np.ndarray) -> bytes:
    """Return the RLE frame of 8-bit samples, in literal runs of one row."""
    rows = b"".join(bytes([len(row) - 1]) + row.tobytes() for row in samples)
    return struct.pack("<16I", 1, 64, *[0] * 14) + rows + b"\0" * (len(rows) % 2)


@pytest.mark.fault("truncated 16-bit image of each format", "refused with the reason")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 0.98])
@pytest.mark.parametrize("name", ["rgb.png", "rgb.tif", "lzw.tif", "grey.jp2", "p6.ppm", "p3.ppm", "a.avif"])
def test_a_truncated_image_of_16_bits_is_refused(name, share):
    colours = np.random.default_rng(0).integers(0, 65536, (60, 40, 3), dtype=np.uint16)
    samples = " ".join(map(str, colours.reshape(-1))).encode()
    content = {
        "rgb.png": lambda: imagecodecs.png_encode(colours),
        "rgb.tif": lambda: tiff_of(colours),
        "lzw.tif": lambda: tiff_of(colours, compression="lzw"),
        "grey.jp2": lambda: imagecodecs.jpeg2k_encode(colours[..., 0], level=0, bitspersample=16),
        "p6.ppm": lambda: b"P6 40 60 65535\n" + colours.astype(">u2").tobytes(),
        "p3.ppm": lambda: b"P3 40 60 65535\n" + samples,
        "a.avif": lambda: saved(Image.fromarray(NOISE), "AVIF"),
    }[name]()
    assert read_content(content).size == (40, 60)
    with pytest.raises(UnreadableError, match="truncated"):
        read_content(content[: int(share * len(content))])


def saved(image: Image.Image, format_name: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name)
    return file.getvalue()


def tiff_of(colours: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, colours, photometric="rgb", **options)
    return file.getvalue()


def test_colours_that_hold_12_bits_in_16_are_not_almost_black(tmp_path):
    colours = np.repeat(PIXELS[..., None].astype(np.uint16) * 16, 3, axis=-1)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(colours))
    (tmp_path / "a.tif").write_bytes(tiff_of(colours))
    for name in ("a.png", "a.tif"):
        assert np.abs(read(tmp_path / name).astype(int) - PIXELS).max() <= 1


@pytest.mark.parametrize("orientation", [3, 6])
def test_the_exif_orientation_of_16_bit_colours_is_applied(orientation):
    colours = np.repeat(PIXELS[..., None].astype(np.uint16) * 257, 3, axis=-1)
    png, exif = imagecodecs.png_encode(colours), Image.Exif()
    exif[ORIENTATION] = orientation
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    expected = PIXELS[::-1, ::-1] if orientation == 3 else np.rot90(PIXELS, -1)
    assert (np.asarray(read_content(png[:33] + chunk + png[33:])) == expected).all()


@pytest.mark.fault("image of one grey level, window outside the data", "refused with the reason")
def test_an_image_that_shows_nothing_is_refused(tmp_path):
    for value in (0, 200):
        Image.new("L", (9, 9), value).save(tmp_path / "a.png")
        with pytest.raises(UnreadableError, match="every pixel has the same value"):
            read(tmp_path / "a.png")
    one = np.zeros((9, 9), dtype=np.uint8)
    one[7, 3] = 1
    Image.fromarray(one).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == one).all()
    stored = PIXELS.astype(np.uint16) * 16
    with pytest.raises(UnreadableError, match=r"window \(centre 9000, width 50\) shows every pixel as the same grey"):
        read(dicom(tmp_path / "a.dcm", stored, WindowCenter=9000, WindowWidth=50))
    stored[:, :5] = 0  # the padding is black, and everything else is white
    padded = {"PixelPaddingValue": 0, "WindowCenter": 1, "WindowWidth": 2}
    stored[:, 5:] += 10
    with pytest.raises(UnreadableError, match="shows every pixel as the same grey"):
        read(dicom(tmp_path / "a.dcm", stored, **padded))


def test_the_modality_of_a_dicom_file_is_returned(tmp_path):
    def modality(**elements) -> str:
        return read_radiograph(dicom(tmp_path / "a.dcm", PIXELS, **elements)).info["modality"]

    assert modality(Modality="dx") == "DX"
    assert modality() == "CR"  # of the SOP class
    assert modality(Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.7") == "SC"
    assert modality(SOPClassUID="1.2.840.10008.5.1.4.1.1.7.2") == "SC"
    assert modality(SOPClassUID="1.2.840.10008.5.1.4.1.1.2") == "CT"
    assert modality(SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.5.1", Modality="OP") == "OP"
    assert modality(SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.4") == "unknown"
    assert modality(SOPClassUID="1.2.3") == "unknown"
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert "modality" not in read_radiograph(tmp_path / "a.png").info


def test_the_only_frame_of_a_multi_frame_object_has_its_own_window(tmp_path):
    stored = PIXELS.astype(np.uint16) * 16
    window, voi, frame, transformation = Dataset(), Dataset(), Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 1000, 500
    transformation.RescaleSlope, transformation.RescaleIntercept = 2, 100
    voi.FrameVOILUTSequence = [window]
    frame.PixelValueTransformationSequence = [transformation]
    one = dicom(tmp_path / "a.dcm", stored, NumberOfFrames=1, PerFrameFunctionalGroupsSequence=[voi],
                SharedFunctionalGroupsSequence=[frame])  # fmt: skip
    other = dicom(tmp_path / "b.dcm", stored, WindowCenter=1000, WindowWidth=500, RescaleSlope=2, RescaleIntercept=100)
    assert (read(one) == read(other)).all()
    assert (read(one) != read(dicom(tmp_path / "c.dcm", stored))).any()


@pytest.mark.parametrize("largest", [255, 65535])
def test_segmented_palettes_are_expanded(tmp_path, largest):
    elements: dict = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        # One entry, then 255 entries on a line to the largest value.
        segments = np.array([0, 1, 0, 1, 255, largest], dtype="<u2")
        elements[f"Segmented{name}PaletteColorLookupTableData"] = segments.tobytes()
    pixels = read(dicom(tmp_path / "a.dcm", PIXELS, **elements))
    assert np.abs(pixels.astype(int) - PIXELS).max() <= 1


@pytest.mark.fault("empty file, file that is not an image, damaged header", "refused with the reason")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"image_id,label\n", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\xff\xd8\xff", "damaged header"),
        (bytes(128) + b"DICM", "truncated"),
    ],
)
def test_a_file_that_is_not_an_image_is_refused_with_the_reason(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadableError, match=reason):
        read(tmp_path / "a.jpg")
    with pytest.raises(UnreadableError, match="No such file"):
        read(tmp_path / "b.jpg")


@pytest.mark.fault("pipe, device, folder or dangling link", "refused with the reason, without reading")
def test_what_is_not_a_regular_file_is_refused(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    for file, reason in {
        tmp_path / "link.png": "a link to a file that does not exist",
        tmp_path: "not a file but a folder",
        Path("/dev/null"): "not a file but a pipe, socket or device",
    }.items():
        with pytest.raises(UnreadableError, match=reason):
            read(file)


@pytest.mark.fault("image above the limit of pixels", "refused before it is decoded")
def test_an_image_above_the_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(UnreadableError, match="20000 x 20000 pixels is above the limit of 100,000,000"):
        read(one_colour(tmp_path / "a.png", 20_000))
    with pytest.raises(UnreadableError, match="20000 x 20000 pixels is above the limit"):
        read(dicom(tmp_path / "a.dcm", PIXELS, Rows=20_000, Columns=20_000))


def test_8_bit_dicom_pixels_are_not_changed(tmp_path):
    assert (read(dicom(tmp_path / "a.dcm", PIXELS // 2)) == PIXELS // 2).all()
    for photometric in ("MONOCHROME1", "monochrome1"):
        file = dicom(tmp_path / "b.dcm", PIXELS, PhotometricInterpretation=photometric)
        assert (read(file) == 255 - PIXELS).all()


@pytest.mark.parametrize("rows", [25, 31, 59])
def test_native_pixels_that_are_followed_by_less_than_a_frame_are_read(tmp_path, rows):
    assert (read(dicom(tmp_path / "a.dcm", PIXELS, Rows=rows)) == PIXELS[:rows]).all()
    for whole in (20, 30):
        with pytest.raises(UnreadableError, match=f"^{60 // whole} frames in one file"):
            read(dicom(tmp_path / "a.dcm", PIXELS, Rows=whole))


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_pixels_of_more_than_8_bits_are_stretched(tmp_path, bits, signed, photometric):
    stored = PIXELS.astype(np.int32) * (2**bits // 256) - (2 ** (bits - 1) if signed else 0)
    if photometric == "MONOCHROME1":
        stored = stored.max() + stored.min() - stored
    stored = stored.astype(np.int16 if signed else np.uint16)
    file = dicom(tmp_path / "a.dcm", stored, BitsStored=bits, PhotometricInterpretation=photometric)
    assert (read(file) == PIXELS).all()


def test_unused_bits_are_ignored(tmp_path):
    stored = PIXELS.astype(np.uint16) * 16 + np.where(X > 20, 0x8000, 0).astype(np.uint16)
    assert (read(dicom(tmp_path / "a.dcm", stored, BitsStored=12)) == PIXELS).all()


def test_a_window_is_applied_to_rescaled_values(tmp_path):
    stored = PIXELS.astype(np.uint16) * 16
    window = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [1000, 0], "WindowWidth": [2000, 9]}
    pixels = read(dicom(tmp_path / "a.dcm", stored, BitsStored=12, **window))
    expected = np.clip((stored * 2.0 - 1000 - 999.5) / 1999 + 0.5, 0, 1) * 255
    assert np.abs(pixels - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("window", [{"WindowCenter": 100, "WindowWidth": 0}, {"WindowCenter": None}])
def test_a_window_of_width_0_is_ignored(tmp_path, window):
    assert (read(dicom(tmp_path / "a.dcm", PIXELS.astype(np.uint16) * 16, **window)) == PIXELS).all()


@pytest.mark.parametrize("windows", [([5, 1000], [0, 500]), (["", 1000], [9, 500]), ([1000, 5], [500, 0])])
def test_the_first_valid_window_is_used(tmp_path, windows):
    stored = PIXELS.astype(np.uint16) * 16
    expected = read(dicom(tmp_path / "a.dcm", stored, WindowCenter=1000, WindowWidth=500))
    centers, widths = windows
    assert (read(dicom(tmp_path / "b.dcm", stored, WindowCenter=centers, WindowWidth=widths)) == expected).all()


@pytest.mark.parametrize("entries", [4095, 4000, 3000, 2049, 2048])
def test_a_lookup_table_with_too_few_entries_does_not_replace_the_window(tmp_path, entries):
    stored, window = PIXELS.astype(np.uint16) * 16, {"WindowCenter": 1000, "WindowWidth": 500}
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], bytes(2 * entries)
    expected = read(dicom(tmp_path / "a.dcm", stored, **window))
    assert (read(dicom(tmp_path / "b.dcm", stored, VOILUTSequence=[table], **window)) == expected).all()


def test_lookup_tables_are_applied(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], (65535 - 257 * np.arange(256, dtype=np.uint16)).tobytes()
    pixels = read(dicom(tmp_path / "a.dcm", PIXELS, VOILUTSequence=[table]))
    assert (pixels == 255 - PIXELS).all()


def test_padding_does_not_change_the_stretching(tmp_path):
    stored = PIXELS.astype(np.int16) * 4
    stored[0, :4] = 0, 0, 1020, 1020
    stored[:, 30:] = -2000
    pixels = read(dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=-2000))
    assert (pixels[:, 30:] == 0).all()
    assert (pixels[1:, :30] == PIXELS[1:, :30]).all()


def test_coloured_dicom_is_converted_to_grey(tmp_path):
    colours = np.stack([PIXELS, PIXELS[::-1], NOISE], axis=-1)
    expected = np.asarray(Image.fromarray(colours).convert("L"))
    assert (read(dicom(tmp_path / "a.dcm", colours)) == expected).all()
    ybr = np.asarray(Image.fromarray(colours).convert("YCbCr"))
    pixels = read(dicom(tmp_path / "b.dcm", ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(pixels.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_dicom_file_without_a_preamble_is_recognised(tmp_path, syntax):
    file = dicom(tmp_path / "a.dcm", PIXELS, syntax)
    dataset = pydicom.dcmread(file)
    dataset.file_meta, dataset.preamble = FileMetaDataset(), None
    dataset.save_as(tmp_path / "b", implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    assert (tmp_path / "b").read_bytes()[:2] == b"\x08\0"
    assert (read(tmp_path / "b") == PIXELS).all()


def test_compressed_dicom_is_decoded():
    plain = read(Path(get_testdata_file("MR_small.dcm", download=False)))
    for name in ("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm"):
        assert (read(Path(get_testdata_file(name, download=False))) == plain).all()
    assert read(Path(get_testdata_file("SC_rgb_jpeg_gdcm.dcm", download=False))).shape == (100, 100)
