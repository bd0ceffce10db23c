"""Measure how long a run has taken, over all processes that worked on it one after the other."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from fractatlas.errors import InputError
from fractatlas.io import write_json

SECONDS_PER_WRITE = 10  # a killed process loses at most as many
NOTHING = {"total_seconds": 0.0, "fit_seconds": 0.0, "starts": 0}


class RunTimer(Callback):
    """Add the duration of this process to that of earlier ones, in a JSON file of the run folder.

    As a callback, it writes the file every ten seconds during the training, so that the duration of a killed process is
    not lost. The first process of a run writes the file; the others only measure.

    Args:
        file: the file; see ``seconds`` for its contents.
        resume: whether earlier processes count.
        started: ``time.monotonic()`` at the start of this process.

    Raises:
        InputError: the file is not one that this class wrote.
    """

    def __init__(self, file: Path, resume: bool, started: float):
        self._file, self._started = file, started
        self._before = _read(file) if resume else NOTHING
        self._fit_seconds, self._fit_started, self._written = 0.0, 0.0, 0.0

    def seconds(self) -> dict[str, float | int]:
        """Return ``total_seconds``, ``fit_seconds`` (training with its validations) and ``starts``."""
        now = time.monotonic()
        fit = self._fit_seconds + (now - self._fit_started if self._fit_started else 0)
        return {
            "total_seconds": round(self._before["total_seconds"] + now - self._started, 1),
            "fit_seconds": round(self._before["fit_seconds"] + fit, 1),
            "starts": int(self._before["starts"]) + 1,
        }

    def write(self) -> None:
        """Write the file."""
        write_json(self._file, self.seconds())
        self._written = time.monotonic()

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Measure the block as training."""
        self._fit_started = time.monotonic()
        try:
            yield
        finally:
            self._fit_seconds, self._fit_started = time.monotonic() - self._fit_started, 0.0

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """Write the file if ten seconds have passed."""
        if trainer.is_global_zero and time.monotonic() - self._written >= SECONDS_PER_WRITE:
            self.write()

    def on_validation_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """Write the file if ten seconds have passed."""
        self.on_train_batch_end(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the file when the training is stopped, or ends with an error."""
        if trainer.is_global_zero:
            self.write()


def _read(file: Path) -> dict[str, float | int]:
    if not file.is_file():
        return NOTHING
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {name: type(value)(content[name]) for name, value in NOTHING.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: not the duration of a run ({error!r}); delete it, then the run is timed again"
        ) from None
