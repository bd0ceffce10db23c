import os
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from fractatlas.data.reading import UnreadableError, read_radiograph
from tests import fuzz

INPUTS = int(os.environ.get("FRACTATLAS_FUZZ", 1500))


@pytest.mark.fault("mutated image file (JPEG, PNG, TIFF, DICOM and eight more kinds)",
                   "read as an 8-bit image or refused with a reason: no crash, no hang, memory bounded")  # fmt: skip
def test_mutated_files_are_read_or_refused(record_property):
    campaign = fuzz.run(INPUTS)
    assert not [fault for fault, _ in campaign.faults]
    assert campaign.read > INPUTS / 20
    assert sum(campaign.refused.values()) > INPUTS / 20
    assert campaign.peak < fuzz.GIGABYTES
    record_property("tried", campaign.tried)


# Mutants at which a decoder once ended the process that had called it.
@pytest.mark.fault("mutant that once crashed a decoder (GDCM, broken JPEG)", "refused, and the next file is read")
@pytest.mark.parametrize("number", [3975, 11184, 44390, 57756, 93507])
def test_a_file_that_crashes_a_decoder_is_refused(tmp_path, number):
    (tmp_path / "mutant").write_bytes(fuzz.mutant(number, fuzz.seeds()))
    with pytest.raises(UnreadableError):
        read_radiograph(tmp_path / "mutant")
    assert read_radiograph(Path(get_testdata_file("MR_small_jp2klossless.dcm", download=False))).mode == "L"
