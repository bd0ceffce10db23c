"""A run that is stopped anywhere and gone on with ends like one that was not: to the last digit, on a CPU."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fractatlas.errors import InputError
from fractatlas.files import alone
from fractatlas.models.weights import read_checkpoint
from fractatlas.training.run import train

# Seven steps an epoch; every source of randomness and every state that a checkpoint has to hold.
RUN = ("trainer.max_epochs=3", "trainer.log_every_n_steps=1", "augment=light", "model.dropout=0.5", "scheduler=cosine",
       "optimizer.lr=0.01", "callbacks=averaged", "model.stage_decay=0.5",
       "callbacks.last.every_n_steps=2",
       )  # fmt: skip


SAME = "bit for bit the outcome of the uninterrupted run"
KILLS = int(os.environ.get("FRACTATLAS_KILLS", 5))


class Killed(BaseException):
    """Nothing in the run may catch it."""


class KillAt(Callback):
    """End the run at the n-th call of a hook."""

    def __init__(self, hook: str, call: int):
        def count(*_: object) -> None:
            self.calls += 1
            if self.calls == call:
                raise Killed

        self.calls = 0
        setattr(self, hook, count)


def outcome(run: Path) -> dict:
    """All that a run says, without the time that it took."""
    report = json.loads((run / "metrics.json").read_text())
    del report["timing"]
    logs = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    last, best = (read_checkpoint(run / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    return {
        "metrics": report,
        "predictions": (run / "predictions.csv").read_text(),
        "curves": {tag: [(event.step, event.value) for event in logs.Scalars(tag)] for tag in logs.Tags()["scalars"]},
        "images": {tag: [event.step for event in logs.Images(tag)] for tag in logs.Tags()["images"]},
        "weights": [last["state_dict"], best["state_dict"], last["optimizer_states"], last["lr_schedulers"]],
    }


def assert_equal(one: dict, other: dict) -> None:
    for name in ("metrics", "predictions", "curves", "images"):
        assert one[name] == other[name], name
    assert plain(one["weights"]) == plain(other["weights"])


def plain(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def through(configuration, tmp_path_factory):
    run = tmp_path_factory.mktemp("through")
    train(configuration(run, *RUN))
    return outcome(run)


@pytest.mark.fault(
    "training ended at a hook (step, validation, checkpointing, scoring), resumed",
    SAME,
)
@pytest.mark.parametrize(
    ("hook", "call"),
    [
        ("on_train_batch_start", 1),  # before there is a checkpoint
        ("on_train_batch_start", 6),
        ("on_train_batch_end", 7),  # after the last step of an epoch, before its validation
        ("on_validation_batch_end", 1),
        ("on_validation_end", 2),  # the best checkpoint is not yet written
        ("on_train_epoch_end", 1),  # the best one is, and the last is older
        ("on_train_batch_start", 8),  # a checkpoint was written at the epoch's start
        ("on_save_checkpoint", 4),
        ("on_train_batch_end", 14),
        ("on_train_batch_end", 21),
        ("on_train_end", 1),
        ("on_test_batch_end", 1),  # after the training
    ],
)
def test_killed_anywhere_it_ends_the_same(configuration, through, tmp_path, hook, call):
    with pytest.raises(Killed):
        train(configuration(tmp_path, *RUN), [KillAt(hook, call)])
    assert not (tmp_path / "metrics.json").exists()
    train(configuration(tmp_path, *RUN, f"resume={tmp_path}"))
    assert_equal(outcome(tmp_path), through)


@pytest.mark.fault("training ended at every third step, resumed each time", SAME)
def test_killed_at_every_third_step_it_ends_the_same(configuration, through, tmp_path):
    resumed = ()
    for _ in range(20):
        try:
            train(configuration(tmp_path, *RUN, *resumed), [KillAt("on_train_batch_end", 3)])
        except Killed:
            resumed = (f"resume={tmp_path}",)
        else:
            break
    assert_equal(outcome(tmp_path), through)


def assert_ends_the_same(configuration, folder: Path, changes: tuple[str, ...], kill: KillAt) -> None:
    """Once through, once killed and gone on with."""
    through, killed = folder / "through", folder / "killed"
    train(configuration(through, *changes))
    with pytest.raises(Killed):
        train(configuration(killed, *changes), [kill])
    train(configuration(killed, *changes, f"resume={killed}"))
    assert_equal(outcome(killed), outcome(through))


def run_apart(config: dict) -> None:
    torch.set_num_threads(1)
    train(config)


@pytest.mark.fault("training killed with -9 at a random moment, resumed", SAME)
@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(configuration, tmp_path, record_property):
    # A server that has imported everything, so that the runs are killed while training and not while importing.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fractatlas.training.run"])

    def start(run: Path, *changes: str) -> multiprocessing.Process:
        process = processes.Process(target=run_apart, args=(configuration(run, *RUN, *changes),))
        process.start()
        return process

    whole = start(tmp_path / "whole")
    started = time.monotonic()
    whole.join()
    seconds = time.monotonic() - started
    expected, moments, killed = outcome(tmp_path / "whole"), random.Random(KILLS), 0
    while killed < KILLS:
        run = tmp_path / f"{killed}"
        shutil.rmtree(run, ignore_errors=True)  # of one that had ended before it was killed
        process = start(run)
        process.join(moments.uniform(0, seconds))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if not (run / "metrics.json").exists():
            again = start(run, f"resume={run}")
            again.join()
            assert again.exitcode == 0
        assert_equal(outcome(run), expected)
    record_property("tried", killed)


@pytest.mark.fault("two processes, one run folder", "the second refused in one line")
def test_two_processes_do_not_write_one_run(configuration, tmp_path):
    with alone(tmp_path), pytest.raises(InputError, match="another process is writing this run"):
        train(configuration(tmp_path, *RUN))
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


@pytest.mark.fault("training ended after an early stop, resumed", SAME)
def test_a_run_that_had_stopped_early_trains_no_further(configuration, tmp_path):
    changes = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "trainer.max_epochs=6", "test=false",
               "callbacks.early_stopping.min_delta=0.5", "optimizer.lr=1e-12")  # fmt: skip
    assert_ends_the_same(configuration, tmp_path, changes, KillAt("on_train_end", 1))


def test_a_checkpoint_in_the_middle_of_gathered_gradients_is_put_off(configuration, tmp_path):
    changes = (*RUN, "trainer.accumulate_grad_batches=3", "callbacks.last.every_n_steps=1")
    assert_ends_the_same(configuration, tmp_path, changes, KillAt("on_train_batch_end", 12))


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of 2.7 MB: two checkpoints of these runs fit, a third does not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2700k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"cannot mount a small disk here ({made.stderr.decode().strip()})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.fault("disk full while checkpointing, given room, resumed", "one line, nothing half written; " + SAME)
def test_a_full_disk_costs_nothing_but_the_time(configuration, through, small_disk):
    run = small_disk / "run"
    with pytest.raises(OSError, match="No space left on device") as raised:
        train(configuration(run, *RUN))
    assert raised.value.filename in (str(run / "checkpoints" / name) for name in ("last.ckpt", "best.ckpt"))
    left = {file.name for file in (run / "checkpoints").iterdir()}
    assert left <= {"last.ckpt", "best.ckpt"}
    assert "last.ckpt" in left
    assert not (run / "metrics.json").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    train(configuration(run, *RUN, f"resume={run}"))
    assert_equal(outcome(run), through)


@pytest.mark.fault("data folder gone while training, back, resumed", "the file named; " + SAME)
def test_images_that_vanish_end_the_run_and_no_more(configuration, phantoms, tmp_path):
    data, run, through = tmp_path / "data", tmp_path / "run", tmp_path / "through"
    shutil.copytree(phantoms, data)
    changes = (*RUN, "data.cache=false", f"data.root={data}")
    train(configuration(through, *changes))

    class Vanish(Callback):
        def on_train_batch_end(self, trainer, classifier, outputs, batch, index):
            if trainer.current_epoch == 1 and data.exists():
                data.rename(tmp_path / "away")

    with pytest.raises((OSError, InputError), match=r"IMG\d+"):
        train(configuration(run, *changes), [Vanish()])
    (tmp_path / "away").rename(data)
    train(configuration(run, *changes, f"resume={run}"))
    assert_equal(outcome(run), outcome(through))


@pytest.mark.fault("run folder moved after a kill, or copied when finished, resumed", SAME)
@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_batch_end", None])
def test_a_run_folder_may_move(configuration, through, tmp_path, hook):
    before, after = tmp_path / "before", tmp_path / "after"
    if hook:
        with pytest.raises(Killed):
            train(configuration(before, *RUN), [KillAt(hook, {"on_train_epoch_end": 2}.get(hook, 19))])
        before.rename(after)
    else:
        train(configuration(before, *RUN))
        shutil.copytree(before, after)
    train(configuration(after, *RUN, f"resume={after}"))
    assert_equal(outcome(after), through)
