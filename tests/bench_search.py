"""What a search costs beside its trials, as ratios within one run: ``make bench`` runs it after ``tests/bench.py``.

Trials of one configuration (only the learning rate is searched) run in a sweep, and after every second trial the
same configuration runs alone in the same warm process, so that a machine whose speed drifts treats both alike.
"""

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
from fractatlas.search.study import StudySweeperImpl
from fractatlas.training.run import train

REPOSITORY = Path(__file__).parents[1]
TRIALS, WARM = 30, 5


def main() -> None:
    """Sweep and run alone in turns, compare."""
    memory, spans, ratios, pauses = [], [], [], []
    launch = StudySweeperImpl._launch
    config: dict = {}

    def watched(trial_config: dict, callbacks: list) -> float:
        spans.append(time.perf_counter())
        value = train(trial_config, callbacks)
        spans.append(time.perf_counter())
        config.update(trial_config)
        memory.append(psutil.Process().memory_info().rss / 2**20)
        return value

    def in_turns(sweeper: StudySweeperImpl, trials: list[optuna.Trial]) -> None:
        launch(sweeper, trials)
        if len(memory) <= WARM or len(memory) % 2:
            return
        inside = sweeper.study.trials[trials[0].number].duration.total_seconds()
        began = time.perf_counter()
        train(apart(config, f"alone/{len(memory)}"))
        alone = time.perf_counter() - began
        ratios.append(inside / alone)
        pauses.append(alone)

    fractatlas.search.trial.train, StudySweeperImpl._launch = watched, in_turns
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.argv = [
            str(REPOSITORY / "train.py"), "-m", "hparams_search=optuna", "experiment=demo_densenet", "trainer=cpu",
            "data.prepare.images=1200", "optimizer=adam", "optimizer.weight_decay=1e-3", "data.batch_size=32",
            "trainer.max_epochs=2", "model.dropout=0.3", f"hydra.sweeper.n_trials={TRIALS}",
        ]  # fmt: skip
        runpy.run_path(sys.argv[0], run_name="__main__")
    ends, starts = spans[1::2], spans[2::2]
    gaps = [start - end for end, start in zip(ends, starts, strict=False)]
    between = [gap for number, gap in enumerate(gaps, 1) if number > WARM and number % 2]  # where nothing ran alone
    print(f"\nA search of {TRIALS} trials, {statistics.median(pauses):.1f} s each alone, one process")
    print(f"  trial in the sweep / alone           {statistics.median(ratios):.3f}")
    print(f"  from one trial's end to the next     {statistics.median(between):.2f} s, at most {max(between):.2f} s")
    shown = ", ".join(f"{memory[number - 1]:.0f}" for number in (5, 10, 20, 30))
    print(f"  memory after trial 5, 10, 20, 30     {shown} MiB")


def apart(config: dict, name: str) -> dict:
    """The configuration of a trial, to run in a folder of its own."""
    run = str(Path.cwd() / name)
    logger, callbacks = config["logger"] | {"save_dir": run}, dict(config["callbacks"])
    callbacks["checkpoint"] = callbacks["checkpoint"] | {"dirpath": f"{run}/checkpoints"}
    return config | {"paths": config["paths"] | {"output_dir": run}, "logger": logger, "callbacks": callbacks}


if __name__ == "__main__":
    main()
