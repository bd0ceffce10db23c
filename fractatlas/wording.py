"""Write counts, lists and durations in log lines and on pages."""

from collections.abc import Sequence

SHOWN_NAMES = 5


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Return ``1 image`` or ``1,234 images``; ``nouns`` is a plural that does not just add an s."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def join_names(names: Sequence[object], shown: int = SHOWN_NAMES) -> str:
    """Return ``a, b, c, d, e and 54 more``: at most ``shown`` names, and the number of the others."""
    listed = ", ".join(str(name) for name in names[:shown])
    return listed + (f" and {len(names) - shown:,} more" if len(names) > shown else "")


def format_duration(seconds: float) -> str:
    """Return hours, minutes and seconds as ``1:02:03``; ``27:46:40`` above one day."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
