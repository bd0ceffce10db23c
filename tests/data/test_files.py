import pytest
from PIL import Image

from fractatlas.data.files import is_image, walk
from fractatlas.data.sources.folders import Folders


@pytest.fixture
def classes(tmp_path):
    """Two class folders, each with an image; one with a link to their parent, one with a text file."""
    for name, level in (("fractured", 200), ("normal", 90)):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        image = Image.new("L", (8, 8), level)
        image.putpixel((0, 0), 0)
        image.save(folder / "a.png")
    (tmp_path / "data" / "fractured" / "loop").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "data" / "normal" / "notes").write_text("no image")
    return tmp_path / "data"


def test_links_to_parent_folders_are_not_followed(classes):
    assert [*walk(str(classes / "fractured"))] == [str(classes / "fractured" / "a.png")]
    assert Folders(classes, None).rows()["path"].tolist() == ["fractured/a.png", "normal/a.png"]


def test_an_image_is_recognised_by_its_extension_or_by_its_first_bytes(classes):
    content = (classes / "normal" / "a.png").read_bytes()
    files = {"b": content, "c.IMA": content, "d.avif": b"", "e.txt": b"text", "DICOMDIR": content}
    for name, written in files.items():
        (classes / name).write_bytes(written)
    found = [name for name in (*files, "absent") if is_image(str(classes / name))]
    assert found == ["b", "c.IMA", "d.avif"]
