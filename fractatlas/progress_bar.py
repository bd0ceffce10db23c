"""Progress bars that appear on a terminal only."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")


def track(items: Iterable[Item], description: str, total: int) -> Iterable[Item]:
    """Yield ``items`` and show on stderr how many of ``total`` are done; show nothing if stderr is not a terminal."""
    return rich_track(items, description, total, console=Console(stderr=True), disable=not sys.stderr.isatty())
