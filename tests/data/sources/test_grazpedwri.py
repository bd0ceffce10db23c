import shutil

import numpy as np
import pandas as pd
import pytest

from fractatlas.data.catalogue import read_catalogue
from fractatlas.data.sources.grazpedwri import GrazPedWri
from fractatlas.errors import InputError
from tests.data.sources.miniatures import picture, write_grazpedwri


@pytest.fixture(scope="module")
def graz(tmp_path_factory):
    return write_grazpedwri(tmp_path_factory.mktemp("data") / "GRAZPEDWRI-DX")


@pytest.fixture
def copy(graz, tmp_path):
    return shutil.copytree(graz, tmp_path / "graz")


def test_labels_patients_exams_and_attributes_come_from_the_table(graz):
    catalogue = read_catalogue(GrazPedWri(graz))
    assert (catalogue["excluded"] == "").all()
    assert not catalogue["note"].any()
    assert catalogue["label"].tolist() == [0, 0, 1, 1] * 8
    assert catalogue["patient"].nunique() == catalogue["given_exam"].nunique() == catalogue["group"].nunique() == 16
    assert catalogue["mode"].unique().tolist() == ["I;16"]
    row = catalogue.iloc[3]
    assert (row["view"], row["laterality"], row["initial_exam"], row["age"]) == ("lateral", "R", "yes", 6.5)
    assert "ao_classification" not in catalogue  # another form of the label
    assert "pixel_spacing" in catalogue


def test_boxes_of_fractures_come_from_the_yolo_files_in_pixels(graz):
    source = GrazPedWri(graz)
    boxes = source.boxes()
    rows = source.rows().set_index("image_id")
    assert set(boxes) == set(rows.index[rows["label"] == 1])
    _, expected = picture(1003, True)
    np.testing.assert_allclose(boxes[rows.index[3]], expected, atol=1e-3)


def test_pascal_voc_files_have_precedence_over_yolo_files(copy):
    folder = copy / "folder_structure" / "pascalvoc"
    folder.mkdir()
    stem = GrazPedWri(copy).rows()["image_id"][2].removesuffix(".png")
    shape = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
    (folder / f"{stem}.xml").write_text(
        f"<annotation><object><name>text</name>{shape}</object>"
        f"<object><name>fracture</name>{shape.replace('30', '33')}</object></annotation>"
    )
    assert {name: rows.tolist() for name, rows in GrazPedWri(copy).boxes().items()} == {f"{stem}.png": [[1, 2, 33, 40]]}


def test_images_can_be_in_one_folder_and_the_category_is_read_from_the_names(copy, graz):
    (copy / "images").mkdir()
    for file in [*copy.glob("images_part*/*.png")]:
        file.rename(copy / "images" / file.name)
    for file in (copy / "folder_structure/yolov5/labels").glob("*.txt"):
        file.write_text(file.read_text().replace("\n3 ", "\n4 "))
    meta = copy / "folder_structure/yolov5/meta.yaml"
    meta.write_text("names: {3: metal, 4: fracture}")
    expected = {name: rows.tolist() for name, rows in GrazPedWri(graz).boxes().items()}
    assert {name: rows.tolist() for name, rows in GrazPedWri(copy).boxes().items()} == expected
    meta.unlink()  # then fracture is category 3
    assert GrazPedWri(copy).boxes() == {}


def test_a_box_without_a_visible_fracture_is_noted_and_an_image_without_a_file_is_excluded(copy):
    table = pd.read_csv(copy / "dataset.csv")
    table.loc[2, "fracture_visible"] = np.nan
    table.to_csv(copy / "dataset.csv", index=False)
    (copy / "images_part1" / f"{table['filestem'][0]}.png").unlink()
    catalogue = read_catalogue(GrazPedWri(copy))
    assert catalogue["note"][2] == "a box of a fracture, fracture_visible is empty: 0 is used"
    assert (catalogue["label"][2], catalogue["excluded"][0]) == (0, "no image file")


def rewrite(*rows: str):
    """Return a function that replaces ``dataset.csv`` by a table of three columns."""
    return lambda root: (root / "dataset.csv").write_text("\n".join(["filestem,patient_id,fracture_visible", *rows]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "dataset.csv").unlink(),
            r"no GRAZPEDWRI-DX in .*dataset.csv is missing.; give its folder",
        ),
        (
            lambda root: [shutil.rmtree(f) for f in root.glob("images_part*")],
            "folder images, or images_part1 to images",
        ),
        (lambda root: (root / "dataset.csv").write_text("filestem\n"), "columns patient_id, fracture_visible are miss"),
        (rewrite("a,1,x"), "line 2: fracture_visible is x, should be 1 or empty; use the table as published"),
        (rewrite("a,1,", "a,1,"), "filestem a occurs more than once; remove the repeated rows"),
        (lambda root: sorted(root.glob("folder*/yolov5/labels/*"))[0].write_text("3 a\n"), "line 1: '3 a' is no box"),
    ],
)
def test_another_layout_is_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(InputError, match=message):
        GrazPedWri(copy).rows()
