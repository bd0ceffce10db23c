"""Write predictions of DICOM images as DICOM: an overlay and a structured report.

The overlay is a Secondary Capture image. The report is a Comprehensive SR document with the content of the template
TID 1500, "Measurement Report" (DICOM PS3.16). Both are new series of the study of the source image and refer to it.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import fractatlas
from fractatlas.io import atomic_path

NOTICE = "research only, not a medical device"
PREFIX = "1.2.826.0.1.3680043.8.498."  # the root that pydicom offers for UIDs
DEVICE = generate_uid(PREFIX, ["fractatlas", fractatlas.__version__])  # the same for every report of this version
SCHEME = "99FRACTATLAS"  # private codes: DICOM has none for the probability of a finding
PROBABILITY = Code("prob", SCHEME, "Probability of a fracture")
CALIBRATED = Code("prob_calibrated", SCHEME, "Calibrated probability of a fracture")
THRESHOLD = Code("threshold", SCHEME, "Threshold of the decision")
SCORE = Code("score", SCHEME, "Highest probability of the fracture map in the region")
FRACTURE = Code("125605004", "SCT", "Fracture of bone")
PRESENT, ABSENT = Code("52101004", "SCT", "Present"), Code("2667000", "SCT", "Absent")
PROCEDURE = Code("363680008", "SCT", "Radiographic imaging procedure")
UNIT = Code("1", "UCUM", "no units")
REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# Attributes that may be empty in a DICOM file, but not absent from the result.
EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
         "StudyTime", "ReferringPhysicianName")  # fmt: skip
OVERLAY_SERIES, REPORT_SERIES = 9001, 9002


class DicomResultError(Exception):
    """Report why no DICOM result can be written for a file; the message is the reason in a few words."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What a network predicts for one image.

    Attributes:
        probability: of a fracture.
        probability_calibrated: ``None`` if the checkpoint has no operating point.
        fractured: the decision.
        threshold: of the decision.
        boxes: float (n, 5), as ``Prediction.boxes``, in pixels of the source image.
        checkpoint: the name of the network and its file.
    """

    probability: float
    probability_calibrated: float | None
    fractured: bool
    threshold: float
    boxes: np.ndarray | None
    checkpoint: str


def write_results(source: bytes, overlay: Image.Image, findings: Findings, stem: Path) -> None:
    """Write ``<stem>_overlay.dcm`` and ``<stem>_report.dcm``; both or none.

    Args:
        source: the content of the DICOM file that was predicted.
        overlay: of mode ``RGB``.
        findings: of the network.
        stem: path of the results without their endings.

    Raises:
        DicomResultError: the source has no identifier to refer to, or has invalid values in its patient or study.
    """
    from pydicom import config

    header = _read_header(source)
    validation = config.settings.writing_validation_mode
    try:
        # The source's patient and study are copied as they are, invalid values included.
        config.settings.writing_validation_mode = config.IGNORE
        results = {"overlay": _overlay(header, overlay, findings), "report": _report(header, findings)}
        files = {name: stem.with_name(f"{stem.name}_{name}.dcm") for name in results}
        try:
            for name, dataset in results.items():
                with atomic_path(files[name]) as temporary:
                    dataset.save_as(temporary, enforce_file_format=True)
        except BaseException:
            for file in files.values():
                file.unlink(missing_ok=True)
            raise
    except OSError:
        raise
    except Exception as error:  # highdicom raises many types of exception for invalid values
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DicomResultError(f"no DICOM result: {reason}") from None
    finally:
        config.settings.writing_validation_mode = validation


def _read_header(source: bytes) -> Dataset:
    header = pydicom.dcmread(io.BytesIO(source), stop_before_pixels=True, force=True)
    if missing := [name for name in REQUIRED if not header.get(name)]:
        raise DicomResultError(f"no DICOM result: the file has no {', '.join(missing)} to refer to")
    for name in EMPTY:
        if name not in header:
            setattr(header, name, "")
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    return header


def _equipment(series: str) -> dict[str, Any]:
    return {
        "manufacturer": "fractatlas",
        "manufacturer_model_name": "fractatlas",
        "software_versions": fractatlas.__version__,
        "device_serial_number": "0",
        "series_description": f"{series}, {NOTICE}",
        "content_qualification": "RESEARCH",
    }


def _overlay(header: Dataset, image: Image.Image, findings: Findings) -> Dataset:
    from highdicom.sc import SCImage

    captured = SCImage.from_ref_dataset(
        header, np.asarray(image.convert("RGB")), "RGB", 8, "PATIENT",
        patient_orientation=("L", "F"),  # a required argument, replaced below
        series_instance_uid=generate_uid(), series_number=OVERLAY_SERIES, sop_instance_uid=generate_uid(),
        instance_number=1, transfer_syntax_uid=ExplicitVRLittleEndian, **_equipment("Fracture overlay"),
    )  # fmt: skip
    captured.PatientOrientation = header.get("PatientOrientation", "")
    for name in ("Laterality", "BodyPartExamined", "BurnedInAnnotation"):
        if header.get(name):
            setattr(captured, name, header.get(name))
    captured.DerivationDescription = f"{findings.checkpoint}: {_described(findings)}; {NOTICE}"[:1024]
    instance = Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = header.SeriesInstanceUID, [instance]
    captured.SourceImageSequence = [instance]
    captured.ReferencedSeriesSequence = [series]
    return captured


def _described(findings: Findings) -> str:
    decision = "fractured" if findings.fractured else "not fractured"
    return f"probability {findings.probability:.4f}, threshold {findings.threshold:.4f}, {decision}"


def _report(header: Dataset, findings: Findings) -> Dataset:
    from highdicom import sr

    algorithm = sr.AlgorithmIdentification(
        "fractatlas", fractatlas.__version__, parameters=[findings.checkpoint, NOTICE], manufacturer="fractatlas"
    )
    device = sr.DeviceObserverIdentifyingAttributes(
        DEVICE, name="fractatlas", manufacturer_name="fractatlas", model_name="fractatlas"
    )
    observer = sr.ObserverContext(
        observer_type=sr.CodedConcept("121007", "DCM", "Device"), observer_identifying_attributes=device
    )
    numbers = {PROBABILITY: findings.probability, CALIBRATED: findings.probability_calibrated}
    numbers[THRESHOLD] = findings.threshold
    image = (header.SOPClassUID, header.SOPInstanceUID)
    whole: Any = sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(generate_uid(), "image"),
        finding_type=FRACTURE,
        algorithm_id=algorithm,
        measurements=[_measurement(name, value) for name, value in numbers.items() if value is not None],
        qualitative_evaluations=[sr.QualitativeEvaluation(FRACTURE, PRESENT if findings.fractured else ABSENT)],
        source_images=[sr.SourceImageForMeasurementGroup(*image)],
    )
    regions: list[Any] = []
    for number, (left, top, right, bottom, score) in enumerate([] if findings.boxes is None else findings.boxes, 1):
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])
        regions.append(
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                sr.TrackingIdentifier(generate_uid(), f"box {number}"),
                referenced_region=sr.ImageRegion("POLYLINE", corners, sr.SourceImageForRegion(*image)),
                finding_type=FRACTURE,
                algorithm_id=algorithm,
                measurements=[_measurement(SCORE, score)],
            )
        )
    content = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=observer), PROCEDURE, imaging_measurements=[whole, *regions]
    )
    return sr.ComprehensiveSR(
        [header], content, generate_uid(), REPORT_SERIES, generate_uid(), 1, is_complete=True,
        transfer_syntax_uid=ExplicitVRLittleEndian, **_equipment("Fracture report"),
    )  # fmt: skip


def _measurement(name: Code, value: float) -> Any:
    from highdicom.sr import Measurement

    return Measurement(name, round(float(value), 6), UNIT)
