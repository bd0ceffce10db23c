"""Train and score run folders with commands; skip finished runs."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fractatlas.config.overrides import NOT_COMPARED, compose_config, recorded_settings
from fractatlas.config.trusted import SWITCH
from fractatlas.config.validation import differences, flatten
from fractatlas.errors import InputError
from fractatlas.signals import INTERRUPTED, STOPPED, wait_for

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
        run_command(run, "train", f"resume={run}", *_trusted(options))
    else:
        run_command(run, "train", *options, "test=false", f"hydra.run.dir={run}")


def score_test(run: Path, options: Sequence[str]) -> None:
    """Score the best checkpoint of a finished run on the test subset, in ``<run>/test``, unless it is scored already.

    ``options`` are those of the training.

    Raises:
        InputError: the evaluation failed.
        SystemExit: this process received a stop signal.
    """
    if not (run / "test" / "metrics.json").is_file():
        checkpoint = run / "checkpoints" / "best.ckpt"
        folder = run / "test"
        run_command(run, "evaluate", f"ckpt={checkpoint}", "subset=test", f"hydra.run.dir={folder}", *_trusted(options))


def run_command(run: Path, verb: str, *arguments: str) -> None:
    """Run ``fractatlas VERB``; at a stop signal, wait until the command has stopped.

    Raises:
        InputError: the command failed; it has printed the reason.
        SystemExit: status ``INTERRUPTED`` or ``STOPPED``, after the command has stopped.
    """
    with subprocess.Popen([sys.executable, "-m", "fractatlas", verb, *arguments]) as child:
        status = wait_for(child)
    if status in (INTERRUPTED, STOPPED):
        log.info("stopped; repeat the command to resume the plan")
        raise SystemExit(status)
    if status:
        raise InputError(f"{run}: {verb} failed with status {status}; correct the error printed above")


def _trusted(options: Sequence[str]) -> list[str]:
    return [option for option in options if option.startswith(f"{SWITCH}=")]


def _differing_settings(run: Path, options: Sequence[str]) -> list[str]:
    """Return ``key was A, is B`` for each setting of a run that the options would change; three at most."""
    return differences(recorded_settings(run), compared_settings(options))[:3]


def compared_settings(options: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a training with these options, as ``config.overrides.settings_of`` does.

    Raises:
        InputError: an option is invalid.
    """
    now = flatten(compose_config([*options, "test=false"]))
    return {key: value for key, value in now.items() if not key.startswith(NOT_COMPARED)}
