"""Compare runs on the same images: ``comparison.csv`` and ``comparison.html``."""

from collections.abc import Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from fractatlas.errors import InputError
from fractatlas.evaluation import metrics, paired_comparison
from fractatlas.evaluation.markdown import METRIC_TITLES
from fractatlas.evaluation.provenance import count_cell
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.io import write_csv, write_text
from fractatlas.pages import render
from fractatlas.report.run_table import differing_settings, find_runs, format_settings, name_runs, same_but_seed

SUBSETS = ("val", "test", "all")
SHOWN = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "sensitivity", "specificity", "brier")


def write_comparison(out: Path, runs: Sequence[Path]) -> tuple[dict[str, RunFolder], pd.DataFrame]:
    """Write ``comparison.csv`` (all paired differences) and ``comparison.html`` into ``out``.

    Args:
        out: the output folder.
        runs: run folders, folders of tasks (their newest run) or folders of sweeps (all of their finished runs).

    Returns:
        The run folders by name, and the table of ``compare_runs``. A name is the part of the path that distinguishes
        the runs, with the settings in which they differ: ``sweep/1 (seed=1)``.

    Raises:
        InputError: there are fewer than two finished runs, or two runs have different labels for one image.
    """
    folders = find_runs(runs)
    if len(folders) < 2:
        raise InputError("compare needs at least two different runs; add another run folder")
    by_path = {name: RunFolder(folder) for name, folder in name_runs(folders).items()}
    settings = map(format_settings, differing_settings(list(by_path.values())))
    named = {
        f"{name} ({differing})" if differing else name: run
        for (name, run), differing in zip(by_path.items(), settings, strict=True)
    }
    differences = compare_runs(named)
    write_csv(out / "comparison.csv", differences)
    scores, notes = common_scores(named)
    page = render(
        "comparison.html.jinja",
        runs=named,
        scores=scores,
        notes=notes,
        count_cell=count_cell,
        titles=METRIC_TITLES,
        differences=differences[differences["metric"].isin(SHOWN)].to_dict("records"),
        disjoint=disjoint_pairs(named, differences),
        seeds=average_seeds(named, scores),
    )
    write_text(out / "comparison.html", page)
    return named, differences


def common_scores(runs: dict[str, RunFolder]) -> tuple[dict[str, dict[str, dict[str, Any]]], list[str]]:
    """Score the runs on the images that all of them have predicted.

    Args:
        runs: finished runs by name.

    Returns:
        For each subset the scores by run, as in ``metrics.json``; and a sentence for each subset whose images differ
        between runs. Without a common image, the scores are those of each run's own images.
    """
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    notes = []
    for subset in SUBSETS:
        scored = {name: run for name, run in runs.items() if subset in run.metrics}
        if not scored:
            continue
        scores[subset] = {name: run.metrics[subset] for name, run in scored.items()}
        tables = {name: run.predictions[run.predictions["split"] == subset] for name, run in scored.items()}
        ids = [set(table["image_id"]) for table in tables.values()]
        common = set.intersection(*ids)
        if all(one == common for one in ids):
            continue
        counts = ", ".join(f"{name} {len(table)}" for name, table in tables.items())
        if common:
            notes.append(f"{subset}: scores are of the {len(common)} images that all runs have predicted ({counts}).")
            scores[subset] = {
                name: metrics.evaluate(table[table["image_id"].isin(common)], scored[name].threshold)
                for name, table in tables.items()
            }
        else:
            notes.append(f"{subset}: no image is common to all runs ({counts}): scores cannot be compared directly.")
    return scores, notes


def compare_runs(runs: dict[str, RunFolder]) -> pd.DataFrame:
    """Compare each pair of runs on each subset that both have predicted.

    Args:
        runs: finished runs by name.

    Returns:
        Rows of ``comparison.compare`` after the columns ``subset, run, other``; ``difference`` is other minus run.
        Pairs without an image in common are omitted.

    Raises:
        InputError: two runs have different labels for one image.
    """
    tables = []
    for (name, one), (other_name, other) in combinations(runs.items(), 2):
        for subset in SUBSETS:
            first, second = (run.predictions[run.predictions["split"] == subset] for run in (one, other))
            if not first["image_id"].isin(second["image_id"]).any():
                continue
            rows = paired_comparison.compare(first, second, (one.threshold, other.threshold))
            names = {"subset": subset, "run": name, "other": other_name}
            tables.append(pd.DataFrame(names, rows.index).join(rows))
    columns = ["subset", "run", "other", "metric", "n", "first", "second", "difference", "low", "high", "p"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def disjoint_pairs(runs: Collection[str], differences: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the pairs of runs without an image in common.

    Args:
        runs: the names of the compared runs.
        differences: the table of ``compare_runs``.
    """
    compared = set(zip(differences["run"], differences["other"], strict=True))
    return [pair for pair in combinations(runs, 2) if pair not in compared]


def average_seeds(runs: dict[str, RunFolder], scores: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Compute mean and standard deviation over runs that differ only in their seed.

    Args:
        runs: finished runs by name.
        scores: by subset and run, from ``common_scores``.

    Returns:
        For each such set of runs and each subset that all have: ``runs`` (names), ``subset``, ``title`` (unique), and
        ``spread``, the table of ``comparison.spread``.
    """
    averages = []
    sets = [names for names in same_but_seed(runs) if len(names) > 1]
    for names in sets:
        title = f"Mean over {len(names)} seeds" + (f" of {names[0]} and runs like it" if len(sets) > 1 else "")
        for subset in SUBSETS:
            rows = [scores.get(subset, {}).get(name, {}) for name in names]
            if all(rows):
                values = [{key: (row.get(key) or {}).get("value") for key in METRIC_TITLES} for row in rows]
                table = pd.DataFrame(values).astype(float).dropna(axis=1)
                spread = paired_comparison.spread(table)
                averages.append({"runs": names, "subset": subset, "title": f"{title}: {subset}", "spread": spread})
    return averages
