import pandas as pd
import pytest

from fractatlas.data.leaks import describe_groups, describe_leaks
from fractatlas.errors import InputError
from fractatlas.evaluation.bootstrap import MIN_RESAMPLES, bootstrap_weights
from fractatlas.evaluation.predictions_table import add_groups, find_leaks, join, read_predictions


@pytest.fixture
def file(tmp_path):
    def write(text: str, encoding: str = "utf-8"):
        path = tmp_path / "predictions.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_three_columns_are_sufficient(file):
    table = read_predictions(file("image_id,label,probability\na.jpg,1,0.9\nb.jpg,0,1e-3\n"))
    assert table.to_dict("list") == {
        "image_id": ["a.jpg", "b.jpg"], "group": ["a.jpg", "b.jpg"], "split": ["test", "test"], "label": [1, 0],
        "probability": [0.9, 0.001],
    }  # fmt: skip


def test_thresholds_of_folds_are_kept_and_checked(file):
    header = "image_id,label,probability,fold_threshold\n"
    table = read_predictions(file(f"{header}a.jpg,1,0.9,0.4\nb.jpg,0,0.1,0.6\n"))
    assert table["fold_threshold"].tolist() == [0.4, 0.6]
    with pytest.raises(InputError, match="line 3: fold_threshold is 2.0, should be a number from 0 to 1"):
        read_predictions(file(f"{header}a.jpg,1,0.9,0.4\nb.jpg,0,0.1,2\n"))


def test_a_file_of_a_spreadsheet_is_read(file):
    table = read_predictions(file("probability,image_id,label,extra\r\n0.5,007,1,=1+1\r\n", "utf-8-sig"))
    assert table["image_id"].tolist() == ["007"]


@pytest.mark.fault("broken table of predictions", "refused; the error names the line")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,label\na,1\n", "column probability is missing"),
        ("image_id,label,probability\n", "has no rows"),
        ("image_id,label,probability\na,2,0.5\n", "line 2: label is 2, should be 0 or 1"),
        ("image_id,label,probability\na,1,0.5\nb,1,1.5\n", "line 3: probability is 1.5, should be a number from 0"),
        ("image_id,label,probability\na,1,\n", "line 2: probability is nan"),
        ("image_id,label,probability\na,1,0.5\na,1,0.5\n", "line 3: image_id is a, should be unique"),
        ("image_id,label,probability\n,1,0.5\n", "line 2: image_id is nan, should be a string"),
        ("", "the file is empty; correct the path"),
    ],
)
def test_invalid_predictions_are_refused(file, text, message):
    with pytest.raises(InputError, match=message):
        read_predictions(file(text))


def test_groups_of_the_catalogue_are_added_to_those_of_the_predictions(file):
    table = read_predictions(file("image_id,label,probability,group\na,1,0.9,x\nb,0,0.1,y\nc,0,0.2,y\nd,0,0.2,z\n"))
    catalogue = pd.DataFrame({"image_id": ["a", "b"], "group": ["a", "a"], "hand": [1, 0]})
    joined = join(add_groups(table, catalogue), catalogue)
    assert joined["group"].tolist() == ["a", "a", "a", "d"]
    assert joined["hand"].tolist()[:2] == [1, 0]


def test_images_of_one_patient_are_one_group_and_are_checked_for_leaks(file):
    rows = ["a,1,0.9,val,01", "b,0,0.1,test,01", "c,0,0.2,test,1", "d,1,0.2,test,"]
    table = read_predictions(file("image_id,label,probability,split,patient\n" + "\n".join(rows)))
    assert table["group"].tolist() == ["a", "a", "c", "d"]
    leaks = find_leaks(table, None)
    assert list(leaks) == ["patients"]
    assert describe_leaks(leaks) == [
        "patients (column patient): 1 of 2 is in several subsets (01); images: val 1, test 1; known for 3 of 4 images; "
        "not checked against the training images, which are not listed",
        "exams: not checked: there is no column exam, and none are inferred",
        "near-duplicates: not checked: there is no catalogue with near-duplicates",
    ]


def test_predictions_without_groups_resample_single_images(file):
    table = read_predictions(file("image_id,label,probability\na,1,0.9\nb,0,0.1\n"))
    assert find_leaks(table, None) == {}
    assert describe_groups({}).startswith("Intervals resample single images, because no related images are known.")


@pytest.mark.integration
@pytest.mark.fault("predictions.csv of a million rows", "read and scored with fewer resamples")
def test_a_million_rows_are_scored_with_fewer_resamples(file):
    rows = 1_000_000
    table = read_predictions(
        file("image_id,label,probability\n" + "\n".join(f"{n},{n % 2},{n % 7 / 7:.2f}" for n in range(rows)))
    )
    assert len(table) == rows
    assert bootstrap_weights(table["group"]).shape == (MIN_RESAMPLES + 1, rows)
