import shutil

import pytest
from PIL import Image

from fractatlas.data.catalogue import read_catalogue
from fractatlas.data.sources.folders import Folders
from fractatlas.errors import InputError
from tests.data.sources.miniatures import picture, write_dicom


@pytest.fixture
def root(tmp_path):
    """Two class folders with images of several kinds, a hidden file and a text file."""
    for number, name in enumerate(
        ("fractured/a.png", "fractured/deep/b.jpg", "Not fractured/a.png", "Not fractured/c.tif")
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, number < 2)[0]).save(file)
    write_dicom(tmp_path / "fractured" / "1.2.840.113", picture(7, True)[0], "x")
    (tmp_path / "fractured" / ".hidden.png").write_text("hidden")
    (tmp_path / "fractured" / "notes.txt").write_text("notes")
    return tmp_path


def test_each_class_folder_gives_its_label_to_all_images_below_it(root, caplog):
    caplog.set_level("INFO")
    catalogue = read_catalogue(Folders(root, None))
    assert catalogue.set_index("path")["label"].to_dict() == {
        "Not fractured/a.png": 0, "Not fractured/c.tif": 0, "fractured/1.2.840.113": 1, "fractured/a.png": 1,
        "fractured/deep/b.jpg": 1,
    }  # fmt: skip
    # The name of the class is in an id only where the rest is not unique.
    assert {*catalogue["image_id"]} == {"1.2.840.113", "Not fractured/a.png", "c.tif", "deep/b.jpg", "fractured/a.png"}
    assert (catalogue["excluded"] == "").all()
    assert "skipped 1 other file (1 .txt)" in caplog.text


def test_the_folder_of_fractures_can_be_named(root):
    (root / "fractured").rename(root / "B")
    (root / "Not fractured").rename(root / "A")
    with pytest.raises(
        InputError, match=r"two folders, one for each class .found A, B.; name the folder of fractured im"
    ):
        Folders(root, None).require()
    assert Folders(root, "B").rows()["label"].sum() == 3
    with pytest.raises(InputError, match=r"data.positive=c: no such folder in .* .found A, B.; give the name"):
        Folders(root, "c").require()


def test_folders_of_subsets_are_a_given_split(root, tmp_path):
    parent = tmp_path / "split"
    for name in ("train", "Valid", "test"):
        shutil.copytree(root / "fractured", parent / name / "fractured")
        shutil.copytree(root / "Not fractured", parent / name / "normal")
    rows = Folders(parent, None).rows()
    assert rows.groupby("given_split")["label"].agg(["size", "sum"]).to_numpy().tolist() == [[5, 3]] * 3
    assert rows["image_id"].is_unique


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: shutil.rmtree(root),
            "data.root=.*: no such folder; give the folder that contains the two classes",
        ),
        (
            lambda root: (root / "third").mkdir(),
            "should have two folders, .*found Not fractured, fractured, third.; arran",
        ),
        (lambda root: shutil.rmtree(root / "fractured"), "found Not fractured.; arrange the images in two folders"),
        (lambda root: [file.unlink() for file in (root / "Not fractured").iterdir()], "Not fractured: no images; add"),
    ],
)
def test_other_layouts_are_refused(root, change, message):
    change(root)
    with pytest.raises(InputError, match=message):
        Folders(root, None).rows()
