"""Markdown table of finished runs, with the accuracies of the reference report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fractatlas.errors import InputError
from fractatlas.evaluation.markdown import METRIC_TITLES, format_fraction, format_percent, to_markdown
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.reference_report import REFERENCE_ACCURACY

SCORES = ("auroc", "average_precision", "sensitivity", "specificity")


def newest_run(folder: Path) -> Path:
    """Return a run folder itself, or the newest finished run of a task's folder.

    Raises:
        InputError: there is no finished run.
    """
    if (folder / "metrics.json").is_file():
        return folder
    finished = sorted(folder.glob("runs/*/metrics.json"))
    if not finished:
        raise InputError(f"{folder}: no finished run (metrics.json) here or in runs/; give the folder of one")
    return finished[-1].parent


def run_table(folders: Sequence[Path]) -> str:
    """Return a Markdown table with one row per run and subset; accuracies are in per cent.

    Args:
        folders: finished run folders.

    Raises:
        InputError: a folder is not a finished run folder.
    """
    rows = []
    for metrics in (RunFolder(folder).metrics for folder in folders):
        for subset in ("val", "test"):
            if scores := metrics.get(subset):
                reference = REFERENCE_ACCURACY.get(metrics["task_name"], {}).get(subset)
                row = {
                    "run": f"{metrics['task_name']} ({_model(metrics)})",
                    "subset": subset,
                    "n (fractured)": f"{scores['n']} ({scores['positives']})",
                    "accuracy": format_percent(**scores["accuracy"]),
                    "reference report": format_percent(reference) if reference else "",
                    "majority rate": format_percent(scores["majority_rate"]),
                }
                fractions = {METRIC_TITLES[name]: format_fraction(**scores[name] or {"value": None}) for name in SCORES}
                rows.append(row | fractions)
    return to_markdown(pd.DataFrame(rows))


def _model(metrics: dict[str, Any]) -> str:
    """Return the variant, and the stages that were not in the pretrained weights."""
    weights = metrics.get("weights", {"loaded": 0})
    missing = [stage for stage in weights["random"] if stage != "head"] if weights["loaded"] else []
    return metrics.get("model", "external predictions") + (f", random {', '.join(missing)}" if missing else "")
