"""The ``LightningModule``: a backbone, a loss, an optimizer and a schedule, handed in ready."""

from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
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

from fractatlas.errors import InputError
from fractatlas.models.backbones import Backbone


def binary_cross_entropy(pos_weight: float | None) -> nn.BCEWithLogitsLoss:
    """Cross-entropy on the logit, where a fractured image counts ``pos_weight`` times (``None``: once)."""
    return nn.BCEWithLogitsLoss(pos_weight=None if pos_weight is None else torch.tensor(pos_weight))


class Scores(nn.Module):
    """The metrics of one part, exact over an epoch and, since torchmetrics gathers first, over all processes."""

    def __init__(self):
        super().__init__()
        self.of_probability = MetricCollection(
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
        self.rows = CatMetric(nan_strategy="disable")

    def update(self, batch: dict[str, Tensor], logits: Tensor, loss: Tensor) -> None:
        """Take in a batch with its float32 logits (n,) and its mean loss."""
        labels = batch["label"]
        # Probabilities, because torchmetrics takes logits for probabilities where all lie in 0..1.
        self.of_probability.update(logits.sigmoid(), labels.int())
        self.loss.update(loss, weight=len(labels))
        self.prevalence.update(labels)
        self.rows.update(torch.stack([batch["index"].float(), logits], dim=1))

    def compute(self) -> dict[str, Tensor]:
        """Every metric by its name."""
        values = self.of_probability.compute()
        values["balanced_accuracy"] = (values["sensitivity"] + values["specificity"]) / 2
        # No better than chance; torchmetrics gives an always equal answer a small value of either sign.
        values["mcc"] = torch.where(values["balanced_accuracy"] == 0.5, 0.0, values["mcc"])
        values["loss"] = self.loss.compute()
        prevalence = self.prevalence.compute()
        values["majority_rate"] = torch.maximum(prevalence, 1 - prevalence)
        return values

    def predictions(self) -> Tensor:
        """``index`` and logit of every image, ordered by index: float32 (n, 2) on the CPU."""
        rows = self.rows.compute()
        return rows[rows[:, 0].argsort()].cpu()

    def reset(self) -> None:
        """Begin a new epoch."""
        for metric in self._metrics().values():
            metric.reset()

    def state(self) -> dict[str, dict[str, Tensor | list[Tensor]]]:
        """What has been taken in, on all processes together, for a checkpoint in the middle of an epoch."""
        states = {}
        for name, metric in self._metrics().items():
            with metric.sync_context():
                states[name] = dict(metric.metric_state)
        return states

    def restore(self, states: dict[str, dict[str, Tensor | list[Tensor]]]) -> None:
        """Take in what ``state`` gave."""
        metrics = self._metrics()
        for name, state in states.items():
            for key, value in state.items():
                in_batches = isinstance(metrics[name]._defaults[key], list)
                setattr(metrics[name], key, [value] if in_batches and isinstance(value, Tensor) else value)

    def _metrics(self) -> dict[str, Metric]:
        return {**self.of_probability, "loss": self.loss, "prevalence": self.prevalence, "rows": self.rows}


class FractureClassifier(lightning.LightningModule):
    """Fractured or not, from one logit.

    Logs for each part ``loss, accuracy, balanced_accuracy, auroc, average_precision, f1, mcc, sensitivity,
    specificity`` (threshold 0.5) and ``majority_rate``, the accuracy of always giving the commoner answer.

    Args:
        backbone: images to logits.
        loss: logits (n,) and labels (n,) to a scalar.
        optimizer: groups of parameters to an optimizer.
        scheduler: an optimizer and the total number of steps to a schedule.
        config: the run's plain configuration, kept in every checkpoint.
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
        self.scores = nn.ModuleDict({f"{part}_scores": Scores() for part in ("train", "val", "test")})
        self.predictions: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []  # of every epoch, training and validation

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimise what is not frozen, each stage at its own share of the learning rate."""
        optimizer = self._make_optimizer(self.backbone.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group["scale"]
        scheduler = self._make_scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float (n, 3, h, w), to logits (n,)."""
        return self.backbone(images)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """One batch's loss."""
        logits = self(batch["image"])
        loss = self.loss(logits, batch["label"])
        self.log("train/loss_step", loss.detach(), prog_bar=True)
        self._update("train", batch, logits.detach(), loss.detach())
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Score one batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Score one batch."""
        self._evaluate("test", batch)

    def on_train_epoch_end(self) -> None:
        """Log the epoch, over predictions made while the network was changing."""
        self._log_epoch("train")

    def on_validation_epoch_end(self) -> None:
        """Log the part, and keep its predictions."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log the part, and keep its predictions."""
        self._log_epoch("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration, from which a checkpoint alone can be rebuilt."""
        checkpoint["config"] = self.config
        checkpoint["history"] = self.history
        checkpoint["train_scores"] = self.scores["train_scores"].state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the history of a run that is gone on with."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.history = checkpoint["history"]
            if self.trainer.is_global_zero:  # which had gathered them from the others
                self.scores["train_scores"].restore(checkpoint["train_scores"])

    def _evaluate(self, part: str, batch: dict[str, Tensor]) -> None:
        logits = self(batch["image"])
        self._update(part, batch, logits, self.loss(logits, batch["label"]))

    def _update(self, part: str, batch: dict[str, Tensor], logits: Tensor, loss: Tensor) -> None:
        self.scores[f"{part}_scores"].update(batch, logits.float(), loss)

    def _log_epoch(self, part: str) -> None:
        scores = self.scores[f"{part}_scores"]
        predictions = scores.predictions()
        if not predictions.isfinite().all():  # torchmetrics leaves what is not a number out of its means
            raise InputError(f"training diverged: some {part} logits are not finite; lower optimizer.lr")
        # The best checkpoint's score after training is no point of the training curve.
        prefix = "best/" if part == "val" and self.trainer.state.fn != TrainerFn.FITTING else ""
        values = {f"{part}/{name}": value.float() for name, value in scores.compute().items()}
        self.log_dict({prefix + name: value for name, value in values.items()})
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._remember({name: value.item() for name, value in values.items()})
        self.predictions[part] = predictions
        scores.reset()

    def _remember(self, values: dict[str, float]) -> None:
        epoch = self.current_epoch + 1
        if not self.history or self.history[-1]["epoch"] != epoch:
            self.history.append({"epoch": epoch})
        self.history[-1].update(values)
