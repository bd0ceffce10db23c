"""After the fit: what the best checkpoint says of validation and test, and everything that is written of it."""

import logging
import platform
import subprocess
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
import torchvision

import fractatlas
from fractatlas.data.datamodule import RadiographDataModule
from fractatlas.data.splits import PARTS
from fractatlas.errors import InputError
from fractatlas.evaluation import metrics, operating_point
from fractatlas.files import write_csv, write_json
from fractatlas.models.classifier import FractureClassifier
from fractatlas.models.heatmaps import part_heatmaps, write_heatmaps
from fractatlas.models.weights import read_checkpoint, write_checkpoint
from fractatlas.report import gallery, page
from fractatlas.report.evidence import gather

log = logging.getLogger(__name__)


def predict(
    trainer: lightning.Trainer,
    classifier: FractureClassifier,
    data: RadiographDataModule,
    part: str,
    checkpoint: Path,
) -> pd.DataFrame:
    """Run a checkpoint over one part of the split.

    Returns:
        ``image_id, group, split, label, probability`` in the split's order, the same on every process.

    Raises:
        InputError: the checkpoint does not fit the classifier.
    """
    score = trainer.test if part == "test" else trainer.validate
    data.validated_part = part
    try:
        score(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)
    except RuntimeError as error:
        if "state_dict" not in str(error):
            raise
        raise InputError(f"{checkpoint} holds another architecture than its configuration names") from None
    rows = classifier.predictions["test" if part == "test" else "val"]
    table = data.part(part).iloc[rows[:, 0].long().tolist()]
    probability = rows[:, 1].double().sigmoid().numpy()
    return table.assign(probability=probability)[["image_id", "group", "split", "label", "probability"]]


def write_outcome(
    run: Path,
    record: dict[str, Any],
    predictions: pd.DataFrame,
    classifier: FractureClassifier,
    data: RadiographDataModule,
    device: torch.device,
    report: bool,
    config: dict[str, Any],
) -> dict[str, Any]:
    """Write ``predictions.csv``; with ``report``, ``heatmaps.npz`` and the page; and last of all ``metrics.json``.

    Args:
        run: the folder, which has ``catalogue.csv`` and ``split.csv``.
        record: what ``metrics.json`` shall say, with ``operating_point``; scores are added.
        predictions: of ``predict``, of one or more parts.
        classifier: with the weights that gave the predictions.
        data: where they came from.
        device: to make heatmaps on.
        report: whether to make heatmaps and the page.
        config: under which the network was trained.

    Returns:
        The record, complete.
    """
    point = record["operating_point"]
    calibrated = operating_point.calibrate(predictions["probability"], point["temperature"])
    predictions = predictions.assign(probability_calibrated=calibrated)
    parts = {name: table for name in PARTS if len(table := predictions[predictions["split"] == name])}
    scores = {name: metrics.evaluate(table, point["threshold"]) for name, table in parts.items()}
    record = record | scores | {"data": _data_card(data), "versions": _versions()}
    write_csv(run / "predictions.csv", predictions)
    if report:
        _write_heatmaps(run / "heatmaps.npz", parts, point["threshold"], classifier, data, device)
        record |= page.summary(page.write(run, gather(run / "predictions.csv", record, root=data.root, config=config)))
    write_json(run / "metrics.json", record)
    return record


def checkpoint_operating_point(checkpoint: Path) -> dict[str, Any]:
    """The ``rule, threshold, temperature`` that a run settled; ``UNSETTLED`` where it did not end."""
    settled = read_checkpoint(checkpoint).get("operating_point")
    if settled is None:
        log.warning("%s is not of a run that ended: threshold 0.5, probabilities not calibrated", checkpoint)
    return settled or dict(operating_point.UNSETTLED)


def keep_operating_point(point: dict[str, Any], checkpoint: Path) -> None:
    """Write an operating point into a checkpoint, whole or not at all."""
    write_checkpoint(checkpoint, read_checkpoint(checkpoint) | {"operating_point": point})


def heatmap_grid(run: Path, part: str) -> np.ndarray | None:
    """Radiographs of fractures with their heatmaps, for TensorBoard: uint8 (height, width, 3); ``None`` without any."""
    evidence = gather(run / "predictions.csv")
    table = evidence.predictions[evidence.predictions["split"] == part]
    table = gallery.across(table.merge(evidence.catalogue[["image_id", "path"]], on="image_id"))
    drawn = gallery.pictures(table, evidence.root, evidence.boxes, evidence.heatmaps) if evidence.root else []
    return gallery.grid(drawn) if drawn else None


def device_name(trainer: lightning.Trainer) -> str:
    """How many of which device."""
    kind = trainer.strategy.root_device.type
    name = torch.cuda.get_device_name(trainer.strategy.root_device) if kind == "cuda" else platform.machine()
    return f"{trainer.world_size} x {kind} ({name})"


def _write_heatmaps(
    path: Path,
    parts: dict[str, pd.DataFrame],
    threshold: float,
    classifier: FractureClassifier,
    data: RadiographDataModule,
    device: torch.device,
) -> None:
    """Look at every fractured image, and at the false alarms that the page shows."""
    ids, heats, views = [], [], []
    backbone = classifier.backbone.to(device)
    for name, table in parts.items():
        shown = pd.concat([table[table["label"] == 1], gallery.mistakes(table, threshold)])["image_id"]
        images = data.part(name)
        rows = np.flatnonzero(images["image_id"].isin(shown))
        if not len(rows):
            continue
        batches = data.rows_dataloader(name, rows.tolist())
        index, _, heat = part_heatmaps(backbone, batches, data.preprocess.normalise, device)
        seen = images.iloc[index]
        ids += seen["image_id"].tolist()
        heats.append(heat)
        views += [data.preprocess.view(row.width, row.height) for row in seen.itertuples()]
    if ids:
        write_heatmaps(path, ids, np.concatenate(heats), np.array(views))


def _data_card(data: RadiographDataModule) -> dict[str, Any]:
    excluded = data.catalogue.loc[data.catalogue["excluded"] != "", "excluded"]
    labels = {part: data.split.loc[data.split["split"] == part, "label"] for part in PARTS}
    return {
        "root": str(data.root),
        "images": len(data.catalogue),
        "excluded": {reason: int(count) for reason, count in excluded.value_counts().items()},
        "crossings": data.crossings,
        "split": {part: {"n": len(rows), "positives": int(rows.sum())} for part, rows in labels.items()},
    }


def _versions() -> dict[str, str]:
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
    )
    return {
        "fractatlas": fractatlas.__version__,
        "commit": git.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning": lightning.__version__,
    }
