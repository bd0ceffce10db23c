"""A progress bar where someone is watching; nothing in a log file."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")


def track(items: Iterable[Item], what: str, total: int) -> Iterable[Item]:
    """Pass ``items`` on and show on stderr how many of ``total`` have gone by."""
    return rich_track(items, what, total, console=Console(stderr=True), disable=not sys.stderr.isatty())
