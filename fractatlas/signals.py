"""What a process does when it is asked to stop: exit statuses, and handlers for a while."""

import logging
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

STOPPED = 75  # sysexits.h's EX_TEMPFAIL: nothing is wrong, come again
INTERRUPTED = 130  # what shells give for Ctrl-C
REQUESTS = (signal.SIGTERM, signal.SIGUSR1)  # SLURM's: a job is cancelled or preempted, or its time is nearly over


@contextmanager
def stoppable(run: Path | None = None) -> Iterator[None]:
    """End the block where this process is asked to, and say how the run in it is gone on with.

    Raises:
        SystemExit: with ``INTERRUPTED`` after Ctrl-C, with ``STOPPED`` after SIGTERM or SIGUSR1.
    """

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(STOPPED)

    try:
        with handlers(stop, REQUESTS):
            yield
    except (KeyboardInterrupt, SystemExit) as error:
        if run is None:
            raise
        # Lightning turns Ctrl-C into sys.exit(1).
        status = STOPPED if getattr(error, "code", None) == STOPPED else INTERRUPTED
        log.info("stopped; go on with: python train.py %s", shlex.quote(f"resume={run}"))
        raise SystemExit(status) from None


@contextmanager
def handlers(handler: Callable[[int, Any], None], numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Handle signals in the block, where this thread is the one that may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
