"""Which files a folder, a pattern, a zip archive or a DICOMDIR stands for."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.fileset import FileSet

from fractatlas.data.image_limits import UnreadableError
from fractatlas.errors import InputError
from fractatlas.inference import inputs
from fractatlas.inference.inputs import find_inputs, read_input
from tests.data.test_images import NOISE, PIXELS, dicom, saved


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
    with pytest.raises(InputError, match=r"no image in 1 file \(DICOM, .*\); give another input"):
        find_inputs("in/3*")


def test_in_folders_the_content_decides_for_names_with_other_extensions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    contents = {
        "a.IMA": bytes(128) + b"DICM",
        "b.bak": b"\x08\0\x05\0CS\x0a\0ISO_IR 100",
        "1.2.840.9x": b"\x08\0\0\0\x04\0\0\0\x10\0\0\0",
        "c.dat": saved(Image.fromarray(PIXELS), "PNG"),
        "d.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "e.jxl": b"\xff\x0a\0\0",
        "f.npy": b"\x93NUMPY\x01\0",
        "f.npz": b"PK\x03\x04" + bytes(22) + b"\x09\0\0\0arr_0.npy",
        "f.h5": b"\x89HDF\r\n\x1a\n",
        "f.mat": b"MATLAB 5.0 MAT-file",
        "f.xbm": b"#define im_width 8\n#define im_height 1\nstatic char im_bits[] = {",
        "g.avif": saved(Image.fromarray(PIXELS), "AVIF"),
        "h.bmp.old": saved(Image.fromarray(PIXELS), "BMP"),
    }
    skipped = {
        "counts.bin": b"\x08\0\0\0\xff\xff\xff\xff", "BMW.txt": b"BMW and others", "P5.md": b"P5-x",
        "x.zip": b"PK\x03\x04", "y.webm": b"RIFF1234AVI ", "a.h": b"#define MAX_width 8\n",
        "x.docx": b"PK\x03\x04" + bytes(9),
    }  # fmt: skip
    for name, content in (contents | skipped).items():
        Path("in", name).write_bytes(content)
    os.mkfifo("in/pipe")
    found = find_inputs("in")
    assert sorted(found.images) == sorted(f"in/{name}" for name in contents)
    assert found.skipped.total() == len(skipped) + 1


@pytest.mark.fault("pipe, device, folder or dangling link", "refused with the reason, without reading")
def test_a_pipe_with_the_name_of_an_image_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    found = find_inputs(str(tmp_path))
    assert found.images == [str(tmp_path / "a.png"), str(tmp_path / "pipe.png")]
    with pytest.raises(UnreadableError, match="not a file but a pipe"):
        read_input(found.images[1])


@pytest.fixture
def archive(tmp_path) -> Path:
    with zipfile.ZipFile(tmp_path / "x ö.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("b/2.png", saved(Image.fromarray(NOISE), "PNG"))
        file.writestr("b/1.PNG", saved(Image.fromarray(PIXELS), "PNG"))
        file.writestr("IM01", dicom(tmp_path / "IM01", PIXELS).read_bytes())
        file.writestr("list.csv", "a")
        file.writestr("__MACOSX/b/2.png", "x")
        file.writestr(".hidden.png", "x")
        file.writestr("DICOMDIR", bytes(128) + b"DICM")
        file.mkdir("empty")
    return tmp_path / "x ö.zip"


def test_a_zip_archive_stands_for_the_images_in_it(archive, tmp_path):
    found = find_inputs(str(archive))
    assert found.images == [f"{archive}/IM01", f"{archive}/b/1.PNG", f"{archive}/b/2.png"]
    assert found.skipped == {".csv": 1, "no extension": 1}
    pixels = [np.asarray(read_input(path)) for path in found.images]
    assert all((one == other).all() for one, other in zip(pixels, (PIXELS, PIXELS, NOISE), strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["IM01", "x ö.zip"]
    with zipfile.ZipFile(archive, "w") as file:  # a changed archive is opened again
        file.writestr("IM01", saved(Image.fromarray(NOISE), "PNG"))
    assert (np.asarray(read_input(f"{archive}/IM01")) == NOISE).all()
    with pytest.raises(UnreadableError, match="damaged in the archive"):
        read_input(f"{archive}/b/2.png")


@pytest.mark.fault("hostile or damaged zip archive", "refused with the reason, nothing unpacked")
def test_the_members_of_an_archive_are_limited(tmp_path, monkeypatch):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(2**25))
        archive.writestr("../up.png", saved(Image.fromarray(PIXELS), "PNG"))
    assert find_inputs(str(file)).images == [f"{file}/../up.png", f"{file}/bomb.png"]
    with pytest.raises(UnreadableError, match="compressed more than 300 times"):
        read_input(f"{file}/bomb.png")
    assert (np.asarray(read_input(f"{file}/../up.png")) == PIXELS).all()
    monkeypatch.setattr(inputs, "MAX_BYTES", 2**24)
    with pytest.raises(UnreadableError, match="33554432 bytes is above the limit of 16777216"):
        read_input(f"{file}/bomb.png")
    monkeypatch.setattr(inputs, "MAX_MEMBERS", 1)
    with pytest.raises(InputError, match=r"a.zip: 2 files, above the limit of 1; split it"):
        find_inputs(str(file))
    content = bytearray(file.read_bytes())
    position = content.find(b"PK\x01\x02")
    content[position + 8] |= 1  # encrypted
    file.write_bytes(content)
    monkeypatch.undo()
    with pytest.raises(UnreadableError, match="encrypted; unpack the archive with its password"):
        read_input(find_inputs(str(file)).images[1])
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged or incomplete zip archive; download or copy it again"):
        find_inputs(str(file))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.csv", "x")
    with pytest.raises(InputError, match="no image in 1 file "):
        find_inputs(str(file))


@pytest.mark.fault("hostile or damaged zip archive", "refused with the reason, nothing unpacked")
def test_members_that_cannot_be_read_are_listed(tmp_path):
    file, image = tmp_path / "a.zip", saved(Image.fromarray(PIXELS), "PNG")
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("encrypted", "changed", "changed.png", "right"):
            archive.writestr(name, image)
    content = bytearray(file.read_bytes())
    for name in (b"changed", b"changed.png"):
        content[content.find(b"PK\x03\x04", content.find(name + image[:8])) - 20] ^= 1
    content[content.find(b"PK\x01\x02") + 8] |= 1  # the first member
    content[6] |= 1
    file.write_bytes(content)
    found = find_inputs(str(file))
    reasons = {}
    for path in found.images:
        try:
            read_input(path)
        except UnreadableError as error:
            reasons[Path(path).name] = str(error)
    damaged = "damaged in the archive; download or copy the archive again"
    assert reasons == {
        "encrypted": "encrypted; unpack the archive with its password", "changed": damaged, "changed.png": damaged,
    }  # fmt: skip
    assert f"{file}/right" in found.images


def test_members_with_the_same_name_are_listed(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name, pixels in (("a.png", PIXELS), ("b.png", PIXELS), ("c.png", NOISE)):
            archive.writestr(name, saved(Image.fromarray(pixels), "PNG"))
    file.write_bytes(file.read_bytes().replace(b"c.png", b"a.png"))
    found = find_inputs(str(file))
    assert found.images == [f"{file}/b.png"]
    assert found.errors == {
        f"{file}/a.png": "2 files of the archive have this name; pack it again with different names"
    }


@pytest.mark.fault("DICOMDIR with missing or outside files", "the others predicted, these listed")
def test_a_dicomdir_stands_for_the_images_that_it_lists(tmp_path):
    medium = FileSet()
    for number in range(3):
        elements = {
            "SOPInstanceUID": f"1.2.3.{number}", "Modality": "CR", "PatientID": "1", "PatientName": "A",
            "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "StudyDate": "20200101", "StudyTime": "000000",
            "StudyID": "1", "SeriesNumber": 1, "InstanceNumber": number, "AccessionNumber": "",
        }  # fmt: skip
        file = dicom(tmp_path / f"{number}", PIXELS, **elements)
        medium.add(file)
    folder = tmp_path / "medium"
    medium.write(folder)
    found = find_inputs(str(folder / "DICOMDIR"))
    assert len(found.images) == 3
    assert not found.errors
    assert all((np.asarray(read_input(path)) == PIXELS).all() for path in found.images)
    assert set(find_inputs(str(folder)).images) == set(found.images)

    first, second = Path(found.images[0]), Path(found.images[1])
    first.unlink()
    second.rename(tmp_path / "outside")
    second.symlink_to(tmp_path / "outside")
    last = Path(found.images[2])
    last.rename(last.with_name(last.name.lower()))
    again = find_inputs(str(folder / "DICOMDIR"))
    assert again.images == [str(last.with_name(last.name.lower()))]
    assert again.errors == {
        str(first): "listed in the DICOMDIR, but missing; copy the whole medium",
        str(second): "listed in the DICOMDIR, but outside its folder; give the file itself as input",
    }
    directory = pydicom.dcmread(folder / "DICOMDIR")
    records = [record for record in directory.DirectoryRecordSequence if record.DirectoryRecordType == "IMAGE"]
    records[0].ReferencedFileID = ["..", "outside"]
    records[1].ReferencedFileID = ""
    directory.save_as(folder / "DICOMDIR")
    again = find_inputs(str(folder / "DICOMDIR"))
    assert again.errors == {
        f"{folder}/../outside": "listed in the DICOMDIR, but outside its folder; give the file itself as input",
        f"{folder}/DICOMDIR": "1 image without a file name in the DICOMDIR; give the folder instead",
    }
    assert again.skipped == {}
    (folder / "DICOMDIR").write_bytes((folder / "DICOMDIR").read_bytes()[:400])
    with pytest.raises(InputError, match="damaged DICOMDIR; give the folder instead|no image"):
        find_inputs(str(folder / "DICOMDIR"))
