"""Runs as commands, each in a folder that says how far it got: what is done is not done again."""

import subprocess
import sys
from pathlib import Path

import yaml

import fractatlas
from fractatlas.errors import InputError

SCRIPTS = Path(fractatlas.__file__).parents[1]


def train(run: Path, *options: str) -> None:
    """Train in the folder ``run``, or go on with what was begun there; the test part is left alone.

    Args:
        run: the run's folder.
        options: of ``train.py``.

    Raises:
        InputError: the folder was begun with other options, or the run failed.
    """
    begun = run / ".hydra" / "overrides.yaml"
    if begun.is_file():
        earlier = yaml.safe_load(begun.read_text(encoding="utf-8"))
        asked = [option for option in (*options, "test=false") if not option.startswith(("hydra.", "--"))]
        if sorted(earlier) != sorted(asked):
            differing = " ".join(sorted({*earlier} ^ {*asked}))
            raise InputError(f"{run} was begun with other settings ({differing}); move it away to begin anew")
    if (run / "metrics.json").is_file():
        return
    if begun.is_file():
        _run("train.py", f"resume={run}")
    else:
        _run("train.py", *options, "test=false", f"hydra.run.dir={run}")


def score_test(run: Path) -> Path:
    """Score the best checkpoint of a finished run on the test part, unless that is done; the folder that says it.

    Raises:
        InputError: that failed.
    """
    if not (run / "test" / "metrics.json").is_file():
        checkpoint = run / "checkpoints" / "best.ckpt"
        _run("evaluate.py", f"ckpt={checkpoint}", "split_part=test", f"hydra.run.dir={run / 'test'}")
    return run / "test"


def _run(script: str, *arguments: str) -> None:
    ended = subprocess.run([sys.executable, str(SCRIPTS / script), *arguments], check=False).returncode
    if ended:
        raise InputError(f"{script} {' '.join(arguments)} ended with status {ended}; the same command goes on")
