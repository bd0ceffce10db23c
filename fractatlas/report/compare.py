"""Runs against each other, on the same images: ``python -m fractatlas.report.compare RUN RUN [...]``.

Writes ``comparison.csv``, every paired difference with its interval and p value, and ``comparison.html``.
"""

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader

from fractatlas.errors import InputError
from fractatlas.evaluation import comparison
from fractatlas.files import whole, write_csv
from fractatlas.report.evidence import Evidence, gather
from fractatlas.report.page import HEADLINE
from fractatlas.report.table import newest

PARTS = ("val", "test")
SHOWN = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "sensitivity", "specificity", "brier")
# What runs that differ in their seed alone may differ in.
OF_A_RUN = ("seed", "paths", "logger", "callbacks", "resume")


def compare_runs(runs: dict[str, Evidence]) -> pd.DataFrame:
    """Compare every two runs on every part that both have predicted.

    Args:
        runs: evidence with ``operating_point``, by name.

    Returns:
        Rows of ``comparison.compare`` with ``part, run, other`` in front: ``difference`` is other minus run. Pairs
        without an image in common have none.

    Raises:
        InputError: two runs give one image different labels.
    """
    tables = []
    for (name, one), (other_name, other) in combinations(runs.items(), 2):
        for part in PARTS:
            first, second = (run.predictions[run.predictions["split"] == part] for run in (one, other))
            if not first["image_id"].isin(second["image_id"]).any():
                continue
            thresholds = tuple(run.record["operating_point"]["threshold"] for run in (one, other))
            found = comparison.compare(first, second, thresholds)
            tables.append(pd.DataFrame({"part": part, "run": name, "other": other_name}, found.index).join(found))
    columns = ["part", "run", "other", "metric", "n", "first", "second", "difference", "low", "high", "p"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def seeds(runs: dict[str, Evidence]) -> list[dict[str, Any]]:
    """Mean and spread of the runs that differ in their seed alone.

    Returns:
        For each such set of runs and each part that all have: ``runs`` (names), ``part``, and ``spread``, of
        ``comparison.spread``.
    """
    alike: dict[str, list[str]] = {}
    for name, run in runs.items():
        if run.config:
            key = {group: value for group, value in run.config.items() if group not in OF_A_RUN}
            alike.setdefault(json.dumps(key, sort_keys=True), []).append(name)
    found = []
    for names in alike.values():
        records = [runs[name].record for name in names]
        for part in PARTS if len(names) > 1 else ():
            if all(part in record for record in records):
                scores = [
                    {name: (record[part].get(name) or {}).get("value") for name in HEADLINE} for record in records
                ]
                values = pd.DataFrame(scores).astype(float)
                found.append({"runs": names, "part": part, "spread": comparison.spread(values.dropna(axis=1))})
    return found


def write(folder: Path, runs: dict[str, Evidence]) -> pd.DataFrame:
    """Write ``comparison.csv`` and ``comparison.html`` into ``folder``, each whole; the differences."""
    differences = compare_runs(runs)
    write_csv(folder / "comparison.csv", differences)
    page = Environment(
        loader=PackageLoader("fractatlas.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("comparison.html.jinja")
    text = page.render(
        runs=runs,
        parts=[part for part in PARTS if any(part in run.record for run in runs.values())],
        headline=HEADLINE,
        differences=differences[differences["metric"].isin(SHOWN)].to_dict("records"),
        seeds=seeds(runs),
    )
    with whole(folder / "comparison.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return differences


def main(arguments: list[str] | None = None) -> None:
    """Compare runs."""
    parser = argparse.ArgumentParser(prog="python -m fractatlas.report.compare", description=__doc__.partition(":")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or logs/<task>: its newest")
    parser.add_argument("--out", type=Path, default=Path("logs/comparison"), help="where to write (logs/comparison)")
    options = parser.parse_args(arguments)
    try:
        folders = list(dict.fromkeys(newest(folder) for folder in options.runs))
        if len(folders) < 2:
            raise InputError("name two finished runs or more")
        runs = {_name(folder, folders): gather(folder / "predictions.csv") for folder in folders}
        differences = write(options.out, runs)
    except (InputError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.strerror or error}: {error.filename or 'no file named'}")
    print(f"{len(folders)} runs, {len(differences)} paired differences: {options.out / 'comparison.html'}")


def _name(folder: Path, folders: list[Path]) -> str:
    """The task, and the run where there are several of one task."""
    task, run = folder.absolute().parts[-3], folder.name
    several = sum(other.absolute().parts[-3] == task for other in folders) > 1
    return f"{task}/{run}" if several else task


if __name__ == "__main__":
    main()
