"""Score a network on the subsets of a split, and write the scores into a run folder."""

import logging
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
import torchvision

import fractatlas
from fractatlas.data.datamodule import RadiographDataModule
from fractatlas.data.splits import SCORED
from fractatlas.errors import InputError
from fractatlas.evaluation import metrics, operating_point, provenance, subset_assessment
from fractatlas.evaluation.exam_scores import score_exams
from fractatlas.evaluation.localisation import Heatmaps
from fractatlas.io import write_csv, write_json
from fractatlas.models.classifier import FractureClassifier
from fractatlas.models.heatmaps import compute_heatmaps, write_heatmaps
from fractatlas.progress_bar import track, waiting

log = logging.getLogger(__name__)
CODE = (":/fractatlas", ":/conf")  # paths of the repository whose changes make the commit dirty


def predict_subset(
    trainer: lightning.Trainer,
    classifier: FractureClassifier,
    data: RadiographDataModule,
    subset: str,
    checkpoint: Path | None = None,
) -> pd.DataFrame:
    """Predict the images of one subset on the trainer's devices, with the weights of ``checkpoint`` if it is given.

    Returns:
        ``image_id, group, split, label, probability`` in the split's order, the same on every process.

    Raises:
        InputError: the checkpoint does not fit the classifier.
    """
    score = trainer.test if subset == "test" else trainer.validate
    data.validation_subset = subset
    try:
        score(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)
    except RuntimeError as error:
        if "state_dict" not in str(error):
            raise
        raise InputError(f"{checkpoint}: weights do not match the configuration; use an unedited checkpoint") from None
    rows = classifier.predictions["test" if subset == "test" else "val"]
    table = data.subset(subset).iloc[rows[:, 0].long().tolist()]
    probability = rows[:, 1].double().sigmoid().numpy()
    return table.assign(probability=probability)[["image_id", "group", "split", "label", "probability"]]


def write_scores(
    run: Path,
    record: dict[str, Any],
    predictions: pd.DataFrame,
    data: RadiographDataModule,
    trainer: lightning.Trainer,
    heatmaps: Heatmaps | None,
    timing: Callable[[], dict[str, float]],
) -> dict[str, Any]:
    """Write ``predictions.csv``, the other files of scores, and finally ``metrics.json``.

    Args:
        run: the run folder.
        record: the contents of ``metrics.json`` so far, with ``operating_point``; scores are added.
        predictions: from ``predict_subset``, of one subset or several.
        data: the data module that gave the images.
        trainer: that ran the network.
        heatmaps: from ``score_heatmaps``. With them, also what a report shows is written: ``heatmaps.npz``,
            ``strata.csv``, ``localisation.csv``, ``candidates.csv``.
        timing: returns the durations for ``metrics.json``; called when everything else is computed.

    Returns:
        The complete record.
    """
    point = record["operating_point"]
    calibrated = operating_point.calibrate(predictions["probability"], point["temperature"])
    predictions = predictions.assign(probability_calibrated=calibrated)
    subsets = {name: table for name in SCORED if len(table := predictions[predictions["split"] == name])}
    with waiting("computing the scores and their 95 % intervals"):
        scores = {
            name: metrics.evaluate(table, point["threshold"]) | {"n_subset": len(data.subset(name))}
            for name, table in subsets.items()
        }
    for name, score in scores.items():
        if score["n"] < score["n_subset"]:
            limit = "limit_test_batches" if name == "test" else "limit_val_batches"
            limit = "overfit_batches" if getattr(trainer, "overfit_batches", 0) else limit
            log.warning(
                "%s: only %s were scored, because trainer.%s is set", name, provenance.count_images(score), limit
            )
    described = {"data": _describe_data(data), "leaks": data.leaks, "versions": _versions()}
    if exams := _score_exams(subsets, data.catalogue, point["threshold"]):
        record = record | {"exams": exams}
    record = record | {"device": _device_name(trainer)} | scores | described
    write_csv(run / "predictions.csv", predictions)
    if heatmaps:
        write_heatmaps(run / "heatmaps.npz", heatmaps)
        with waiting("computing the scores of strata and heatmaps"):
            assessed = subset_assessment.assess(
                predictions,
                point["threshold"],
                data.catalogue,
                data.split.loc[data.split["split"] == "train", ["image_id", "label"]],
                data.source.boxes(),
                heatmaps,
                point.get("box_threshold"),
            )
        record |= subset_assessment.write(run, assessed)
    record |= {"timing": timing()}
    write_json(run / "metrics.json", record)
    return record


def _score_exams(
    subsets: dict[str, pd.DataFrame], catalogue: pd.DataFrame, threshold: float
) -> dict[str, dict[str, Any]]:
    """Return ``exam_scores.score_exams`` of each subset, if the data give exams."""
    if "given_exam" not in catalogue:
        return {}
    exams = catalogue[["image_id", "given_exam"]]
    scores = {name: score_exams(table.merge(exams, on="image_id"), threshold) for name, table in subsets.items()}
    return {name: score for name, score in scores.items() if score}


def _device_name(trainer: lightning.Trainer) -> str:
    """Return number, type and name of the trainer's devices, such as ``2 x cuda (NVIDIA H100)``."""
    kind = trainer.strategy.root_device.type
    name = torch.cuda.get_device_name(trainer.strategy.root_device) if kind == "cuda" else platform.machine()
    return f"{trainer.world_size} x {kind} ({name})"


def score_heatmaps(
    predictions: pd.DataFrame,
    classifier: FractureClassifier,
    data: RadiographDataModule,
    trainer: lightning.Trainer,
    gradcam: bool = False,
) -> Heatmaps:
    """Compute the heatmaps of all images of a table of predictions on the trainer's device.

    Args:
        predictions: from ``predict_subset``, of one subset or several, with at least one image.
        classifier: with the weights that gave the predictions.
        data: the data module that gave the images.
        trainer: that ran the network.
        gradcam: as in ``models.heatmaps.with_heatmaps``.

    Returns:
        The heatmaps as float16; higher values are clipped to its largest.
    """
    ids, arrays, views = [], [], []
    device = trainer.strategy.root_device
    backbone = classifier.backbone.to(device)
    for name, table in predictions.groupby("split", sort=False):
        images = data.subset(name)
        rows = np.flatnonzero(images["image_id"].isin(table["image_id"]))
        loader = data.rows_dataloader(name, rows.tolist())
        batches = track(loader, f"heatmaps {name}", len(loader))
        index, heatmaps = compute_heatmaps(backbone, batches, data.preprocess.normalise, device, gradcam)
        images = images.iloc[index]
        ids += images["image_id"].tolist()
        arrays.append(np.minimum(heatmaps, np.finfo(np.float16).max).astype(np.float16))
        sizes = zip(images["width"], images["height"], strict=True)
        views += [data.preprocess.view(int(width), int(height)) for width, height in sizes]
    return Heatmaps(np.array(ids, dtype=np.str_), np.concatenate(arrays), np.array(views, dtype=np.float32))


def _describe_data(data: RadiographDataModule) -> dict[str, Any]:
    excluded = data.catalogue.loc[data.catalogue["excluded"] != "", "excluded"]
    labels = {name: data.split.loc[data.split["split"] == name, "label"] for name in data.subset_names}
    return {
        "name": data.source.name,
        "root": str(data.root),
        "source": data.source.settings,
        "finding": data.source.finding,
        "images": len(data.catalogue),
        "excluded": {reason: int(count) for reason, count in excluded.value_counts().items()},
        "split": {name: {"n": len(rows), "positives": int(rows.sum())} for name, rows in labels.items()},
    }


def _versions() -> dict[str, str]:
    return {
        "fractatlas": fractatlas.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning": lightning.__version__,
    }


def _commit() -> str:
    """Return the git commit of this package; ``unknown`` without git or repository.

    ``-dirty`` is appended if the code or its configuration was changed. Other files do not count, because a plan writes
    its tables into the repository.
    """
    described, changes = ["git", "describe", "--always"], ["git", "diff", "--quiet", "HEAD", "--", *CODE]
    try:
        commit, changed = (
            subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
            for command in (described, changes)
        )
    except OSError:  # git is not installed, as in many containers
        return "unknown"
    return (commit.stdout.strip() or "unknown") + ("-dirty" if changed.returncode == 1 else "")
