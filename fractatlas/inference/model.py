"""Load one or several checkpoints as a model that predicts from radiographs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageOps
from torch import Tensor

from fractatlas.build import build, build_classifier
from fractatlas.config.schema import TrainConfig
from fractatlas.config.validation import differences, flatten, validate
from fractatlas.data.images import UnreadableError, read_radiograph
from fractatlas.data.transforms import Preprocess
from fractatlas.errors import InputError
from fractatlas.evaluation import operating_point
from fractatlas.evaluation.candidates import find_image_candidates
from fractatlas.evaluation.localisation import place
from fractatlas.evaluation.run_folder import best_checkpoints
from fractatlas.models.backbones import Backbone
from fractatlas.models.checkpoint import read_checkpoint
from fractatlas.models.classifier import FractureClassifier
from fractatlas.models.heatmaps import has_map, with_heatmaps

Radiograph = str | Path | Image.Image
BOX_THRESHOLD = 0.5  # of a checkpoint that does not store one
NO_BOX_THRESHOLD = "%s stores no box_threshold, so %g is used"
UNFINISHED = "%s: training is not finished, so threshold 0.5 is used without calibration; finish it with resume=RUN"


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one radiograph.

    Attributes:
        probability: of a fracture, 0 to 1.
        probability_calibrated: the same after temperature scaling on the validation subset.
        fractured: the decision: whether ``probability`` reaches the checkpoint's threshold.
        heatmap: float32 (height, width) in pixels of the upright radiograph, 0 outside the part that the network
            receives. The fracture map of a network that has one: the probability of a fracture at each place, 0 to 1.
            Otherwise Grad-CAM: by how much each place raises the logit, 0 and above. ``None`` if not requested.
        boxes: float64 (n, 5), one row for each place where the fracture map shows a fracture, by decreasing score:
            left, top, right, bottom in pixels of the upright radiograph, and the score, which is the highest
            probability of the map in the box. ``None`` for a network without a fracture map.
    """

    probability: float
    probability_calibrated: float
    fractured: bool
    heatmap: np.ndarray | None
    boxes: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Model:
    """A trained classifier with the preprocessing and the operating point of its checkpoint.

    Attributes:
        checkpoint: the file that was loaded.
        config: the configuration that it was trained with.
        classifier: in evaluation mode.
        preprocess: from an image to the network's input.
        operating_point: ``rule, threshold, temperature`` and, if the run scored its heatmaps, ``box_threshold``,
            chosen on the validation subset; ``None`` if the run that wrote the checkpoint did not finish.
    """

    checkpoint: Path
    config: dict[str, Any]
    classifier: FractureClassifier
    preprocess: Preprocess
    operating_point: dict[str, Any] | None

    @property
    def backbone(self) -> Backbone:
        """The network without the training code."""
        return self.classifier.backbone

    @property
    def has_map(self) -> bool:
        """Whether the network has a fracture map, which gives boxes."""
        return has_map(self.backbone)

    @property
    def box_threshold(self) -> float:
        """The smallest score of a box, chosen on the validation subset; ``BOX_THRESHOLD`` if none was chosen."""
        return (self.operating_point or {}).get("box_threshold", BOX_THRESHOLD)

    def to(self, device: str | torch.device) -> None:
        """Move the network to a device."""
        self.classifier.to(device)

    @overload  # a str is one path here, although mypy also sees an iterable of str
    def predict(  # type: ignore[overload-overlap]
        self, images: Radiograph, batch_size: int = ..., heatmaps: bool = ...
    ) -> Prediction: ...
    @overload
    def predict(
        self, images: Iterable[Radiograph], batch_size: int = ..., heatmaps: bool = ...
    ) -> list[Prediction]: ...
    def predict(
        self, images: Radiograph | Iterable[Radiograph], batch_size: int = 32, heatmaps: bool = True
    ) -> Prediction | list[Prediction]:
        """Predict one radiograph, or several in batches.

        Args:
            images: one radiograph or several: paths of image files (DICOM included), or PIL images of 8 bits.
            batch_size: images per forward pass.
            heatmaps: whether to return heatmaps; without them, many large images need less memory.

        Returns:
            One ``Prediction`` for one image, otherwise a list in the order of ``images``.

        Raises:
            UnreadableError: a file is not a complete image.
            InputError: an image is neither a path nor a PIL image, a PIL image has more than 8 bits or transparent
                pixels, or a logit is not finite.
        """
        if isinstance(images, Radiograph):
            return self._predict_batch([images], heatmaps)[0]
        if isinstance(images, bytes | np.ndarray | Tensor) or not isinstance(images, Iterable):
            raise _no_radiograph(images)
        images = list(images)
        starts = range(0, len(images), batch_size)
        return [row for start in starts for row in self._predict_batch(images[start : start + batch_size], heatmaps)]

    def _predict_batch(self, images: Sequence[Radiograph], heatmaps: bool) -> list[Prediction]:
        radiographs = [_read(image) for image in images]
        pixels = torch.stack([self.preprocess(image) for image in radiographs])
        logits, heat = self.forward(pixels, heatmaps or self.has_map)
        placed: list[np.ndarray | None] = [None] * len(images)
        boxes: list[np.ndarray | None] = [None] * len(images)
        if heat is not None:
            located = list(zip(heat.cpu(), (image.size for image in radiographs), strict=True))
            placed = [self._place(cells, size) for cells, size in located] if heatmaps else placed
            boxes = [self.find_boxes(cells.numpy(), size) for cells, size in located] if self.has_map else boxes
        rows = zip(*(values.tolist() for values in self.decide(logits)), placed, boxes, strict=True)
        return [Prediction(*row) for row in rows]

    def find_boxes(self, heat: np.ndarray, size: tuple[int, int], threshold: float | None = None) -> np.ndarray:
        """Find the boxes in a fracture map.

        Args:
            heat: (h, w), one of the heatmaps of ``forward``.
            size: width and height of the upright radiograph in pixels.
            threshold: the smallest score of a box; ``None``: ``box_threshold``.

        Returns:
            float64 (n, 5), as ``Prediction.boxes``.
        """
        candidates = find_image_candidates(heat, np.array(self.preprocess.view(*size)), *size)[:, :5]
        return candidates[candidates[:, 4] >= (self.box_threshold if threshold is None else threshold)]

    def _place(self, heat: Tensor, size: tuple[int, int]) -> np.ndarray:
        return place(heat.numpy(), np.array(self.preprocess.view(*size)), *size).astype(np.float32)

    @torch.inference_mode()
    def forward(self, pixels: Tensor, heatmaps: bool = False, gradcam: bool = False) -> tuple[Tensor, Tensor | None]:
        """Run the network on a batch.

        Args:
            pixels: outputs of ``preprocess``, uint8 (n, 1, size, size); moved to the network's device.
            heatmaps: whether to compute heatmaps.
            gradcam: whether they are Grad-CAM also for a network that has a fracture map.

        Returns:
            Logits (n,), and the heatmaps of ``with_heatmaps``, float32 (n, h, w), or ``None``.
        """
        images = self.preprocess.normalise(pixels.to(self.classifier.device))
        return with_heatmaps(self.backbone, images, gradcam) if heatmaps else (self.backbone(images), None)

    def decide(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Turn logits (n,) into probabilities, calibrated probabilities and decisions: float64, float64 and bool (n,).

        Without an operating point, the threshold is 0.5 and the probabilities are not calibrated.

        Raises:
            InputError: a logit is not finite.
        """
        if not logits.isfinite().all():
            raise InputError(f"{self.checkpoint}: its outputs are not finite; lower optimizer.lr and train again")
        point = self.operating_point or operating_point.DEFAULT_OPERATING_POINT
        probabilities = logits.double().cpu().sigmoid().numpy()
        calibrated = operating_point.calibrate(probabilities, point["temperature"])
        return probabilities, calibrated, probabilities >= point["threshold"]


@dataclass(frozen=True, eq=False)
class Ensemble(Model):
    """Several networks, whose calibrated probabilities and heatmaps are averaged.

    ``probability`` and ``probability_calibrated`` of a prediction are both the mean of the calibrated probabilities of
    the networks. The threshold is the mean of their thresholds on the scale of the calibrated probability, and
    ``box_threshold`` the mean of theirs. Fracture maps are averaged as they are; Grad-CAM is divided by the temperature
    of its network first. ``checkpoint``, ``config`` and ``classifier`` are those of the first network.

    Attributes:
        members: the networks, with the same preprocessing, and all with or all without a fracture map.
    """

    members: tuple[Model, ...]

    @classmethod
    def of(cls, members: Sequence[Model]) -> "Ensemble":
        """Return the ensemble of several models.

        Raises:
            InputError: the training of a network did not finish, or the networks have different preprocessing or
                heatmaps with different cells.
        """
        first, points = members[0], []
        for member in members:
            if member.operating_point is None:
                remedy = "finish it with resume=RUN, or leave it out"
                raise InputError(f"{member.checkpoint}: training is not finished, so it is not calibrated; {remedy}")
            for part in ("preprocess", "map"):
                was, now = ({part: model.config.get(part)} for model in (first, member))
                changes = differences(flatten(was), flatten(now)) if part == "preprocess" else _cells(was, now)
                if changes:
                    problem = f"{member.checkpoint} and {first.checkpoint} cannot be averaged: {changes[0]}"
                    raise InputError(f"{problem}; use checkpoints with the same {part}")
            points.append(member.operating_point)
        thresholds = [operating_point.calibrate(np.array([one["threshold"]]), one["temperature"])[0] for one in points]
        point = {"rule": "mean", "threshold": float(np.mean(thresholds)), "temperature": 1.0}
        if all("box_threshold" in one for one in points):
            point["box_threshold"] = float(np.mean([one["box_threshold"] for one in points]))
        return cls(first.checkpoint, first.config, first.classifier, first.preprocess, point, tuple(members))

    def to(self, device: str | torch.device) -> None:
        """Move the networks to a device."""
        for member in self.members:
            member.to(device)

    @torch.inference_mode()
    def forward(self, pixels: Tensor, heatmaps: bool = False, gradcam: bool = False) -> tuple[Tensor, Tensor | None]:
        """Run the networks on a batch, as ``Model.forward`` does.

        Returns:
            The logits of the mean calibrated probabilities, float64 (n,), and the mean heatmaps.

        Raises:
            InputError: a logit of a network is not finite.
        """
        probabilities, maps = [], []
        for member in self.members:
            logits, heat = member.forward(pixels, heatmaps, gradcam)
            probabilities.append(torch.from_numpy(member.decide(logits)[1]))
            if heat is not None:
                scale = 1.0 if member.has_map and not gradcam else (member.operating_point or {})["temperature"]
                maps.append(heat / scale)
        mean = torch.stack(probabilities).mean(dim=0).logit(eps=operating_point.EPSILON)
        return mean, torch.stack(maps).mean(dim=0) if maps else None


def _cells(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return how the cells of two fracture maps differ."""
    first, second = ({"map.stride": (one["map"] or {}).get("stride")} for one in (was, now))
    return differences(first, second)


def load_model(
    checkpoint: str | Path | Iterable[str | Path],
    device: str | torch.device = "cpu",
    trusted_targets: Sequence[str] = (),
) -> Model:
    """Load a checkpoint that training wrote, or several as an ``Ensemble``.

    No pretrained weights are downloaded: the checkpoint contains all weights.

    Args:
        checkpoint: a run folder, which stands for its best checkpoint; the folder of a cross-validation, which stands
            for the best checkpoints of all its runs; a checkpoint; or several of these.
        device: where the network runs, such as ``"cuda"``.
        trusted_targets: packages outside of fractatlas whose classes the checkpoint may name, such as
            ``["mypackage"]``. The list that the checkpoint stores does not count, because the file may come from
            somebody else.

    Raises:
        InputError: the file is not a checkpoint of this project, or names a class that is not trusted; several
            checkpoints cannot be averaged.
    """
    several = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    models = [_load(file, device, trusted_targets) for one in several for file in best_checkpoints(Path(one))]
    if not models:
        raise InputError("load_model got an empty list; give at least one checkpoint")
    return models[0] if len(models) == 1 else Ensemble.of(models)


def _load(file: Path, device: str | torch.device, trusted_targets: Sequence[str]) -> Model:
    content = read_checkpoint(file)
    if "config" not in content or "state_dict" not in content:
        raise InputError(f"{file} is not a checkpoint of fractatlas; give a run folder or a checkpoint in it")
    try:
        config = validate(OmegaConf.create(content["config"]), TrainConfig, trusted_targets)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    classifier = build_classifier(config, pretrained=False)
    try:
        classifier.load_state_dict(content["state_dict"])
    except RuntimeError:
        raise InputError(f"{file}: weights do not match the configuration; use an unedited checkpoint") from None
    classifier = classifier.to(device).eval()
    return Model(file, config, classifier, build(config["preprocess"]), content.get("operating_point"))


def _no_radiograph(value: object) -> InputError:
    remedy = "give a path, a PIL image (PIL.Image.fromarray(array)), or a list of them"
    return InputError(f"predict got a {type(value).__name__}; {remedy}")


def _read(image: Radiograph) -> Image.Image:
    """Return a radiograph of mode ``L``, upright."""
    if not isinstance(image, Radiograph):
        raise _no_radiograph(image)
    if isinstance(image, Image.Image):
        # Pillow would clip 16 bits to 8, and ignore transparency.
        if image.mode.startswith(("I", "F")) or image.has_transparency_data:
            raise InputError(f"a PIL image of mode {image.mode}: convert it to mode L, or give the path of its file")
        return ImageOps.exif_transpose(image).convert("L")
    try:
        return read_radiograph(Path(image))
    except UnreadableError as error:
        raise UnreadableError(f"{image}: {error}") from None
