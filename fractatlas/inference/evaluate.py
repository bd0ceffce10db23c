"""Score a checkpoint on one subset of the split that it was trained with, or on all images of any data set."""

import copy
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import yaml

from fractatlas.build import build_data, build_trainer, model_name
from fractatlas.data.catalogue import SEEN
from fractatlas.data.datamodule import RadiographDataModule
from fractatlas.data.sources.registry import open_source
from fractatlas.data.splits import (
    ALL,
    SUBSETS,
    all_images,
    count_changed,
    count_recorded,
    given_test_images,
    read_hashes,
    read_seen,
    recorded_split,
    scored_subset,
)
from fractatlas.errors import InputError
from fractatlas.evaluation import elsewhere, operating_point, provenance
from fractatlas.evaluation.markdown import METRIC_TITLES
from fractatlas.evaluation.operating_point import DEFAULT_OPERATING_POINT
from fractatlas.evaluation.predictions_table import read_predictions
from fractatlas.evaluation.run_folder import best_checkpoint
from fractatlas.inference.model import UNFINISHED, load_model
from fractatlas.io import write_csv, write_text
from fractatlas.models.heatmaps import heatmap_kind
from fractatlas.training.profiling import keep_profile, summarise_profile
from fractatlas.training.progress import TerminalProgressBar
from fractatlas.training.scoring import predict_subset, score_heatmaps, write_scores
from fractatlas.training.silence_warnings import quieten
from fractatlas.wording import format_duration, join_names, plural

log = logging.getLogger(__name__)
LOGGED = ("auroc", "sensitivity", "specificity")  # differences between own and other data


def evaluate(config: dict[str, Any]) -> bool:
    """Score a checkpoint.

    Writes ``catalogue.csv, split.csv, training_config.yaml`` and what ``write_scores`` writes to
    ``paths.output_dir``.

    Args:
        config: a checked ``EvaluateConfig`` with ``ckpt``, plain.

    Returns:
        Whether this process is the first of its group, the one that wrote the files.

    Raises:
        InputError: the file is not a checkpoint of this project, the data are missing, or the subset is not ``all`` and
            there is no split.
    """
    started = time.monotonic()
    quieten()
    other = config.get("data")
    run, subset = Path(config["paths"]["output_dir"]), scored_subset(config["subset"], bool(other))
    model = load_model(best_checkpoint(Path(config["ckpt"])), trusted_targets=config["trusted_targets"])
    split = _training_split(config, model.checkpoint, subset, bool(other))
    trained = model.config
    trained["data"]["cache_dir"] = config["paths"]["cache_dir"]
    if config["data_root"]:
        root = trained["data"]["root"]
        if root is None or Path(config["data_root"]).resolve() != Path(root).resolve():
            trained["data"] |= {"root": config["data_root"]} | (
                {"prepare": None} if "prepare" in trained["data"] else {}
            )
    own = open_source(trained["data"])
    scored = trained | {"data": copy.deepcopy(other or trained["data"])}
    source = open_source(scored["data"])
    source.require()
    seen = read_seen(split) if other and split else None
    lightning.seed_everything(trained["seed"], workers=True, verbose=False)
    trainer = build_trainer(config, run, callbacks=[TerminalProgressBar()], logger=False)
    keep_profile(trainer, run)
    make_split: Any = all_images if subset == ALL else partial(recorded_split, path=str(split))
    if other and subset != ALL:
        make_split = given_test_images
    data = build_data(scored, split=make_split, seen=seen)
    data.prepare_data()
    data.setup()
    predictions = predict_subset(trainer, model.classifier, data, subset)
    profile = summarise_profile(trainer)
    if not trainer.is_global_zero:
        return False
    if model.operating_point is None:
        log.warning(UNFINISHED, model.checkpoint)
    record = {
        "task_name": config["task_name"],
        "checkpoint": str(model.checkpoint),
        "model": model_name(trained),
        "operating_point": dict(model.operating_point or DEFAULT_OPERATING_POINT),
    }
    heatmaps = None
    if config["report"]:
        heatmaps = score_heatmaps(predictions, model.classifier, data, trainer, config["gradcam"])
        record["heatmaps"] = heatmap_kind(model.backbone, config["gradcam"])
        if record["heatmaps"] != heatmap_kind(model.backbone):
            record["operating_point"].pop("box_threshold", None)  # it is a probability of the fracture map
    if subset == ALL:
        record["all_images"] = _trained_on(data.subset(ALL), split)
    elif split and not other and (hashes := read_hashes(split)) is not None:
        record["changed_images"] = {subset: count_changed(data.subset(subset), hashes)}

    if other:
        trained_on = {
            "own": {"name": own.name, "finding": own.finding},
            "same_source": Path(source.place).resolve() == Path(own.place).resolve(),
        }
        record["elsewhere"] = trained_on | _compare_with_own(
            config, record, predictions, data, model.checkpoint, seen is not None
        )

    def timing() -> dict[str, float]:
        return {"total_seconds": round(time.monotonic() - started, 1)}

    write_csv(run / "catalogue.csv", data.catalogue)
    write_csv(run / "split.csv", data.split)
    write_text(run / "training_config.yaml", yaml.safe_dump(trained, sort_keys=False, allow_unicode=True))
    record = write_scores(run, record, predictions, data, trainer, heatmaps, timing)
    log.info("time (h:min:s): %s", format_duration(record["timing"]["total_seconds"]))
    log.info("results in %s", run)
    for notice in (*provenance.finding_notices(record), *provenance.content_notices(record)):
        log.warning("%s", notice)
    for line in provenance.summarise(subset, record, trained):
        log.info("%s", line)
    if other:
        _log_elsewhere(record["elsewhere"])
    if profile:
        log.info("%s", profile)
    return True


def _compare_with_own(
    config: dict[str, Any],
    record: dict[str, Any],
    predictions: pd.DataFrame,
    data: RadiographDataModule,
    checkpoint: Path,
    checked: bool,
) -> dict[str, Any]:
    """Return the entry ``elsewhere`` of ``metrics.json``, without ``own`` and ``same_source``.

    ``near_duplicates`` has the number and the names of the images that were excluded because the network was trained or
    selected with an image that is nearly identical; ``None`` if this is not known. ``differences`` is that of
    ``elsewhere.compare_with_own``, or ``no_differences`` states why there is none. ``recalibration`` is that of
    ``elsewhere.recalibrate``.
    """
    point = record["operating_point"]
    seen = data.catalogue.loc[data.catalogue["excluded"] == SEEN, "image_id"]
    found = {"n": len(seen), "image_ids": seen.tolist()} if checked else None
    result: dict[str, Any] = {"name": data.source.name, "finding": data.source.finding, "near_duplicates": found}
    calibrated = operating_point.calibrate(predictions["probability"], point["temperature"])
    file = checkpoint.absolute().parent.parent / "predictions.csv"
    own = read_predictions(file).query("split == 'test'") if file.is_file() and checkpoint.name == "best.ckpt" else None
    if own is None or own.empty:
        reason = (
            "there are no predictions of this checkpoint on its own test subset (predictions.csv in its run folder)"
        )
        result["no_differences"] = reason
    else:
        others = predictions.assign(probability_calibrated=calibrated)
        result["counts"] = {
            name: {"n": len(table), "positives": int(table["label"].sum())}
            for name, table in (("own", own), ("other", others))
        }
        result["differences"] = elsewhere.compare_with_own(own, others, point["threshold"])
    if share := config.get("recalibrate"):
        result["recalibration"] = elsewhere.recalibrate(predictions, share, point["temperature"])
    return result


def _log_elsewhere(result: dict[str, Any]) -> None:
    """Log what was excluded, and how the scores differ from those on the own test subset."""
    if result["same_source"]:
        log.warning("%s is the data set of the training, not data from elsewhere", result["name"])
    seen = result["near_duplicates"]
    if seen is None:
        log.warning("near-duplicates of training images: not checked, there is no catalogue.csv of the training")
    elif seen["n"]:
        listed = join_names(seen["image_ids"])
        log.warning(
            "excluded %s that nearly equal training or validation images: %s", plural(seen["n"], "image"), listed
        )
    else:
        log.info("no image nearly equals a training or validation image of the network")
    for name in LOGGED:
        if row := result.get("differences", {}).get(name):
            log.info("%s", elsewhere.describe_difference(METRIC_TITLES[name], row))
    if "no_differences" in result:
        log.info("no comparison with the own test subset: %s", result["no_differences"])


def _training_split(config: dict[str, Any], checkpoint: Path, subset: str, other: bool) -> Path | None:
    """Return the split of the checkpoint's training, or ``None`` if it is missing and not needed."""
    if config["split_file"]:
        if not Path(config["split_file"]).is_file():
            raise InputError(f"split_file={config['split_file']}: no such file; correct the path")
        return Path(config["split_file"])
    split = checkpoint.absolute().parent.parent / "split.csv"
    if split.is_file():
        return split
    if subset != ALL and not other:
        remedy = f"give the split of the training (split_file=FILE), or score every image (subset={ALL} data_root=DIR)"
        raise InputError(f"subset={subset}: {checkpoint} is not in a run folder (no split.csv); {remedy}")
    return None


def _trained_on(images: pd.DataFrame, split: Path | None) -> dict[str, Any]:
    """Return ``split``, the number of images in each of its subsets, and ``found_by`` (``content`` or ``name``).

    ``split`` and the numbers are ``None`` if the split is not known.
    """
    if split is None:
        return {"split": None} | dict.fromkeys((*SUBSETS, "none"))
    hashes = read_hashes(split)
    found_by = {"found_by": "name" if hashes is None else "content"}
    return {"split": str(split)} | count_recorded(images, path=str(split), recorded=hashes) | found_by
