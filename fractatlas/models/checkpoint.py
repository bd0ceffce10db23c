"""Write and read checkpoints: atomically, and without executing code that a pickle may contain."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from fractatlas.errors import InputError
from fractatlas.io import atomic_path


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Load a PyTorch file to the CPU without executing code that it may contain.

    Raises:
        InputError: the file is missing or broken, or contains more than plain values and tensors.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file; correct the path")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise anything
        if isinstance(error, pickle.UnpicklingError):
            named = re.search(r"GLOBAL (\S+)", str(error))
            if named or file.read_bytes()[:1] == b"\x80":
                code = named[1] if named else "a bare pickle"
                problem = f"{file} is refused: loading it would execute code ({code})"
                raise InputError(f"{problem}; save a plain state dict with torch.save") from None
        raise InputError(f"{file} is not a PyTorch file, or is broken; copy or download it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} contains a {type(content).__name__}; save a dict of tensors with torch.save")
    return content


def write_checkpoint(file: Path, content: dict[str, Any]) -> None:
    """Save with PyTorch, atomically.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    # In memory first: PyTorch's own message for a full disk names a position in a zip file instead of the problem.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(file) as temporary:
        temporary.write_bytes(buffer.getbuffer())
