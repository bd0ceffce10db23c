import os
import signal
import sys

import pytest

from fractatlas.signals import ChildProcesses, check_received, exit_on_stop_signals


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_whose_exception_was_caught_is_raised_again(number):
    stop = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with exit_on_stop_signals():
        with pytest.raises(stop):
            os.kill(os.getpid(), number)
        with pytest.raises(stop) as raised:
            check_received()
    assert getattr(raised.value, "code", 75) == 75
    check_received()  # the signals of a block do not stop the next one
