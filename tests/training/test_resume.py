"""A run that is stopped anywhere and resumed gives the results of an uninterrupted run, on a CPU bit for bit."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fractatlas.errors import InputError
from fractatlas.io import run_lock
from fractatlas.models.checkpoint import read_checkpoint
from fractatlas.training.fit import train

# Seven steps per epoch, with every source of randomness and every kind of state that a checkpoint must contain.
RUN = ("trainer.max_epochs=3", "trainer.log_every_n_steps=1", "augment=light", "model.dropout=0.5", "optimizer.lr=0.01",
       "scheduler=cosine", "callbacks=averaged", "model.stage_decay=0.5", "callbacks.last.every_n_steps=2",
       "trainer.precision=bf16-mixed", "map=fpn", "map.channels=8")  # fmt: skip
SAME = "the same result as without a stop, bit for bit"
KILLS = int(os.environ.get("FRACTATLAS_KILLS", 5))


class Killed(BaseException):
    """An exception that no handler of ``Exception`` catches."""


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
    """Return all results of a run except its timing."""
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["timing"]
    logs = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    last, best = (read_checkpoint(run / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    return {
        "metrics": metrics,
        "predictions": (run / "predictions.csv").read_text(),
        "curves": {tag: [(event.step, event.value) for event in logs.Scalars(tag)] for tag in logs.Tags()["scalars"]},
        "images": {tag: [event.step for event in logs.Images(tag)] for tag in logs.Tags()["images"]},
        "weights": [last["state_dict"], best["state_dict"], last["optimizer_states"], last["lr_schedulers"]],
    }


def next_second(run: Path) -> None:
    """Wait until a new event file has a later time in its name than those of the run, because readers sort by name."""
    last = max(int(file.name.split(".")[3]) for file in (run / "tensorboard").glob("events*"))
    while time.time() < last + 1:
        time.sleep(0.05)


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
def uninterrupted(configuration, tmp_path_factory) -> dict:
    run = tmp_path_factory.mktemp("uninterrupted")
    train(configuration(run, *RUN))
    return outcome(run)


@pytest.mark.fault("training ended at a hook (step, validation, checkpointing, scoring), resumed", SAME)
@pytest.mark.parametrize(
    ("hook", "call"),
    [
        ("on_train_batch_end", 13),  # in the middle of an epoch
        *(
            pytest.param(*values, marks=pytest.mark.integration)
            for values in (
                ("on_train_batch_start", 1),  # before the first checkpoint
                ("on_train_batch_start", 6),
                ("on_train_batch_end", 7),  # after the last step of an epoch, before its validation
                ("on_validation_batch_end", 1),
                ("on_validation_end", 2),  # best.ckpt is not written yet
                ("on_train_epoch_end", 1),  # best.ckpt is newer than last.ckpt
                ("on_train_batch_start", 8),  # after the checkpoint at the start of an epoch
                ("on_save_checkpoint", 4),
                ("on_train_batch_end", 14),
                ("on_train_batch_end", 21),
                ("on_train_end", 1),
                ("on_test_batch_end", 1),  # after the training
            )
        ),
    ],
)
def test_a_run_ended_at_a_hook_resumes_to_the_same_results(configuration, uninterrupted, tmp_path, hook, call):
    threads = set(threading.enumerate())
    with pytest.raises(Killed):
        train(configuration(tmp_path, *RUN), [KillAt(hook, call)])
    assert set(threading.enumerate()) <= threads  # the writer of the event file is closed
    assert not (tmp_path / "metrics.json").exists()
    first = json.loads((tmp_path / "timing.json").read_text())
    assert first["starts"] == 1
    next_second(tmp_path)
    started = time.monotonic()
    train(configuration(tmp_path, *RUN, f"resume={tmp_path}"))
    seconds = time.monotonic() - started
    assert_equal(outcome(tmp_path), uninterrupted)
    # Two files opened in the same second can be read in the wrong order, so that entries of the second are removed.
    assert len(list((tmp_path / "tensorboard").glob("events*[0-9]"))) == 2
    timing = json.loads((tmp_path / "metrics.json").read_text())["timing"]
    assert timing["starts"] == 2
    assert first["total_seconds"] < timing["total_seconds"] <= first["total_seconds"] + seconds + 0.1
    assert first["fit_seconds"] <= timing["fit_seconds"] < timing["total_seconds"]


def test_a_resumed_run_logs_where_it_resumes(configuration, tmp_path, caplog):
    with pytest.raises(Killed):  # seven steps per epoch, a checkpoint before every second step
        train(configuration(tmp_path, *RUN, "test=false"), [KillAt("on_train_batch_end", 13)])
    with caplog.at_level("INFO"):
        train(configuration(tmp_path, *RUN, "test=false", f"resume={tmp_path}"))
        train(configuration(tmp_path, *RUN, "test=false", f"resume={tmp_path}"))
    assert "resuming at epoch 2, step 6" in caplog.messages
    assert "resuming after the last epoch, 3: only the scores are computed" in caplog.messages
    assert any("the run was started 3 times" in line for line in caplog.messages)


@pytest.mark.fault("training ended at every third step, resumed each time", SAME)
@pytest.mark.integration
def test_a_run_ended_at_every_third_step_resumes_to_the_same_results(configuration, uninterrupted, tmp_path):
    resumed = ()
    for _ in range(20):
        try:
            train(configuration(tmp_path, *RUN, *resumed), [KillAt("on_train_batch_end", 3)])
        except Killed:
            resumed = (f"resume={tmp_path}",)
            next_second(tmp_path)
        else:
            break
    assert_equal(outcome(tmp_path), uninterrupted)


def assert_resumes(configuration, folder: Path, changes: tuple[str, ...], kill: KillAt) -> None:
    """Compare an uninterrupted run with a killed and resumed one."""
    uninterrupted, killed = folder / "uninterrupted", folder / "killed"
    train(configuration(uninterrupted, *changes))
    with pytest.raises(Killed):
        train(configuration(killed, *changes), [kill])
    next_second(killed)
    train(configuration(killed, *changes, f"resume={killed}"))
    assert_equal(outcome(killed), outcome(uninterrupted))


@pytest.mark.integration
@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_a_compiled_network_resumes_and_its_weights_keep_their_names(configuration, tmp_path):
    changes = (
        "model.compile=true",
        "trainer.max_epochs=2",
        "callbacks.last.every_n_steps=2",
        "trainer.precision=32-true",
    )
    assert_resumes(configuration, tmp_path, changes, KillAt("on_train_batch_end", 9))
    names = [
        sorted(read_checkpoint(tmp_path / run / "checkpoints" / "best.ckpt")["state_dict"])
        for run in ("killed", "uninterrupted")
    ]
    train(configuration(tmp_path / "eager", "trainer.max_epochs=1", "test=false"))
    eager = read_checkpoint(tmp_path / "eager" / "checkpoints" / "best.ckpt")["state_dict"]
    assert names[0] == names[1] == sorted(eager)


def train_in_process(config: dict) -> None:
    torch.set_num_threads(1)
    train(config)


@pytest.mark.fault("training killed with -9 at a random moment, resumed", SAME)
@pytest.mark.integration
def test_a_run_killed_at_random_moments_resumes_to_the_same_results(configuration, tmp_path, record_property):
    # The fork server imports everything in advance, so that runs are killed during training and not during imports.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fractatlas.training.fit"])

    def start(run: Path, *changes: str) -> multiprocessing.Process:
        process = processes.Process(target=train_in_process, args=(configuration(run, *RUN, *changes),))
        process.start()
        return process

    started = time.monotonic()
    start(tmp_path / "uninterrupted").join()
    seconds = time.monotonic() - started
    expected, moments, killed = outcome(tmp_path / "uninterrupted"), random.Random(KILLS), 0
    while killed < KILLS:
        run = tmp_path / f"{killed}"
        shutil.rmtree(run, ignore_errors=True)  # of a run that finished before it was killed
        process = start(run)
        process.join(moments.uniform(0, seconds))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if not (run / "metrics.json").exists():
            resumed = start(run, f"resume={run}")
            resumed.join()
            assert resumed.exitcode == 0
        assert_equal(outcome(run), expected)
    record_property("tried", killed)


@pytest.mark.fault("two processes, one run folder", "the second is refused in one line")
def test_a_second_process_in_a_run_folder_is_refused(configuration, tmp_path):
    with run_lock(tmp_path), pytest.raises(InputError, match="another process is writing to this run folder"):
        train(configuration(tmp_path, *RUN))
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


@pytest.mark.fault("training ended after an early stop, resumed", SAME)
@pytest.mark.integration
def test_a_resumed_run_that_had_stopped_early_does_not_train_again(configuration, tmp_path):
    changes = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "trainer.max_epochs=6", "test=false",
               "callbacks.early_stopping.min_delta=0.5", "optimizer.lr=1e-12")  # fmt: skip
    assert_resumes(configuration, tmp_path, changes, KillAt("on_train_end", 1))


@pytest.mark.integration
def test_no_checkpoint_is_saved_while_gradients_accumulate(configuration, tmp_path):
    changes = (*RUN, "trainer.accumulate_grad_batches=3", "callbacks.last.every_n_steps=1")
    assert_resumes(configuration, tmp_path, changes, KillAt("on_train_batch_end", 12))


@pytest.fixture
def small_disk(tmp_path):
    """A mount of 2.7 MB: two checkpoints of these runs fit, a third does not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2700k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"cannot mount a small disk here ({made.stderr.decode().strip()})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.fault("disk full while saving a checkpoint, enlarged, then resumed", "one line, no partial file; " + SAME)
@pytest.mark.integration
def test_a_run_on_a_full_disk_leaves_complete_files_and_resumes(configuration, uninterrupted, small_disk):
    run = small_disk / "run"
    with pytest.raises(OSError, match="No space left on device") as raised:
        train(configuration(run, *RUN))
    assert raised.value.filename in (str(run / "checkpoints" / name) for name in ("last.ckpt", "best.ckpt"))
    files = {file.name for file in (run / "checkpoints").iterdir()}
    assert files <= {"last.ckpt", "best.ckpt"}
    assert "last.ckpt" in files
    assert not (run / "metrics.json").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    train(configuration(run, *RUN, f"resume={run}"))
    assert_equal(outcome(run), uninterrupted)


@pytest.mark.fault("data folder removed during training, restored, then resumed", "the error names the file; " + SAME)
@pytest.mark.integration
def test_a_run_whose_images_disappear_and_return_resumes_to_the_same_results(configuration, phantoms, tmp_path):
    data, run, uninterrupted = tmp_path / "data", tmp_path / "run", tmp_path / "uninterrupted"
    shutil.copytree(phantoms, data)
    changes = (*RUN, "data.cache=false", f"data.root={data}")
    train(configuration(uninterrupted, *changes))

    class MoveImages(Callback):
        def on_train_batch_end(self, trainer, classifier, outputs, batch, index):
            if trainer.current_epoch == 1 and data.exists():
                data.rename(tmp_path / "away")

    with pytest.raises((OSError, InputError), match=r"IMG\d+"):
        train(configuration(run, *changes), [MoveImages()])
    (tmp_path / "away").rename(data)
    train(configuration(run, *changes, f"resume={run}"))
    assert_equal(outcome(run), outcome(uninterrupted))


@pytest.mark.fault("run folder moved after a kill, or copied when finished, resumed", SAME)
@pytest.mark.integration
@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_batch_end", None])
def test_a_moved_run_folder_resumes_to_the_same_results(configuration, uninterrupted, tmp_path, hook):
    before, after = tmp_path / "before", tmp_path / "after"
    if hook:
        with pytest.raises(Killed):
            train(configuration(before, *RUN), [KillAt(hook, {"on_train_epoch_end": 2}.get(hook, 19))])
        before.rename(after)
    else:
        train(configuration(before, *RUN))
        shutil.copytree(before, after)
    train(configuration(after, *RUN, f"resume={after}"))
    assert_equal(outcome(after), uninterrupted)


def test_fewer_epochs_than_the_run_has_are_refused_and_the_run_stays_finished(configuration, tmp_path):
    train(configuration(tmp_path, "trainer.max_epochs=2", "test=false"))
    before = (tmp_path / "metrics.json").read_bytes()
    with pytest.raises(InputError, match="the run has 2 finished epochs; use at least this number"):
        train(configuration(tmp_path, "trainer.max_epochs=1", "test=false", f"resume={tmp_path}"))
    assert (tmp_path / "metrics.json").read_bytes() == before
