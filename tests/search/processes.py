"""Run searches in processes of their own; everything is real but the training, which takes milliseconds."""

import json
import math
import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from tests.conftest import REPOSITORY, SMALL

# Children are forked from a process that has imported everything and computed nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fractatlas.cli.train", "fractatlas.search.sweeper", "fractatlas.search.trial"])


def search_arguments(phantoms: Path, *overrides: str) -> list[str]:
    """Return the arguments of ``train.py`` for a search with a tiny network."""
    small = [override for override in SMALL if "batch_size" not in override]  # it is searched
    return ["-m", "hparams_search=optuna", *small, f"data.root={phantoms}", *overrides]


def start(folder: Path, phantoms: Path, *overrides: str, fake: dict | None = None):
    """Start a search in ``folder``; its output is in ``output-<pid>.txt`` there.

    ``fake`` holds the arguments of ``FakeTraining``; ``None`` trains.
    """
    arguments = search_arguments(phantoms, *overrides)
    process = CONTEXT.Process(target=_sweep, args=(str(folder), arguments, fake))
    process.start()
    return process


def sweep(folder: Path, phantoms: Path, *overrides: str, fake: dict | None = None) -> tuple[int, str]:
    """Run a search to its end; return its exit status and its output."""
    process = start(folder, phantoms, *overrides, fake=fake)
    process.join(300)
    return process.exitcode, (folder / f"output-{process.pid}.txt").read_text()


def _sweep(folder: str, arguments: list[str], fake: dict | None) -> None:
    os.chdir(folder)
    for name in ("FRACATLAS_ROOT", "FRACATLAS_WEIGHTS", "FRACATLAS_STORAGE"):
        os.environ.pop(name, None)
    output = os.open(f"output-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if fake is not None:
        import fractatlas.search.trial

        fractatlas.search.trial.train = FakeTraining(**fake)
    sys.argv = [str(REPOSITORY / "train.py"), *arguments]
    sys.orig_argv = [sys.executable, *sys.argv]
    runpy.run_path(sys.argv[0], run_name="__main__")


def interrupt_library(number: int = signal.SIGINT) -> None:
    """Send a signal to this process, and raise what a library raises whose object the signal left incomplete."""
    try:
        os.kill(os.getpid(), number)
    except (KeyboardInterrupt, SystemExit):
        raise AttributeError("an incomplete object") from None


class FakeTraining:
    """Replace training by a smooth function of the hyperparameters.

    Args:
        seconds: that a trial takes.
        fail: from trial numbers to ``raise``, ``memory``, ``nan`` or ``interrupt``.
        majority_rate: of the validation subset; ``None`` is the accuracy of each trial.
    """

    def __init__(self, seconds: float = 0.0, fail: dict[int, str] | None = None, majority_rate: float | None = 0.8):
        self.seconds, self.fail, self.majority_rate = seconds, fail or {}, majority_rate

    def __call__(self, config: dict, callbacks: list) -> float:
        run = Path(config["paths"]["output_dir"])
        assert not (run / "metrics.json").exists(), "a trial has run in this folder before"
        (run / "started").touch(exist_ok=False)
        time.sleep(self.seconds)
        lr, dropout = config["optimizer"]["lr"], config["model"]["dropout"]
        value = 0.9 - 0.1 * (math.log10(lr) + 3) ** 2 - 0.05 * abs(dropout - 0.3)
        match self.fail.get(int(run.name)):
            case "raise":
                raise ZeroDivisionError("a bug")
            case "memory":
                raise MemoryError("could not allocate")
            case "nan":
                value = math.nan
            case "interrupt":
                interrupt_library()
        for epoch in range(config["trainer"]["max_epochs"]):
            trainer = self._trainer(config, epoch, value)
            for callback in callbacks:
                callback.on_validation_end(trainer, None)
            if trainer.should_stop:
                break
        epoch = {"epoch": 1, "train/accuracy": 0.8, "train/loss": 0.5, "val/accuracy": value, "val/auroc": value}
        epoch |= {"val/majority_rate": value if self.majority_rate is None else self.majority_rate}
        metrics = {"val": {"accuracy": {"value": value, "low": value - 0.02, "high": value + 0.02}}}
        metrics |= {"monitor": {"name": config["monitor"], "value": value, "epoch": 1}, "history": [epoch]}
        metrics |= {"timing": {"total_seconds": self.seconds}, "seed": config["seed"]}
        (run / "metrics.json").write_text(json.dumps(metrics))
        return value

    @staticmethod
    def _trainer(config: dict, epoch: int, value: float) -> SimpleNamespace:
        return SimpleNamespace(
            current_epoch=epoch,
            max_epochs=config["trainer"]["max_epochs"],
            state=SimpleNamespace(fn="fit"),
            sanity_checking=False,
            callback_metrics={config["monitor"]: value},
            strategy=SimpleNamespace(broadcast=lambda stop: stop),
            should_stop=False,
        )
