"""Write small generated data sets in the layouts of published ones, and folders of DICOM files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from fractatlas.data.sources.phantom import draw

PARTS = ("ELBOW", "HAND", "WRIST")
GRAZPEDWRI_COLUMNS = (
    "filestem", "patient_id", "study_number", "timehash", "gender", "age", "laterality", "projection", "initial_exam",
    "ao_classification", "cast", "diagnosis_uncertain", "osteopenia", "fracture_visible", "metal", "pixel_spacing",
    "device_manufacturer",
)  # fmt: skip


def picture(seed: int, fractured: bool, shrink: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels and the boxes of a small phantom."""
    phantom = draw(np.random.default_rng(seed), fractured)
    return phantom.pixels[::shrink, ::shrink].copy(), phantom.boxes / shrink


def write_mura(root: Path, studies: int = 24, valid: int = 8) -> Path:
    """Write MURA with two images per study, one study per patient; every second study is positive."""
    lists = {"train": ([], []), "valid": ([], [])}
    for number in range(studies):
        folder = "valid" if number >= studies - valid else "train"
        positive = number % 2
        study = f"{folder}/XR_{PARTS[number % 3]}/patient{number:05}/study1_{'positive' if positive else 'negative'}"
        (root / study).mkdir(parents=True)
        for view in (1, 2):
            pixels, _ = picture(10 * number + view, bool(positive))
            Image.fromarray(pixels).save(root / study / f"image{view}.png")
            lists[folder][0].append(f"MURA-v1.1/{study}/image{view}.png")
        lists[folder][1].append(f"MURA-v1.1/{study}/,{positive}")
    for folder, (paths, labels) in lists.items():
        (root / f"{folder}_image_paths.csv").write_text("\n".join(paths) + "\n")
        (root / f"{folder}_labeled_studies.csv").write_text("\n".join(labels) + "\n")
    return root


def write_grazpedwri(root: Path, patients: int = 16) -> Path:
    """Write GRAZPEDWRI-DX with two projections per patient, 16-bit PNG and YOLO boxes; every second is fractured."""
    labels, rows = root / "folder_structure" / "yolov5" / "labels", []
    labels.mkdir(parents=True)
    names = ["boneanomaly", "bonelesion", "foreignbody", "fracture", "metal", "text"]
    (labels.parent / "meta.yaml").write_text(f"nc: {len(names)}\nnames: {names}\n")
    for number in range(2 * patients):
        patient, projection = divmod(number, 2)
        fractured = patient % 2 == 1
        stem = f"{patient:04}_0{number:09}_0{projection + 1}_WRI-L{projection + 1}_M{patient % 12:03}"
        folder = root / f"images_part{patient % 4 + 1}"
        folder.mkdir(exist_ok=True)
        pixels, boxes = picture(1000 + number, fractured)
        Image.fromarray(pixels.astype(np.uint16) * 200 + 500).save(folder / f"{stem}.png")
        height, width = pixels.shape
        lines = ["5 0.1 0.1 0.05 0.05"]  # the category text
        for left, top, right, bottom in boxes:
            centre = [(left + right) / 2 / width, (top + bottom) / 2 / height]
            lines.append(f"3 {centre[0]} {centre[1]} {(right - left) / width} {(bottom - top) / height}")
        (labels / f"{stem}.txt").write_text("\n".join(lines))
        row = dict(filestem=stem, patient_id=patient, study_number=1, timehash=number, age=5.5 + patient % 9)
        row |= dict(gender="MF"[patient % 2], laterality="LR"[patient % 2], projection=projection + 1)
        row |= dict(initial_exam=1 if patient % 3 else "", ao_classification="23r-M/2.1" if fractured else "")
        row |= dict(fracture_visible=1 if fractured else "", pixel_spacing=0.144, device_manufacturer="Siemens")
        rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=GRAZPEDWRI_COLUMNS)
    table.to_csv(root / "dataset.csv", index=False)
    return root


def write_dicom(file: Path, pixels: np.ndarray, patient: str, **tags: object) -> None:
    """Write a DICOM radiograph of 12 bits; ``tags`` are further attributes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = (
        DigitalXRayImageStorageForPresentation,
        ExplicitVRLittleEndian,
    )
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(file)])
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.Modality = patient, "DX"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = (pixels.astype(np.uint16) * 16).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    file.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)


def write_dicoms(folder: Path, images: int = 300, shrink: int = 2) -> pd.DataFrame:
    """Write DICOM files without an extension, three per patient, and return a table of their names and labels."""
    rows = []
    for number in range(images):
        patient, view = divmod(number, 3)
        fractured = patient % 5 < 2
        pixels, _ = picture(5000 + number, fractured, shrink)
        name = f"study{patient:03}/I{view:07}"
        tags = {"BodyPartExamined": ("HAND", "WRIST", "ANKLE")[patient % 3], "ViewPosition": ("AP", "LL", "OBL")[view],
                "PixelSpacing": [0.139, 0.139], "PatientSex": "FM"[patient % 2],
                "PatientAge": f"{20 + patient % 60:03}Y"}  # fmt: skip
        write_dicom(folder / name, pixels, f"MRN{patient:05}", **tags)
        rows.append({"file": name, "fracture": "yes" if fractured else "no"})
    return pd.DataFrame(rows)
