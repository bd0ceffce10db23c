"""What a run shows and saves along the way."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torchvision import tv_tensors
from torchvision.utils import draw_bounding_boxes, make_grid

from fractatlas.models.classifier import FractureClassifier
from fractatlas.models.weights import write_checkpoint

log = logging.getLogger(__name__)


class TerminalProgressBar(RichProgressBar):
    """Lightning's Rich bar where someone is watching; nothing in a log file."""

    def __init__(self):
        super().__init__()
        if not sys.stdout.isatty():
            self.disable()

    def enable(self) -> None:
        """Stay off where Lightning would switch it on again."""
        if sys.stdout.isatty():
            super().enable()

    def get_metrics(self, trainer: lightning.Trainer, classifier: FractureClassifier) -> dict[str, Any]:
        """The loss; not the end of the folder's name, which Lightning takes for a version number."""
        return {name: value for name, value in super().get_metrics(trainer, classifier).items() if name != "v_num"}


class ProgressLines(Callback):
    """Log a line every tenth of an epoch, and one with the metrics when the epoch is validated."""

    def on_train_start(self, trainer: lightning.Trainer, classifier: FractureClassifier) -> None:
        """Start the clock, also where a run is gone on with in the middle of an epoch."""
        self._started, self._images = time.monotonic(), 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, classifier: FractureClassifier) -> None:
        """Start the clock again."""
        self.on_train_start(trainer, classifier)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, classifier: FractureClassifier, outputs: Any, batch: Any, index: int
    ) -> None:
        """Log every tenth of the epoch."""
        self._images += len(batch["label"]) * trainer.world_size
        steps = trainer.num_training_batches
        if (index + 1) * 10 // steps > index * 10 // steps:
            rate = self._images / (time.monotonic() - self._started)
            loss = trainer.callback_metrics.get("train/loss_step", float("nan"))
            where = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} step {index + 1}/{steps}"
            log.info("%s: loss %.4f, %.1f images/s", where, loss, rate)

    def on_validation_end(self, trainer: lightning.Trainer, classifier: FractureClassifier) -> None:
        """Log the metrics."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        shown = (
            "val/loss",
            "val/accuracy",
            "val/majority_rate",
            "val/auroc",
            "val/sensitivity",
            "val/specificity",
        )
        values = ", ".join(f"{name} {trainer.callback_metrics[name]:.4f}" for name in shown)
        log.info("epoch %d/%d: %s", trainer.current_epoch + 1, trainer.max_epochs, values)


class InputGrid(Callback):
    """Show training images as the network sees them, half of them fractured, with labels and boxes.

    Args:
        images: how many.
    """

    def __init__(self, images: int):
        self.images = images

    @torch.no_grad()
    def on_fit_start(self, trainer: lightning.Trainer, classifier: FractureClassifier) -> None:
        """Draw the grid into TensorBoard."""
        if not trainer.is_global_zero or not trainer.logger or trainer.ckpt_path:  # drawn already, if gone on with
            return
        data = trainer.datamodule
        dataset, boxes = data.dataset("train"), data.boxes("train")
        rows = [row for group in dataset.table.groupby("label").groups.values() for row in group[: self.images // 2]]
        with torch.random.fork_rng(devices=[]):  # looking at the images must not change the run
            tiles = [self._tile(data, dataset[row], boxes[row]) for row in rows]
        trainer.logger.experiment.add_image("input/train", make_grid(tiles, nrow=4, padding=4, pad_value=255), 0)

    @staticmethod
    def _tile(data: Any, item: dict[str, torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        image, boxes = tv_tensors.Image(item["image"]), tv_tensors.BoundingBoxes(
            boxes, format="XYXY", canvas_size=item["image"].shape[-2:]
        )  # fmt: skip
        image, boxes = data.augment(image, boxes)
        seen = data.preprocess.denormalise(data.preprocess.normalise(image[None]))[0]
        boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
        name, colour = ("fractured", "red") if item["label"] else ("not fractured", "lime")
        if len(boxes):
            seen = draw_bounding_boxes(seen, boxes, colors="yellow")
        frame = torch.tensor([[0, 0, seen.shape[-1] - 1, seen.shape[-2] - 1]])
        return draw_bounding_boxes(seen, frame, labels=[name], colors=colour, width=2)


class WholeCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write under another name, then rename."""
        write_checkpoint(Path(path), checkpoint)
