"""A network as one ONNX file that gives the same answers."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from fractatlas.errors import InputError
from fractatlas.files import whole
from fractatlas.models.backbones import Backbone

TOLERANCE = 1e-4  # of a probability
OPSET = 18  # read by every ONNX Runtime since 1.14
BATCHES = (1, 3, 16)  # images at a time, when the two are compared


class WithProbability(nn.Module):
    """Images to logits and their sigmoids, two of (n,)."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised images, float (n, 3, h, w)."""
        logits = self.backbone(images)
        return logits, logits.sigmoid()


def write_onnx(backbone: Backbone, path: Path, images: Tensor, metadata: Mapping[str, str]) -> float:
    """Write a network, all weights in the one file, and compare ONNX Runtime's answers with PyTorch's.

    The input is ``image``, float32 (n, 3, h, w) with h and w of ``images``; the outputs are ``logit`` and
    ``probability``, float32 (n,); n is free.

    Args:
        backbone: on the CPU; put into evaluation mode.
        path: the file.
        images: normalised, at least two, to compare on.
        metadata: becomes the file's ``metadata_props``.

    Returns:
        The largest difference between two probabilities.

    Raises:
        InputError: it is more than ``TOLERANCE``; nothing is written.
    """
    network = WithProbability(backbone).eval()
    with whole(path) as temporary:
        with _silence():
            program = torch.onnx.export(
                network,
                (images[:2],),
                input_names=["image"],
                output_names=["logit", "probability"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            program.model.metadata_props.update(metadata)
            program.save(temporary, external_data=False)
        difference = _difference(network, temporary, images)
        if not difference <= TOLERANCE:  # nor if it is not a number
            raise InputError(
                f"ONNX Runtime's probabilities differ from PyTorch's by {difference:.1e}, more than {TOLERANCE:.0e}: "
                f"{path} is not written"
            )
    return difference


@torch.no_grad()
def _difference(network: nn.Module, file: Path, images: Tensor) -> float:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    largest = 0.0
    for size in BATCHES:
        for batch in images.split(size):
            (ours,) = network(batch)[1:]
            (theirs,) = session.run(["probability"], {"image": batch.numpy()})
            largest = np.maximum(largest, np.abs(ours.numpy() - theirs).max())  # which keeps a NaN
    return float(largest)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's progress, of no use to a reader, off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        aside = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(aside), contextlib.redirect_stderr(aside):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
