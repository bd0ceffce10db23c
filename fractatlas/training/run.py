"""One run from configuration to metrics: build the parts, fit, score the best checkpoint, write the run folder."""

import logging
import os
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from fractatlas.config import TrainConfig, check
from fractatlas.data.datamodule import RadiographDataModule
from fractatlas.data.splits import recorded_split
from fractatlas.errors import InputError
from fractatlas.evaluation import operating_point
from fractatlas.files import alone, write_csv
from fractatlas.models.classifier import FractureClassifier
from fractatlas.models.weights import read_checkpoint
from fractatlas.training.callbacks import WholeCheckpointIO
from fractatlas.training.outcome import (
    checkpoint_operating_point,
    device_name,
    heatmap_grid,
    keep_operating_point,
    predict,
    write_outcome,
)
from fractatlas.training.resume import newest_checkpoint

log = logging.getLogger(__name__)


def train(config: dict[str, Any], callbacks: Sequence[Callback] = ()) -> float:
    """Fine-tune one network and score its best checkpoint.

    Writes ``catalogue.csv, split.csv, checkpoints/, tensorboard/``, then what ``write_outcome`` does, into
    ``paths.output_dir``; a run without ``metrics.json`` is not finished.

    Args:
        config: a checked ``TrainConfig``, plain.
        callbacks: further ones, beside those of the configuration.

    Returns:
        The best checkpoint's value of ``monitor``.

    Raises:
        InputError: the data or the weights are not as the configuration says, or another process is in this folder.
    """
    _quieten()
    run = Path(config["paths"]["output_dir"])
    with nullcontext() if rank_zero_only.rank else alone(run):
        return _train(config, callbacks, run)


def _train(config: dict[str, Any], callbacks: Sequence[Callback], run: Path) -> float:
    started = time.monotonic()
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    split, last, logging_from = build(config["split"]), None, {}
    if config["resume"]:
        last, step = newest_checkpoint(run)  # refuses a broken one before anything is written
        if last:
            split = partial(recorded_split, path=str(run / "split.csv"))
        else:
            log.info("%s has no checkpoint yet: beginning again", run)
        logging_from = {"purge_step": step}
    data = build_data(config, split=split)
    data.prepare_data()
    data.setup()
    classifier = build_classifier(config)
    callbacks = [*(build(part) for part in config["callbacks"].values() if part), *callbacks]
    trainer = build_trainer(config, run, callbacks=callbacks, logger=build(config["logger"], **logging_from))
    if trainer.is_global_zero:
        (run / "metrics.json").unlink(missing_ok=True)  # a run that is gone on with is not finished
        write_csv(run / "catalogue.csv", data.catalogue)
        write_csv(run / "split.csv", data.split)

    fitting = time.monotonic()
    try:
        trainer.fit(classifier, data, ckpt_path=last, weights_only=True)
    except MisconfigurationException as error:
        raise InputError(f"trainer: {' '.join(str(error).split())}") from None
    fitted = time.monotonic()

    checkpoint = Path(trainer.checkpoint_callback.best_model_path)
    parts = ["val", "test"] if config["test"] else ["val"]
    predictions = pd.concat([predict(trainer, classifier, data, part, checkpoint) for part in parts])
    best = float(trainer.checkpoint_callback.best_model_score)
    if trainer.is_global_zero:
        rule = config["threshold"]
        validation = predictions[predictions["split"] == "val"]
        point = operating_point.settle(validation, build(rule), rule["_target_"].rpartition(".")[2])
        keep_operating_point(point, checkpoint)
        epoch = read_checkpoint(checkpoint)["epoch"] + 1
        record = {
            "task_name": config["task_name"],
            "model": config["model"]["variant"],
            "weights": classifier.backbone.loaded,
            "monitor": {"name": config["monitor"], "value": best, "epoch": epoch},
            "operating_point": point,
            "history": classifier.history,
            "timing": {
                "total_seconds": round(time.monotonic() - started, 1),
                "fit_seconds": round(fitted - fitting, 1),
            },
            "seed": config["seed"],
            "device": device_name(trainer),
        }
        device = trainer.strategy.root_device
        record = write_outcome(run, record, predictions, classifier, data, device, config["report"], config)
        if trainer.logger:
            _log_final(trainer.logger, config, record, parts, trainer.global_step)
        log.info("%s %.4f (epoch %d); all in %s", config["monitor"], best, epoch, run)
    return best


def evaluate(config: dict[str, Any]) -> None:
    """Score a checkpoint again on one part of the split of its run.

    Writes ``catalogue.csv, split.csv`` and what ``write_outcome`` does into ``paths.output_dir``.

    Args:
        config: a checked ``EvaluateConfig``, plain.

    Raises:
        InputError: the checkpoint is not one of ours, or its run's ``split.csv`` or data are gone.
    """
    started = time.monotonic()
    _quieten()
    run, checkpoint, part = Path(config["paths"]["output_dir"]), Path(config["ckpt"]), config["split_part"]
    trained = checkpoint_config(checkpoint)
    trained["data"]["cache_dir"] = config["paths"]["cache_dir"]
    if config["data_root"]:
        trained["data"] |= {"root": config["data_root"], "prepare": None}
    lightning.seed_everything(trained["seed"], workers=True, verbose=False)
    split = checkpoint.absolute().parents[1] / "split.csv"
    if not split.is_file():
        raise InputError(f"{checkpoint}: there is no {split}; score a checkpoint in the run folder that it was made in")
    data = build_data(trained, split=partial(recorded_split, path=str(split)))
    data.prepare_data()
    data.setup()
    trained["model"]["weights"] = None  # they come out of the checkpoint
    trainer = build_trainer(config, run, callbacks=[], logger=False, enable_progress_bar=False)
    classifier = build_classifier(trained)
    predictions = predict(trainer, classifier, data, part, checkpoint)
    if trainer.is_global_zero:
        record = {
            "task_name": config["task_name"],
            "checkpoint": str(checkpoint),
            "model": trained["model"]["variant"],
            "operating_point": checkpoint_operating_point(checkpoint),
            "timing": {"total_seconds": round(time.monotonic() - started, 1)},
            "device": device_name(trainer),
        }
        write_csv(run / "catalogue.csv", data.catalogue)
        write_csv(run / "split.csv", data.split)
        device = trainer.strategy.root_device
        record = write_outcome(run, record, predictions, classifier, data, device, config["report"], trained)
        shown = {name: record[part][name] for name in ("accuracy", "auroc", "average_precision")}
        scores = ", ".join(f"{name} {value['value']:.4f}" for name, value in shown.items() if value)
        log.info("%s: %s, majority rate %.4f; all in %s", part, scores, record[part]["majority_rate"], run)


def checkpoint_config(checkpoint: Path) -> dict[str, Any]:
    """The configuration that a checkpoint was trained under, checked like any other.

    Raises:
        InputError: the file is no checkpoint of ours.
    """
    content = read_checkpoint(checkpoint)
    if "config" not in content or "state_dict" not in content:
        raise InputError(f"{checkpoint} is not a checkpoint of this project; name a run's checkpoints/best.ckpt")
    return check(OmegaConf.create(content["config"]), TrainConfig)


def build_data(config: dict[str, Any], split: Any) -> RadiographDataModule:
    """The data module of a checked configuration, with ``split`` (catalogue to split) in place of its own."""
    return build(
        config["data"],
        split=split,
        preprocess=build(config["preprocess"]),
        augment=build(config["augment"]),
        seed=config["seed"],
    )


def build_classifier(config: dict[str, Any]) -> FractureClassifier:
    """The network of a checked configuration, ready to train."""
    return FractureClassifier(
        backbone=build(config["model"]),
        loss=build(config["loss"]),
        optimizer=build(config["optimizer"]),
        scheduler=build(config["scheduler"]),
        config=config,
    )


def build_trainer(config: dict[str, Any], run: Path, **parts: Any) -> lightning.Trainer:
    """Lightning's trainer of a checked configuration, writing below ``run``.

    Raises:
        InputError: this machine has no such accelerator, or not so many.
    """
    try:
        return build(
            config["trainer"],
            default_root_dir=str(run),
            plugins=[WholeCheckpointIO()],
            use_distributed_sampler=False,  # the data module brings its own
            **parts,
        )
    except Exception as error:  # Hydra wraps what Lightning says, for one that there is no such accelerator
        cause = error.__cause__ or error
        raise InputError(f"trainer: {' '.join(str(cause).split())}") from None


def build(part: dict[str, Any], **ready: Any) -> Any:
    """One part of a checked configuration, with ``ready`` as further arguments."""
    # Not unsafe here: the schema has listed every _target_ that gets this far. Hydra's own list would have to name
    # where a class is defined (torch.optim.adam.Adam), not where it is documented (torch.optim.Adam).
    return instantiate(part, _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS, **ready)


def _quieten() -> None:
    """Keep the log to what a reader acts on, and of several processes let only the first speak."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for settled in (
        ".*LeafSpec.*",  # Lightning's own use of torch
        ".*does not have many workers.*",  # decoding is never what training waits for
        ".*dataloader is not resumable.*",  # its sampler is
        ".*exists and is not empty.*",  # so it is where a run is gone on with
        ".*callbacks used to create the checkpoint need to be provided.*",  # not to score it
        ".*smaller than the logging interval.*",  # the last step of an epoch is logged all the same
        ".*sync_dist=True.*",  # torchmetrics has gathered already
    ):
        warnings.filterwarnings("ignore", settled)
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        logging.disable(logging.INFO)


def _hyperparameters(config: dict[str, Any]) -> dict[str, Any]:
    """What TensorBoard's HPARAMS tab compares runs by: names and plain values."""
    shown = {
        "seed": config["seed"],
        "batch_size": config["data"]["batch_size"],
        "max_epochs": config["trainer"]["max_epochs"],
        "precision": config["trainer"]["precision"],
    }
    for group in ("model", "optimizer", "scheduler", "loss", "split", "preprocess", "augment"):
        part = config[group]
        shown[group] = part["_target_"].rpartition(".")[2]
        for name, value in part.items():
            if not name.startswith("_") and name != "weights_dir":
                shown[f"{group}/{name}"] = value if isinstance(value, int | float | str) else str(value)
    return shown


def _log_final(logger: Any, config: dict[str, Any], record: dict[str, Any], parts: list[str], step: int) -> None:
    """Hyperparameters with final metrics, and where the network looks."""
    final = {
        f"final/{part}/{name}": value["value"] if isinstance(value, dict) else value
        for part in parts
        for name, value in record[part].items()
        if name not in ("n", "positives", "threshold") and value is not None
    }
    logger.log_hyperparams(_hyperparameters(config), final, step)
    if config["report"]:
        for part in parts:
            if (grid := heatmap_grid(Path(config["paths"]["output_dir"]), part)) is not None:
                logger.experiment.add_image(f"heatmaps/{part}", grid, step, dataformats="HWC")
    logger.save()
