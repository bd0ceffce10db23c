"""Runs as commands, each in a folder that says how far it got: what is done is not done again."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

import fractatlas
from fractatlas.cli import prepare
from fractatlas.config import TrainConfig
from fractatlas.errors import InputError
from fractatlas.signals import INTERRUPTED, REQUESTS, STOPPED, handlers

SCRIPTS = Path(fractatlas.__file__).parents[1]


def train(run: Path, *options: str) -> None:
    """Train in the folder ``run``, or go on with what was begun there; the test part is left alone.

    Args:
        run: the run's folder.
        options: of ``train.py``.

    Raises:
        InputError: the folder was begun with other options, or the run failed.
        SystemExit: as of ``_run``.
    """
    begun = (run / "split.csv").is_file()  # without it nothing but the command was read
    if begun:
        earlier = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
        asked = prepare([*options, "test=false"], TrainConfig)
        asked = [option for option in asked if not option.startswith(("hydra.", "--"))]
        if sorted(earlier) != sorted(asked):
            differing = " ".join(sorted({*earlier} ^ {*asked}))
            raise InputError(f"{run} was begun with other settings ({differing}); move it away to begin anew")
    if (run / "metrics.json").is_file():
        return
    if begun:
        _run(run, "train.py", f"resume={run}")
    else:
        _run(run, "train.py", *options, "test=false", f"hydra.run.dir={run}")


def score_test(run: Path) -> Path:
    """Score the best checkpoint of a finished run on the test part, unless that is done; the folder that says it.

    Raises:
        InputError: that failed.
        SystemExit: as of ``_run``.
    """
    if not (run / "test" / "metrics.json").is_file():
        checkpoint = run / "checkpoints" / "best.ckpt"
        _run(run, "evaluate.py", f"ckpt={checkpoint}", "split_part=test", f"hydra.run.dir={run / 'test'}")
    return run / "test"


def _run(run: Path, script: str, *arguments: str) -> None:
    """Run an entry point, and let it end in its own way when this process is asked to stop.

    Raises:
        InputError: it failed; it has said why.
        SystemExit: with ``INTERRUPTED`` or ``STOPPED``, once it has ended.
    """
    asked: list[int] = []

    def forward(number: int, frame: Any) -> None:
        asked.append(STOPPED)
        child.send_signal(number)

    with subprocess.Popen([sys.executable, str(SCRIPTS / script), *arguments]) as child, handlers(forward, REQUESTS):
        while child.returncode is None:
            with suppress(KeyboardInterrupt):  # which a terminal has sent to the child, too
                child.wait()
                break
            asked.append(INTERRUPTED)
    if asked or child.returncode in (INTERRUPTED, STOPPED):
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(asked[0] if asked else child.returncode)
    if child.returncode:
        raise InputError(f"{run}: {script} ended with status {child.returncode}, and says above why; then again")
