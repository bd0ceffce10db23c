"""Score a checkpoint on one subset of the split that it was trained with, or on all images of a data folder."""

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import yaml

from fractatlas.build import build_data, build_trainer, model_name
from fractatlas.data.splits import (
    ALL,
    SUBSETS,
    all_images,
    count_changed,
    count_recorded,
    read_hashes,
    recorded_split,
)
from fractatlas.errors import InputError
from fractatlas.evaluation import provenance
from fractatlas.evaluation.operating_point import DEFAULT_OPERATING_POINT
from fractatlas.evaluation.run_folder import best_checkpoint
from fractatlas.inference.model import UNFINISHED, load_model
from fractatlas.io import write_csv, write_text
from fractatlas.models.heatmaps import heatmap_kind
from fractatlas.training.profiling import keep_profile, summarise_profile
from fractatlas.training.progress import TerminalProgressBar
from fractatlas.training.scoring import predict_subset, score_heatmaps, write_scores
from fractatlas.training.silence_warnings import quieten
from fractatlas.wording import format_duration

log = logging.getLogger(__name__)


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
    run, subset = Path(config["paths"]["output_dir"]), config["subset"]
    model = load_model(best_checkpoint(Path(config["ckpt"])), trusted_targets=config["trusted_targets"])
    split = _training_split(config, model.checkpoint)
    trained = model.config
    trained["data"]["cache_dir"] = config["paths"]["cache_dir"]
    if config["data_root"] and Path(config["data_root"]).resolve() != Path(trained["data"]["root"]).resolve():
        trained["data"] |= {"root": config["data_root"], "prepare": None}
    lightning.seed_everything(trained["seed"], workers=True, verbose=False)
    trainer = build_trainer(config, run, callbacks=[TerminalProgressBar()], logger=False)
    keep_profile(trainer, run)
    data = build_data(trained, split=all_images if subset == ALL else partial(recorded_split, path=str(split)))
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
    elif split and (hashes := read_hashes(split)) is not None:
        record["changed_images"] = {subset: count_changed(data.subset(subset), hashes)}

    def timing() -> dict[str, float]:
        return {"total_seconds": round(time.monotonic() - started, 1)}

    write_csv(run / "catalogue.csv", data.catalogue)
    write_csv(run / "split.csv", data.split)
    write_text(run / "training_config.yaml", yaml.safe_dump(trained, sort_keys=False, allow_unicode=True))
    record = write_scores(run, record, predictions, data, trainer, heatmaps, timing)
    log.info("time (h:min:s): %s", format_duration(record["timing"]["total_seconds"]))
    log.info("results in %s", run)
    for notice in provenance.content_notices(record):
        log.warning("%s", notice)
    for line in provenance.summarise(subset, record, trained):
        log.info("%s", line)
    if profile:
        log.info("%s", profile)
    return True


def _training_split(config: dict[str, Any], checkpoint: Path) -> Path | None:
    """Return the file of the split that the checkpoint was trained with, or ``None`` for ``subset=all`` without one."""
    if config["split_file"]:
        if not Path(config["split_file"]).is_file():
            raise InputError(f"split_file={config['split_file']}: no such file; correct the path")
        return Path(config["split_file"])
    split = checkpoint.absolute().parent.parent / "split.csv"
    if split.is_file():
        return split
    if config["subset"] != ALL:
        remedy = f"give the split of the training (split_file=FILE), or score every image (subset={ALL} data_root=DIR)"
        raise InputError(f"subset={config['subset']}: {checkpoint} is not in a run folder (no split.csv); {remedy}")
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
