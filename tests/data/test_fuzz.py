import os

import pytest

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
