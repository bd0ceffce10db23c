"""Measure what a search costs beside its trials, as ratios within one run.

All trials of the search have one configuration, except for the learning rate. After every second trial, the same
configuration is trained outside the search, in the same process, so that a drift of the machine's speed affects both.
"""

import itertools
import os
import runpy
import statistics
import sys
import tempfile
import time
from pathlib import Path

import optuna
import psutil

import fractatlas.search.trial
from fractatlas.search.trial import ReportToStudy
from fractatlas.training.fit import train

REPOSITORY = Path(__file__).parents[1]
TRIALS, WARM_UP = 30, 5


def main() -> None:
    """Search, train outside the search, compare."""
    memory: list[float] = []  # MiB after each trial
    spans: list[tuple[float, float]] = []  # start of each trial's training, and its end with the training outside
    outside: dict[int, float] = {}  # seconds of the training outside, by the number of trials before it
    studies: list[optuna.Study] = []

    def train_and_measure(config: dict, callbacks: list[ReportToStudy]) -> float:
        started = time.perf_counter()
        value = train(config, callbacks)
        memory.append(psutil.Process().memory_info().rss / 2**20)
        if callbacks[0].trial:
            studies[:] = [callbacks[0].trial.study]
        if len(memory) > WARM_UP and len(memory) % 2 == 0:
            outside_started = time.perf_counter()
            train(in_folder(config, Path.cwd() / "outside" / str(len(memory))))
            outside[len(memory)] = time.perf_counter() - outside_started
        spans.append((started, time.perf_counter()))
        return value

    fractatlas.search.trial.train = train_and_measure  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.argv = [
            str(REPOSITORY / "train.py"), "-m", "hparams_search=optuna", "experiment=demo_densenet", "trainer=cpu",
            "data.prepare.images=1200", "optimizer=adam", "optimizer.weight_decay=1e-3", "data.batch_size=32",
            "trainer.max_epochs=2", "model.dropout=0.3", f"hydra.sweeper.n_trials={TRIALS}",
        ]  # fmt: skip
        runpy.run_path(sys.argv[0], run_name="__main__")
        durations = [trial.duration.total_seconds() for trial in studies[0].trials if trial.duration]
        os.chdir(REPOSITORY)
    # The trial after each training outside; the duration of the trial before it contains that training.
    ratios = [durations[number] / seconds for number, seconds in outside.items() if number < len(durations)]
    gaps = [start - end for (_, end), (start, _) in itertools.pairwise(spans)][WARM_UP:]
    print(f"\nA search of {TRIALS} trials, {statistics.median(outside.values()):.1f} s each outside it, one process")
    print(f"  trial in the search / outside        {statistics.median(ratios):.3f}")
    print(f"  from one trial's end to the next     {statistics.median(gaps):.2f} s, at most {max(gaps):.2f} s")
    shown = ", ".join(f"{memory[number - 1]:.0f}" for number in (5, 10, 20, 30))
    print(f"  memory after trial 5, 10, 20, 30     {shown} MiB")


def in_folder(config: dict, run: Path) -> dict:
    """Return the configuration of a trial with another run folder."""
    callbacks = config["callbacks"]
    return config | {
        "paths": config["paths"] | {"output_dir": str(run)},
        "logger": config["logger"] | {"save_dir": str(run)},
        "callbacks": callbacks | {"checkpoint": callbacks["checkpoint"] | {"dirpath": f"{run}/checkpoints"}},
    }


if __name__ == "__main__":
    main()
