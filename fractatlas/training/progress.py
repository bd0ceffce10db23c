"""Show the progress of a training: a bar on a terminal, and log lines."""

import logging
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks

log = logging.getLogger(__name__)


class TerminalProgressBar(callbacks.RichProgressBar):
    """Lightning's Rich progress bar on a terminal; nothing in a log file."""

    @property
    def is_enabled(self) -> bool:
        """Whether the bar is shown; never without a terminal."""
        return super().is_enabled and sys.stdout.isatty()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the loss, without the version that Lightning derives from the folder's name."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class ProgressLines(callbacks.Callback):
    """Log the loss and the speed every tenth of an epoch, and the metrics after every validation."""

    METRICS = ("val/loss", "val/accuracy", "val/majority_rate", "val/auroc", "val/sensitivity", "val/specificity")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start timing: at the start of every epoch, and when a run is resumed within an epoch."""
        self._started, self._images = time.monotonic(), 0

    on_train_epoch_start = on_train_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log every tenth of the epoch."""
        self._images += len(batch["label"]) * trainer.world_size
        steps = int(trainer.num_training_batches)
        if (batch_idx + 1) * 10 // steps > batch_idx * 10 // steps:
            rate = self._images / (time.monotonic() - self._started)
            loss = trainer.callback_metrics.get("train/loss_step", float("nan"))
            position = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} step {batch_idx + 1}/{steps}"
            log.info("%s: loss %.4f, %.1f images/s", position, loss, rate)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            values = ", ".join(f"{name} {trainer.callback_metrics[name]:.4f}" for name in self.METRICS)
            log.info("epoch %d/%d: %s", trainer.current_epoch + 1, trainer.max_epochs, values)
