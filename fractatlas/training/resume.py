"""Save ``last.ckpt`` so that a stopped run can be resumed with the same results as an uninterrupted one.

Augmentation and dropout of a step depend on the seed, the epoch and the step (see ``RadiographDataModule``), the order
of the images on the seed and the epoch. The checkpoint contains weights, optimizer, schedule, metrics and history. Log
entries after the checkpoint are deleted when the run resumes. On a CPU, the results are equal bit for bit.
"""

import copy
import logging
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from fractatlas.config.overrides import RESUMABLE
from fractatlas.data.datamodule import RadiographDataModule
from fractatlas.errors import InputError
from fractatlas.io import write_text
from fractatlas.models.checkpoint import read_checkpoint
from fractatlas.signals import INTERRUPTED, STOP_SIGNALS, STOPPED, signal_handlers
from fractatlas.training.callbacks import BestCheckpoint

log = logging.getLogger(__name__)

LAST = "last.ckpt"
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")  # in the state of a ModelCheckpoint


@dataclass(frozen=True)
class ResumePoint:
    """Where a run resumes.

    Attributes:
        checkpoint: the file.
        global_step: the number of finished optimizer steps.
        epoch: the number of finished epochs.
        step: the number of finished steps of the next epoch, in batches as the log lines count them.
        precision: of the training so far.
    """

    checkpoint: Path
    global_step: int
    epoch: int
    step: int
    precision: str

    def describe(self, max_epochs: int) -> str:
        """Return what happens next, with epochs and steps counted from 1."""
        if self.epoch == max_epochs:
            return f"resuming after the last epoch, {self.epoch}: only the scores are computed"
        return f"resuming at epoch {self.epoch + 1}, step {self.step + 1}"


def newest_checkpoint(run: Path, max_epochs: int) -> ResumePoint | None:
    """Return where a run resumes; ``None`` without a checkpoint.

    Raises:
        InputError: the file is broken or not a checkpoint of this project, or has more than ``max_epochs`` epochs.
    """
    last = run / "checkpoints" / LAST
    if not last.is_file():
        return None
    try:
        content = read_checkpoint(last)
    except InputError as error:  # its remedy, after the last semicolon, is for a file of weights
        raise InputError(f"{str(error).rpartition('; ')[0]}; delete it to start the run again") from None
    if not {"config", "loops", "history", "train_metrics"} <= content.keys():
        raise InputError(f"{last}: not a checkpoint of a training run; delete it to start the run again")
    if content["epoch"] > max_epochs:
        raise InputError(
            f"trainer.max_epochs={max_epochs}: the run has {content['epoch']} finished epochs; use at least this number"
        )
    step = content.get(RadiographDataModule.__qualname__, {}).get("batches_done", 0)
    return ResumePoint(last, content["global_step"], content["epoch"], step, content["config"]["trainer"]["precision"])


def record_changes(run: Path, config: dict[str, Any], step: int) -> None:
    """Record what a resumed run changes: in ``.hydra/config.yaml``, from which the next resume starts, and as history.

    ``.hydra/resumed.yaml`` gets an entry with the time, the step, and the old and the new value of each changed key.
    Does nothing without ``.hydra/config.yaml``, because the run was then started from Python.

    Args:
        run: the run folder.
        config: the configuration of the resumed run, plain.
        step: number of finished steps.
    """
    file, history_file = run / ".hydra" / "config.yaml", run / ".hydra" / "resumed.yaml"
    if not file.is_file():
        return
    stored = cast(DictConfig, OmegaConf.load(file))
    resolved = copy.deepcopy(stored)
    resolved.paths.root, resolved.paths.output_dir = config["paths"]["root"], config["paths"]["output_dir"]
    now, changes = OmegaConf.create(config), {}
    for key in RESUMABLE[1:]:
        old, new = (OmegaConf.select(one, key) for one in (resolved, now))
        if old != new:
            old, new = (OmegaConf.to_container(one) if OmegaConf.is_config(one) else one for one in (old, new))
            changes[key] = {"from": old, "to": new}
            OmegaConf.update(stored, key, new)
    if not changes:
        return
    entry = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "step": step, "changes": changes}
    history = yaml.safe_load(history_file.read_text(encoding="utf-8")) if history_file.is_file() else []
    write_text(history_file, yaml.safe_dump([*history, entry], sort_keys=False, allow_unicode=True))
    write_text(file, OmegaConf.to_yaml(stored))
    log.info("changed: %s", ", ".join(f"{key} from {one['from']} to {one['to']}" for key, one in changes.items()))


class LastCheckpoint(Callback):
    """Save ``last.ckpt`` between two steps: at the start of every epoch, at intervals, on a stop signal, at the end.

    After Ctrl-C, SIGTERM or SIGUSR1 the current step or validation is completed, the checkpoint is saved, and the
    process exits with status ``INTERRUPTED`` (Ctrl-C) or ``STOPPED``. A second Ctrl-C stops immediately.

    Args:
        every_n_steps: interval in optimizer steps.
        every_minutes: interval since the last save.
    """

    def __init__(self, every_n_steps: int | None, every_minutes: float | None):
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self._signal: int | None = None
        self._handlers = ExitStack()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Correct the paths in a checkpoint whose run folder has moved, so that Lightning keeps the best checkpoint."""
        folder = _folder(trainer)
        for state in checkpoint["callbacks"].values():
            if "best_model_path" in state:
                paths = {name: str(folder / Path(path).name) for name, path in state.items() if name in PATHS and path}
                best = {str(folder / Path(path).name): score for path, score in state["best_k_models"].items()}
                state.update(paths, dirpath=str(folder), best_k_models=best)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers; stop immediately if early stopping had ended the run."""
        self._saved, self._first_step, self._signal = time.monotonic(), trainer.global_step, None
        self._handlers.enter_context(signal_handlers(self._handle, (signal.SIGINT, *STOP_SIGNALS)))
        trainer.should_stop = any(
            callback.wait_count >= callback.patience for callback in trainer.early_stopping_callbacks
        )
        if trainer.should_stop:
            log.info("early stopping has already ended the training: only the scores are computed")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save if an interval has passed; save and exit after a signal."""
        step = trainer.global_step
        # Lightning counts an interrupted step twice, which would shift all later log entries by one step.
        trainer.fit_loop.epoch_loop._batches_that_stepped = step
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stop = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        if stop or (step > self._first_step and self._is_due(trainer, batch_idx)):
            self._save(trainer)
        if stop:
            log.info("stopped before epoch %d, step %d", trainer.current_epoch + 1, batch_idx + 1)
            raise SystemExit(INTERRUPTED if self._signal == signal.SIGINT else STOPPED)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state, from which a resumed run repeats only the scoring."""
        self._save(trainer)
        self._handlers.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the former signal handlers."""
        self._handlers.close()

    def _is_due(self, trainer: Trainer, batch_idx: int) -> bool:
        if batch_idx == 0 or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            return True
        if not self.every_minutes:
            return False
        return trainer.strategy.broadcast(time.monotonic() - self._saved >= 60 * self.every_minutes)

    def _save(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # so that the logs contain everything up to the checkpoint
        progress = trainer.fit_loop.epoch_loop.batch_progress
        # If this is set, a run that resumes before the last step of an epoch starts with the validation.
        progress.is_last_batch, last = False, progress.is_last_batch
        trainer.save_checkpoint(_folder(trainer) / LAST)
        progress.is_last_batch = last
        self._saved = time.monotonic()

    def _handle(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        again = " (Ctrl-C again: stop immediately)" if number == signal.SIGINT else ""
        log.info("%s: stopping after the current step%s", signal.Signals(number).name, again)


def _folder(trainer: Trainer) -> Path:
    return Path(cast(BestCheckpoint, trainer.checkpoint_callback).dirpath)
