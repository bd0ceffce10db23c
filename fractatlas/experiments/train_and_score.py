"""Train and score run folders with commands, several at the same time; skip finished runs."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fractatlas.config.overrides import NOT_COMPARED, compose_config, recorded_settings
from fractatlas.config.trusted import SWITCH
from fractatlas.config.validation import differences, flatten
from fractatlas.errors import InputError
from fractatlas.signals import INTERRUPTED, STOPPED, ChildProcesses
from fractatlas.wording import format_duration

log = logging.getLogger(__name__)
OUTPUT = "plan.log"  # in a run folder: what its commands print while several runs are trained


@dataclass(frozen=True)
class Run:
    """A run of a plan.

    Attributes:
        name: of the recipe, variant or step.
        seed: of the training.
        fold: the test fold; ``None`` without folds.
        folder: the run folder.
        options: of the training.
        subset: ``test`` if the test subset is scored, too, otherwise ``val``.
    """

    name: str
    seed: int
    fold: int | None
    folder: Path
    options: tuple[str, ...]
    subset: str

    def __str__(self) -> str:
        """Return recipe, seed and fold, for messages."""
        return f"{self.name}, seed {self.seed}" + ("" if self.fold is None else f", fold {self.fold}")


class Commands:
    """Run commands in several threads, and stop them together.

    Args:
        to_files: append the output of each command to ``OUTPUT`` in its run folder.
    """

    def __init__(self, to_files: bool = False):
        self.children, self.to_files = ChildProcesses(), to_files

    def run(self, folder: Path, verb: str, *arguments: str) -> None:
        """Run ``fractatlas VERB`` for a run folder, and wait until it has ended.

        Raises:
            InputError: the command failed; it has printed the reason.
            SystemExit: status ``INTERRUPTED`` or ``STOPPED``: the command was stopped, or not started.
        """
        output = folder / OUTPUT if self.to_files else None
        if output:
            folder.mkdir(parents=True, exist_ok=True)
        status = self.children.run([sys.executable, "-m", "fractatlas", verb, *arguments], output)
        if status in (INTERRUPTED, STOPPED):
            raise SystemExit(status)
        if status:
            place = f"at the end of {output}" if output else "printed above"
            raise InputError(f"{folder}: {verb} failed with status {status}; correct the error {place}")


def finish_runs(runs: Sequence[Run], jobs: int, finished: Callable[[Run], None], total: int = 0) -> None:
    """Train and score runs, at most ``jobs`` at the same time.

    After a failure or a stop signal, no other run is started, and the function waits for the running ones. Each of them
    writes its checkpoint after a stop signal. With several jobs, the output of a run is in ``OUTPUT`` in its folder,
    and its start and end are logged.

    Args:
        runs: that are not finished, in the order in which they are started.
        jobs: largest number of runs at the same time.
        finished: called in this thread with each run that has finished, also after a failure or a stop signal.
        total: number of runs with those that were finished before, for log lines; by default that of ``runs``.

    Raises:
        InputError: a run failed.
        SystemExit: status ``INTERRUPTED`` or ``STOPPED`` after a stop signal.
    """
    commands, several, halted = Commands(to_files=jobs > 1), jobs > 1, threading.Event()
    total = total or len(runs)
    done = total - len(runs)
    failure: InputError | None = None
    status: Any = 0

    def work(run: Run) -> float:
        if halted.is_set() or commands.children.status:
            raise CancelledError
        started = time.monotonic()
        if several:
            log.info("started: %s; its output is in %s", run, run.folder / OUTPUT)
        try:
            train(run, commands)
            if run.subset == "test":
                score_test(run, commands)
        except BaseException:
            halted.set()  # before this thread takes the next run
            raise
        return time.monotonic() - started

    with commands.children.stopped_by_signals(), ThreadPoolExecutor(jobs) as threads:
        futures = {threads.submit(work, run): run for run in runs}
        try:
            for future in as_completed(futures):
                run = futures[future]
                try:
                    seconds = future.result()
                except CancelledError:
                    continue
                except InputError as error:
                    failure = failure or error
                    if several:
                        log.info("failed: %s", run)
                except SystemExit as stop:
                    status = status or stop.code
                    if several:
                        log.info("stopped: %s", run)
                else:
                    done += 1
                    if several:
                        log.info("finished: %s in %s (%d of %d runs)", run, format_duration(seconds), done, total)
                    finished(run)
        finally:
            halted.set()
    if status := status or commands.children.status:
        log.info("stopped; repeat the command to resume the plan")
        raise SystemExit(status)
    if failure:
        raise failure


def train(run: Run, commands: Commands) -> None:
    """Train a run, or resume its training, unless it is finished; the test subset is not used.

    Raises:
        InputError: the training failed.
        SystemExit: the training was stopped.
    """
    if (run.folder / "metrics.json").is_file():
        return
    if _started(run):
        commands.run(run.folder, "train", f"resume={run.folder}", *_trusted(run.options))
    else:
        commands.run(run.folder, "train", *run.options, "test=false", f"hydra.run.dir={run.folder}")


def score_test(run: Run, commands: Commands) -> None:
    """Score the best checkpoint of a finished run on the test subset, in ``test/``, unless it is scored already.

    Raises:
        InputError: the evaluation failed.
        SystemExit: the evaluation was stopped.
    """
    folder, checkpoint = run.folder / "test", run.folder / "checkpoints" / "best.ckpt"
    if not (folder / "metrics.json").is_file():
        arguments = (f"ckpt={checkpoint}", "subset=test", f"hydra.run.dir={folder}")
        commands.run(run.folder, "evaluate", *arguments, *_trusted(run.options))


def require_same_settings(run: Run) -> None:
    """Require that the folder of a run was not started with other settings.

    Raises:
        InputError: it was.
    """
    if not _started(run):
        return
    if changes := differences(recorded_settings(run.folder), compared_settings(run.options)):
        raise InputError(
            f"{run.folder} was started with other settings: {'; '.join(changes[:3])}; move or delete it to start again"
        )


def _started(run: Run) -> bool:
    return (run.folder / "split.csv").is_file()  # without it, training has not begun


def _trusted(options: Sequence[str]) -> list[str]:
    return [option for option in options if option.startswith(f"{SWITCH}=")]


def compared_settings(options: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a training with these options, as ``config.overrides.settings_of`` does.

    Raises:
        InputError: an option is invalid.
    """
    now = flatten(compose_config([*options, "test=false"]))
    return {key: value for key, value in now.items() if not key.startswith(NOT_COMPARED)}
