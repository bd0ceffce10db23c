"""Lightning callbacks: best checkpoint, early stopping, progress, training images; and atomic checkpoints."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torchvision import tv_tensors
from torchvision.utils import draw_bounding_boxes, make_grid

from fractatlas.models.checkpoint import write_checkpoint
from fractatlas.validation import metric_mode

log = logging.getLogger(__name__)


class BestCheckpoint(callbacks.ModelCheckpoint):
    """Save ``best.ckpt`` in ``dirpath`` after every validation that improves the metric ``monitor``."""

    dirpath: str

    def __init__(self, dirpath: str, monitor: str):
        super().__init__(dirpath, "best", monitor, mode=metric_mode(monitor), enable_version_counter=False)


class EarlyStopping(callbacks.EarlyStopping):
    """Stop after ``patience`` validations that do not improve the metric ``monitor`` by more than ``min_delta``."""

    def __init__(self, monitor: str, patience: int, min_delta: float):
        super().__init__(monitor, min_delta, patience, mode=metric_mode(monitor))


class TerminalProgressBar(callbacks.RichProgressBar):
    """Lightning's Rich progress bar on a terminal; nothing in a log file."""

    @property
    def is_enabled(self) -> bool:
        """Whether the bar is shown; never without a terminal."""
        return super().is_enabled and sys.stdout.isatty()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the loss; without ``v_num``, because Lightning takes the end of the folder's name for a version."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class ProgressLines(callbacks.Callback):
    """Log the loss and the speed every tenth of an epoch, and the metrics after every validation."""

    METRICS = ("val/loss", "val/accuracy", "val/majority_rate", "val/auroc", "val/sensitivity", "val/specificity")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock: at every epoch, and if a run is resumed in the middle of one."""
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


class InputGrid(callbacks.Callback):
    """Show training images in TensorBoard as the network gets them, with labels and boxes; half are fractured."""

    def __init__(self, images: int):
        self.images = images

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the grid, except in a resumed run, which has one."""
        if not trainer.is_global_zero or not trainer.logger or trainer.ckpt_path:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dataset, boxes = data.dataset("train"), data.boxes("train")
        rows = [row for group in dataset.table.groupby("label").groups.values() for row in group[: self.images // 2]]
        with torch.random.fork_rng(devices=[]):  # augmentation must not change the random numbers of the training
            tiles = [self._tile(data, dataset[row], boxes[row]) for row in rows]
        board: Any = trainer.logger.experiment  # type: ignore[attr-defined]
        board.add_image("input/train", make_grid(tiles, nrow=4, padding=4, pad_value=255), 0)

    @staticmethod
    def _tile(data: Any, item: dict[str, torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        image = tv_tensors.Image(item["image"])
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=item["image"].shape[-2:])
        image, boxes = data.augment(image, boxes)
        shown = data.preprocess.denormalise(data.preprocess.normalise(image[None]))[0]
        boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
        name, colour = ("fractured", "red") if item["label"] else ("not fractured", "lime")
        if len(boxes):
            shown = draw_bounding_boxes(shown, boxes, colors="yellow")
        frame = torch.tensor([[0, 0, shown.shape[-1] - 1, shown.shape[-2] - 1]])
        return draw_bounding_boxes(shown, frame, labels=[name], colors=colour, width=2)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write under a temporary name, then rename."""
        write_checkpoint(Path(path), checkpoint)
