"""Write the TensorBoard log of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard.summary import hparams

HPARAMS = ".hparams"  # how the name of the event file of the HPARAMS tab ends


class RunLogger(loggers.TensorBoardLogger):
    """Lightning's logger, with one event file of curves for each process of a run.

    Lightning's class closes its file after each stage (fit, validate, test) and opens another for the next stage.
    TensorBoard reads the files of a run in the order of their names, which is not the order in which they were written
    if two were opened in the same second. Entries of a resumed run could then be removed as entries of the stopped run.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values, except the epoch, which Lightning adds to every call: the horizontal axis is the step."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    @rank_zero_only
    def save(self) -> None:
        """Write everything to disk."""
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write everything to disk after a stage, and keep the file open."""
        if self._experiment is not None:
            self.save()

    def close(self) -> None:
        """Close the file at the end of the run."""
        if self._experiment is not None:
            self._experiment.close()

    @rank_zero_only
    def write_comparison(self, values: Mapping[str, float | str]) -> None:
        """Write hyperparameters and final scores for the HPARAMS tab.

        The tab shows first the values that differ between runs. It computes the order from all runs if no run
        describes its columns. It accepts scores as scalars only, and each scalar has a chart in the other tabs. The
        scores are therefore written as hyperparameters.
        """
        # A file of its own, because TensorBoard keeps the first values of a run: a resumed run deletes this file.
        writer = FileWriter(self.log_dir, filename_suffix=HPARAMS)
        _columns, start, end = hparams(dict(values), {})
        writer.add_summary(start)
        writer.add_summary(end)
        writer.close()

    @rank_zero_only
    def remove_comparison(self) -> None:
        """Remove the entry of the HPARAMS tab: a resumed run is not finished."""
        for file in Path(self.log_dir).glob(f"*{HPARAMS}"):
            file.unlink()


# Groups with several choices, and the values that only have one meaning, or none for a comparison.
CHOICES = ("optimizer", "scheduler", "split", "preprocess", "augment")
CONSTANT = ("weights_dir", "channels_last", "mean", "std", "fill", "betas", "monitor", "fused")
# The names of the choices on the command line, where they differ from the names of their functions.
NAMES = {
    "Identity": "none",
    "constant": "none",
    "resize_and_crop": "imagenet",
    "light_augmentation": "light",
    "grouped_split": "grouped",
    "random_split": "random",
    "kfold_split": "kfold",
    "manifest_split": "manifest",
    "target_sensitivity": "sensitivity",
}


def hyperparameters(config: Mapping[str, Any]) -> dict[str, float | str]:
    """Return the hyperparameters of a plain ``TrainConfig`` by the key that sets them on the command line.

    Numbers are numbers, so that the HPARAMS tab can sort and filter them. Keys with the value ``null`` are absent.
    """
    shown: dict[str, Any] = {"seed": config["seed"], "data.batch_size": config["data"]["batch_size"]}
    for name in ("max_epochs", "precision", "accumulate_grad_batches", "gradient_clip_val"):
        shown[f"trainer.{name}"] = config["trainer"][name]
    for group in ("model", *CHOICES, "loss"):
        if group in CHOICES:
            shown[group] = _name(config[group])
        shown |= _values(group, config[group])
    shown |= _values("map", config.get("map") or {})
    shown["threshold"] = _name(config["threshold"])
    for callback in ("average", "early_stopping"):
        shown |= _values(f"callbacks.{callback}", config["callbacks"][callback] or {})
    shown["model.weights"] = Path(shown.get("model.weights") or "random").name
    return {
        name: value if isinstance(value, float | str) or type(value) is int else str(value).lower()
        for name, value in shown.items()
        if value is not None
    }


def _name(part: Mapping[str, Any]) -> str:
    name = part["_target_"].rpartition(".")[2]
    return NAMES.get(name, name)


def _values(group: str, part: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{group}.{name}": value for name, value in part.items() if name[0] != "_" and name not in CONSTANT}
