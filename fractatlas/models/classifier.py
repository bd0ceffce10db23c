"""The ``LightningModule``: trains a backbone and computes its metrics."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.aggregation import CatMetric
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryF1Score,
    BinaryMatthewsCorrCoef,
    BinaryRecall,
    BinarySpecificity,
)

from fractatlas.data.fracture_masks import BOXES, OUTLINES
from fractatlas.data.splits import SUBSETS
from fractatlas.errors import InputError
from fractatlas.models.backbones import Backbone
from fractatlas.models.fracture_map import hottest_cell_is_in_box


def binary_cross_entropy(pos_weight: float | None) -> nn.BCEWithLogitsLoss:
    """Build the binary cross-entropy of logits; ``pos_weight`` is the weight of a fractured image, ``None`` means 1."""
    return nn.BCEWithLogitsLoss(pos_weight=None if pos_weight is None else torch.tensor(pos_weight))


class EpochMetrics(nn.Module):
    """The metrics of one subset over an epoch, synchronised over all processes by torchmetrics.

    Args:
        with_map: whether the network has a fracture map, whose loss and hits are metrics.
    """

    def __init__(self, with_map: bool = False):
        super().__init__()
        self.by_probability = MetricCollection(
            {
                "accuracy": BinaryAccuracy(),
                "auroc": BinaryAUROC(),
                "average_precision": BinaryAveragePrecision(),
                "f1": BinaryF1Score(),
                "mcc": BinaryMatthewsCorrCoef(),
                "sensitivity": BinaryRecall(),
                "specificity": BinarySpecificity(),
            }
        )
        self.loss, self.prevalence = MeanMetric(nan_strategy="ignore"), MeanMetric()
        self.logits = CatMetric(nan_strategy="disable")
        self.of_map = nn.ModuleDict(
            {name: MeanMetric(nan_strategy="ignore") for name in ("map_loss", "hit")} if with_map else {}
        )

    def update(self, batch: dict[str, Tensor], outputs: "Outputs") -> None:
        """Add a batch."""
        labels, logits, loss = batch["label"], outputs.logits.detach().float(), outputs.loss.detach()
        # Probabilities, because torchmetrics interprets logits as probabilities if all are between 0 and 1.
        self.by_probability.update(logits.sigmoid(), labels.int())
        self.loss.update(loss, weight=len(labels))
        self.prevalence.update(labels)
        self.logits.update(torch.stack([batch["index"].float(), logits], dim=1))
        if outputs.map_loss is not None and outputs.hits is not None:
            cast(Metric, self.of_map["map_loss"]).update(outputs.map_loss.detach(), weight=len(labels))
            # Without a fracture, the mean of no hits is not a number, which has no weight.
            cast(Metric, self.of_map["hit"]).update(outputs.hits.mean(), weight=len(outputs.hits))

    def compute(self) -> dict[str, Tensor]:
        """Return every metric by name."""
        values = self.by_probability.compute()
        values["balanced_accuracy"] = (values["sensitivity"] + values["specificity"]) / 2
        # For a constant answer, torchmetrics returns a small value of either sign.
        values["mcc"] = torch.where(values["balanced_accuracy"] == 0.5, 0.0, values["mcc"])
        values["loss"] = self.loss.compute()
        prevalence = self.prevalence.compute()
        values["majority_rate"] = torch.maximum(prevalence, 1 - prevalence)
        # Without a box in the data, torchmetrics warns that there was no update, and the means are not numbers.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            of_map = {name: cast(MeanMetric, metric).compute() for name, metric in self.of_map.items()}
        return values | {name: mean for name, mean in of_map.items() if mean.isfinite()}

    def predictions(self) -> Tensor:
        """Return ``index`` and logit of every image, ordered by index: float32 (n, 2) on the CPU."""
        rows = self.logits.compute()
        return rows[rows[:, 0].argsort()].cpu()

    def reset(self) -> None:
        """Start a new epoch."""
        for metric in self._metrics().values():
            metric.reset()

    def state(self) -> dict[str, dict[str, Tensor | list[Tensor]]]:
        """Return the state of all processes together, for a checkpoint in the middle of an epoch."""
        states = {}
        for name, metric in self._metrics().items():
            with metric.sync_context():
                states[name] = dict(metric.metric_state)
        return states

    def restore(self, states: dict[str, dict[str, Tensor | list[Tensor]]]) -> None:
        """Set the state that ``state`` returned."""
        metrics = self._metrics()
        for name, state in states.items():
            for key, value in state.items():
                is_list = isinstance(metrics[name]._defaults[key], list)
                setattr(metrics[name], key, [value] if is_list and isinstance(value, Tensor) else value)

    def _metrics(self) -> dict[str, Metric]:
        metrics: dict[str, Metric] = dict(self.by_probability.items())
        metrics |= {"loss": self.loss, "prevalence": self.prevalence, "logits": self.logits}
        return metrics | cast(dict[str, Metric], dict(self.of_map.items()))


@dataclass(frozen=True)
class Outputs:
    """What a batch of n images gives.

    Attributes:
        logits: of the images (n,).
        loss: the scalar that is minimised.
        map_loss: the loss of the fracture map, a scalar that ``loss`` contains with its weight; ``None`` without a map
            or without masks.
        hits: float32 (k,), for each fractured image with a box, 1 if the map's hottest cell is in a box, else 0.
    """

    logits: Tensor
    loss: Tensor
    map_loss: Tensor | None = None
    hits: Tensor | None = None


class FractureClassifier(lightning.LightningModule):
    """A binary classifier, fractured or not, with one logit.

    Logs for each subset ``loss, accuracy, balanced_accuracy, auroc, average_precision, f1, mcc, sensitivity,
    specificity`` (at threshold 0.5) and ``majority_rate``, the accuracy of always giving the more frequent answer. With
    a fracture map also ``map_loss``, the part of ``loss`` without its weight, and ``hit``, the share of the fractured
    images whose highest cell is in a box.

    Args:
        backbone: from images to logits.
        loss: from logits (n,) and labels (n,) to a scalar.
        optimizer: from groups of parameters to an optimizer.
        scheduler: from an optimizer and the total number of steps to a schedule.
        config: the plain configuration of the run, stored in every checkpoint.

    Attributes:
        predictions: by subset, ``EpochMetrics.predictions`` of its last epoch.
        history: the metrics of each epoch on the training and validation subsets.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: nn.Module,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer, int], LRScheduler],
        config: dict[str, Any],
    ):
        super().__init__()
        self.backbone, self.loss, self.config = backbone, loss, config
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        # A ModuleDict cannot have the key "train", which is a method of modules.
        with_map = backbone.map is not None
        self.metrics = nn.ModuleDict({f"{subset}_metrics": EpochMetrics(with_map) for subset in SUBSETS})
        self.predictions: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer of the trainable parameters, with a learning rate for each stage, and its schedule."""
        optimizer = self._make_optimizer(self.backbone.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group["scale"]
        scheduler = self._make_scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        # The name in the logs. With one rate for each stage, their names are added: train/lr/head.
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "train/lr"},
        }

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float (n, 3, h, w), to logits (n,)."""
        return self.backbone(images)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Return the loss of one batch."""
        outputs = self._compute(batch)
        self.log("train/loss_step", outputs.loss.detach(), prog_bar=True)
        self._metrics_of("train").update(batch, outputs)
        return outputs.loss

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Add one batch to the validation metrics."""
        self._score("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Add one batch to the test metrics."""
        self._score("test", batch)

    def on_train_epoch_end(self) -> None:
        """Log the metrics of the predictions made during the epoch, while the weights were changing."""
        self._log_epoch("train")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics and store the predictions."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics and store the predictions."""
        self._log_epoch("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the configuration, the history and the metrics of the current epoch to a checkpoint."""
        checkpoint["config"] = self.config
        checkpoint["history"] = self.history
        checkpoint["train_metrics"] = self._metrics_of("train").state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history and the metrics of the epoch when training resumes."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.history = checkpoint["history"]
            if self.trainer.is_global_zero:  # the checkpoint contains the metrics of all processes together
                self._metrics_of("train").restore(checkpoint["train_metrics"])

    def running_training_loss(self) -> float:
        """Return the mean training loss of the current epoch so far; call it on all processes."""
        return self._metrics_of("train").loss.compute().item()

    def _metrics_of(self, subset: str) -> EpochMetrics:
        return cast(EpochMetrics, self.metrics[f"{subset}_metrics"])

    def _score(self, subset: str, batch: dict[str, Tensor]) -> None:
        # In float32 in every precision of the training, so that validation, test, evaluate, predict and ONNX agree.
        with torch.autocast(self.device.type, enabled=False):
            outputs = self._compute(batch)
        self._metrics_of(subset).update(batch, outputs)

    def _compute(self, batch: dict[str, Tensor]) -> Outputs:
        labels, fracture_map = batch["label"], self.backbone.map
        if fracture_map is None or "mask" not in batch:
            logits = self(batch["image"])
            return Outputs(logits, self.loss(logits, labels))
        logits, cells = self.backbone.with_map(batch["image"])
        outlines, boxes = batch["mask"][:, OUTLINES], batch["mask"][:, BOXES]
        map_loss = fracture_map.loss(cells, outlines, labels)
        located = boxes.flatten(1).amax(dim=1) > 0
        hits = hottest_cell_is_in_box(cells.detach()[located], boxes[located]).float()
        return Outputs(logits, self.loss(logits, labels) + fracture_map.weight * map_loss, map_loss, hits)

    def _log_epoch(self, subset: str) -> None:
        metrics = self._metrics_of(subset)
        predictions = metrics.predictions()
        if not predictions.isfinite().all():  # torchmetrics excludes NaN from its means
            raise InputError(f"training diverged: some {subset} logits are not finite; lower optimizer.lr")
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        values = {f"{subset}/{name}": value.float() for name, value in metrics.compute().items()}
        # The best checkpoint is scored after training; its metrics are not part of the curves.
        self.log_dict(values, logger=fitting)
        if fitting and not self.trainer.sanity_checking:
            epoch = self.current_epoch + 1
            if not self.history or self.history[-1]["epoch"] != epoch:
                self.history.append({"epoch": epoch})
            self.history[-1].update({name: value.item() for name, value in values.items()})
        self.predictions[subset] = predictions
        metrics.reset()
