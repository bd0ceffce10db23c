"""Train one network: build the parts, fit, score the best checkpoint, write the run folder."""

import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning
import pandas as pd
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from fractatlas.build import build, build_classifier, build_data, build_trainer, model_name, trainer_error
from fractatlas.config.schema import listed_targets
from fractatlas.data.datamodule import RadiographDataModule
from fractatlas.data.splits import recorded_split
from fractatlas.errors import InputError
from fractatlas.evaluation import operating_point, provenance, shown_images, subset_assessment
from fractatlas.evaluation.localisation import FRACTURE_MAP, Heatmaps
from fractatlas.evaluation.overlays import draw_radiographs, full_heat, tile
from fractatlas.io import run_lock, write_csv
from fractatlas.models.checkpoint import read_checkpoint, write_checkpoint
from fractatlas.models.heatmaps import heatmap_kind
from fractatlas.models.precision import choose_precision
from fractatlas.progress_bar import log_above_bars
from fractatlas.signals import check_received
from fractatlas.training.allocator import keep_freed_memory
from fractatlas.training.callbacks import AtomicCheckpointIO, BestCheckpoint
from fractatlas.training.profiling import keep_profile, summarise_profile
from fractatlas.training.resume import ResumePoint, newest_checkpoint, record_changes
from fractatlas.training.scoring import predict_subset, score_heatmaps, write_scores
from fractatlas.training.silence_warnings import quieten
from fractatlas.training.tensorboard import RunLogger, hyperparameters
from fractatlas.training.timing import RunTimer
from fractatlas.training.trackers import log_result
from fractatlas.wording import format_duration, plural

log = logging.getLogger(__name__)


def train(config: dict[str, Any], callbacks: Sequence[Callback] = ()) -> float:
    """Fine-tune one network and score its best checkpoint.

    Writes ``catalogue.csv, split.csv, timing.json, checkpoints/, tensorboard/``, and then what ``write_scores`` writes,
    to ``paths.output_dir``. A run folder without ``metrics.json`` is not finished.

    Args:
        config: a checked ``TrainConfig``, plain.
        callbacks: in addition to those of the configuration.

    Returns:
        The value of ``monitor`` at the best checkpoint.

    Raises:
        InputError: the data or the weights do not fit the configuration, or another process uses this run folder.
    """
    quieten()
    log_above_bars()  # here as well as in the command, because a search configures the log of each trial
    run = Path(config["paths"]["output_dir"])
    with ExitStack() as stack:
        if not rank_zero_only.rank:  # type: ignore[attr-defined]
            stack.enter_context(run_lock(run))
        return _train(config, callbacks, run, stack)


def _train(config: dict[str, Any], callbacks: Sequence[Callback], run: Path, stack: ExitStack) -> float:
    started = time.monotonic()
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    split, resumed, purge_step = build(config["split"]), None, None
    if config["resume"]:
        resumed = newest_checkpoint(run, config["trainer"]["max_epochs"])  # before anything is written
        purge_step = resumed.global_step if resumed else 0
        if resumed:
            split = partial(recorded_split, path=str(run / "split.csv"))
            log.info("%s", resumed.describe(config["trainer"]["max_epochs"]))
        else:
            log.info("%s has no checkpoint yet: starting from the beginning", run)
    timer = RunTimer(run / "timing.json", bool(config["resume"]), started)
    if config["model"].get("compile") and not any(
        map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))
    ):
        raise InputError("model.compile=true: there is no C++ compiler; install g++ or use model.compile=false")
    config = config | {"trainer": config["trainer"] | {"precision": _precision(config["trainer"], resumed)}}
    # Everything that can be refused is built before images are read and before a file of the run changes.
    trackers = _build_loggers(config, purge_step)
    for tracker in trackers:
        if hasattr(tracker, "close"):
            stack.enter_context(closing(tracker))
    board = next((tracker for tracker in trackers if isinstance(tracker, RunLogger)), None)
    trainer = build_trainer(
        config,
        run,
        callbacks=[*(build(part) for part in config["callbacks"].values() if part), timer, *callbacks],
        logger=trackers,
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=bool(config["callbacks"]["progress_bar"]),  # otherwise Lightning adds one of its own
    )
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    classifier = build_classifier(config)
    data = build_data(config, split=split)
    data.prepare_data()
    data.setup()
    if config["monitor"] == "val/hit" and not any(map(len, data.boxes("val"))):
        raise InputError(f"monitor=val/hit: no image of the validation subset in {data.root} has a box; use val/auroc")
    if trainer.is_global_zero:
        if config["resume"]:
            record_changes(run, config, purge_step or 0)
        (run / "metrics.json").unlink(missing_ok=True)  # a resumed run is not finished
        if board:
            board.remove_comparison()
        write_csv(run / "catalogue.csv", data.catalogue)
        write_csv(run / "split.csv", data.split)
        timer.write()

    keep_profile(trainer, run)
    check_received()
    try:
        with timer.fitting():
            trainer.fit(classifier, data, ckpt_path=resumed.checkpoint if resumed else None, weights_only=True)
    except MisconfigurationException as error:
        raise trainer_error(error) from None
    profile = summarise_profile(trainer)

    # The checkpoint contains the averaged weights. When it is loaded, this callback would replace them by the weights
    # that were averaged, with which the test subset and the heatmaps would then be scored.
    trainer.callbacks = [one for one in trainer.callbacks if not isinstance(one, WeightAveraging)]  # type: ignore[attr-defined]
    best_checkpoint = cast(BestCheckpoint, trainer.checkpoint_callback)
    checkpoint, best = Path(best_checkpoint.best_model_path), float(cast(Tensor, best_checkpoint.best_model_score))
    subsets = ["val", "test"] if config["test"] else ["val"]
    predictions = pd.concat([predict_subset(trainer, classifier, data, name, checkpoint) for name in subsets])
    if trainer.is_global_zero:
        rule = config["threshold"]
        validation = predictions[predictions["split"] == "val"]
        point = operating_point.choose_operating_point(validation, build(rule), rule["_target_"].rpartition(".")[2])
        heatmaps = score_heatmaps(predictions, classifier, data, trainer) if config["report"] else None
        point |= subset_assessment.choose_box_threshold(predictions, data.catalogue, data.source.boxes(), heatmaps)
        content = read_checkpoint(checkpoint)
        write_checkpoint(checkpoint, content | {"operating_point": point})
        epoch = content["epoch"] + 1
        record = {
            "task_name": config["task_name"],
            "model": model_name(config),
            "weights": classifier.backbone.loaded_weights,
            "precision": config["trainer"]["precision"],
            "monitor": {"name": config["monitor"], "value": best, "epoch": epoch},
            "operating_point": point,
            **({"heatmaps": heatmap_kind(classifier.backbone)} if heatmaps else {}),
            "history": classifier.history,
            "seed": config["seed"],
        }
        record = write_scores(run, record, predictions, data, trainer, heatmaps, timer.seconds)
        values, scores = hyperparameters(config), _final_scores(record, subsets)
        if board:
            if heatmaps:
                is_map = record["heatmaps"] == FRACTURE_MAP
                full = full_heat(record["operating_point"].get("box_threshold")) if is_map else None
                _log_heatmaps(board, heatmaps, data, predictions, full, trainer.global_step)
            board.write_comparison(values | scores)
        log_result([one for one in trackers if one is not board], values, scores, trainer.global_step)
        timer.write()
        _log_duration(record["timing"])
        log.info("results in %s", run)
        if config["trainer"]["overfit_batches"]:
            _log_training_loss(classifier.history, int(trainer.num_training_batches))
        else:
            _log_scores(record, subsets, config)
        if profile:
            log.info("%s", profile)
    return best


def _log_duration(timing: dict[str, Any]) -> None:
    starts = "" if timing["starts"] == 1 else f"; the run was started {timing['starts']} times"
    total, training = (format_duration(timing[f"{name}_seconds"]) for name in ("total", "fit"))
    log.info("time (h:min:s): %s in total, %s of training%s", total, training, starts)


def _precision(settings: dict[str, Any], resumed: ResumePoint | None) -> str:
    """Return the precision of a training; a resumed run keeps the one of its checkpoint."""
    if settings["precision"] != "auto":
        return settings["precision"]
    if resumed:
        return resumed.precision
    precision, reason = choose_precision(settings["accelerator"])
    log.info("precision %s: %s", precision, reason)
    return precision


def _log_scores(record: dict[str, Any], subsets: list[str], config: dict[str, Any]) -> None:
    """Log what a run ends with: the epoch of the best checkpoint, and its scores."""
    monitor, last = record["monitor"], record["history"][-1]["epoch"]
    log.info("best epoch: %d of %d (%s %.4f)", monitor["epoch"], last, monitor["name"], monitor["value"])
    for subset in subsets:
        for line in provenance.summarise(subset, record, config):
            log.info("%s", line)


def _log_training_loss(history: list[dict[str, float]], batches: int) -> None:
    """Log what a run ends with that overfits some batches: its scores on other images have no meaning."""
    ends = ", ".join(f"{row['train/loss']:.4f} in epoch {row['epoch']}" for row in (history[0], history[-1]))
    log.info("training loss of %s, which should approach 0: %s", plural(batches, "batch", "batches"), ends)


def _build_loggers(config: dict[str, Any], step: int | None) -> list[Any]:
    """Build the loggers; entries after ``step``, from which a run resumes, are deleted from files."""
    parts = config["logger"]
    if "_target_" in parts:  # a logger of another package, or a run of an older version
        if parts["_target_"] not in listed_targets():
            return [build(parts)]
        parts = {"tensorboard": parts}
    options = {"tensorboard": {"default_hp_metric": False}}
    return [build(part, purge_step=step, **options.get(name, {})) for name, part in parts.items() if part]


def _final_scores(record: dict[str, Any], subsets: list[str]) -> dict[str, float]:
    """Return the scores of the best checkpoint by name; those of the metric of ``monitor`` are sorted first."""
    monitor = record["monitor"]
    scores = {f"Best {monitor['name']}": monitor["value"]}
    for subset in subsets:
        for metric, value in record[subset].items():
            if metric in ("n", "n_subset", "positives", "threshold") or value is None:
                continue
            name = f"{subset}/{metric}"
            if subset == "test" and metric == monitor["name"].partition("/")[2]:
                name = f"Final {name}"
            elif subset == "val":
                name += " (best epoch)"
            scores[name] = value["value"] if isinstance(value, dict) else value
    return scores


def _log_heatmaps(
    logger: Any,
    heatmaps: Heatmaps,
    data: RadiographDataModule,
    predictions: pd.DataFrame,
    full: float | None,
    step: int,
) -> None:
    """Log radiographs of fractures with their heatmaps as TensorBoard images, one grid per subset.

    TensorBoard sorts by name, and opens the first two groups, which are the curves of ``train/`` and ``val/``.
    """
    boxes = data.source.boxes()
    for subset, table in predictions.groupby("split"):
        table = shown_images.spread_by_probability(table.merge(data.catalogue[["image_id", "path"]], on="image_id"))
        if drawn := draw_radiographs(table, data.root, boxes, heatmaps, full=full):
            logger.experiment.add_image(f"x-rays/{subset}_heatmaps", tile(drawn), step, dataformats="HWC")
