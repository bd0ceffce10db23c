"""What a search costs beside its trials, as ratios within one run: ``make bench`` runs it after ``tests/bench.py``.

Trials of one configuration (only the learning rate is searched) run in a sweep, and the same configuration runs alone
in the same warm process, before and after.
"""

import os
import runpy
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import optuna
import psutil

import fractatlas.search.trial
from fractatlas.training.run import train

REPOSITORY = Path(__file__).parents[1]
TRIALS, ALONE = 30, 5


def main() -> None:
    """Sweep, run alone, compare."""
    configs, memory, spans = [], [], []

    def watched(config: dict, callbacks: list) -> float:
        began = time.perf_counter()
        value = train(config, callbacks)
        spans.append((began, time.perf_counter()))
        configs.append(config)
        memory.append(psutil.Process().memory_info().rss / 2**20)
        return value

    fractatlas.search.trial.train = watched
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.argv = [
            str(REPOSITORY / "train.py"), "-m", "hparams_search=optuna", "experiment=demo_densenet", "trainer=cpu",
            "data.prepare.images=1200", "optimizer=adam", "optimizer.weight_decay=1e-3", "data.batch_size=32",
            "trainer.max_epochs=2", "model.dropout=0.3", f"hydra.sweeper.n_trials={TRIALS}",
        ]  # fmt: skip
        runpy.run_path(sys.argv[0], run_name="__main__")
        (study,) = optuna.get_all_study_summaries(storage := f"sqlite:///{folder}/logs/search/studies.db")
        trials = optuna.load_study(study_name=study.study_name, storage=storage).trials
        alone = []
        for turn in range(ALONE):
            config = configs[-1] | {"paths": configs[-1]["paths"] | {"output_dir": f"{folder}/alone/{turn}"}}
            config["logger"] = config["logger"] | {"save_dir": config["paths"]["output_dir"]}
            checkpoint = config["callbacks"]["checkpoint"] | {"dirpath": f"{folder}/alone/{turn}/checkpoints"}
            config["callbacks"] = config["callbacks"] | {"checkpoint": checkpoint}
            began = time.perf_counter()
            train(config)
            alone.append(time.perf_counter() - began)
    inside = [trial.duration.total_seconds() for trial in trials[ALONE:]]
    between = [after[0] - before[1] for before, after in pairwise(spans)]
    print(f"\nA search of {TRIALS} trials, {statistics.median(alone):.1f} s each alone, one process")
    print(f"  trial in the sweep / alone           {statistics.median(inside) / statistics.median(alone):.3f}")
    print(f"  from one trial's end to the next     {statistics.median(between):.2f} s, at most {max(between):.2f} s")
    print(f"  memory after trial 5, 15, 30         {memory[4]:.0f}, {memory[14]:.0f}, {memory[29]:.0f} MiB")


if __name__ == "__main__":
    main()
