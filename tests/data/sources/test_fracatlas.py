import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fractatlas.data.catalogue import CONTRADICTION, read_catalogue
from fractatlas.data.groups import GIVEN
from fractatlas.data.images import decode
from fractatlas.data.sources.fracatlas import COCO, FracAtlas
from fractatlas.errors import InputError


@pytest.fixture
def copy(phantoms, tmp_path):
    """A data folder that a test may change."""
    return shutil.copytree(phantoms, tmp_path / "copy")


def change(root, **columns):
    """Set columns of the first row of dataset.csv."""
    table = pd.read_csv(root / "dataset.csv", dtype=object)
    for name, value in columns.items():
        table.loc[0, name] = value
    table.to_csv(root / "dataset.csv", index=False)
    return table.loc[0, "image_id"]


def replace_in_table(root, old, new):
    """Replace text in dataset.csv."""
    file = root / "dataset.csv"
    file.write_text(file.read_text().replace(old, new))


def other_ids(root):
    """Write dataset.csv with ids of other images."""
    replace_in_table(root, "IMG", "XR")


def test_each_image_has_its_label_size_and_path(phantoms, catalogue):
    assert len(catalogue) == 160
    for row in catalogue[catalogue["excluded"] == ""].itertuples():
        with Image.open(phantoms / row.path) as image:
            assert image.size == (row.width, row.height)
        assert row.label == ("/Fractured/" in row.path) == (row.boxes > 0)


def test_truncated_files_are_excluded(phantoms, catalogue):
    truncated = []
    for file in (phantoms / "images").glob("*/*.jpg"):
        try:
            decode(file.read_bytes())
        except OSError:
            truncated.append(file.name)
    assert len(truncated) >= 2
    assert sorted(catalogue.loc[catalogue["excluded"] == "truncated", "image_id"]) == sorted(truncated)


def test_the_label_is_the_majority_of_table_folder_and_boxes(copy, catalogue):
    image_id = catalogue.loc[(catalogue["label"] == 1), "image_id"].iloc[0]
    table = pd.read_csv(copy / "dataset.csv")
    table.loc[table["image_id"] == image_id, "fractured"] = 0
    table.to_csv(copy / "dataset.csv", index=False)
    row = read_catalogue(FracAtlas(copy)).set_index("image_id").loc[image_id]
    assert row["label"] == 1
    assert row["note"] == "label 0 in dataset.csv, 1 by folder, 1 boxes: 1 is used"


def test_images_without_a_row_and_rows_without_an_image_are_excluded(copy):
    first, *_ = sorted((copy / "images" / "Fractured").iterdir())
    first.rename(first.with_name("IMG9999999.jpg"))
    excluded = read_catalogue(FracAtlas(copy)).set_index("image_id")["excluded"]
    assert excluded["IMG9999999.jpg"] == "not in dataset.csv"
    assert excluded[first.name] == "no image file"


def test_without_annotations_the_label_comes_from_table_and_folder(copy, catalogue):
    (copy / COCO).unlink()
    without = read_catalogue(FracAtlas(copy))
    assert without["label"].equals(catalogue["label"])
    assert not without["note"].any()


def test_a_file_that_is_not_an_image_is_excluded_as_unreadable(copy):
    first, *_ = sorted((copy / "images" / "Fractured").iterdir())
    first.write_text("no image")
    assert read_catalogue(FracAtlas(copy)).set_index("image_id")["excluded"][first.name] == "unreadable"


def test_the_size_is_that_of_the_upright_image(copy, tmp_path):
    first, *_ = sorted((copy / "images" / "Fractured").iterdir())
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(first) as image:
        width, height = image.size
        image.save(first, exif=exif)
    row = read_catalogue(FracAtlas(copy)).set_index("image_id").loc[first.name]
    assert (row["width"], row["height"]) == (height, width) == decode(first.read_bytes()).size


def test_boxes_are_inside_their_images(phantoms, catalogue):
    boxes = FracAtlas(phantoms).boxes()
    sizes = catalogue.set_index("image_id")
    assert set(boxes) == set(sizes.index[sizes["label"] == 1])
    for image_id, drawn in boxes.items():
        width, height = sizes.loc[image_id, ["width", "height"]]
        assert (drawn[:, :2] >= 0).all()
        assert (drawn[:, 2:] <= [width, height]).all()
        assert (drawn[:, 2:] > drawn[:, :2]).all()


@pytest.mark.fault("data folder with damaged table, JSON or folders", "refused; the error names the place")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "dataset.csv").unlink(), "no FracAtlas in .*dataset.csv is missing"),
        (lambda root: shutil.rmtree(root / "images"), "no FracAtlas in .*folder images is missing"),
        (lambda root: shutil.rmtree(root / "images" / "Fractured"), "Fractured: no images"),
        (lambda root: change(root, fractured="2"), r"dataset.csv, line 2: fractured is 2, should be 0 or 1"),
        (lambda root: change(root, fractured="yes"), r"dataset.csv, line 2: fractured is yes, should be 0 or 1"),
        (lambda root: change(root, image_id="IMG0000001.jpg"), "image_id IMG0000001.jpg occurs more than once"),
        (other_ids, r"no image_id .* matches a file in images/ \(for example XR0000000.jpg and IMG\d+.jpg\)"),
        (lambda root: (root / "dataset.csv").write_text("image_id,hand\n"), "columns leg, hip.* are missing"),
        (lambda root: (root / "dataset.csv").write_bytes(b"\xff\xfe\x00\x01"), "dataset.csv is not UTF-8; save"),
        (lambda root: (root / COCO).write_text("{"), "is not COCO JSON"),
    ],
)
def test_a_folder_that_is_not_fracatlas_is_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(InputError, match=message):
        read_catalogue(FracAtlas(copy))


def upper_case(root):
    """Write extensions of the files and the names of the class folders in capitals."""
    for file in [*(root / "images").glob("*/*.jpg")]:
        file.rename(file.with_suffix(".JPG"))
    (root / "images" / "Fractured").rename(root / "images" / "FRACTURED")
    (root / "images" / "Non_fractured").rename(root / "images" / "non-fractured")


@pytest.mark.parametrize(
    "spelling",
    [
        lambda root: replace_in_table(root, ",", ";"),
        lambda root: replace_in_table(root, ",", "\t"),
        lambda root: replace_in_table(root, ".jpg", ""),
        lambda root: replace_in_table(root, ".jpg", ".JPG"),
        upper_case,
    ],
    ids=["semicolons", "tabs", "ids without extension", "other extension", "capitals"],
)
def test_other_spellings_of_table_folders_and_extensions_give_the_same_catalogue_and_boxes(copy, catalogue, spelling):
    spelling(copy)
    source = FracAtlas(copy)
    read = read_catalogue(source)
    as_before = read["image_id"].str.replace(".JPG", ".jpg")
    assert as_before.tolist() == catalogue["image_id"].tolist()
    for name in ("label", "boxes", "excluded", "content", "note"):
        assert read[name].tolist() == catalogue[name].tolist(), name
    assert set(source.boxes()) == set(read.loc[read["boxes"] > 0, "image_id"])


def test_further_columns_of_the_table_are_ignored(copy, catalogue):
    table = pd.read_csv(copy / "dataset.csv")
    table.assign(remark="none, or few").to_csv(copy / "dataset.csv", index=False)
    assert read_catalogue(FracAtlas(copy)).equals(catalogue)


def test_missing_class_folders_are_reported_with_the_folders_that_exist(copy):
    (copy / "images" / "Fractured").rename(copy / "images" / "broken")
    with pytest.raises(InputError, match=r"Fractured: no images \(folders in images: Non_fractured, broken\)"):
        read_catalogue(FracAtlas(copy))


def test_a_given_exam_replaces_the_inferred_ones(copy):
    table = pd.read_csv(copy / "dataset.csv")
    table.assign(exam=[f"e{row // 40}" for row in range(len(table))]).to_csv(copy / "dataset.csv", index=False)
    catalogue = read_catalogue(FracAtlas(copy))
    assert "exam" not in catalogue
    assert catalogue.groupby("group").size().tolist() == [40] * 4


def test_fracatlas_has_59_truncated_files(real_catalogue):
    catalogue = real_catalogue
    truncated = catalogue[catalogue["excluded"] == "truncated"]
    assert len(truncated) == 59
    assert not truncated["label"].any()
    numbers = truncated["image_id"].str[3:10].astype(int)
    assert (numbers.min(), numbers.max()) == (4028, 4347)
    assert np.array_equal(catalogue["boxes"] > 0, catalogue["label"] == 1)


def test_copies_with_opposite_labels_are_excluded_by_default(copy, catalogue):
    sound = catalogue[catalogue["excluded"] == ""]
    fractured, other = sound[sound["label"] == 1].iloc[0], sound[sound["label"] == 0].iloc[0]
    shutil.copy(copy / fractured["path"], copy / other["path"])
    ids = {fractured["image_id"], other["image_id"]}
    excluded = read_catalogue(FracAtlas(copy)).set_index("image_id")["excluded"]
    assert set(excluded.index[excluded == CONTRADICTION]) == ids
    kept = read_catalogue(FracAtlas(copy), keep_contradictions=True).set_index("image_id")
    assert not (kept["excluded"] == CONTRADICTION).any()
    assert kept.loc[list(ids), "group"].nunique() == 1


def test_of_an_image_in_both_folders_the_one_in_fractured_is_used(copy):
    first, *_ = sorted((copy / "images" / "Fractured").iterdir())
    shutil.copy(first, copy / "images" / "Non_fractured" / first.name)
    row = read_catalogue(FracAtlas(copy)).set_index("image_id").loc[first.name]
    assert row["path"] == f"images/Fractured/{first.name}"
    assert (row["label"], row["note"]) == (1, "in both class folders: the file in Fractured is used")


@pytest.mark.parametrize("name", ["patient", "group"])
def test_patients_and_groups_of_the_table_are_in_the_catalogue_and_grouped(copy, name):
    table = pd.read_csv(copy / "dataset.csv")
    values = ["" if row % 10 == 9 else f"0{row % 3}" for row in range(len(table))]
    table.assign(**{name: values}).to_csv(copy / "dataset.csv", index=False)
    catalogue = read_catalogue(FracAtlas(copy))
    column = GIVEN[name]
    assert set(catalogue[column]) == {"", "00", "01", "02"}
    known = catalogue[catalogue[column] != ""]
    assert (known.groupby(column)["group"].nunique() == 1).all()


def test_a_row_without_an_image_id_is_refused(copy):
    change(copy, image_id="")
    with pytest.raises(InputError, match="line 2: image_id is empty"):
        read_catalogue(FracAtlas(copy))
