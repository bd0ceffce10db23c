import hashlib

import numpy as np
import pytest
from PIL import Image

from fractatlas.data import inspection
from fractatlas.data.inspection import decode, inspect, inspect_all, too_large
from tests import fuzz


@pytest.fixture
def picture() -> Image.Image:
    y, x = np.mgrid[:120, :90]
    return Image.fromarray(((x * 2 + y * y // 90) % 256).astype(np.uint8))


@pytest.fixture
def saved(picture, tmp_path):
    """Save the picture and give the file's content."""

    def save(name: str = "a.jpg", image: Image.Image = picture, **options) -> bytes:
        image.save(tmp_path / name, **options)
        return (tmp_path / name).read_bytes()

    return save


def test_a_whole_file_has_size_mode_and_fingerprints(saved, picture):
    found = inspect(saved(image=picture.convert("RGB"), quality=90))
    assert (found.error, found.mode, found.width, found.height, found.orientation) == ("", "RGB", 90, 120, 1)
    assert len(found.dhash) == 64
    assert found.content == hashlib.sha256(saved(image=picture.convert("RGB"), quality=90)).hexdigest()[:32]


def test_the_same_pixels_in_another_file_are_told(saved, picture):
    one, other = inspect(saved("a.png")), inspect(saved("b.png", picture.convert("RGB"), compress_level=1))
    assert (one.content != other.content, one.pixels == other.pixels, one.dhash == other.dhash) == (True, True, True)
    assert inspect(saved("c.png", picture.transpose(Image.Transpose.ROTATE_180))).pixels != one.pixels


def test_another_quality_is_a_near_duplicate_and_not_the_same_pixels(saved):
    one, other = inspect(saved(quality=95)), inspect(saved(quality=60))
    assert one.pixels != other.pixels
    assert (int(one.dhash, 16) ^ int(other.dhash, 16)).bit_count() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(saved, picture, orientation):
    exif = Image.Exif()
    exif[inspection.ORIENTATION] = orientation
    content = saved(exif=exif, quality=95)
    found = inspect(content)
    assert found.orientation == orientation
    assert (found.width, found.height) == ((90, 120) if orientation < 5 else (120, 90)) == decode(content).size


@pytest.mark.parametrize("junk", [b"", b"rubbish", b"\xff\xd9" * 50, bytes(3000)])
@pytest.mark.parametrize("progressive", [False, True])
def test_bytes_after_the_end_are_counted(saved, junk, progressive):
    exif = Image.Exif()
    exif[270] = "an end marker in a segment: \xff\xd9"
    found = inspect(saved(quality=90, exif=exif, progressive=progressive) + junk)
    assert (found.error, found.junk) == ("", len(junk))


def test_truncated_and_other_files_are_told_apart(saved):
    content = saved(quality=90)
    assert inspect(content[: len(content) * 2 // 3]).error == "truncated"
    for other in (b"", b"no image", content[:5], b"\x89PNG\r\n\x1a\n" + bytes(40)):
        assert inspect(other).error in ("unreadable", "truncated")
        assert inspect(other).pixels == ""


def test_a_content_is_looked_at_once(saved, tmp_path, monkeypatch):
    for name in ("a.jpg", "b.jpg", "c.png"):
        saved(name)
    (tmp_path / "d.jpg").write_bytes(b"12345678901234567890")
    looked = []
    monkeypatch.setattr(inspection, "inspect", lambda content: looked.append(content) or inspect(content))
    paths = ["a.jpg", "b.jpg", "c.png", "d.jpg", ""]
    first = inspect_all(tmp_path, paths, tmp_path / "memory")
    assert len(looked) == 4  # a and b are the same
    assert inspect_all(tmp_path, paths[::-1], tmp_path / "memory").iloc[::-1].reset_index(drop=True).equals(first)
    assert len(looked) == 4
    assert inspect_all(tmp_path, paths).equals(first)


def test_a_changed_file_is_looked_at_again(saved, picture, tmp_path):
    saved("a.png")
    before = inspect_all(tmp_path, ["a.png"], tmp_path / "memory")
    saved("a.png", picture.transpose(Image.Transpose.ROTATE_180))
    after = inspect_all(tmp_path, ["a.png"], tmp_path / "memory")
    assert before["pixels"][0] != after["pixels"][0]


def test_a_spoilt_memory_is_made_anew(saved, tmp_path):
    saved("a.png")
    before = inspect_all(tmp_path, ["a.png"], tmp_path / "memory")
    (store,) = (tmp_path / "memory").glob("*.csv")
    for spoilt in ("", "content,bytes\nx,many\n", "\x00\xff"):
        store.write_text(spoilt)
        assert inspect_all(tmp_path, ["a.png"], tmp_path / "memory").equals(before)


@pytest.mark.fault("mutated JPEG and PNG in a data folder", "excluded as truncated or unreadable")
def test_what_is_mutated_is_told_and_never_ends_the_look(record_property):
    contents = fuzz.seeds()
    for number in range(400):
        found = inspect(fuzz.mutant(number, contents))
        assert found.error in ("", "truncated", "unreadable")
        assert bool(found.error) == (found.width == 0)
    record_property("tried", 400)


def test_an_image_beyond_the_limits_is_not_decoded():
    header = b"P5 60000 100 255\n"
    assert inspect(header + bytes(60000 * 100)).error == "unreadable"
    assert too_large(30_000, 3_000) == ""
    assert "a side" in too_large(60_000, 100)
