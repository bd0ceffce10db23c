"""Run the network in one thread, on batches of the images that wait."""

import logging
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fractatlas.inference.model import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """The network's output for one image.

    Attributes:
        probability: of a fracture.
        probability_calibrated: after temperature scaling.
        fractured: whether ``probability`` reaches the threshold.
        heat: (h, w) as ``Model.forward`` returns it; ``None`` if it was not computed.
    """

    probability: float
    probability_calibrated: float
    fractured: bool
    heat: np.ndarray | None


@dataclass(frozen=True)
class _Job:
    pixels: Tensor
    heatmap: bool
    future: "Future[Output]" = field(default_factory=Future)


class Worker:
    """A thread that predicts preprocessed images.

    The thread takes all images that wait, at most ``batch_size``, and runs the network on them together. A single
    image is not delayed.

    Args:
        model: the network.
        batch_size: largest number of images of one forward pass.
    """

    def __init__(self, model: Model, batch_size: int):
        self.model, self.batch_size = model, batch_size
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def submit(self, pixels: Tensor, heatmap: bool) -> "Future[Output]":
        """Return the future output for the result of ``Model.preprocess``, with a heatmap on request."""
        job = _Job(pixels, heatmap)
        self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Predict the images that wait, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._jobs.get()) is not None:
            jobs, ended = [first], False
            while len(jobs) < self.batch_size and not self._jobs.empty():
                if (job := self._jobs.get()) is None:
                    ended = True
                    break
                jobs.append(job)
            self._predict([job for job in jobs if job.future.set_running_or_notify_cancel()])
            if ended:
                return

    def _predict(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        try:
            pixels = torch.stack([job.pixels for job in jobs])
            logits, heat = self.model.forward(pixels, self.model.has_map or any(job.heatmap for job in jobs))
            cells = [None] * len(jobs) if heat is None else list(heat.float().cpu().numpy())
            rows = list(zip(*(values.tolist() for values in self.model.decide(logits)), cells, strict=True))
        except Exception as error:  # every waiting request needs an answer, and the next batch can succeed
            log.error("prediction of %d images failed: %s: %s", len(jobs), type(error).__name__, error)
            for job in jobs:
                job.future.set_exception(error)
            return
        for job, row in zip(jobs, rows, strict=True):
            job.future.set_result(Output(*row))
