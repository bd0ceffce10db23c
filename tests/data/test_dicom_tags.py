import os

import pytest

from fractatlas.data.dicom_tags import COLUMNS, hash_patient_id, read_tags
from tests.data.sources.miniatures import picture, write_dicom


@pytest.mark.parametrize(
    ("age", "years"), [("034Y", "34"), ("006M", "0.50"), ("002W", "0.04"), ("010D", "0.03"), ("34", ""), ("", "")]
)
def test_ages_are_in_years(tmp_path, age, years):
    write_dicom(tmp_path / "a", picture(0, False)[0], "x", PatientAge=age)
    assert read_tags(tmp_path, ["a"], ["PatientAge"])["age"].tolist() == [years]


def test_a_patient_id_is_hashed_and_equal_ids_have_equal_hashes(tmp_path):
    for name, patient in (("a", "MRN1"), ("b", " MRN1 "), ("c", "MRN2"), ("d", "")):
        write_dicom(tmp_path / name, picture(0, False)[0], patient)
    hashes = read_tags(tmp_path, ["a", "b", "c", "d"], ["PatientID"])["patient"].tolist()
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[3] == hash_patient_id("") == ""
    assert len(hashes[0]) == 16


def test_files_without_tags_give_empty_cells(tmp_path):
    (tmp_path / "text").write_text("no DICOM")
    write_dicom(tmp_path / "a", picture(0, False)[0], "x")
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "cut").write_bytes(content[:200])
    os.mkfifo(tmp_path / "pipe")
    table = read_tags(tmp_path, ["text", "missing", "cut", "pipe", "", "a"], [*COLUMNS])
    assert table.columns.tolist() == [*COLUMNS.values()]
    assert (table.drop(columns="patient") == "").all(axis=None)
    assert table["patient"].tolist() == ["", "", "", "", "", hash_patient_id("x")]
