import os
import signal
import sys
from contextlib import nullcontext

import pytest

from fractatlas.signals import ChildProcesses, check_received, exit_on_stop_signals
from tests.search.processes import interrupt_library


@pytest.mark.parametrize(
    ("numbers", "status"), [([signal.SIGTERM], 75), ([signal.SIGUSR1], 75), ([signal.SIGINT, signal.SIGTERM], 130)]
)
def test_no_process_is_started_after_a_stop_signal(tmp_path, numbers, status):
    children = ChildProcesses()
    before = signal.getsignal(signal.SIGINT)
    with children.stopped_by_signals():
        for number in numbers:
            os.kill(os.getpid(), number)
        assert children.run(["touch", str(tmp_path / "started")]) == status
    assert not (tmp_path / "started").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_output_is_appended_to_a_file(tmp_path):
    children = ChildProcesses()
    for text in ("one", "two"):
        code = f"import sys; print('{text}'); sys.exit(3)"
        assert children.run([sys.executable, "-S", "-c", code], tmp_path / "output.log") == 3
    assert (tmp_path / "output.log").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("number", "stop", "status"),
    [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, SystemExit, 75), (signal.SIGUSR1, SystemExit, 75)],
)
def test_a_stop_signal_whose_exception_was_caught_is_raised_again(caplog, number, stop, status, nested):
    caplog.set_level("INFO")
    with exit_on_stop_signals():
        with exit_on_stop_signals("train") if nested else nullcontext(), pytest.raises(stop):
            os.kill(os.getpid(), number)  # the inner block ends as without a signal
        with pytest.raises(stop) as raised:
            check_received()
    assert getattr(raised.value, "code", status) == status
    assert not caplog.messages
    check_received()  # the signals of a block do not stop the next one


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_whose_exception_was_replaced_is_raised_again(caplog, number):
    caplog.set_level("INFO")
    with exit_on_stop_signals():
        with pytest.raises(SystemExit) as raised, exit_on_stop_signals("train"):
            interrupt_library(number)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            check_received()
    assert raised.value.code == (130 if number == signal.SIGINT else 75)
    assert caplog.messages == ["stopped; to resume: train"]


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with exit_on_stop_signals():
            os.kill(os.getpid(), signal.SIGINT)
            check_received()
    finally:
        signal.signal(signal.SIGINT, before)
