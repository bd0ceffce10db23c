"""Exit statuses and signal handlers of processes that are stopped from outside."""

import logging
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from fractatlas.wording import plural

log = logging.getLogger(__name__)

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: not an error, run the command again
INTERRUPTED = 130  # the status that shells report after Ctrl-C
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # SLURM sends them when a job is cancelled, preempted or out of time
_received: list[int] = []  # the signals that exit_on_stop_signals has handled


@contextmanager
def exit_on_stop_signals(resume: str = "") -> Iterator[None]:
    """End the block at a stop signal or Ctrl-C.

    A library can catch the exception, for example in a callback of the garbage collector, or replace it. The block
    raises it instead of another exception, and ``check_received`` raises it again. An ignored Ctrl-C stays ignored.

    Args:
        resume: the command that resumes the block's work; it is logged after a signal or Ctrl-C.

    Raises:
        SystemExit: status ``STOPPED`` after SIGTERM or SIGUSR1; ``INTERRUPTED`` after Ctrl-C, if ``resume`` is given.
        KeyboardInterrupt: Ctrl-C without ``resume``.
    """
    outermost = signal.getsignal(signal.SIGTERM) is not _stop
    interrupt = () if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else (signal.SIGINT,)
    try:
        with signal_handlers(_stop, (*interrupt, *STOP_SIGNALS)):
            try:
                yield
            except Exception:
                check_received()
                raise
    except (KeyboardInterrupt, SystemExit) as error:
        if not resume:
            raise
        # Lightning turns Ctrl-C into sys.exit(1).
        status = STOPPED if getattr(error, "code", None) == STOPPED else INTERRUPTED
        log.info("stopped; to resume: %s", resume)
        raise SystemExit(status) from None
    finally:
        if outermost:
            _received.clear()


def _stop(number: int, frame: Any) -> None:
    _received.append(number)
    raise _exception(number)


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(STOPPED)


def check_received() -> None:
    """Raise what the first signal of the outermost ``exit_on_stop_signals`` block has raised; nothing without a signal.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        SystemExit: status ``STOPPED`` after SIGTERM or SIGUSR1.
    """
    if _received:
        raise _exception(_received[0])


@contextmanager
def signal_handlers(
    handler: Callable[[int, Any], None] | signal.Handlers, numbers: tuple[signal.Signals, ...]
) -> Iterator[None]:
    """Install a handler for the block; do nothing outside the main thread, where Python does not allow handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def wait_for(child: subprocess.Popen[Any]) -> int:
    """Wait until a process has ended; forward stop signals to it.

    Returns:
        Its exit status; ``STOPPED`` or ``INTERRUPTED`` if this process received a stop signal or Ctrl-C meanwhile.
    """
    statuses: list[int] = []

    def forward(number: int, frame: Any) -> None:
        statuses.append(STOPPED)
        child.send_signal(number)

    with signal_handlers(forward, STOP_SIGNALS):
        while child.returncode is None:
            with suppress(KeyboardInterrupt):  # the terminal has sent Ctrl-C to the child, too
                child.wait()
                break
            statuses.append(INTERRUPTED)
    return statuses[0] if statuses else child.wait()


class ChildProcesses:
    """Processes that several threads start and wait for, and that a stop signal stops together.

    Attributes:
        status: ``STOPPED`` or ``INTERRUPTED`` after a stop signal or Ctrl-C, otherwise 0.
    """

    def __init__(self) -> None:
        self.status = 0
        self._running: set[subprocess.Popen[Any]] = set()
        self._lock = threading.RLock()  # a second signal can interrupt the handler of the first

    def run(self, command: Sequence[str], output: Path | None = None) -> int:
        """Start a process and wait until it has ended; after a stop signal, start none.

        Args:
            command: the program and its arguments.
            output: a file to which stdout and stderr are appended; by default those of this process are used.

        Returns:
            ``status`` after a stop signal, otherwise the exit status of the process.

        Raises:
            OSError: the file is not writable, or the process cannot be started.
        """
        with open(output, "ab") if output else nullcontext() as file:
            with self._lock:
                if self.status:
                    return self.status
                child = subprocess.Popen(command, stdout=file, stderr=file)
                self._running.add(child)
            status = child.wait()
        with self._lock:
            self._running.remove(child)
        return self.status or status

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Forward stop signals to all running processes during the block; neither they nor Ctrl-C end the block."""

        def stop(number: int, frame: Any) -> None:
            with self._lock:
                self.status = self.status or (INTERRUPTED if number == signal.SIGINT else STOPPED)
                log.info("stopping %s", plural(len(self._running), "command"))
                if number != signal.SIGINT:  # the terminal has sent Ctrl-C to the processes, too
                    for child in self._running:
                        child.send_signal(number)

        with signal_handlers(stop, (signal.SIGINT, *STOP_SIGNALS)):
            yield
