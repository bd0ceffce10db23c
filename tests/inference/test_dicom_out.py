"""DICOM results: what they contain, what they refer to, and what other readers make of them."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from fractatlas.inference.dicom_out import DicomResultError, Findings, write_results
from tests.data.test_images import NOISE, dicom
from tests.inference.conftest import predict_into

SOURCE = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "StudyInstanceUID": "1.2.3.4", "SeriesInstanceUID": "1.2.3.5",
    "SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Eva", "PatientID": "P1", "StudyDate": "20200131",
    "AccessionNumber": "A1", "PatientOrientation": ["L", "F"], "BodyPartExamined": "HAND",
}  # fmt: skip
BOXES = np.array([[1.5, 2, 30, 40.25, 0.8], [3, 4, 5, 6, 0.5]])
FINDINGS = Findings(0.7, 0.6, True, 0.4, BOXES, "densenet_tiny best.ckpt")


@pytest.fixture
def source(tmp_path) -> Path:
    return dicom(tmp_path / "a.dcm", NOISE, **SOURCE)


def write(source: Path, findings: Findings = FINDINGS) -> tuple[Dataset, Dataset]:
    """Return the overlay and the report that are written for a source."""
    drawn = Image.fromarray(np.dstack([NOISE, NOISE // 2, NOISE // 3]))
    write_results(source.read_bytes(), drawn, findings, source.parent / "out" / "1")
    return tuple(pydicom.dcmread(source.parent / "out" / f"1_{name}.dcm") for name in ("overlay", "report"))


def items(dataset: Dataset) -> list[Dataset]:
    """Return the content items of a report in the order of the document."""
    found = []
    for item in dataset.get("ContentSequence", ()):
        found += [item, *items(item)]
    return found


def numbers(report: Dataset) -> list[tuple[str, float]]:
    return [
        (item.ConceptNameCodeSequence[0].CodeValue, float(item.MeasuredValueSequence[0].NumericValue))
        for item in items(report)
        if item.ValueType == "NUM"
    ]


def test_both_results_belong_to_the_study_and_refer_to_the_source(source):
    overlay, report = write(source)
    for result in (overlay, report):
        assert (result.StudyInstanceUID, result.AccessionNumber, result.StudyDate) == ("1.2.3.4", "A1", "20200131")
        assert (str(result.PatientName), result.PatientID) == ("Müller^Eva", "P1")
        assert result.ContentQualification == "RESEARCH"
        assert result.SeriesDescription.endswith("research only, not a medical device")
        assert result.SeriesInstanceUID != "1.2.3.5"
    assert overlay.SeriesInstanceUID != report.SeriesInstanceUID
    assert overlay.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3"
    assert overlay.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.5"
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
    assert evidence.StudyInstanceUID == "1.2.3.4"
    assert evidence.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.5"
    assert evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3"


def test_the_overlay_is_a_secondary_capture_with_the_drawn_pixels(source):
    overlay, _ = write(source)
    assert overlay.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert (overlay.pixel_array[..., 0] == NOISE).all()
    assert (overlay.pixel_array[..., 2] == NOISE // 3).all()
    assert (list(overlay.PatientOrientation), overlay.BodyPartExamined) == (["L", "F"], "HAND")
    assert "probability 0.7000, threshold 0.4000, fractured" in overlay.DerivationDescription


def test_the_report_has_the_numbers_and_the_boxes(source):
    _, report = write(source)
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert numbers(report) == [
        ("prob", 0.7), ("prob_calibrated", 0.6), ("threshold", 0.4), ("score", 0.8), ("score", 0.5),
    ]  # fmt: skip
    regions = [item.GraphicData for item in items(report) if item.ValueType == "SCOORD"]
    assert regions[0] == [1.5, 2, 30, 2, 30, 40.25, 1.5, 40.25, 1.5, 2]
    assert len(regions) == 2
    decisions = [
        item.ConceptCodeSequence[0].CodeMeaning
        for item in items(report)
        if item.ValueType == "CODE" and item.ConceptNameCodeSequence[0].CodeMeaning == "Fracture of bone"
    ]
    assert decisions == ["Present"]


def test_the_report_without_boxes_and_calibration_has_the_rest(source):
    _, report = write(source, Findings(0.1, None, False, 0.5, None, "densenet_tiny best.ckpt"))
    assert numbers(report) == [("prob", 0.1), ("threshold", 0.5)]
    assert "Absent" in str(report)
    assert not [item for item in items(report) if item.ValueType == "SCOORD"]


def test_sparse_and_invalid_attributes_of_a_patient_are_accepted(tmp_path):
    sparse = {name: SOURCE[name] for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    overlay, report = write(dicom(tmp_path / "a.dcm", NOISE, **sparse, PatientSex="X"))
    assert (overlay.PatientID, report.PatientID, report.PatientSex) == ("", "", "")


def test_a_source_without_identifiers_is_refused_and_nothing_is_written(tmp_path):
    source = dicom(tmp_path / "a.dcm", NOISE)
    with pytest.raises(DicomResultError, match="has no StudyInstanceUID, SeriesInstanceUID to refer to"):
        write(source)
    assert not (tmp_path / "out").exists()


def test_both_results_are_written_or_none(source, monkeypatch):
    saved = []

    def save(self, file, **options):
        saved.append(file)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        Path(file).write_bytes(b"x")

    monkeypatch.setattr(Dataset, "save_as", save)
    with pytest.raises(OSError, match="No space"):
        write(source)
    assert [*(source.parent / "out").iterdir()] == []


@pytest.mark.parametrize(
    ("program", "name", "expected"),
    [("dsrdump", "report", "Probability of a fracture"), ("dcmdump", "overlay", "SecondaryCaptureImageStorage")],
)
def test_dcmtk_reads_the_results(source, program, name, expected):
    if not shutil.which(program):
        pytest.skip(f"no {program}: apt-get install dcmtk")
    write(source)
    line = [program, str(source.parent / "out" / f"1_{name}.dcm")]
    done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=True)
    assert expected in done.stdout
    assert "E:" not in done.stderr


def test_predict_writes_results_for_dicom_images_only(checkpoint, readable, tmp_path, fracture_map, caplog):
    caplog.set_level("INFO")
    folder, run = tmp_path / "in", tmp_path / "run"
    folder.mkdir()
    dicom(folder / "a.dcm", NOISE, **SOURCE)
    dicom(folder / "b.dcm", NOISE)
    shutil.copy(readable[0], folder / "c.jpg")
    table, unreadable = predict_into(
        run, f"ckpt={checkpoint}", f"input={folder}", "dicom_out=true", "box_threshold=0.3"
    )
    assert (len(table), unreadable) == (3, 1)
    assert sorted(file.name for file in (run / "dicom").iterdir()) == ["00001_a_overlay.dcm", "00001_a_report.dcm"]
    report = pydicom.dcmread(run / "dicom" / "00001_a_report.dcm")
    assert dict(numbers(report))["prob"] == pytest.approx(table["probability"][0], abs=1e-6)
    boxes = pd.read_csv(run / "boxes.csv")
    scores = [value for name, value in numbers(report) if name == "score"]
    assert scores == pytest.approx(boxes.loc[boxes["path"] == str(folder / "a.dcm"), "score"].tolist(), abs=1e-5)
    assert scores
    overlay = pydicom.dcmread(run / "dicom" / "00001_a_overlay.dcm")
    assert overlay.Columns == 1024
    assert overlay.Rows > 1536  # 60 x 40 pixels, and the lines below the image
    errors = pd.read_csv(run / "errors.csv")
    assert errors["error"].tolist() == [
        "no DICOM result: the file has no StudyInstanceUID, SeriesInstanceUID to refer to"
    ]
    line = f"1 DICOM result in {run / 'dicom'}; 1 image that is not DICOM has none"
    assert line in caplog.messages
    _, again = predict_into(run, f"ckpt={checkpoint}", f"input={folder / 'c.jpg'}")
    assert again == 0
    assert [*(run / "dicom").iterdir()] == []
