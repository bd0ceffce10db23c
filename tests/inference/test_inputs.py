"""Which files a folder or a pattern stands for."""

from pathlib import Path

import pytest

from fractatlas.errors import InputError
from fractatlas.inference.inputs import find_inputs


def test_images_are_found_in_a_folder_and_other_files_are_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    skipped = ("list.csv", "readme", ".hidden.jpg", ".git/x.jpg", "d/DICOMDIR")
    for name in ("b/2.PNG", "b/1.jpg", "a.tif", "c.dcm", *skipped):
        Path("in", name).parent.mkdir(parents=True, exist_ok=True)
        Path("in", name).write_bytes(b"x")
    for name in ("in/1.2.840.99", "in/IM0001", "in/d/DICOMDIR"):
        Path(name).write_bytes(bytes(128) + b"DICM")
    Path("in/b/loop").symlink_to(Path("in").absolute())
    found = find_inputs("in")
    assert found.images == ["in/1.2.840.99", "in/IM0001", "in/a.tif", "in/b/1.jpg", "in/b/2.PNG", "in/c.dcm"]
    assert found.skipped == {".csv": 1, "no extension": 2}
    Path("in/b/loop").unlink()
    assert find_inputs("./in/b/").images == ["./in/b/1.jpg", "./in/b/2.PNG"]


def test_a_pattern_finds_files_at_any_depth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a/1.jpg", "in/2.jpg", "in/3.raw", "in/[1].jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert find_inputs("in/**/*.jpg").images == ["in/2.jpg", "in/[1].jpg", "in/a/1.jpg"]
    assert find_inputs("in/**").images == find_inputs("in/*").images == ["in/2.jpg", "in/[1].jpg", "in/a/1.jpg"]
    assert find_inputs("in/*.raw").images == find_inputs("in/3.raw").images == ["in/3.raw"]
    assert find_inputs("in/[1].jpg").images == ["in/[1].jpg"]
    for name in ("in/*.png", "nowhere"):
        with pytest.raises(InputError, match=r"input=.*: no file or folder matches"):
            find_inputs(name)
    with pytest.raises(InputError, match="no image among 1 files"):
        find_inputs("in/3*")
