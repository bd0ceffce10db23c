"""A terminal in memory, and the text that a real one would show."""

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import rich

from fractatlas.progress_bar import TerminalHandler

CONTROL = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|\x1b\]8;[^\x1b]*\x1b\\")


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@contextmanager
def log_to_memory(columns: int, *handlers: logging.Handler) -> Iterator[Terminal]:
    """Replace the console by a terminal in memory for the block, and log to it and to ``handlers``."""
    root, terminal, shown = logging.getLogger(), Terminal(), TerminalHandler()
    shown.setFormatter(logging.Formatter("%(message)s"))
    level, others = root.level, [handler for handler in root.handlers if isinstance(handler, TerminalHandler)]
    rich.reconfigure(file=terminal, width=columns, height=40)
    root.setLevel(logging.INFO)
    for handler in others:
        root.removeHandler(handler)
    for handler in (shown, *handlers):
        root.addHandler(handler)
    try:
        yield terminal
    finally:
        for handler in (shown, *handlers):
            root.removeHandler(handler)
        for handler in others:
            root.addHandler(handler)
        root.setLevel(level)
        rich.reconfigure()


def screen(output: str, columns: int) -> list[str]:
    """Return the lines that a terminal shows after ``output``, scrolled-out lines included, without trailing blanks.

    Interprets what rich writes: line ends, carriage returns, "cursor up" and "erase line"; colours are omitted.
    """
    lines, row, column, start = [""], 0, 0, 0
    while start < len(output):
        if found := CONTROL.match(output, start):
            start = found.end()
            count = int(found[1]) if (found[1] or "").isdecimal() else 1
            if found[2] == "A":
                row = max(0, row - count)
            elif found[2] == "K":
                lines[row] = lines[row][:column] if found[1] in ("", "0") else ""
            continue
        character, start = output[start], start + 1
        if character == "\r":
            column = 0
        elif character == "\n" or column == columns:
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        if character not in "\r\n":
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]
