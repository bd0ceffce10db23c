"""Run commands in processes of their own, without the FRACATLAS variables of the environment."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

PLAIN = {key: value for key, value in os.environ.items() if not key.startswith("FRACATLAS_")}
MODULE = ("-m", "fractatlas")


def process(*line: str, folder: Path, timeout: int = 300) -> subprocess.CompletedProcess:
    """Run Python with these arguments in ``folder``."""
    return subprocess.run(
        [sys.executable, *line], cwd=folder, env=PLAIN, capture_output=True, text=True, timeout=timeout
    )


def script(name: str, *arguments: str, folder: Path, timeout: int = 300) -> None:
    """Run a script of the repository, which must succeed."""
    result = process(str(REPOSITORY / name), *arguments, folder=folder, timeout=timeout)
    assert result.returncode == 0, result.stderr


def refused(message: int | str, part: str) -> None:
    """Check that a command ends with one line about a mistake, and with status 1, as ``sys.exit(str)`` does."""
    assert isinstance(message, str)
    assert message.startswith("error: ")
    assert "\n" not in message
    assert part in message
