import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fractatlas.config.overrides import compose_config
from fractatlas.data.audit import find_defects
from fractatlas.data.catalogue import CONTRADICTION, NO_FILE, exclude_seen, read_catalogue
from fractatlas.data.export import export_table
from fractatlas.data.sources.annotations import Annotation, write_coco
from fractatlas.data.sources.fracatlas import FracAtlas
from fractatlas.data.sources.registry import open_source
from fractatlas.data.sources.table import Table
from fractatlas.data.splits import given_test_images, grouped_split
from fractatlas.errors import InputError
from tests.data.sources.miniatures import picture, write_dicom


def source_of(table: Path | list[Path], *overrides: str) -> Table:
    """Open a table with the defaults of ``conf/``."""
    files = [table] if isinstance(table, Path) else table
    named = f"data.table=[{','.join(map(str, files))}]" if len(files) > 1 else f"data.table={files[0]}"
    source = open_source(compose_config(["data=table", named, *overrides])["data"])
    assert isinstance(source, Table)
    return source


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder with twelve different images, ``00.png`` to ``11.png``."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        Image.fromarray(picture(number, number % 3 == 0)[0]).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    """A copy of the images, to which a test adds a table."""
    return shutil.copytree(pictures, tmp_path / "mine")


def rows(**columns: list) -> pd.DataFrame:
    """Return a table of the twelve images, every third of them fractured."""
    labels = [int(number % 3 == 0) for number in range(12)]
    return pd.DataFrame({"path": [f"{number:02}.png" for number in range(12)], "label": labels} | columns)


def write(folder: Path, table: pd.DataFrame, name: str = "table.csv", **options) -> Path:
    table.to_csv(folder / name, index=False, **options)
    return folder / name


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_with_any_separator_with_and_without_a_byte_order_mark_is_read(folder, separator, encoding):
    file = write(folder, rows(sex=["é"] * 6 + ["M"] * 6), sep=separator, encoding=encoding)
    catalogue = read_catalogue(source_of(file))
    assert catalogue["image_id"].tolist() == catalogue["path"].tolist() == [f"{n:02}.png" for n in range(12)]
    assert catalogue["label"].tolist() == [1, 0, 0] * 4
    assert (catalogue["excluded"] == "").all()
    assert catalogue["sex"].tolist() == ["é"] * 6 + ["M"] * 6
    assert (catalogue["width"] > 0).all()


@pytest.mark.parametrize(
    ("fractured", "other", "overrides"),
    [
        ("1", "0", ()),
        ("1.0", "0.0", ()),
        ("True", "FALSE", ()),
        ("yes", "No", ()),
        ("fractured", "intact", ("data.positive=fractured",)),
        ("0", "1", ("data.positive='0'",)),
        ("2", "1", ("data.positive=2",)),
    ],
)
def test_labels_are_numbers_truth_values_or_two_names(folder, fractured, other, overrides):
    file = write(folder, rows(label=[fractured if number % 3 == 0 else other for number in range(12)]))
    assert source_of(file, *overrides).rows()["label"].tolist() == [1, 0, 0] * 4


def test_columns_can_have_other_names(folder):
    table = rows(name=[f"x{number:02}" for number in range(12)], mrn=["p"] * 12)
    table = table.rename(columns={"path": "file", "label": "fracture_visible"})
    mapped = [f"data.columns.{key}={name}" for key, name in
              {"path": "file", "label": "fracture_visible", "image_id": "name", "patient": "mrn"}.items()]  # fmt: skip
    read = source_of(write(folder, table), *mapped).rows()
    assert read["image_id"].tolist() == [f"x{number:02}" for number in range(12)]
    assert set(read["patient"]) == {"p"}
    assert "mrn" not in read


def test_paths_are_relative_to_the_table_or_to_the_root_and_may_be_absolute_or_from_windows(pictures, folder, tmp_path):
    table = rows()
    table["path"] = [str(pictures / "00.png"), "./01.png", "..\\mine\\02.png", *table["path"][3:]]
    file = write(tmp_path, table)
    catalogue = read_catalogue(source_of(file, f"data.root={folder}"))
    assert (catalogue["excluded"] == "").all()
    with pytest.raises(InputError, match=r"none of 9 image files exists, such as .*/03.png; correct data.root"):
        read_catalogue(source_of(write(tmp_path, table[3:])))


@pytest.mark.parametrize("name", ["patient", "exam", "group"])
def test_images_of_one_patient_exam_or_group_stay_together(folder, name):
    values = [f"{number // 4}" for number in range(8)] + [""] * 4
    catalogue = read_catalogue(source_of(write(folder, rows(**{name: values}))))
    assert catalogue["group"].tolist() == ["00.png"] * 4 + ["04.png"] * 4 + [f"{n:02}.png" for n in range(8, 12)]


def test_further_columns_are_attributes_and_reserved_names_are_changed(folder, caplog):
    caplog.set_level("INFO")
    file = write(folder, rows(age=[*range(11), ""], ward=["a", "b"] * 6, width=["wide"] * 12))
    catalogue = read_catalogue(source_of(file))
    assert catalogue["age"].tolist()[:11] == list(range(11))
    assert np.isnan(catalogue["age"][11])
    assert set(catalogue["ward"]) == {"a", "b"}
    assert set(catalogue["width_in_table"]) == {"wide"}
    assert catalogue["width"].dtype.kind == "i"
    assert "the column width is read as width_in_table" in caplog.text


def test_an_image_without_a_label_without_a_file_or_unreadable_is_excluded_with_the_reason(folder):
    (folder / "01.png").write_text("no image")
    (folder / "02.png").unlink()
    table = rows(label=["", "0", "0", "NA", "NaN", *["1"] * 7])
    table["path"] = [*table["path"][:11], ""]
    catalogue = read_catalogue(source_of(write(folder, table))).set_index("image_id")
    unlabelled = dict.fromkeys(["00.png", "03.png", "04.png"], "no label")
    assert catalogue["excluded"].to_dict() == dict.fromkeys(catalogue.index, "") | unlabelled | {
        "01.png": "unreadable", "02.png": NO_FILE, "line 13": NO_FILE
    }  # fmt: skip
    assert catalogue.at["01.png", "note"] == "not an image"


def test_copies_with_opposite_labels_are_excluded(folder):
    shutil.copy(folder / "00.png", folder / "01.png")
    excluded = read_catalogue(source_of(write(folder, rows()))).set_index("image_id")["excluded"]
    assert set(excluded.index[excluded == CONTRADICTION]) == {"00.png", "01.png"}


@pytest.mark.fault("a table of radiographs with a mistake", "refused in one line that names file, line and remedy")
@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (
            lambda t: t.drop(columns="label"),
            (),
            r"column label is missing \(found path; separated by commas\); name the",
        ),
        (lambda t: t.drop(columns=["label", "path"]).assign(x=1), (), "columns path, label are missing"),
        (lambda t: t.assign(label="maybe"), (), "line 2: label is maybe, should be 0 or 1; correct it, empty the"),
        (
            lambda t: t.assign(label=["a", "b"] * 6),
            (),
            "the labels are a, b; name the fractured class, such as data.positive=a$",
        ),
        (lambda t: t.assign(label=["a", "b"] * 6), ("data.positive=c",), "data.positive=c: the labels are a, b; give"),
        (
            lambda t: t.assign(label=["a", "b", "c"] * 4),
            ("data.positive=a",),
            "labels are a, b, c; there should be two: empty the cells of all other labels",
        ),
        (
            lambda t: t.assign(label=["a", "b", "c"] * 4),
            (),
            "labels are a, b, c; name the fractured class, such as data.positive=a, and empty the cells",
        ),
        (
            lambda t: t.assign(label=[0, 1, 2] * 4),
            ("data.positive=1",),
            "data.positive=1: the labels are 0, 1, 2; there should be two",
        ),
        (lambda t: t.assign(label=""), (), "the column of labels is empty; fill it, or name another"),
        (
            lambda t: t.assign(path=["00.png", *t["path"][1:11], "00.png"]),
            (),
            "line 13: path 00.png occurs more than once",
        ),
        (lambda t: t.assign(image_id=["", *t["path"][1:]]), (), "line 2: image_id is empty; fill it, or remove"),
        (lambda t: t.assign(image_id="x"), (), "line 3: image_id x occurs more than once; remove the repeated rows"),
        (lambda t: t.assign(split="left"), (), "line 2: split is left, should be train, val or test; correct it"),
        (lambda t: t[:0], (), "no rows; add one row for each image"),
        (lambda t: t, ("data.columns.patient=mrn",), "column mrn is missing"),
        (lambda t: t, ("data.root=nowhere",), "data.root=nowhere: no such folder"),
        (lambda t: t, ("data.boxes=nowhere.json",), "data.boxes=nowhere.json: no such file; correct the path"),
        (lambda t: t, ("data.boxes=[a.json,b.json]",), "data.boxes has 2 files for 1 table; give one for each table"),
    ],
)
def test_a_mistake_in_a_table_is_reported_in_one_line(folder, change, overrides, message):
    file = write(folder, change(rows()))
    with pytest.raises(InputError, match=message) as raised:
        source_of(file, *overrides).rows()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path;label\n00.png;1\n01.png,0\n",
            "line 3: the cells are separated by commas, in the first line by semicolons",
        ),
        ("path,label\n00.png,1,x\n01.png,0,y\n", "line 2: more cells than in the first line"),
        ("path,label\n00.png,1\n01.png,0,y\n", "line 3 has 3 cells, the first line 2; put text that contains"),
        ("path,label\n\xe9.png,1\n", "table.csv is not UTF-8; save the table as UTF-8$"),
        ("\xff\xfep\0a\0t\0h\0", "table.csv is not UTF-8; save the table as UTF-8$"),
        ("", "the file is empty; correct the path, or write the file again$"),
        ("path,label,label\n00.png,1,0\n", "column label occurs more than once; rename or remove one of them"),
    ],
)
def test_a_file_that_is_no_table_is_refused(folder, text, message):
    (folder / "table.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        source_of(folder / "table.csv").rows()


def test_a_missing_table_and_parquet_without_pyarrow_are_reported(folder):
    with pytest.raises(InputError, match=r"data.table=.*no.csv: no such file; correct the path"):
        source_of(folder / "no.csv").require()
    (folder / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        InputError, match=r"t.parquet: (Parquet needs pyarrow; run pip install|cannot be read as Parquet)"
    ):
        source_of(folder / "t.parquet").rows()


def test_parquet_gives_the_same_rows_as_csv(folder, monkeypatch):
    table = rows(age=[*range(11), np.nan], patient=[1.0] * 12)
    (folder / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(pd, "read_parquet", lambda file: table)  # pyarrow is optional
    parquet = source_of(folder / "t.parquet").rows()
    assert parquet.equals(source_of(write(folder, table.assign(patient=1))).rows())


def test_boxes_belong_to_images_by_id_path_or_file_name(folder, caplog):
    table = rows(image_id=[f"x{number}" for number in range(12)])
    file = write(folder, table)
    names = ["x0", "03.PNG", "/their/folder/06.png", "stranger.png"]
    polygon = np.array([[0, 0], [5, 0], [5, 5]], dtype=np.float32)
    known = [Annotation(name, [1, 2, 11, 22], [polygon]) for name in names]
    write_coco(folder / "boxes.json", known, {"x0": (10, 20)})
    source = source_of(file, f"data.boxes={folder / 'boxes.json'}")
    assert set(source.boxes()) == {"x0", "x3"}
    assert source.boxes()["x0"].tolist() == [[1, 2, 11, 22]]
    assert source.outlines()["x3"][0].tolist() == polygon.tolist()
    assert source.annotated_sizes() == {"COCO": {"x0": (10, 20)}}
    assert "boxes of 2 images not in the table: /their/folder/06.png, stranger.png" in caplog.text
    write_coco(folder / "boxes.json", [Annotation("z.png", [0, 0, 1, 1])], {})
    with pytest.raises(
        InputError, match=r"no file_name is .*for example z.png, and there 00.png.; use the boxes of th"
    ):
        source_of(file, f"data.boxes={folder / 'boxes.json'}").boxes()


def test_boxes_without_area_in_their_image_are_ignored_and_listed(folder, tmp_path):
    width, _ = Image.open(folder / "00.png").size
    boxes = [[1, 2, 11, 22], [width + 1, 0, width + 9, 9], [9, 9, 3, 12], [width - 4, 2, width + 9, 9]]
    write_coco(folder / "boxes.json", [Annotation(name, box) for name in ("00.png", "03.png") for box in boxes], {})
    (folder / "03.png").write_text("no image")
    source = source_of(write(folder, rows()), f"data.boxes={folder / 'boxes.json'}")
    catalogue = read_catalogue(source)
    assert catalogue["boxes"].tolist()[:4] == [2, 0, 0, 4]  # the size of an unreadable image is not known
    assert source.boxes()["00.png"].tolist() == [boxes[0], boxes[3]]
    assert len(source.outlines()["00.png"]) == 2
    found = find_defects(source, catalogue).query("kind == 'box outside the image'")
    assert found[["detail", "action"]].to_numpy().tolist() == [
        ["1 of 4 in part", "clipped"], ["2 of 4 without area in the image", "ignored"]
    ]  # fmt: skip
    text = export_table(source_of(folder / "table.csv", f"data.boxes={folder / 'boxes.json'}"), tmp_path / "export")
    assert text.endswith("; 2 boxes without area in the image left out")
    assert len(json.loads((tmp_path / "export" / "boxes.json").read_text())["annotations"]) == 6


def test_tables_with_semicolons_can_have_decimal_commas(folder):
    bmi = [f"{number},5" for number in range(11)] + [""]
    table = rows(bmi=bmi, note_of_ward=["1,2 or 3"] * 12)
    read = source_of(write(folder, table, sep=";")).rows()
    assert read["bmi"].tolist()[:11] == [number + 0.5 for number in range(11)]
    assert set(read["note_of_ward"]) == {"1,2 or 3"}
    assert source_of(write(folder, table)).rows()["bmi"].tolist() == bmi  # with commas, 1,234 can be a thousand


def test_the_finding_of_a_table_is_that_of_the_configuration(folder):
    file = write(folder, rows())
    assert (source_of(file).finding, source_of(file, "data.finding=tumour").finding) == ("fracture", "tumour")


def test_a_box_of_an_image_without_a_fracture_is_noted(folder):
    write_coco(folder / "boxes.json", [Annotation("01.png", [0, 0, 4, 4])], {})
    read = read_catalogue(source_of(write(folder, rows()), f"data.boxes={folder / 'boxes.json'}")).set_index("image_id")
    assert read.at["01.png", "note"] == "label 0, 1 boxes: 0 is used"
    assert (read.at["01.png", "label"], read.at["01.png", "boxes"]) == (0, 1)


def test_tags_of_dicom_files_become_columns_and_patients_are_grouped(tmp_path):
    for number in range(4):
        tags = {"PatientAge": "018M" if number % 2 else "", "PixelSpacing": [0.15, 0.15], "ViewPosition": "AP"}
        write_dicom(tmp_path / f"I{number}", picture(number, False)[0], f"MRN{number // 2}", **tags)
    Image.fromarray(picture(9, False)[0]).save(tmp_path / "plain.png")
    table = pd.DataFrame({"path": ["I0", "I1", "I2", "I3", "plain.png"], "label": [0, 0, 1, 1, 0]})
    tags = "data.dicom_tags=[PatientID,PatientAge,PixelSpacing,ViewPosition]"
    catalogue = read_catalogue(source_of(write(tmp_path, table), tags))
    assert (catalogue["excluded"] == "").all()
    assert catalogue["mode"].tolist() == ["DICOM"] * 4 + ["L"]
    assert catalogue["age"].fillna(-1).tolist() == [-1, 1.5, -1, 1.5, -1]
    assert catalogue["pixel_spacing"].fillna(-1).tolist() == [0.15] * 4 + [-1]
    assert catalogue["view"].tolist() == ["ap"] * 4 + [""]
    assert catalogue["group"].tolist() == ["I0", "I0", "I2", "I2", "plain.png"]
    assert not catalogue["patient"].str.contains("MRN").any()
    assert catalogue["patient"].map(len).tolist() == [16] * 4 + [0]


def test_a_given_split_is_used_as_it_is(folder):
    split = ["train"] * 6 + ["Validation"] * 3 + ["test"] * 2 + [""]
    labels = [1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0]
    catalogue = read_catalogue(source_of(write(folder, rows(split=split, label=labels))))
    drawn = grouped_split(catalogue, ratios=[0.7, 0.15, 0.15], seed=0)
    assert drawn["split"].tolist() == ["train"] * 6 + ["val"] * 3 + ["test"] * 2
    assert given_test_images(catalogue)["image_id"].tolist() == ["09.png", "10.png"]
    ignored = source_of(folder / "table.csv", "data.columns.split=null").rows()
    assert "given_split" not in ignored
    assert "split" in ignored  # as an attribute


def test_a_subset_that_the_given_split_lacks_is_completed_by_groups(folder, caplog):
    caplog.set_level("INFO")
    patients = [f"p{number // 2}" for number in range(12)]
    labels = [number // 2 % 2 for number in range(12)]
    file = write(folder, rows(split=["train"] * 8 + ["valid"] * 4, patient=patients, label=labels))
    catalogue = read_catalogue(source_of(file))
    split = grouped_split(catalogue, ratios=[0.5, 0.5, 0.1], seed=0).merge(catalogue[["image_id", "patient"]])
    assert split["split"].tolist()[8:] == ["test"] * 4
    assert (split.groupby("patient")["split"].nunique() == 1).all()
    assert split["split"].value_counts().to_dict() == {"train": 4, "val": 4, "test": 4}
    assert "no test; its val (4 images) is used as test" in caplog.text
    assert "no val for training; 4 images of 8 training images are drawn by group" in caplog.text
    with pytest.raises(
        InputError, match="split.previous=x.csv: the data have a split of their own; remove the argument"
    ):
        grouped_split(catalogue, ratios=[0.7, 0.15, 0.15], seed=0, previous="x.csv")
    with pytest.raises(InputError, match="the given split has no image in train; correct it, or draw the split"):
        grouped_split(catalogue.assign(given_split="test"), ratios=[0.7, 0.15, 0.15], seed=0)


@pytest.fixture
def two(pictures, tmp_path) -> list[Path]:
    """Two tables of the same names in different folders; the second has other images and one copy."""
    tables = []
    for number, name in enumerate(("north", "south")):
        (tmp_path / name).mkdir()
        for image in range(6):
            shutil.copy(pictures / f"{image + 6 * number if image else 0:02}.png", tmp_path / name / f"{image}.png")
        table = pd.DataFrame(
            {"path": [f"{image}.png" for image in range(6)], "label": [1, 0, 0, 0, 0, 0], "patient": "1"}
        )
        tables.append(write(tmp_path / name, table.assign(**({"age": 3} if number else {}))))
    return tables


def test_several_tables_are_used_together_with_the_source_as_a_column(two, tmp_path):
    catalogue = read_catalogue(source_of(two))
    assert (catalogue["excluded"] == "").all()
    assert catalogue["source"].tolist() == ["north"] * 6 + ["south"] * 6
    assert catalogue["image_id"].tolist()[::6] == ["north/0.png", "south/0.png"]
    assert set(catalogue["patient"]) == {"north/1", "south/1"}  # equal ids of two hospitals are different patients
    assert catalogue["path"].tolist()[::6] == ["north/0.png", "south/0.png"]
    assert catalogue["duplicates"].tolist()[::6] == ["north/0.png"] * 2
    assert catalogue["age"].fillna(-1).tolist() == [-1] * 6 + [3] * 6


def test_boxes_of_several_tables_belong_to_their_own_table(two, tmp_path):
    write_coco(tmp_path / "south.json", [Annotation("0.png", [0, 0, 3, 3])], {})
    source = source_of(two, f"data.boxes=[null,{tmp_path / 'south.json'}]")
    assert set(source.boxes()) == {"south/0.png"}


def test_fracatlas_exported_as_a_table_has_the_same_catalogue_split_and_boxes(phantoms, catalogue, tmp_path):
    text = export_table(FracAtlas(phantoms), tmp_path / "export")
    assert text.startswith("160 images: ")
    source = source_of(tmp_path / "export" / "table.csv", f"data.boxes={tmp_path / 'export' / 'boxes.json'}")
    table = read_catalogue(source)
    for name in ("image_id", "label", "group", "excluded", "boxes", "pixels", "duplicates", "hand", "frontal"):
        assert table[name].tolist() == catalogue[name].tolist(), name
    options = {"ratios": [0.7, 0.15, 0.15], "seed": 3}
    ours, theirs = grouped_split(table, **options), grouped_split(catalogue, **options)
    assert ours[["image_id", "split"]].equals(theirs[["image_id", "split"]])
    boxes, outlines = FracAtlas(phantoms).boxes(), FracAtlas(phantoms).outlines()
    assert {name: rows.tolist() for name, rows in source.boxes().items()} == {n: r.tolist() for n, r in boxes.items()}
    assert all(np.array_equal(source.outlines()[name][0], polygons[0]) for name, polygons in outlines.items())
    assert {"fractured", "fracture_count"}.isdisjoint(table.columns)
    sizes = json.loads((tmp_path / "export" / "boxes.json").read_text())["images"]
    assert all(image["width"] > 0 for image in sizes)
    with pytest.raises(InputError, match=r"table.csv exists; use another folder, or delete it"):
        export_table(FracAtlas(phantoms), tmp_path / "export")


def test_images_that_a_network_was_trained_with_are_excluded_and_named(folder):
    catalogue = read_catalogue(source_of(write(folder, rows())))
    seen = pd.DataFrame(
        {"image_id": ["a", "b"], "split": ["train", "val"], "dhash": catalogue["dhash"][[3, 7]].to_numpy()}
    )
    marked = exclude_seen(catalogue, seen).set_index("image_id")
    excluded = marked[marked["excluded"] != ""]
    assert excluded["note"].to_dict() == {"03.png": "a of the train subset", "07.png": "b of the val subset"}
    assert (catalogue["excluded"] == "").all()
