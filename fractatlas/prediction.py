"""From image files to ``predictions.csv``: read ahead in threads, run a checkpoint's network, list what failed."""

import logging
import os
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fractatlas.data.inputs import Inputs
from fractatlas.data.reading import UnreadableError, read_radiograph
from fractatlas.data.transforms import Preprocess
from fractatlas.errors import InputError
from fractatlas.evaluation import operating_point
from fractatlas.evaluation.localisation import place
from fractatlas.files import whole, write_csv
from fractatlas.models.classifier import FractureClassifier
from fractatlas.models.heatmaps import with_heatmaps
from fractatlas.models.weights import read_checkpoint
from fractatlas.progress import track
from fractatlas.report.overlays import overlay
from fractatlas.training.run import build, build_classifier, build_trainer, checkpoint_config

log = logging.getLogger(__name__)

OVERLAY_SIDE = 512  # pixels
AHEAD = 2  # batches of preprocessed images that may wait for the network


def predict(config: dict[str, Any], inputs: Inputs) -> int:
    """Write ``predictions.csv`` and, where there is something to list, ``errors.csv`` into ``paths.output_dir``.

    ``predictions.csv`` has ``path``, ``probability`` (of a fracture), ``probability_calibrated`` where the checkpoint
    has a temperature, and ``prediction`` (1 from the checkpoint's threshold on): a row per readable image, in the
    order of ``find_inputs``. ``errors.csv`` has ``path, error``. With ``heatmaps``, each readable image is drawn with
    its heatmap into ``overlays/``.

    Args:
        config: a checked ``PredictConfig``, plain.
        inputs: what ``find_inputs`` found for ``config["input"]``.

    Returns:
        How many inputs could not be read.

    Raises:
        InputError: the checkpoint is not one of ours, or this machine has no such accelerator.
    """
    _quieten()
    run, checkpoint = Path(config["paths"]["output_dir"]), Path(config["ckpt"])
    trained = checkpoint_config(checkpoint)
    _tell(inputs)
    preprocess, classifier = build(trained["preprocess"]), load_classifier(trained, checkpoint)
    trainer = build_trainer(config, run, callbacks=[], logger=False, enable_progress_bar=False)
    if trainer.world_size > 1:
        raise InputError("predict.py works on one device: leave out trainer.devices, and take trainer=cpu or gpu")
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    for name in ("predictions.csv", "errors.csv"):
        (run / name).unlink(missing_ok=True)  # of an earlier call
    for drawn in (run / "overlays").glob(f"{'[0-9]' * 5}_*.jpg"):
        drawn.unlink()

    errors, paths, logits = dict(inputs.errors), [], []
    classifier.to(device).eval()
    images = read_ahead(inputs.images, preprocess, config["threads"] or os.cpu_count(), AHEAD * config["batch_size"])
    images = track(images, "predicting", len(inputs.images))
    for names, pixels in batches(images, config["batch_size"], errors):
        with torch.inference_mode(), precision.forward_context():
            normalised = preprocess.normalise(pixels.to(device))
            if config["heatmaps"]:
                found, heat = with_heatmaps(classifier.backbone, normalised)
            else:
                found = classifier(normalised)
        if config["heatmaps"]:
            for row, path in enumerate(names):
                file = run / "overlays" / f"{len(paths) + row + 1:05d}_{_plain(path)}.jpg"
                write_overlay(file, path, heat[row].cpu().numpy(), preprocess, found[row].sigmoid().item())
        paths += names
        logits.append(found.double().cpu())
    table = _table(paths, torch.cat(logits) if logits else torch.zeros(0), read_checkpoint(checkpoint))
    if errors:
        write_csv(run / "errors.csv", pd.DataFrame(list(errors.items()), columns=["path", "error"]))
    write_csv(run / "predictions.csv", table)
    listed = f", {len(errors)} could not be read (errors.csv)" if errors else ""
    log.info("%d images, %d predicted fractured%s; all in %s", len(table), table["prediction"].sum(), listed, run)
    return len(errors)


def write_overlay(file: Path, path: str, heat: np.ndarray, preprocess: Preprocess, probability: float) -> None:
    """Draw an image with its heatmap, as hot at its hottest point as a fracture is probable.

    Args:
        file: the JPEG to write, ``OVERLAY_SIDE`` pixels on its shorter side.
        path: of the image, which is read again.
        heat: (h, w), of ``lay_out``.
        preprocess: through which the network saw the image.
        probability: of a fracture.
    """
    image = read_radiograph(Path(path))
    scale = OVERLAY_SIDE / min(image.size)
    view = np.array(preprocess.view(*image.size)) * scale
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    placed = place(heat, view, *image.size)
    with whole(file) as temporary:
        overlay(image, probability * placed / max(placed.max(), 1e-9)).save(temporary, "JPEG", quality=90)


def load_classifier(trained: dict[str, Any], checkpoint: Path) -> FractureClassifier:
    """The network of a checkpoint with its weights, in evaluation mode on the CPU.

    Args:
        trained: the checkpoint's configuration.
        checkpoint: the file.

    Raises:
        InputError: the weights do not fit the configuration.
    """
    classifier = build_classifier(trained | {"model": trained["model"] | {"weights": None}})
    try:
        classifier.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    except RuntimeError:
        raise InputError(f"{checkpoint} holds another architecture than its configuration names") from None
    return classifier.eval()


def read_ahead(
    paths: Iterable[str], preprocess: Preprocess, threads: int, ahead: int
) -> Iterator[tuple[str, Tensor | UnreadableError]]:
    """Read images in threads, ``ahead`` of whoever takes them; a large one is reduced in its thread.

    Yields:
        In the order of ``paths``, each path with its pixels, uint8 (1, size, size), or why there are none.
    """

    def read(path: str) -> Tensor | UnreadableError:
        try:
            return preprocess(read_radiograph(Path(path)))
        except UnreadableError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        try:
            for path in paths:
                waiting.append((path, pool.submit(read, path)))
                if len(waiting) >= ahead:
                    path, future = waiting.popleft()
                    yield path, future.result()
            while waiting:
                path, future = waiting.popleft()
                yield path, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def batches(
    images: Iterable[tuple[str, Tensor | UnreadableError]], size: int, errors: dict[str, str]
) -> Iterator[tuple[list[str], Tensor]]:
    """Put readable images together; the others go into ``errors``, path and reason.

    Yields:
        Up to ``size`` paths and their pixels, uint8 (n, 1, size, size).
    """
    paths, pixels = [], []
    for path, image in images:
        if isinstance(image, UnreadableError):
            errors[path] = str(image)
            continue
        paths.append(path)
        pixels.append(image)
        if len(paths) == size:
            yield paths, torch.stack(pixels)
            paths, pixels = [], []
    if paths:
        yield paths, torch.stack(pixels)


def _table(paths: list[str], logits: Tensor, checkpoint: dict[str, Any]) -> pd.DataFrame:
    if not logits.isfinite().all():
        raise InputError("the checkpoint's network gives no number for some images: its training diverged")
    point = checkpoint.get("operating_point") or {}
    probabilities = logits.sigmoid().numpy()
    columns = {"path": paths, "probability": probabilities}
    if "temperature" in point:
        columns["probability_calibrated"] = operating_point.calibrate(probabilities, point["temperature"])
    else:
        log.warning("the checkpoint is not of a run that ended: threshold 0.5, probabilities not calibrated")
    threshold = point.get("threshold", operating_point.UNSETTLED["threshold"])
    columns["prediction"] = (probabilities >= threshold).astype(np.int64)
    return pd.DataFrame(columns)


def _plain(path: str) -> str:
    """A file's name without what some file system or shell would stumble over."""
    return re.sub(r"\W+", "_", Path(path).stem)[:60]


def _tell(inputs: Inputs) -> None:
    log.info("%d images to read", len(inputs.images))
    if inputs.others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in inputs.others.most_common(6))
        log.info("passed over: %d other files (%s)", inputs.others.total(), kinds)


def _quieten() -> None:
    """What is odd about a file is told in ``errors.csv``, where it matters."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom|PIL")
