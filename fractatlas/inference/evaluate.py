"""Score a checkpoint on one subset of the split that it was trained with."""

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import yaml

from fractatlas.build import build_data, build_trainer
from fractatlas.data.splits import recorded_split
from fractatlas.errors import InputError
from fractatlas.evaluation import provenance
from fractatlas.evaluation.operating_point import DEFAULT_OPERATING_POINT
from fractatlas.inference.model import UNFINISHED, load_model
from fractatlas.io import write_csv, write_text
from fractatlas.training.scoring import predict_subset, write_scores
from fractatlas.training.silence_warnings import quieten

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
        InputError: the file is not a checkpoint of this project, or its run's ``split.csv`` or data are missing.
    """
    started = time.monotonic()
    quieten()
    run, checkpoint, subset = Path(config["paths"]["output_dir"]), Path(config["ckpt"]), config["subset"]
    model = load_model(checkpoint)
    trained = model.config
    trained["data"]["cache_dir"] = config["paths"]["cache_dir"]
    if config["data_root"]:
        trained["data"] |= {"root": config["data_root"], "prepare": None}
    lightning.seed_everything(trained["seed"], workers=True, verbose=False)
    split = checkpoint.absolute().parents[1] / "split.csv"
    if not split.is_file():
        raise InputError(f"{split} is missing; evaluate a checkpoint in its run folder, <run folder>/checkpoints/")
    data = build_data(trained, split=partial(recorded_split, path=str(split)))
    data.prepare_data()
    data.setup()
    trainer = build_trainer(config, run, callbacks=[], logger=False, enable_progress_bar=False)
    predictions = predict_subset(trainer, model.classifier, data, subset)
    if not trainer.is_global_zero:
        return False
    if model.operating_point is None:
        log.warning(UNFINISHED, checkpoint)
    record = {
        "task_name": config["task_name"],
        "checkpoint": str(checkpoint),
        "model": trained["model"]["variant"],
        "operating_point": model.operating_point or dict(DEFAULT_OPERATING_POINT),
        "timing": {"total_seconds": round(time.monotonic() - started, 1)},
    }
    write_csv(run / "catalogue.csv", data.catalogue)
    write_csv(run / "split.csv", data.split)
    write_text(run / "training_config.yaml", yaml.safe_dump(trained, sort_keys=False, allow_unicode=True))
    record = write_scores(run, record, predictions, model.classifier, data, trainer, config["report"])
    log.info("%s; results in %s", provenance.summarise(subset, record, trained), run)
    return True
