"""The winner of a search over seeds, then the test part, read once: ``python -m fractatlas.search.refit STUDY``."""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from fractatlas.cli import one_line_errors
from fractatlas.config import TrainConfig
from fractatlas.errors import InputError
from fractatlas.files import whole, write_csv
from fractatlas.search.runs import score_test, train

SCORES = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "sensitivity", "specificity")


def refit(study: Path, seeds: int) -> pd.DataFrame:
    """Train ``<study>/experiment/best.yaml`` under the seeds 0, 1, ...; when all are there, score the test part.

    Runs lie in ``<study>/refit/seed_<n>`` and are gone on with where they were left. Writes ``refit/test.csv`` and
    ``refit/test.md``; where these are there already, nothing is scored again.

    Returns:
        One row per seed: ``seed, n, positives, majority_rate``, the validation accuracy, and every score of the test
        part with its 95 % interval (``_low``, ``_high``).

    Raises:
        InputError: the search has no winner yet, or the refit was begun with another one, or a run failed.
    """
    best, folder = study / "experiment" / "best.yaml", study / "refit"
    if not best.is_file():
        raise InputError(f"{study}: no experiment/best.yaml; run the search first (train.py -m hparams_search=optuna)")
    text, kept = best.read_text(encoding="utf-8"), folder / "best.yaml"
    if kept.is_file() and kept.read_text(encoding="utf-8") != text:
        raise InputError(f"{folder} was begun with another winner; move it away to begin anew")
    with whole(kept) as temporary:
        temporary.write_text(text, encoding="utf-8")
    runs = {seed: folder / f"seed_{seed}" for seed in range(seeds)}
    for seed, run in runs.items():
        train(run, f"--config-dir={study}", "experiment=best", f"seed={seed}")
    for run in runs.values():
        score_test(run)
    table = pd.DataFrame([_row(seed, run) for seed, run in runs.items()])
    write_csv(folder / "test.csv", table)
    with whole(folder / "test.md") as temporary:
        temporary.write_text(markdown(table), encoding="utf-8")
    return table


def markdown(table: pd.DataFrame) -> str:
    """The rows for reading, then mean and standard deviation over the seeds."""
    names = ["val_accuracy", *SCORES]
    lines = [["seed", "n (fractured)", "majority rate", *(name.replace("_", " ") for name in names)]]
    for row in table.to_dict("records"):
        values = [f"{row[name]:.4f} [{row[name + '_low']:.3f}, {row[name + '_high']:.3f}]" for name in names]
        lines.append([str(row["seed"]), f"{row['n']} ({row['positives']})", f"{row['majority_rate']:.4f}", *values])
    if len(table) > 1:
        spread = [f"{table[name].mean():.4f} ± {table[name].std(ddof=1):.4f}" for name in names]
        lines.append(["mean ± sd", "", "", *spread])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _row(seed: int, run: Path) -> dict[str, float]:
    val = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["val"]
    test = json.loads((run / "test" / "metrics.json").read_text(encoding="utf-8"))["test"]
    row = {"seed": seed} | {name: test[name] for name in ("n", "positives", "majority_rate")}
    for name, score in {"val_accuracy": val["accuracy"], **{name: test[name] for name in SCORES}}.items():
        score = score or dict.fromkeys(("value", "low", "high"), float("nan"))
        row |= {name: score["value"], f"{name}_low": score["low"], f"{name}_high": score["high"]}
    return row


def main() -> None:
    """Refit, score, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("study", type=Path, metavar="STUDY", help="the study's folder: logs/search/<study>")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        sys.exit("error: --seeds: should be at least 1")
    with one_line_errors(TrainConfig, "interrupted; the same command goes on"):
        table = refit(arguments.study, arguments.seeds)
    print(markdown(table))
    print(
        f"Test part, {len(table)} seeds, scored once. In brackets 95 % bootstrap intervals. {arguments.study / 'refit'}"
    )


if __name__ == "__main__":
    main()
