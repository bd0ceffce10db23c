"""``fractatlas evaluate``: score a checkpoint, or a table of predictions of any system."""

import logging
from pathlib import Path
from typing import Any

from fractatlas.cli import hydra_command
from fractatlas.cli.runs import write_page
from fractatlas.config.schema import EvaluateConfig
from fractatlas.errors import InputError
from fractatlas.progress_bar import waiting
from fractatlas.training.silence_warnings import quieten

log = logging.getLogger(__name__)
# Where and why a key has no effect.
WITH_CKPT = hydra_command.TRAINING_KEYS | {
    "threshold": "with ckpt=..., the checkpoint stores its threshold",
    "catalogue": "with ckpt=..., the catalogue is that of the data folder",
    "heatmaps": "with ckpt=..., the network computes the heatmaps",
    "trainer.precision": "here, scores are computed in float32",
}
WITHOUT_DATA = {
    "paths.data_root": "with ckpt=..., data_root=DIR sets the data folder",
    "recalibrate": "without data=..., the temperature was chosen on images of the same data",
}
WITH_PREDICTIONS = {
    "data": "with predictions=..., catalogue=FILE and data_root=DIR describe the images",
    "recalibrate": "with predictions=..., no temperature is chosen again",
    "subset": "with predictions=..., the column split selects the subsets",
    "split_file": "with predictions=..., the column split selects the subsets",
    "gradcam": "with predictions=..., no network is used",
    "trainer": "with predictions=..., no network is used",
    "trusted_targets": "with predictions=..., no network is used",
}


def evaluate() -> None:
    """Score a checkpoint or a table of predictions, and write a run folder."""
    hydra_command.run("evaluate", EvaluateConfig, _evaluate, _check, hydra_command.TRAINING_KEYS)


def _check(config: dict[str, Any]) -> None:
    """Check that one thing is scored, that every argument has an effect, and that the files exist."""
    if bool(config["ckpt"]) == bool(config["predictions"]):
        raise InputError("give exactly one of ckpt=<run folder> and predictions=FILE")
    if config["predictions"]:
        from fractatlas.evaluation.external_predictions import stored_operating_point

        reasons = WITH_PREDICTIONS
        if file := stored_operating_point(Path(config["predictions"])):
            reasons = reasons | {"threshold": f"with predictions=..., {file} stores their threshold"}
        hydra_command.refuse_overrides(reasons)
        hydra_command.require_files(config, "predictions", "catalogue", "heatmaps")
    else:
        from fractatlas.data.sources.fracatlas import FracAtlas
        from fractatlas.data.sources.registry import open_source
        from fractatlas.data.splits import scored_subset

        data = config.get("data")
        subset = scored_subset(config["subset"], bool(data))
        other, used = ("val", "test") if subset == "test" else ("test", "val")
        reasons = WITH_CKPT | {
            f"trainer.limit_{other}_batches": f"with subset={subset}, trainer.limit_{used}_batches applies"
        }
        if not config["report"]:
            reasons |= {"gradcam": "with report=false, no heatmaps are computed"}
        reasons |= {"data_root": "with data=..., data.root=DIR sets the data folder"} if data else WITHOUT_DATA
        hydra_command.refuse_overrides(reasons)
        if data and subset not in ("test", "all"):
            raise InputError(f"subset={subset}: the network was not trained on data=...; use subset=all or subset=test")
        hydra_command.require_checkpoint(config)
        hydra_command.require_files(config, "split_file")
        hydra_command.require_accelerator(config["trainer"])
        if data:
            open_source(data).require()
        if config["data_root"] and not Path(config["data_root"]).is_dir():
            FracAtlas(config["data_root"]).require()  # other layouts are checked when the checkpoint is loaded


def _evaluate(config: dict[str, Any]) -> None:
    quieten()
    if config["predictions"]:
        from fractatlas.evaluation.external_predictions import evaluate_predictions

        evaluate_predictions(config)
    else:
        log.info("run folder: %s", config["paths"]["output_dir"])
        with waiting("loading PyTorch"):  # after the checks, because it is slow to import
            from fractatlas.inference.evaluate import evaluate

        if not evaluate(config):
            return  # the first process writes the report
    if config["report"]:
        write_page(Path(config["paths"]["output_dir"]))
