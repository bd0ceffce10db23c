import hashlib

import numpy as np
import pytest
from PIL import Image

from fractatlas.data import integrity
from fractatlas.data.images import decode, read_content, too_large
from fractatlas.data.integrity import ORIENTATION, content_key, inspect, inspect_all
from tests.data.sources.miniatures import write_dicom


@pytest.fixture
def picture() -> Image.Image:
    y, x = np.mgrid[:120, :90]
    return Image.fromarray(((x * 2 + y * y // 90) % 256).astype(np.uint8))


@pytest.fixture
def saved(picture, tmp_path):
    """Save an image and return the content of the file."""

    def save(name: str = "a.jpg", image: Image.Image = picture, **options) -> bytes:
        image.save(tmp_path / name, **options)
        return (tmp_path / name).read_bytes()

    return save


def test_a_sound_file_has_size_mode_and_hashes(saved, picture):
    content = saved(image=picture.convert("RGB"), quality=90)
    image = inspect(content)
    assert (image.error, image.mode, image.width, image.height, image.orientation) == ("", "RGB", 90, 120, 1)
    assert len(image.dhash) == 64
    assert image.content == hashlib.sha256(content).hexdigest()[:32]


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [("a.jpg", "RGB", {"quality": 90}), ("a.jpg", "L", {"quality": 30, "progressive": True}), ("a.png", "RGB", {}),
     ("a.png", "P", {}), ("a.bmp", "L", {})],
)  # fmt: skip
def test_an_image_of_8_bits_has_the_pixels_of_the_decoder(saved, picture, name, mode, options):
    """Reading any kind of image changes no pixel of the kinds that were read before."""
    content = saved(name, picture.convert(mode), **options)
    upright = decode(content)
    assert read_content(content).tobytes() == upright.tobytes()
    assert inspect(content).pixels == content_key(b"%d %d " % upright.size + upright.tobytes())


def test_dicom_and_16_bits_are_inspected_as_predict_reads_them(picture, tmp_path):
    pixels = np.asarray(picture)
    write_dicom(tmp_path / "a", pixels, "x")
    image = inspect((tmp_path / "a").read_bytes())
    assert (image.error, image.mode, image.orientation, image.width, image.height) == ("", "DICOM", 1, 90, 120)
    Image.fromarray(pixels.astype(np.uint16) * 100 + 7).save(tmp_path / "b.png")
    stretched = inspect((tmp_path / "b.png").read_bytes())
    assert stretched.mode == "I;16"
    assert (int(stretched.dhash, 16) ^ int(image.dhash, 16)).bit_count() <= 8  # not black


def test_the_reason_for_an_unreadable_file_is_kept(saved):
    assert (inspect(b"no image").error, inspect(b"no image").reason) == ("unreadable", "not an image")


def test_the_same_pixels_in_another_file_have_the_same_pixel_hash(saved, picture):
    one, other = inspect(saved("a.png")), inspect(saved("b.png", picture.convert("RGB"), compress_level=1))
    assert (one.content != other.content, one.pixels == other.pixels, one.dhash == other.dhash) == (True, True, True)
    assert inspect(saved("c.png", picture.transpose(Image.Transpose.ROTATE_180))).pixels != one.pixels


def test_another_jpeg_quality_changes_the_pixel_hash_but_not_the_difference_hash(saved):
    one, other = inspect(saved(quality=95)), inspect(saved(quality=60))
    assert one.pixels != other.pixels
    assert (int(one.dhash, 16) ^ int(other.dhash, 16)).bit_count() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(saved, picture, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = saved(exif=exif, quality=95)
    image = inspect(content)
    assert image.orientation == orientation
    assert (image.width, image.height) == ((90, 120) if orientation < 5 else (120, 90)) == decode(content).size


@pytest.mark.parametrize("junk", [b"", b"rubbish", b"\xff\xd9" * 50, bytes(3000)])
@pytest.mark.parametrize("progressive", [False, True])
def test_bytes_after_the_end_marker_are_counted(saved, junk, progressive):
    exif = Image.Exif()
    exif[270] = "an end marker in a segment: \xff\xd9"
    image = inspect(saved(quality=90, exif=exif, progressive=progressive) + junk)
    assert (image.error, image.junk) == ("", len(junk))


def test_truncated_files_are_distinguished_from_other_files(saved):
    content = saved(quality=90)
    assert inspect(content[: len(content) * 2 // 3]).error == "truncated"
    for other in (b"", b"no image", content[:5], b"\x89PNG\r\n\x1a\n" + bytes(40)):
        assert inspect(other).error in ("unreadable", "truncated")
        assert inspect(other).pixels == ""


def test_each_content_is_inspected_once(saved, tmp_path, monkeypatch):
    for name in ("a.jpg", "b.jpg", "c.png"):
        saved(name)
    (tmp_path / "d.jpg").write_bytes(b"12345678901234567890")
    inspected = []
    monkeypatch.setattr(integrity, "inspect", lambda content: inspected.append(content) or inspect(content))
    paths = ["a.jpg", "b.jpg", "c.png", "d.jpg", ""]
    first = inspect_all(tmp_path, paths, tmp_path / "cache")
    assert len(inspected) == 4  # a and b are equal
    assert inspect_all(tmp_path, paths[::-1], tmp_path / "cache").iloc[::-1].reset_index(drop=True).equals(first)
    assert len(inspected) == 4
    assert inspect_all(tmp_path, paths).equals(first)


def test_a_changed_file_is_inspected_again(saved, picture, tmp_path):
    saved("a.png")
    before = inspect_all(tmp_path, ["a.png"], tmp_path / "cache")
    saved("a.png", picture.transpose(Image.Transpose.ROTATE_180))
    after = inspect_all(tmp_path, ["a.png"], tmp_path / "cache")
    assert before["pixels"][0] != after["pixels"][0]


def test_a_damaged_cache_of_statistics_is_written_again(saved, tmp_path):
    saved("a.png")
    before = inspect_all(tmp_path, ["a.png"], tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.csv")
    for damaged in ("", "content,bytes\nx,many\n", "\x00\xff"):
        file.write_text(damaged)
        assert inspect_all(tmp_path, ["a.png"], tmp_path / "cache").equals(before)


def test_an_image_above_the_limits_is_unreadable():
    header = b"P5 60000 100 255\n"
    assert inspect(header + bytes(60000 * 100)).error == "unreadable"
    assert too_large(30_000, 3_000) == ""
    assert "a side" in too_large(60_000, 100)
