import json
import time

import pytest

from fractatlas.errors import InputError
from fractatlas.training.timing import RunTimer


def test_the_durations_of_all_processes_of_a_run_are_added(tmp_path):
    file = tmp_path / "timing.json"
    file.write_text('{"total_seconds": 100.0, "fit_seconds": 80.0, "starts": 2}')
    timer = RunTimer(file, True, time.monotonic() - 20)
    with timer.fitting():
        time.sleep(0.2)
    assert timer.seconds() == {
        "total_seconds": pytest.approx(120.2, abs=5),
        "fit_seconds": pytest.approx(80.2, abs=0.15),
        "starts": 3,
    }


def test_a_run_that_is_not_resumed_starts_at_zero(tmp_path):
    file = tmp_path / "timing.json"
    file.write_text('{"total_seconds": 100.0, "fit_seconds": 80.0, "starts": 2}')
    RunTimer(file, False, time.monotonic()).write()
    assert json.loads(file.read_text()) == {"total_seconds": pytest.approx(0, abs=1), "fit_seconds": 0, "starts": 1}


def test_the_training_so_far_is_in_the_file(tmp_path):
    timer = RunTimer(tmp_path / "timing.json", False, time.monotonic())
    with timer.fitting():
        time.sleep(0.2)
        timer.write()
    assert json.loads((tmp_path / "timing.json").read_text())["fit_seconds"] >= 0.2


def test_a_run_of_an_earlier_version_can_be_resumed(tmp_path):
    assert RunTimer(tmp_path / "timing.json", True, time.monotonic()).seconds()["starts"] == 1


@pytest.mark.parametrize("content", ["", "[]", '{"total_seconds": 1}', '{"total_seconds": "x"}'])
def test_a_damaged_file_is_refused_with_a_remedy(tmp_path, content):
    (tmp_path / "timing.json").write_text(content)
    with pytest.raises(InputError, match="timing.json: .*; delete it"):
        RunTimer(tmp_path / "timing.json", True, time.monotonic())
