"""Progress bars on a terminal, and log lines that are printed above them: both use the console of ``rich``."""

import logging
import multiprocessing
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich import get_console, reconfigure
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

log = logging.getLogger(__name__)
Item = TypeVar("Item")
SHOWN_BY_BAR = "shown_by_bar"  # attribute of a log record: a bar shows the same, so that the terminal omits the line


def bars_are_shown() -> bool:
    """Return whether this process shows bars: on a terminal, and only in the first of several processes."""
    if int(os.environ.get("LOCAL_RANK", 0)) or multiprocessing.parent_process():
        return False
    console = get_console()
    # The environment variable FORCE_COLOR makes a file a terminal for rich.
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


class TerminalHandler(logging.StreamHandler):
    """Write log lines to the stream of ``rich``'s console; on a terminal, above the bar that it shows."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # because StreamHandler would store the stream

    @property
    def stream(self) -> Any:
        """The stream of the console, which can change after the handler was made."""
        return get_console().file

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, unless a bar shows the same."""
        if not bars_are_shown():
            super().emit(record)  # rich would end the process if the reader of a pipe had closed it
        elif not getattr(record, SHOWN_BY_BAR, False):
            try:
                get_console().print(Text(self.format(record)), soft_wrap=True)
            except Exception:
                self.handleError(record)


def log_above_bars() -> None:
    """Replace the handlers of the root logger that write to stdout, such as Hydra's, by a ``TerminalHandler``.

    Hydra creates only handlers of the standard library without a warning, so that ``conf/`` cannot name this class.
    """
    if get_console().stderr:  # of another command in this process
        reconfigure()
    root = logging.getLogger()
    for handler in [*root.handlers]:
        if type(handler) is logging.StreamHandler and handler.stream in (sys.stdout, sys.__stdout__):
            replacement = TerminalHandler()
            replacement.setFormatter(handler.formatter)
            replacement.setLevel(handler.level)
            root.removeHandler(handler)
            root.addHandler(replacement)


def make_bar(*columns: ProgressColumn) -> Progress:
    """Return a bar with the times of its tasks, and with ``columns`` at its end; it disappears when it is stopped."""
    times = (TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left"))
    return _progress(MofNCompleteColumn(), *times, *columns)


def track(items: Iterable[Item], description: str, total: int) -> Generator[Item, None, None]:
    """Yield ``items``, and show on a terminal how many of ``total`` are done."""
    with make_bar() as bar:
        yield from bar.track(items, total, description=description)


@contextmanager
def waiting(description: str, details: str = "") -> Iterator[None]:
    """Log what the block does, and show on a terminal for how long it has been running; a bar omits the details."""
    log.info("%s%s", description, details)
    with _progress(TimeElapsedColumn(), TextColumn("elapsed")) as bar:
        bar.add_task(description, total=None)
        yield


def _progress(*columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        console=get_console(),
        transient=True,
        disable=not bars_are_shown(),
    )
