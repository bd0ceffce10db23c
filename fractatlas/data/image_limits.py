"""Limits on the size of an image file, and the exception for files that cannot be read, with common reasons."""

import threading
from contextlib import AbstractContextManager, nullcontext

MAX_BYTES = 2**30
LARGE = 20_000_000  # pixels; larger images are decoded one at a time, to limit memory
MAX_PIXELS = 100_000_000  # a chest radiograph has 10 to 20 million
MAX_SIDE = 30_000  # pixels; a radiograph of a whole leg has about 15,000

TRUNCATED = "truncated; copy it again"
TRUNCATED_HEADER = "truncated, or a damaged header; copy it again"
TRANSPARENT = "fully transparent, so it shows nothing"

_large_image_lock = threading.Lock()


class UnreadableError(Exception):
    """Report that a file cannot be read as one radiograph; the message is the reason in a few words."""


def too_large(width: int, height: int) -> str:
    """Return why an image of this size in pixels is refused, or ``""`` if it is within the limits."""
    if max(width, height) > MAX_SIDE:
        return f"{width} x {height} pixels is above the limit of {MAX_SIDE:,} pixels a side"
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels is above the limit of {MAX_PIXELS:,} pixels"
    return ""


def refuse_large(width: int, height: int) -> None:
    """Raise ``UnreadableError`` if an image of this size in pixels is ``too_large``."""
    if reason := too_large(width, height):
        raise UnreadableError(reason)


def memory_lock(width: int, height: int) -> AbstractContextManager:
    """Return the context in which an image of this size is decoded: of images above ``LARGE``, one at a time."""
    return _large_image_lock if width * height > LARGE else nullcontext()
