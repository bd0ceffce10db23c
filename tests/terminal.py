"""A terminal in memory, and the text that a real one would show."""

import io
import re

CONTROL = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|\x1b\]8;[^\x1b]*\x1b\\")


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


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
