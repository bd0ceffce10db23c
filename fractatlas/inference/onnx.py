"""Export a checkpoint to ONNX.

The file contains all weights. Its input is ``image``, float32 (n, 3, size, size), preprocessed. Its outputs are
``logit`` and ``probability`` (the sigmoid of the logit) of a fracture, float32 (n,), and for a network with a fracture
map, ``map``: the probability for each of its cells, float32 (n, h, w). Its ``metadata_props`` contain
``preprocess`` (JSON: the geometry, then ``(value / 255 - mean) / std``), ``model``, ``version`` and, if the checkpoint
has an operating point, ``rule``, ``threshold`` and ``temperature``.
"""

import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch
from torch import Tensor, nn

import fractatlas
from fractatlas.build import model_name
from fractatlas.data.images import read_content
from fractatlas.data.sources.registry import open_source
from fractatlas.errors import InputError
from fractatlas.evaluation.run_folder import best_checkpoint
from fractatlas.inference.model import Model, load_model
from fractatlas.io import atomic_path
from fractatlas.models.backbones import Backbone

TOLERANCE = 1e-4  # of a probability
OPSET = 18  # supported by every ONNX Runtime since 1.14
IMAGES = 16  # of the run, and as many of noise, for the comparison
BATCH_SIZES = (1, 3, 16)  # of the comparison


class WithProbability(nn.Module):
    """Return logits, and probabilities of the images and, with a fracture map, of its cells."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map normalised images, float (n, 3, h, w), to the outputs ``names``."""
        if self.backbone.map is None:
            logits = self.backbone(images)
            return logits, logits.sigmoid()
        logits, cells = self.backbone.with_map(images)
        return logits, logits.sigmoid(), cells.sigmoid()

    @property
    def names(self) -> list[str]:
        """The names of the outputs."""
        return ["logit", "probability", *(() if self.backbone.map is None else ("map",))]


def export_onnx(checkpoint: Path, output: Path, trusted_targets: Sequence[str] = ()) -> float:
    """Export a checkpoint to one ONNX file, and compare ONNX Runtime's probabilities with PyTorch's.

    They are compared on images of the checkpoint's run, if these still exist, and on noise.

    Args:
        checkpoint: ``<run folder>/checkpoints/best.ckpt``.
        output: the ONNX file.
        trusted_targets: as for ``load_model``.

    Returns:
        The largest difference between two probabilities.

    Raises:
        InputError: the file is not a checkpoint of this project, or the difference exceeds ``TOLERANCE``; nothing is
            written.
    """
    model = load_model(best_checkpoint(checkpoint), trusted_targets=trusted_targets)
    model.backbone.memory_format = torch.contiguous_format  # the only one in ONNX
    network = WithProbability(model.backbone.to(memory_format=torch.contiguous_format)).eval()
    images = _test_images(model, model.checkpoint.absolute().parent.parent / "catalogue.csv")
    preprocess = dict(model.config["preprocess"])
    geometry = preprocess.pop("_target_").rpartition(".")[2]
    metadata = {
        "preprocess": json.dumps({"geometry": geometry, **preprocess}),
        "model": model_name(model.config),
        "version": fractatlas.__version__,
        **{name: str(value) for name, value in (model.operating_point or {}).items()},
    }
    with atomic_path(output) as temporary:
        with _no_messages():
            program = torch.onnx.export(
                network,
                (images[:2],),
                input_names=["image"],
                output_names=network.names,
                dynamic_shapes=({0: torch.export.Dim("n")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert program is not None  # with dynamo=True
            program.model.metadata_props.update(metadata)
            program.save(temporary, external_data=False)
        difference = _largest_difference(network, temporary, images)
        if not difference <= TOLERANCE:  # true for NaN, too
            raise InputError(
                f"{output} is not written: probabilities of ONNX Runtime and PyTorch differ by {difference:.1e}, "
                f"more than {TOLERANCE:.0e}; export another checkpoint"
            )
    return difference


def _test_images(model: Model, catalogue: Path) -> Tensor:
    """Return normalised images, float (n, 3, size, size): the first of the run that still exist, and noise images."""
    preprocess = model.preprocess
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (IMAGES, 1, preprocess.size, preprocess.size), generator=generator, dtype=torch.uint8)
    pixels = []
    if catalogue.is_file():
        rows = pd.read_csv(catalogue, dtype=str, keep_default_na=False)
        paths = rows.loc[rows["excluded"] == "", "path"][:IMAGES]
        files = [open_source(model.config["data"]).root / path for path in paths]
        pixels = [preprocess(read_content(file.read_bytes())) for file in files if file.is_file()]
    return preprocess.normalise(torch.stack([*pixels, *noise]))


@torch.no_grad()
def _largest_difference(network: WithProbability, file: Path, images: Tensor) -> float:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    differences = []
    for batch in (batch for size in BATCH_SIZES for batch in images.split(size)):
        exported = session.run(network.names[1:], {"image": batch.numpy()})
        differences += [
            np.abs(own.numpy() - other).max() for own, other in zip(network(batch)[1:], exported, strict=True)
        ]
    return float(np.max(differences))  # NaN if one is NaN, unlike max()


@contextmanager
def _no_messages() -> Iterator[None]:
    """Suppress the exporter's progress messages and warnings."""
    disabled, output = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(output), redirect_stderr(output):
            yield
    finally:
        logging.disable(disabled)
