import multiprocessing
import os
import random
import shutil
import time
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fractatlas.data import cache
from fractatlas.data.cache import Decoder, open_cache
from fractatlas.data.catalogue import read_catalogue
from fractatlas.data.images import decode, read_radiograph
from fractatlas.data.integrity import content_key
from fractatlas.data.sources.fracatlas import FracAtlas
from fractatlas.data.transforms import letterbox, resize_and_crop
from fractatlas.errors import InputError
from tests.data.sources.miniatures import write_dicom

NORM = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SMALL = resize_and_crop(resize=72, crop=64, **NORM)


@pytest.fixture
def images(catalogue):
    return catalogue[catalogue["excluded"] == ""].reset_index(drop=True)


def opened(folder, root, images, preprocess=SMALL):
    return open_cache(folder, root, images["path"], images["content"], preprocess)


@pytest.fixture
def decoded(monkeypatch) -> list[bytes]:
    """The contents of the files that are decoded from now on."""
    contents = []
    monkeypatch.setattr(cache, "read_content", lambda content: contents.append(content) or decode(content))
    return contents


@pytest.mark.parametrize("preprocess", [SMALL, letterbox(size=64, fill=0, **NORM)], ids=["imagenet", "letterbox"])
def test_cached_pixels_equal_those_of_the_files(tmp_path, phantoms, images, preprocess):
    rows = [5, 0, 5, len(images) - 1]
    cached = opened(tmp_path, phantoms, images, preprocess)(rows)
    assert (cached.dtype, tuple(cached.shape)) == (torch.uint8, (4, 1, 64, 64))
    assert torch.equal(cached, Decoder(phantoms, images["path"], preprocess)(rows))


def test_dicom_is_cached_as_predict_reads_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 70), dtype=np.uint8)
    write_dicom(tmp_path / "a", pixels, "x")
    expected = SMALL(read_radiograph(tmp_path / "a"))
    key = content_key((tmp_path / "a").read_bytes())
    assert torch.equal(open_cache(tmp_path / "cache", tmp_path, ["a"], [key], SMALL)([0])[0], expected)
    assert torch.equal(Decoder(tmp_path, ["a"], SMALL)([0])[0], expected)


def test_images_are_decoded_once(tmp_path, phantoms, images, decoded):
    opened(tmp_path, phantoms, images[:50])
    decoded.clear()
    opened(tmp_path, phantoms, images[:50])
    assert decoded == []
    opened(tmp_path, phantoms, images)
    assert sorted(decoded) == sorted((phantoms / path).read_bytes() for path in images["path"][50:])


def test_each_geometry_has_its_own_cache(tmp_path, phantoms, images):
    for preprocess in (SMALL, resize_and_crop(resize=80, crop=64, **NORM), letterbox(size=64, fill=0, **NORM),
                       letterbox(size=64, fill=9, **NORM)):  # fmt: skip
        cached = opened(tmp_path, phantoms, images[:9], preprocess)
        assert torch.equal(cached([3, 4]), Decoder(phantoms, images["path"], preprocess)([3, 4]))
    assert len(list(tmp_path.iterdir())) == 4


def test_only_a_changed_image_is_decoded_again(tmp_path, phantoms, images, decoded):
    root = shutil.copytree(phantoms, tmp_path / "data")
    opened(tmp_path / "cache", root, images)
    changed = root / images["path"][7]
    pixels = np.full((300, 200), 99, dtype=np.uint8)
    pixels[:, 0] = 0  # outside of the crop; an image of one grey level would be refused
    Image.fromarray(pixels).save(changed, quality=100)
    now = read_catalogue(FracAtlas(root))
    now = now[now["excluded"] == ""].reset_index(drop=True)
    decoded.clear()
    cached = opened(tmp_path / "cache", root, now)
    assert decoded == [changed.read_bytes()]
    assert (cached([7]) == 99).all()


def test_rows_without_an_index_entry_are_overwritten(tmp_path, phantoms, images):
    opened(tmp_path, phantoms, images[:20])
    (file,) = tmp_path.glob("*/pixels.bin")
    with file.open("ab") as tail:
        tail.write(b"x" * 10_000)
    cached = opened(tmp_path, phantoms, images)
    every = range(len(images))
    assert torch.equal(cached(every), Decoder(phantoms, images["path"], SMALL)(every))
    assert file.stat().st_size == len(set(images["content"])) * 64 * 64


@pytest.mark.fault("pixel cache truncated or deleted", "written again")
@pytest.mark.parametrize("damage", ["truncated", "deleted"])
def test_a_damaged_cache_is_written_again(tmp_path, phantoms, images, damage):
    opened(tmp_path, phantoms, images)
    (file,) = tmp_path.glob("*/pixels.bin")
    file.unlink() if damage == "deleted" else os.truncate(file, 1000)
    assert torch.equal(opened(tmp_path, phantoms, images)([9]), Decoder(phantoms, images["path"], SMALL)([9]))


@pytest.mark.fault("disk full while writing the pixel cache", "reported, the space is freed")
def test_a_full_disk_is_reported_and_its_space_is_freed(tmp_path, phantoms, images, monkeypatch):
    opened(tmp_path, phantoms, images[:20])
    (file,) = tmp_path.glob("*/pixels.bin")
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write the cache in .* \(No space left on device\); use another"):
        opened(tmp_path, phantoms, images)
    assert file.read_bytes() == before
    monkeypatch.undo()
    assert torch.equal(opened(tmp_path, phantoms, images)([30]), Decoder(phantoms, images["path"], SMALL)([30]))


def test_a_complete_cache_is_read_without_its_lock(tmp_path, phantoms, images, monkeypatch):
    """A complete cache can therefore be in a read-only folder."""
    opened(tmp_path, phantoms, images[:20])
    monkeypatch.setattr(cache, "cache_lock", lambda folder: pytest.fail("locked"))
    opened(tmp_path, phantoms, images[:20])


def test_without_a_cache_the_error_names_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match=r"a.png cannot be read: not an image; restore it and start again"):
        Decoder(tmp_path, ["a.png"], SMALL)([0])


@pytest.mark.fault("image deleted or changed while it is read", "an error that names the file")
def test_the_error_names_a_file_that_was_deleted_or_changed(tmp_path, phantoms, images):
    for contents, paths, message in (
        (["0" * 32], images["path"][:1], "changed while it was read"),
        (["1" * 32], ["images/Fractured/gone.jpg"], r"gone.jpg cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            open_cache(tmp_path, phantoms, paths, contents, SMALL)
    assert torch.equal(opened(tmp_path, phantoms, images[:3])([2]), Decoder(phantoms, images["path"], SMALL)([2]))


def build(folder: Path, root: Path, images: pd.DataFrame, count: Synchronized) -> None:
    def counting(content: bytes) -> Image.Image:
        with count.get_lock():
            count.value += 1
        return decode(content)

    cache.read_content, cache.ROWS_PER_COMMIT = counting, 16
    opened(folder, root, images)


@pytest.fixture
def builder(tmp_path, phantoms, images):
    """Start processes that fill a cache; forked, because importing torch takes longer than filling it."""
    fork = multiprocessing.get_context("fork")

    def make(folder: Path, count: Synchronized) -> multiprocessing.Process:
        process = fork.Process(target=build, args=(folder, phantoms, images, count))
        process.start()
        return process

    return make


@pytest.mark.fault("pixel cache filled by several processes at the same time", "each image is decoded once")
def test_processes_that_start_together_decode_each_image_once(tmp_path, images, builder):
    count = multiprocessing.Value("i", 0)
    processes = [builder(tmp_path, count) for _ in range(4)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert count.value == images["content"].nunique()


@pytest.mark.integration
@pytest.mark.fault("process killed while it fills the pixel cache, started again", "the cache equals the files")
def test_a_killed_process_leaves_a_cache_that_the_next_one_completes(tmp_path, phantoms, images, builder):
    generator, every = random.Random(0), range(len(images))
    expected = Decoder(phantoms, images["path"], SMALL)(every)
    for number in range(20):
        count = multiprocessing.Value("i", 0)
        process = builder(tmp_path / str(number), count)
        last = generator.randrange(len(images))
        while count.value < last and process.is_alive():
            time.sleep(0.0005)
        process.kill()
        process.join(60)
        assert torch.equal(opened(tmp_path / str(number), phantoms, images)(every), expected)
