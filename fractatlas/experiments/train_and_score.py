"""Train and score run folders with commands; skip finished runs."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fractatlas.config.overrides import NOT_COMPARED, compose_config
from fractatlas.config.validation import differences, flatten
from fractatlas.errors import InputError
from fractatlas.signals import INTERRUPTED, STOP_SIGNALS, STOPPED, signal_handlers

log = logging.getLogger(__name__)


def train(run: Path, options: Sequence[str]) -> None:
    """Train with ``options`` in the folder ``run``, or resume the training there; the test subset is not used.

    Raises:
        InputError: the folder was started with other settings, or the training failed.
        SystemExit: this process received a stop signal.
    """
    started = (run / "split.csv").is_file()  # without it, training has not begun
    if started and (differing := _differing_settings(run, options)):
        changes = "; ".join(differing)
        raise InputError(f"{run} was started with other settings: {changes}; move or delete it to start again")
    if (run / "metrics.json").is_file():
        return
    if started:
        run_command(run, "train", f"resume={run}")
    else:
        run_command(run, "train", *options, "test=false", f"hydra.run.dir={run}")


def score_test(run: Path) -> None:
    """Score the best checkpoint of a finished run on the test subset, in ``<run>/test``, unless it is scored already.

    Raises:
        InputError: the evaluation failed.
        SystemExit: this process received a stop signal.
    """
    if not (run / "test" / "metrics.json").is_file():
        checkpoint = run / "checkpoints" / "best.ckpt"
        run_command(run, "evaluate", f"ckpt={checkpoint}", "subset=test", f"hydra.run.dir={run / 'test'}")


def run_command(run: Path, verb: str, *arguments: str) -> None:
    """Run ``fractatlas VERB``; at a stop signal, wait until the command has stopped.

    Raises:
        InputError: the command failed; it has printed the reason.
        SystemExit: status ``INTERRUPTED`` or ``STOPPED``, after the command has stopped.
    """
    statuses: list[int] = []

    def forward(number: int, frame: Any) -> None:
        statuses.append(STOPPED)
        child.send_signal(number)

    command = [sys.executable, "-m", "fractatlas", verb, *arguments]
    with subprocess.Popen(command) as child, signal_handlers(forward, STOP_SIGNALS):
        while child.returncode is None:
            with suppress(KeyboardInterrupt):  # the terminal has sent Ctrl-C to the child, too
                child.wait()
                break
            statuses.append(INTERRUPTED)
    if statuses or child.returncode in (INTERRUPTED, STOPPED):
        log.info("stopped; repeat the command to resume the plan")
        raise SystemExit(statuses[0] if statuses else child.returncode)
    if child.returncode:
        raise InputError(f"{run}: {verb} failed with status {child.returncode}; correct the error printed above")


def _differing_settings(run: Path, options: Sequence[str]) -> list[str]:
    """Return ``key was A, is B`` for each setting of a run that the options would change; three at most."""
    stored = OmegaConf.load(run / ".hydra" / "config.yaml")
    stored.paths.root = stored.paths.output_dir = "."  # as ``compose_config`` sets them
    was: Any = OmegaConf.to_container(stored, resolve=True)
    changed = differences(flatten(was), flatten(compose_config([*options, "test=false"])))
    return [change for change in changed if not change.startswith(NOT_COMPARED)][:3]
