"""The thread of the network: batches, failures and its end."""

import threading

import numpy as np
import pytest
import torch

from fractatlas.serving.worker import Worker


class Recorder:
    """A network that records its batches; it waits for ``start`` in the first one."""

    has_map = False

    def __init__(self):
        self.batches, self.start, self.inside = [], threading.Event(), threading.Event()

    def forward(self, pixels, heatmaps):
        self.inside.set()
        assert self.start.wait(20)
        self.batches.append((len(pixels), heatmaps))
        if pixels.max() > 100:
            raise RuntimeError("broken")
        return pixels.flatten(), pixels.float() if heatmaps else None

    def decide(self, logits):
        values = logits.double().numpy()
        return values, values / 2, values >= 3


@pytest.fixture
def recorder():
    return Recorder()


def image(value: float) -> torch.Tensor:
    return torch.full((1, 1), value)


def test_images_that_wait_are_predicted_together_and_in_order(recorder):
    worker = Worker(recorder, batch_size=3)
    futures = [worker.submit(image(0), False)]
    assert recorder.inside.wait(20)
    futures += [worker.submit(image(value), value == 2) for value in range(1, 6)]
    recorder.start.set()
    outputs = [future.result(20) for future in futures]
    assert [output.probability for output in outputs] == [0, 1, 2, 3, 4, 5]
    assert [output.fractured for output in outputs] == [False] * 3 + [True] * 3
    assert outputs[4].probability_calibrated == 2
    assert recorder.batches == [(1, False), (3, True), (2, False)]
    assert outputs[0].heat is None
    assert np.array_equal(outputs[2].heat, [[2]])
    worker.close()


def test_a_failed_batch_is_reported_and_the_next_one_succeeds(recorder):
    recorder.start.set()
    worker = Worker(recorder, batch_size=1)
    with pytest.raises(RuntimeError, match="broken"):
        worker.submit(image(101), False).result(20)
    assert worker.submit(image(1), False).result(20).probability == 1
    worker.close()


def test_a_cancelled_image_is_not_predicted(recorder):
    worker = Worker(recorder, batch_size=4)
    first = worker.submit(image(0), False)
    assert recorder.inside.wait(20)
    cancelled, kept = worker.submit(image(1), False), worker.submit(image(2), False)
    assert cancelled.cancel()
    recorder.start.set()
    assert (first.result(20).probability, kept.result(20).probability) == (0, 2)
    assert recorder.batches == [(1, False), (1, False)]
    worker.close()


def test_waiting_images_are_predicted_before_the_thread_ends(recorder):
    worker = Worker(recorder, batch_size=2)
    futures = [worker.submit(image(value), False) for value in range(3)]
    recorder.start.set()
    worker.close()
    assert [future.result(0).probability for future in futures] == [0, 1, 2]
