import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fractatlas.data.catalogue import COCO, CONTRADICTION, read_boxes, read_catalogue
from fractatlas.data.inspection import decode
from fractatlas.errors import InputError


@pytest.fixture
def copy(phantoms, tmp_path):
    """A data folder that a test may spoil."""
    return shutil.copytree(phantoms, tmp_path / "copy")


def change(root, **columns):
    """Set columns of the first row of dataset.csv."""
    table = pd.read_csv(root / "dataset.csv", dtype=object)
    for name, value in columns.items():
        table.loc[0, name] = value
    table.to_csv(root / "dataset.csv", index=False)
    return table.loc[0, "image_id"]


def strip_endings(root):
    """Write dataset.csv with ids that lack their .jpg."""
    file = root / "dataset.csv"
    file.write_text(file.read_text().replace(".jpg", ""))


def test_every_image_has_its_label_size_and_path(phantoms, catalogue):
    assert len(catalogue) == 160
    for row in catalogue[catalogue["excluded"] == ""].itertuples():
        with Image.open(phantoms / row.path) as image:
            assert image.size == (row.width, row.height)
        assert row.label == ("/Fractured/" in row.path) == (row.boxes > 0)


def test_truncated_files_are_excluded_by_name(phantoms, catalogue):
    truncated = []
    for file in (phantoms / "images").glob("*/*.jpg"):
        try:
            decode(file.read_bytes())
        except OSError:
            truncated.append(file.name)
    assert len(truncated) >= 2
    assert sorted(catalogue.loc[catalogue["excluded"] == "truncated", "image_id"]) == sorted(truncated)


def test_two_of_three_witnesses_settle_a_label(copy, catalogue):
    image_id = catalogue.loc[(catalogue["label"] == 1), "image_id"].iloc[0]
    table = pd.read_csv(copy / "dataset.csv")
    table.loc[table["image_id"] == image_id, "fractured"] = 0
    table.to_csv(copy / "dataset.csv", index=False)
    row = read_catalogue(copy).set_index("image_id").loc[image_id]
    assert row["label"] == 1
    assert row["note"] == "dataset.csv says 0, the folder 1, 1 boxes: taken as 1"


def test_images_without_a_row_and_rows_without_an_image_are_excluded(copy):
    first, *_ = sorted((copy / "images" / "Fractured").iterdir())
    first.rename(first.with_name("IMG9999999.jpg"))
    excluded = read_catalogue(copy).set_index("image_id")["excluded"]
    assert excluded["IMG9999999.jpg"] == "not in dataset.csv"
    assert excluded[first.name] == "no image file"


def test_without_annotations_table_and_folder_decide(copy, catalogue):
    (copy / COCO).unlink()
    without = read_catalogue(copy)
    assert without["label"].equals(catalogue["label"])
    assert not without["note"].any()


def test_what_is_no_image_is_excluded_as_unreadable(copy):
    first, *_ = sorted((copy / "images" / "Fractured").iterdir())
    first.write_text("no image")
    assert read_catalogue(copy).set_index("image_id")["excluded"][first.name] == "unreadable"


def test_an_image_on_its_side_is_turned_upright(copy, tmp_path):
    first, *_ = sorted((copy / "images" / "Fractured").iterdir())
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(first) as image:
        width, height = image.size
        image.save(first, exif=exif)
    row = read_catalogue(copy).set_index("image_id").loc[first.name]
    assert (row["width"], row["height"]) == (height, width) == decode(first.read_bytes()).size


def test_boxes_lie_inside_their_images(phantoms, catalogue):
    boxes = read_boxes(phantoms)
    sizes = catalogue.set_index("image_id")
    assert set(boxes) == set(sizes.index[sizes["label"] == 1])
    for image_id, found in boxes.items():
        width, height = sizes.loc[image_id, ["width", "height"]]
        assert (found[:, :2] >= 0).all()
        assert (found[:, 2:] <= [width, height]).all()
        assert (found[:, 2:] > found[:, :2]).all()


@pytest.mark.fault("data folder with broken tables, JSON or folders", "refused, and the line says where")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "dataset.csv").unlink(), "no FracAtlas in .*no dataset.csv there"),
        (lambda root: shutil.rmtree(root / "images"), "no FracAtlas in .*no images folder there"),
        (lambda root: shutil.rmtree(root / "images" / "Fractured"), "no images in .*Fractured"),
        (lambda root: change(root, fractured="2"), r"dataset.csv line 2: fractured is 2, should be 0 or 1"),
        (lambda root: change(root, fractured="yes"), r"dataset.csv line 2: fractured is yes, should be 0 or 1"),
        (lambda root: change(root, image_id="IMG0000001.jpg"), "lists IMG0000001.jpg more than once"),
        (strip_endings, "no image_id of .* is the name of a file"),
        (lambda root: (root / "dataset.csv").write_text("image_id,hand\n"), "lacks the column leg, hip"),
        (lambda root: (root / "dataset.csv").write_bytes(b"\xff\xfe\x00\x01"), "is not a readable CSV file"),
        (lambda root: (root / COCO).write_text("{"), "is not COCO JSON"),
    ],
)
def test_what_is_not_fracatlas_is_refused(copy, spoil, says):
    spoil(copy)
    with pytest.raises(InputError, match=says):
        read_catalogue(copy)


def test_the_real_set_has_its_59_truncated_files(real_catalogue):
    catalogue = real_catalogue
    truncated = catalogue[catalogue["excluded"] == "truncated"]
    assert len(truncated) == 59
    assert not truncated["label"].any()
    numbers = truncated["image_id"].str[3:10].astype(int)
    assert (numbers.min(), numbers.max()) == (4028, 4347)
    assert np.array_equal(catalogue["boxes"] > 0, catalogue["label"] == 1)


def test_copies_with_opposite_labels_are_excluded_unless_kept(copy, catalogue):
    sound = catalogue[catalogue["excluded"] == ""]
    fractured, other = sound[sound["label"] == 1].iloc[0], sound[sound["label"] == 0].iloc[0]
    shutil.copy(copy / fractured["path"], copy / other["path"])
    ids = {fractured["image_id"], other["image_id"]}
    excluded = read_catalogue(copy).set_index("image_id")["excluded"]
    assert set(excluded.index[excluded == CONTRADICTION]) == ids
    kept = read_catalogue(copy, keep_contradictions=True).set_index("image_id")
    assert not (kept["excluded"] == CONTRADICTION).any()
    assert kept.loc[list(ids), "group"].nunique() == 1


def test_an_image_in_both_folders_is_taken_from_fractured_and_noted(copy):
    first, *_ = sorted((copy / "images" / "Fractured").iterdir())
    shutil.copy(first, copy / "images" / "Non_fractured" / first.name)
    row = read_catalogue(copy).set_index("image_id").loc[first.name]
    assert row["path"] == f"images/Fractured/{first.name}"
    assert (row["label"], row["note"]) == (1, "in both class folders: the file in Fractured is taken")
