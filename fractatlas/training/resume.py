"""Stopped at any moment, gone on with to the last digit: when ``last.ckpt`` is written, and what it must hold.

A step draws its augmentation and dropout from the seed, the epoch and its place in it (``RadiographDataModule``), the
order of the images from the seed and the epoch; weights, optimizer, schedule, metrics and history are in the
checkpoint, and what was logged after it is purged. So a run that was killed ends like one that was not, on a CPU bit
for bit.
"""

import logging
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from fractatlas.errors import InputError
from fractatlas.models.weights import read_checkpoint
from fractatlas.signals import INTERRUPTED, REQUESTS, STOPPED, handlers

log = logging.getLogger(__name__)

LAST = "last.ckpt"
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")  # in the state of a ModelCheckpoint


def newest_checkpoint(run: Path) -> tuple[Path | None, int]:
    """The checkpoint that a run goes on from, and the step that it stands before; ``None, 0`` where there is none yet.

    Raises:
        InputError: it is broken, or no checkpoint of ours.
    """
    last = run / "checkpoints" / LAST
    if not last.is_file():
        return None, 0
    try:
        content = read_checkpoint(last)
    except InputError as error:
        raise InputError(f"{error}: take it away to begin again") from None
    if not {"config", "loops", "history", "train_scores"} <= content.keys():
        raise InputError(f"{last} is not a checkpoint that a run can go on from: take it away to begin again")
    return last, content["global_step"]


class KeepLast(Callback):
    """Write ``last.ckpt`` between two steps: at every epoch's start, at intervals, when the run is stopped, at its end.

    Ctrl-C, SIGTERM and SIGUSR1 are answered after the step under way (a second Ctrl-C at once), with exit status
    ``INTERRUPTED`` or ``STOPPED``. The answer during validation comes after it.

    Args:
        every_n_steps: optimizer steps.
        every_minutes: since the last time.
    """

    def __init__(self, every_n_steps: int | None, every_minutes: float | None):
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self._asked: int | None = None
        self._listening = ExitStack()

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, classifier: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Know the best checkpoint again where the run folder has moved; Lightning would begin anew to look for it."""
        folder = Path(trainer.checkpoint_callback.dirpath)
        for state in checkpoint["callbacks"].values():
            if "best_model_path" in state:
                here = {name: str(folder / Path(path).name) for name, path in state.items() if name in PATHS and path}
                best = {str(folder / Path(path).name): score for path, score in state["best_k_models"].items()}
                state.update(here, dirpath=str(folder), best_k_models=best)

    def on_train_start(self, trainer: lightning.Trainer, classifier: lightning.LightningModule) -> None:
        """Listen, and end at once where a run had been stopped early before it was gone on with."""
        self._saved, self._started_at = time.monotonic(), trainer.global_step
        self._asked = None
        self._listening.enter_context(handlers(self._hear, (signal.SIGINT, *REQUESTS)))
        trainer.should_stop = any(
            callback.wait_count >= callback.patience for callback in trainer.early_stopping_callbacks
        )

    def on_train_batch_start(
        self, trainer: lightning.Trainer, classifier: lightning.LightningModule, batch: Any, index: int
    ) -> None:
        """Save where it is time, and stop where that was asked."""
        step = trainer.global_step
        # Lightning counts the step that was interrupted twice, and all that is logged later would be one step late.
        trainer.fit_loop.epoch_loop._batches_that_stepped = step
        if index % trainer.accumulate_grad_batches:
            return
        asked = trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False)
        if asked or (step > self._started_at and self._due(trainer, index)):
            self._save(trainer)
        if asked:
            log.info("stopped after step %d", step)
            raise SystemExit(INTERRUPTED if self._asked == signal.SIGINT else STOPPED)

    def on_train_end(self, trainer: lightning.Trainer, classifier: lightning.LightningModule) -> None:
        """Save the end, from which what follows the training can be done again."""
        self._save(trainer)
        self._listening.close()

    def on_exception(
        self, trainer: lightning.Trainer, classifier: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Listen no more."""
        self._listening.close()

    def _due(self, trainer: lightning.Trainer, index: int) -> bool:
        if index == 0 or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            return True
        if not self.every_minutes:
            return False
        return trainer.strategy.broadcast(time.monotonic() - self._saved >= 60 * self.every_minutes)

    def _save(self, trainer: lightning.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # so that the logs reach as far as the checkpoint
        progress = trainer.fit_loop.epoch_loop.batch_progress
        # Saved before the last step of an epoch, a run would go on with the validation, as if the step were done.
        progress.is_last_batch, last = False, progress.is_last_batch
        trainer.save_checkpoint(self._file(trainer))
        progress.is_last_batch = last
        self._saved = time.monotonic()

    def _file(self, trainer: lightning.Trainer) -> Path:
        return Path(trainer.checkpoint_callback.dirpath) / LAST

    def _hear(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self._asked is not None:
            raise KeyboardInterrupt
        self._asked = number
        again = " (Ctrl-C again: at once)" if number == signal.SIGINT else ""
        log.info("%s: stopping before the next step%s", signal.Signals(number).name, again)
