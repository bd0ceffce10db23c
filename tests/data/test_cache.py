import multiprocessing
import os
import random
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
from fractatlas.data.transforms import letterbox, resize_and_crop
from fractatlas.errors import InputError

NORM = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SMALL = resize_and_crop(resize=72, crop=64, **NORM)


@pytest.fixture
def images(catalogue):
    return catalogue[catalogue["excluded"] == ""].reset_index(drop=True)


def opened(folder, root, images, preprocess=SMALL):
    return open_cache(folder, root, images["path"], images["content"], preprocess)


def decoding(monkeypatch) -> list[str]:
    """The files that are decoded from now on."""
    seen, row = [], cache._row
    monkeypatch.setattr(cache, "_row", lambda root, key, path, pre: seen.append(path) or row(root, key, path, pre))
    return seen


@pytest.mark.parametrize("preprocess", [SMALL, letterbox(size=64, fill=0, **NORM)], ids=["study", "letterbox"])
def test_cached_pixels_are_those_of_the_files(tmp_path, phantoms, images, preprocess):
    rows = [5, 0, 5, len(images) - 1]
    cached = opened(tmp_path, phantoms, images, preprocess)(rows)
    assert (cached.dtype, tuple(cached.shape)) == (torch.uint8, (4, 1, 64, 64))
    assert torch.equal(cached, Decoder(phantoms, images["path"], preprocess)(rows))


def test_images_are_decoded_once(tmp_path, phantoms, images, monkeypatch):
    opened(tmp_path, phantoms, images[:50])
    seen = decoding(monkeypatch)
    opened(tmp_path, phantoms, images[:50])
    assert seen == []
    opened(tmp_path, phantoms, images)
    assert sorted(seen) == sorted(images["path"][50:])


def test_another_geometry_has_a_cache_of_its_own(tmp_path, phantoms, images):
    for preprocess in (SMALL, resize_and_crop(resize=80, crop=64, **NORM), letterbox(size=64, fill=0, **NORM),
                       letterbox(size=64, fill=9, **NORM)):  # fmt: skip
        cached = opened(tmp_path, phantoms, images[:9], preprocess)
        assert torch.equal(cached([3, 4]), Decoder(phantoms, images["path"], preprocess)([3, 4]))
    assert len(list(tmp_path.iterdir())) == 4


def test_only_a_changed_image_is_decoded_again(tmp_path, phantoms, images, monkeypatch):
    (tmp_path / "images").symlink_to(phantoms / "images")
    opened(tmp_path / "cache", tmp_path, images)
    (tmp_path / "images").unlink()
    for name in ("Fractured", "Non_fractured"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for file in (phantoms / "images" / name).iterdir():
            (tmp_path / "images" / name / file.name).symlink_to(file)
    for name in ("dataset.csv", "Annotations"):
        (tmp_path / name).symlink_to(phantoms / name)
    changed = tmp_path / images["path"][7]
    changed.unlink()
    Image.fromarray(np.full((300, 200), 99, dtype=np.uint8)).save(changed)
    seen = decoding(monkeypatch)
    now = read_catalogue(tmp_path)
    now = now[now["excluded"] == ""].reset_index(drop=True)
    cached = opened(tmp_path / "cache", tmp_path, now)
    assert seen == [images["path"][7]]
    assert (cached([7]) == 99).all()


def test_what_a_build_left_unlisted_is_overwritten(tmp_path, phantoms, images):
    opened(tmp_path, phantoms, images[:20])
    (file,) = tmp_path.glob("*/pixels.bin")
    with file.open("ab") as tail:
        tail.write(b"x" * 10_000)
    cached = opened(tmp_path, phantoms, images)
    every = range(len(images))
    assert torch.equal(cached(every), Decoder(phantoms, images["path"], SMALL)(every))
    assert file.stat().st_size == len(set(images["content"])) * 64 * 64


@pytest.mark.fault("spoilt cache", "made anew")
@pytest.mark.parametrize("spoil", ["short", "gone"])
def test_a_spoilt_cache_is_made_anew(tmp_path, phantoms, images, spoil):
    opened(tmp_path, phantoms, images)
    (file,) = tmp_path.glob("*/pixels.bin")
    file.unlink() if spoil == "gone" else os.truncate(file, 1000)
    assert torch.equal(opened(tmp_path, phantoms, images)([9]), Decoder(phantoms, images["path"], SMALL)([9]))


@pytest.mark.fault("disk that fills up while caching", "told, space given back")
def test_a_full_disk_is_answered_in_two_lines_and_gets_its_space_back(tmp_path, phantoms, images, monkeypatch):
    opened(tmp_path, phantoms, images[:20])
    (file,) = tmp_path.glob("*/pixels.bin")
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot fill the cache in .* \(No space left on device\)\nName another"):
        opened(tmp_path, phantoms, images)
    assert file.read_bytes() == before
    monkeypatch.undo()
    assert torch.equal(opened(tmp_path, phantoms, images)([30]), Decoder(phantoms, images["path"], SMALL)([30]))


def test_a_whole_cache_is_read_without_its_lock(tmp_path, phantoms, images, monkeypatch):
    """So that a read-only folder, or another user's, will do."""
    opened(tmp_path, phantoms, images[:20])
    monkeypatch.setattr(cache, "shared", lambda folder: pytest.fail("asked for the lock"))
    opened(tmp_path, phantoms, images[:20])


@pytest.mark.fault("image that vanishes or changes while it is being read", "the file named")
def test_a_file_that_vanished_or_changed_is_named(tmp_path, phantoms, images):
    for contents, paths, says in (
        (["0" * 32], images["path"][:1], "changed while it was read"),
        (["1" * 32], ["images/Fractured/gone.jpg"], r"gone.jpg can no longer be read"),
    ):
        with pytest.raises(InputError, match=says):
            open_cache(tmp_path, phantoms, paths, contents, SMALL)
    assert torch.equal(opened(tmp_path, phantoms, images[:3])([2]), Decoder(phantoms, images["path"], SMALL)([2]))


def build(folder: Path, root: Path, images: pd.DataFrame, decoded: Synchronized) -> None:
    row = cache._row

    def count(*arguments) -> bytes:
        with decoded.get_lock():
            decoded.value += 1
        return row(*arguments)

    cache._row, cache.ROWS_AT_A_TIME = count, 16
    opened(folder, root, images)


@pytest.fixture
def builder(tmp_path, phantoms, images):
    """Make processes that each fill a cache: forked, since importing torch takes longer than the build."""
    fork = multiprocessing.get_context("fork")

    def make(folder: Path, decoded: Synchronized) -> multiprocessing.Process:
        process = fork.Process(target=build, args=(folder, phantoms, images, decoded))
        process.start()
        return process

    return make


@pytest.mark.fault("cache built by several processes at once", "built once")
def test_processes_that_start_together_build_it_once(tmp_path, images, builder):
    decoded = multiprocessing.Value("i", 0)
    processes = [builder(tmp_path, decoded) for _ in range(4)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert decoded.value == images["content"].nunique()


@pytest.mark.fault("cache build killed, started again", "the pixels of the files")
def test_a_build_that_is_killed_at_any_moment_is_finished_by_the_next(tmp_path, phantoms, images, builder):
    generator, every = random.Random(0), range(len(images))
    expected = Decoder(phantoms, images["path"], SMALL)(every)
    for number in range(20):
        decoded = multiprocessing.Value("i", 0)
        process = builder(tmp_path / str(number), decoded)
        last = generator.randrange(len(images))
        while decoded.value < last and process.is_alive():
            time.sleep(0.0005)
        process.kill()
        process.join(60)
        assert torch.equal(opened(tmp_path / str(number), phantoms, images)(every), expected)
