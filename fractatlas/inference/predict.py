"""Predict many image files and write ``predictions.csv``."""

import logging
import os
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from fractatlas.build import build_trainer, model_name
from fractatlas.data.dicom import RADIOGRAPHS, is_other_modality
from fractatlas.data.file_kinds import is_dicom
from fractatlas.data.image_limits import UnreadableError
from fractatlas.data.transforms import Preprocess
from fractatlas.errors import InputError
from fractatlas.evaluation.candidates import CORNERS, DECIMALS
from fractatlas.evaluation.localisation import place
from fractatlas.evaluation.operating_point import DEFAULT_OPERATING_POINT
from fractatlas.evaluation.overlays import annotate, full_heat, overlay
from fractatlas.inference import dicom_out
from fractatlas.inference.inputs import Inputs, read_input, read_input_content
from fractatlas.inference.model import NO_BOX_THRESHOLD, UNFINISHED, Ensemble, Model, load_model
from fractatlas.io import atomic_path, write_csv
from fractatlas.progress_bar import track
from fractatlas.training.silence_warnings import quieten
from fractatlas.wording import plural

log = logging.getLogger(__name__)

OVERLAY_SIDE = 512  # pixels of the shorter side
DICOM_SIDE = 1024  # the same of an overlay in a DICOM file
SHOWN_ERRORS = 10  # in the log; errors.csv lists all
READ_AHEAD = 2  # batches of preprocessed images that may wait for the network
T = TypeVar("T")
# Pixels, width and height of the upright image, and the modality of a DICOM file, "" for other files.
Prepared = tuple[Tensor, tuple[int, int], str]


def predict(config: dict[str, Any], inputs: Inputs) -> int:
    """Predict images and write ``predictions.csv`` to ``paths.output_dir``.

    ``predictions.csv`` has one row per readable image, in the order of ``inputs``: ``path``, ``probability`` (of a
    fracture), ``probability_calibrated`` (if the checkpoint has an operating point), ``prediction`` (1 if the
    probability reaches the threshold) and ``modality`` (of a DICOM file, such as ``DX``). ``errors.csv`` has
    ``path, error`` for each unreadable file or folder. If the network has a fracture map, ``boxes.csv`` has
    ``path, left, top, right, bottom, score`` for each box of ``Prediction.boxes``. With ``heatmaps``, each readable
    image is drawn with its heatmap and these boxes in ``overlays/``. With ``dicom_out``, each DICOM image has an
    overlay and a structured report in ``dicom/``; ``errors.csv`` lists those that cannot be written.

    Args:
        config: a checked ``PredictConfig``, plain.
        inputs: the result of ``find_inputs(config["input"])``.

    Returns:
        The number of inputs that could not be read, or for which a DICOM result could not be written.

    Raises:
        InputError: a file is not a checkpoint of this project, several checkpoints cannot be averaged, this machine
            does not have the accelerator, or ``box_threshold`` is given for a network without a fracture map.
    """
    quieten()
    warnings.filterwarnings("ignore", module="pydicom|PIL|tifffile")
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # otherwise a line for each group of attributes
    run = Path(config["paths"]["output_dir"])
    model = load_model(config["ckpt"], trusted_targets=config["trusted_targets"])
    if isinstance(model, Ensemble):
        log.info("mean of the calibrated probabilities of %s", plural(len(model.members), "network"))
    finds_boxes = model.has_map and not config["gradcam"]
    if config["box_threshold"] is not None and not finds_boxes:
        raise InputError(
            f"box_threshold={config['box_threshold']}: the network has no fracture map, which gives boxes; remove it"
        )
    log.info("%s to read", plural(len(inputs.images), "image"))
    if inputs.skipped:
        counts = ", ".join(f"{count} {extension}" for extension, count in inputs.skipped.most_common(6))
        log.info("skipped %s (%s)", plural(inputs.skipped.total(), "other file"), counts)
    trainer = build_trainer(config, run, callbacks=[], logger=False, enable_progress_bar=False)
    if trainer.world_size > 1:
        raise InputError("predict runs on one device: remove trainer.devices, or use trainer=cpu or trainer=gpu")
    model.to(trainer.strategy.root_device)
    for name in ("predictions.csv", "errors.csv", "boxes.csv"):
        (run / name).unlink(missing_ok=True)
    overlays = [*(run / "overlays").glob(f"{'[0-9]' * 5}_*.jpg")]
    for file in (*overlays, *(run / "dicom").glob(f"{'[0-9]' * 5}_*.dcm")):
        file.unlink()
    if overlays:
        log.info("removed %s of an earlier prediction from %s", plural(len(overlays), "overlay"), run / "overlays")

    errors = dict(inputs.errors)
    paths: list[str] = []
    logits: list[Tensor] = []
    modalities: list[str] = []
    boxes: dict[str, np.ndarray] = {}
    written: list[str] = []  # paths with a DICOM result
    unwritten: dict[str, str] = {}
    threads, ahead = config["threads"] or os.cpu_count() or 1, READ_AHEAD * config["batch_size"]

    def prepare(image: Image.Image) -> Prepared:
        return model.preprocess(image), image.size, image.info.get("modality", "")

    box_threshold = model.box_threshold if config["box_threshold"] is None else config["box_threshold"]
    images = track(read_ahead(inputs.images, prepare, threads, ahead), "predicting", len(inputs.images))
    for batch_paths, pixels, sizes, batch_modalities in batches(images, config["batch_size"], errors):
        with trainer.precision_plugin.forward_context():
            batch_logits, heat = model.forward(
                pixels, config["heatmaps"] or config["dicom_out"] or finds_boxes, config["gradcam"]
            )
        for row, path in enumerate(batch_paths if heat is not None else ()):
            assert heat is not None
            cells, found = heat[row].float().cpu().numpy(), None
            if finds_boxes:
                found = model.find_boxes(cells, sizes[row], box_threshold)
                boxes[path] = found
            name, probability = f"{len(paths) + row + 1:05d}_{_safe_name(path)}", batch_logits[row].sigmoid().item()
            if config["heatmaps"]:
                file = run / "overlays" / f"{name}.jpg"
                write_overlay(file, draw_overlay(path, cells, model.preprocess, probability, found, box_threshold))
            if config["dicom_out"] and is_dicom(content := read_input_content(path)):
                drawn = draw_overlay(
                    path, cells, model.preprocess, probability, found, box_threshold, DICOM_SIDE, dicom_out.NOTICE
                )
                findings = _findings(model, batch_logits[row : row + 1], found)
                try:
                    dicom_out.write_results(content, drawn, findings, run / "dicom" / name)
                    written.append(path)
                except dicom_out.DicomResultError as error:
                    unwritten[path] = str(error)
        paths += batch_paths
        modalities += batch_modalities
        logits.append(batch_logits.double().cpu())
    probabilities, calibrated, fractured = model.decide(torch.cat(logits) if logits else torch.zeros(0))
    columns: dict[str, Any] = {"path": paths, "probability": probabilities}
    if model.operating_point:
        columns["probability_calibrated"] = calibrated
    else:
        log.warning(UNFINISHED, model.checkpoint)
    columns |= {"prediction": fractured.astype(np.int64), "modality": modalities}
    others = Counter(modality for modality in modalities if is_other_modality(modality))
    if others:
        counts = ", ".join(f"{count} {modality}" for modality, count in others.most_common())
        log.warning(
            "%s a modality other than those of bone radiographs (%s): %s; check that they are radiographs of bones",
            plural(others.total(), "DICOM image has", "DICOM images have"), ", ".join(RADIOGRAPHS), counts,
        )  # fmt: skip
    if config["dicom_out"]:
        without = len(paths) - len(written) - len(unwritten)
        not_dicom = plural(without, "image that is not DICOM has", "images that are not DICOM have")
        skipped = f"; {not_dicom} none" if without else ""
        where = f" in {run / 'dicom'}" if written else ""
        log.info("%s%s%s", plural(len(written), "DICOM result"), where, skipped)
    if listed_errors := [*errors.items(), *unwritten.items()]:
        for path, reason in listed_errors[:SHOWN_ERRORS]:
            log.warning("%s: %s", path, reason)
        write_csv(run / "errors.csv", pd.DataFrame(listed_errors, columns=["path", "error"]))
    if finds_boxes:
        if config["box_threshold"] is None and "box_threshold" not in (model.operating_point or {}):
            log.warning(NO_BOX_THRESHOLD, model.checkpoint, model.box_threshold)
        found = np.concatenate([np.zeros((0, 5)), *boxes.values()])
        listed = pd.DataFrame(found, columns=[*CORNERS, "score"]).round(DECIMALS)
        listed.insert(0, "path", [path for path, rows in boxes.items() for _ in rows])
        write_csv(run / "boxes.csv", listed)
        in_images = plural(listed["path"].nunique(), "image")
        log.info("%s in %s (boxes.csv)", plural(len(listed), "box", "boxes"), in_images)
    write_csv(run / "predictions.csv", pd.DataFrame(columns))
    unreadable = f", {len(errors)} could not be read (errors.csv)" if errors else ""
    if len(paths) == 1:
        decision = "fractured" if fractured[0] else "not fractured"
        log.info("%s: probability %.4f, %s", paths[0], probabilities[0], decision)
    counted = plural(len(paths), "image")
    log.info("%s, %d predicted fractured%s; results in %s", counted, fractured.sum(), unreadable, run)
    return len(errors) + len(unwritten)


def _findings(model: Model, logits: Tensor, boxes: np.ndarray | None) -> dicom_out.Findings:
    """Return what a DICOM result says, from the logit (1,) of an image and its boxes."""
    (probability,), (calibrated,), (fractured,) = model.decide(logits)
    point = model.operating_point
    others = len(model.members) - 1 if isinstance(model, Ensemble) else 0
    more = f" and {plural(others, 'other network')}" if others else ""
    return dicom_out.Findings(
        float(probability),
        float(calibrated) if point else None,
        bool(fractured),
        (point or DEFAULT_OPERATING_POINT)["threshold"],
        boxes,
        f"{model_name(model.config)} {model.checkpoint.name}{more}",
    )


def write_overlay(file: Path, drawn: Image.Image) -> None:
    """Write the result of ``draw_overlay`` to a JPEG ``file``."""
    with atomic_path(file) as temporary:
        drawn.save(temporary, "JPEG", quality=90)


def draw_overlay(
    path: str,
    heat: np.ndarray,
    preprocess: Preprocess,
    probability: float,
    boxes: np.ndarray | None = None,
    box_threshold: float | None = None,
    side: int = OVERLAY_SIDE,
    notice: str = "",
) -> Image.Image:
    """Draw the radiograph in ``path`` with its heatmap and boxes.

    Args:
        path: of the radiograph.
        heat: (h, w), a fracture map if ``boxes`` is given, drawn in the colours of ``full_heat``; otherwise Grad-CAM,
            whose maximum is drawn as ``probability``.
        preprocess: that gave the network's input.
        probability: of a fracture.
        boxes: float (n, 5), as ``Prediction.boxes``.
        box_threshold: smallest score of a box.
        side: pixels of the shorter side of the radiograph.
        notice: text for the last lines.

    Returns:
        An image of mode ``RGB``; below the radiograph are the probability, the key of the colours, and how many boxes
        there are.
    """
    image = read_input(path)
    scale = side / min(image.size)
    view = np.array(preprocess.view(*image.size)) * scale
    width, height = (max(1, round(side * scale)) for side in image.size)
    heat, note, maximum = place(heat, view, width, height), "", "maximum"
    if boxes is None:
        heat = probability * heat / max(heat.max(), 1e-9)
    else:
        maximum = f"maximum {heat.max():.2f}"
        heat = np.minimum(heat / full_heat(box_threshold), 1)
        boxes = boxes * [scale, scale, scale, scale, 1]
        note = f"{plural(len(boxes), 'box', 'boxes')} of the fracture map" if len(boxes) else "no box"
    drawn = overlay(image.resize((width, height)), heat, view=view, candidates=boxes)
    return annotate(drawn, probability, heat.max(), "\n".join(filter(None, (note, notice))), maximum)


def read_ahead(
    paths: Iterable[str], preprocess: Callable[[Image.Image], T], threads: int, ahead: int
) -> Iterator[tuple[str, T | UnreadableError]]:
    """Read and preprocess images in threads, at most ``ahead`` of them before they are used.

    Yields:
        In the order of ``paths``, each path with the result of ``preprocess``, or with the reason why the file cannot
        be read.
    """

    def read(path: str) -> T | UnreadableError:
        try:
            return preprocess(read_input(path))
        except UnreadableError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[str, Future[T | UnreadableError]]] = deque()
        try:
            for next_path in paths:
                waiting.append((next_path, pool.submit(read, next_path)))
                if len(waiting) >= ahead:
                    path, future = waiting.popleft()
                    yield path, future.result()
            for path, future in waiting:
                yield path, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def batches(
    images: Iterable[tuple[str, Prepared | UnreadableError]], size: int, errors: dict[str, str]
) -> Iterator[tuple[list[str], Tensor, list[tuple[int, int]], list[str]]]:
    """Group readable images into batches; add the others to ``errors``, reason by path.

    Yields:
        Up to ``size`` paths, their pixels, uint8 (n, 1, height, width), width and height of the upright images, and
        their modalities.
    """
    readable: dict[str, Prepared] = {}

    def batch() -> tuple[list[str], Tensor, list[tuple[int, int]], list[str]]:
        pixels, sizes, modalities = zip(*readable.values(), strict=True)
        return list(readable), torch.stack(pixels), list(sizes), list(modalities)

    for path, image in images:
        if isinstance(image, UnreadableError):
            errors[path] = str(image)
        else:
            readable[path] = image
        if len(readable) == size:
            yield batch()
            readable = {}
    if readable:
        yield batch()


def _safe_name(path: str) -> str:
    """Return a file's name without its extension and without characters that file systems or shells reject."""
    return re.sub(r"\W+", "_", Path(path).stem)[:60]
