import os
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from fractatlas.data.images import UnreadableError, read_radiograph
from fractatlas.data.integrity import inspect
from tests.robustness import fuzz

INPUTS = int(os.environ.get("FRACTATLAS_FUZZ", 1500))


@pytest.mark.integration
@pytest.mark.fault("randomly changed image file (JPEG, PNG, TIFF, DICOM and eight other kinds)",
                   "read as an 8-bit image or refused with a reason; no crash, no timeout, bounded memory")  # fmt: skip
@pytest.mark.parametrize("kind", fuzz.SEEDS)
def test_changed_files_are_read_or_refused(record_property, kind):
    campaign = fuzz.run(INPUTS, kind=kind)
    assert not [fault for fault, _ in campaign.faults]
    assert campaign.read > INPUTS / 20
    assert sum(campaign.refused.values()) > INPUTS / 20
    assert campaign.peak < fuzz.GIGABYTES
    record_property("tried", campaign.tried)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata
@pytest.mark.fault("randomly changed JPEG and PNG in a data folder", "excluded as truncated or unreadable")
def test_changed_files_are_inspected_without_an_exception(record_property):
    contents = fuzz.seeds()
    for number in range(400):
        image = inspect(fuzz.mutant(number, contents))
        assert image.error in ("", "truncated", "unreadable")
        assert bool(image.error) == (image.width == 0)
    record_property("tried", 400)


# Mutants at which a decoder once crashed the process.
@pytest.mark.fault("file that crashes a decoder (GDCM, damaged JPEG)", "refused, and the next file is read")
@pytest.mark.parametrize("number", [3975, 11184, 44390, 57756, 93507])
def test_a_file_that_crashes_a_decoder_is_refused(tmp_path, number):
    (tmp_path / "mutant").write_bytes(fuzz.mutant(number, fuzz.seeds()))
    with pytest.raises(UnreadableError):
        read_radiograph(tmp_path / "mutant")
    assert read_radiograph(Path(get_testdata_file("MR_small_jp2klossless.dcm", download=False))).mode == "L"
