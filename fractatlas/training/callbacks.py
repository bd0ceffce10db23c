"""Lightning callbacks for checkpoints, early stopping and training images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, make_grid

from fractatlas.config.validation import metric_mode
from fractatlas.evaluation.overlays import overlay
from fractatlas.models.checkpoint import write_checkpoint


class BestCheckpoint(callbacks.ModelCheckpoint):
    """Save ``best.ckpt`` in ``dirpath`` after every validation that improves the metric ``monitor``."""

    dirpath: str

    def __init__(self, dirpath: str, monitor: str):
        super().__init__(dirpath, "best", monitor, mode=metric_mode(monitor), enable_version_counter=False)


class EarlyStopping(callbacks.EarlyStopping):
    """Stop after ``patience`` validations that do not improve the metric ``monitor`` by more than ``min_delta``."""

    def __init__(self, monitor: str, patience: int, min_delta: float):
        super().__init__(monitor, min_delta, patience, mode=metric_mode(monitor))


class InputGrid(callbacks.Callback):
    """Show training images in TensorBoard as the network receives them, with labels and boxes; half are fractured."""

    def __init__(self, images: int):
        self.images = images

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the grid, except in a resumed run, which has one."""
        if not trainer.is_global_zero or not isinstance(trainer.logger, TensorBoardLogger) or trainer.ckpt_path:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dataset, boxes = data.dataset("train"), data.boxes("train")
        rows = [row for group in dataset.table.groupby("label").groups.values() for row in group[: self.images // 2]]
        batch = dataset.__getitems__(rows)
        with torch.random.fork_rng(devices=[]):  # augmentation must not change the random numbers of the training
            images, boxes = data.augment(batch["image"], [boxes[row] for row in rows])
        images = data.preprocess.denormalise(data.preprocess.normalise(images))
        tiles = [_draw_tile(*tile) for tile in zip(images, batch["label"], boxes, strict=True)]
        trainer.logger.experiment.add_image("x-rays/train_input", make_grid(tiles, nrow=4, padding=4, pad_value=255), 0)


class MapGrid(callbacks.Callback):
    """Show fracture maps of fractured validation images in TensorBoard after each epoch, with the boxes."""

    def __init__(self, images: int):
        self.images = images

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the grid, if the network has a map."""
        network: Any = pl_module
        if network.backbone.map is None or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if not trainer.is_global_zero or not isinstance(trainer.logger, TensorBoardLogger):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dataset, boxes = trainer.val_dataloaders.dataset, data.boxes("val")  # type: ignore[union-attr]
        rows = [row for row, label in enumerate(dataset.table["label"]) if label and len(boxes[row])][: self.images]
        if not rows:
            return
        pixels = dataset.__getitems__(rows)["image"]
        with torch.autocast(pl_module.device.type, enabled=False):  # as the scores
            _, cells = network.backbone.with_map(data.preprocess.normalise(pixels.to(pl_module.device)))
        heat = interpolate(cells.sigmoid()[:, None], pixels.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        heat = heat / heat.max().clamp(min=1e-9)  # the first maps have about 0.01 everywhere
        tiles = [
            np.asarray(overlay(to_pil_image(image), one.cpu().numpy(), boxes[row].numpy()))
            for image, one, row in zip(pixels, heat, rows, strict=True)
        ]
        grid = make_grid(torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2), nrow=4, padding=4, pad_value=255)
        # The step that was completed last: a run that resumes at the next one keeps this entry.
        trainer.logger.experiment.add_image("x-rays/val_fracture_map", grid, trainer.global_step - 1)


def _draw_tile(image: torch.Tensor, label: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Draw the boxes, and a frame and a word for the label."""
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    name, colour = ("fractured", "red") if label else ("not fractured", "lime")
    if len(boxes):
        image = draw_bounding_boxes(image, boxes, colors="yellow")
    frame = torch.tensor([[0, 0, image.shape[-1] - 1, image.shape[-2] - 1]])
    return draw_bounding_boxes(image, frame, labels=[name], colors=colour, width=2)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write under a temporary name, then rename."""
        write_checkpoint(Path(path), checkpoint)
