"""Show the progress of a training: a bar on a terminal, and log lines."""

import logging
import time
from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import Progress, TaskID, TextColumn

from fractatlas.models.classifier import FractureClassifier
from fractatlas.progress_bar import SHOWN_BY_BAR, bars_are_shown, make_bar
from fractatlas.wording import plural

log = logging.getLogger(__name__)
SECONDS_PER_TEXT = 0.5  # between two texts of the bar, because reading the loss waits for a GPU


class Speed:
    """The images of all processes per second since the object was made."""

    def __init__(self) -> None:
        self.started, self.images = time.monotonic(), 0

    def add(self, batch: dict[str, Any], trainer: Trainer) -> None:
        """Count the images of one step."""
        self.images += len(batch["label"]) * trainer.world_size

    def __str__(self) -> str:
        return f"{self.images / max(time.monotonic() - self.started, 1e-9):.1f} images/s"


class TerminalProgressBar(callbacks.ProgressBar):
    """Show the epoch, the validation or the scoring that is running as one bar on a terminal; nothing elsewhere.

    Lightning's bars count epochs from 0, and every log line would leave a copy of them on the terminal.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._description, self._texts_at = "", 0.0

    def disable(self) -> None:
        """Do not show the bar from now on; Lightning calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar from now on."""
        self._enabled = True

    @property
    def is_enabled(self) -> bool:
        """Whether the bar is shown; never without a terminal."""
        return self._enabled and bars_are_shown()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Show the epoch, at its first step and when it is resumed."""
        description = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        if self.is_enabled and description != self._description:
            self._show(description, int(trainer.num_training_batches), batch_idx)
            self._speed = Speed()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step; write the loss and the speed."""
        if not self._advance(batch_idx):
            return
        self._speed.add(batch, trainer)
        if time.monotonic() - self._texts_at >= SECONDS_PER_TEXT and self._bar and self._task is not None:
            self._texts_at = time.monotonic()
            loss = float(trainer.callback_metrics.get("train/loss_step", float("nan")))
            self._bar.update(self._task, text=f"loss {loss:.4f}, {self._speed}", refresh=True)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Show the validation at its first batch."""
        if batch_idx == 0 and self.is_enabled and not trainer.sanity_checking:
            fitting = trainer.state.fn == TrainerFn.FITTING
            epoch = f"validation {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._show(epoch if fitting else "scoring", int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        self._advance(batch_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Show the scoring of the test subset at its first batch."""
        if batch_idx == 0 and self.is_enabled:
            self._show("scoring test", int(sum(trainer.num_test_batches)))

    on_test_batch_end = on_validation_batch_end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self._stop()

    def _show(self, description: str, total: int, completed: int = 0) -> None:
        if self._bar is None:
            self._bar = make_bar(TextColumn("{task.fields[text]}"))
            self._bar.start()
        elif self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(description, total=total, completed=completed, text="")
        self._description, self._texts_at = description, 0.0

    def _advance(self, batch_idx: int) -> bool:
        if self._bar is None or self._task is None:
            return False
        self._bar.update(self._task, completed=batch_idx + 1)
        return True

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
        self._bar, self._task, self._description = None, None, ""


class ProgressLines(callbacks.Callback):
    """Log the loss and the speed every tenth of an epoch, and the metrics after every validation.

    On a terminal, the bar replaces the lines within an epoch; the log file has them in any case.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the size of the training; start timing, also when a run is resumed within an epoch."""
        steps = plural(int(trainer.num_training_batches), "step")
        last, device = trainer.max_epochs or 0, trainer.strategy.root_device.type
        log.info("training on %d x %s: %s of %s", trainer.world_size, device, plural(last, "epoch"), steps)
        self._speed = Speed()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start timing."""
        self._speed = Speed()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log every tenth of the epoch."""
        self._speed.add(batch, trainer)
        steps = int(trainer.num_training_batches)
        if (batch_idx + 1) * 10 // steps > batch_idx * 10 // steps:
            loss = trainer.callback_metrics.get("train/loss_step", float("nan"))
            position = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} step {batch_idx + 1}/{steps}"
            bar = trainer.progress_bar_callback
            shown = {SHOWN_BY_BAR: isinstance(bar, TerminalProgressBar) and bar.is_enabled}
            log.info("%s: loss %.4f, %s", position, loss, str(self._speed), extra=shown)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the losses and the metrics of the validation, and the metric that selects the best checkpoint."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        values = {name.removeprefix("val/"): float(value) for name, value in trainer.callback_metrics.items()}
        training = cast(FractureClassifier, pl_module).running_training_loss()
        line = (
            f"loss {training:.3f}, val loss {values['loss']:.3f}, AUROC {values['auroc']:.3f}, "
            f"accuracy {100 * values['accuracy']:.1f} %, majority rate {100 * values['majority_rate']:.1f} %"
        )
        monitor = (getattr(trainer.checkpoint_callback, "monitor", None) or "").removeprefix("val/")
        if monitor not in ("", "loss", "auroc", "accuracy"):
            line += f", {monitor} {values[monitor]:.4f}"
        if "hit" in values and monitor != "hit":
            line += f", hit {values['hit']:.4f}"
        log.info("epoch %d/%d: %s", trainer.current_epoch + 1, trainer.max_epochs, line)
