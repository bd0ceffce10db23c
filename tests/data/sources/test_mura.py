import shutil

import pytest

from fractatlas.data.catalogue import read_catalogue
from fractatlas.data.export import export_table
from fractatlas.data.sources.mura import Mura
from fractatlas.data.splits import grouped_split
from fractatlas.errors import InputError
from tests.data.sources.miniatures import write_mura


@pytest.fixture(scope="module")
def mura(tmp_path_factory):
    return write_mura(tmp_path_factory.mktemp("data") / "MURA-v1.1")


@pytest.fixture
def copy(mura, tmp_path):
    return shutil.copytree(mura, tmp_path / "MURA-v1.1")


def test_patients_exams_labels_body_parts_and_subsets_come_from_the_folders(mura):
    catalogue = read_catalogue(Mura(mura, True))
    assert len(catalogue) == 48
    assert (catalogue["excluded"] == "").all()
    assert not catalogue["note"].any()
    row = catalogue.set_index("image_id").loc["train/XR_HAND/patient00001/study1_positive/image2.png"]
    assert (row["label"], row["patient"], row["body_part"], row["given_split"]) == (1, "patient00001", "hand", "train")
    assert row["given_exam"] == "train/XR_HAND/patient00001/study1_positive"
    assert catalogue["given_split"].value_counts().to_dict() == {"train": 32, "val": 16}
    assert catalogue["group"].nunique() == 24


def test_the_valid_list_becomes_test_and_val_is_drawn_from_train_by_patient(mura):
    catalogue = read_catalogue(Mura(mura, True))
    split = grouped_split(catalogue, ratios=[0.7, 0.15, 0.15], seed=0)
    assert split["split"].value_counts()["test"] == 16
    assert (split.groupby("patient")["split"].nunique() == 1).all()
    assert set(split["split"]) == {"train", "val", "test"}
    drawn = grouped_split(read_catalogue(Mura(mura, False)), ratios=[0.7, 0.15, 0.15], seed=0)
    valid = drawn["image_id"].str.startswith("valid/")
    assert set(drawn.loc[valid, "split"]) != {"test"}


def test_without_its_lists_the_images_are_those_in_the_folders_without_hidden_files(copy, mura):
    for file in copy.glob("*.csv"):
        file.unlink()
    (copy / "train/XR_HAND/patient00001/study1_positive/._image1.png").write_bytes(b"of macOS")
    assert Mura(copy, True).rows().equals(Mura(mura, True).rows())


def test_a_label_that_differs_from_the_list_of_studies_is_noted(copy):
    file = copy / "train_labeled_studies.csv"
    file.write_text(file.read_text().replace("patient00001/study1_positive/,1", "patient00001/study1_positive/,0"))
    rows = Mura(copy, True).rows()
    noted = rows[rows["note"] != ""]
    assert set(noted["patient"]) == {"patient00001"}
    assert noted["note"].iloc[0] == "label 1 by folder, 0 in the list of studies: 1 is used"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: shutil.rmtree(root / "valid"),
            "no MURA in .*folder valid is missing.; give the folder MURA-v1.1",
        ),
        (
            lambda root: (root / "train_image_paths.csv").write_text("a/b.png\n"),
            "should be train/XR_<PART>/patient<id>",
        ),
        (lambda root: (root / "train_labeled_studies.csv").write_text("a,2\n"), "two columns, study and 0 or 1"),
        (lambda root: (root / "train_image_paths.csv").write_bytes(b"\xff\xfe\x00"), "paths.csv is not UTF-8"),
    ],
)
def test_another_layout_is_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(InputError, match=message):
        Mura(copy, True).rows()


def test_an_image_that_a_list_names_and_the_folder_lacks_is_excluded(copy):
    (copy / "valid/XR_ELBOW/patient00018/study1_negative/image1.png").unlink()
    catalogue = read_catalogue(Mura(copy, True))
    assert catalogue.loc[catalogue["excluded"] != "", "excluded"].tolist() == ["no image file"]


def test_an_image_that_no_list_names_is_reported(copy, caplog):
    file = copy / "valid_image_paths.csv"
    first, rest = file.read_text().split("\n", 1)
    file.write_text(rest)
    assert len(Mura(copy, True).rows()) == 47
    (line,) = caplog.messages
    assert line == f"valid_image_paths.csv does not name 1 image, not used: {first.removeprefix('MURA-v1.1/')}"


def test_the_meaning_of_the_label_stays_known_in_an_exported_table(mura, tmp_path):
    assert export_table(Mura(mura, True), tmp_path).endswith(
        "; label 1 means abnormality: read the table with data.finding=abnormality"
    )
