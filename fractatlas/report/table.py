"""Finished runs side by side, the study's figures beside ours: ``python -m fractatlas.report.table RUN [RUN ...]``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# Accuracy that the study reports for its step 1 and for the best configuration of its step 2.
STUDY = {
    "baseline_resnet": {"val": 0.8254},
    "baseline_densenet": {"val": 0.8630},
    "tuned_densenet": {"val": 0.8611, "test": 0.8515},
}
SHOWN = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}


def newest(folder: Path) -> Path:
    """A run folder itself, or the newest finished run below a task's folder.

    Raises:
        FileNotFoundError: there is no finished run.
    """
    if (folder / "metrics.json").is_file():
        return folder
    finished = sorted(folder.glob("runs/*/metrics.json"))
    if not finished:
        raise FileNotFoundError(f"no finished run (metrics.json) in {folder}")
    return finished[-1].parent


def markdown(runs: list[dict[str, Any]]) -> str:
    """A Markdown table, one row per run and part; accuracies in per cent.

    Args:
        runs: the contents of ``metrics.json``.
    """
    head = ["run", "part", "n (fractured)", "accuracy", "study's accuracy", "majority rate", *SHOWN.values()]
    rows = [head]
    for run in runs:
        for part in ("val", "test"):
            if scores := run.get(part):
                study = STUDY.get(run["task_name"], {}).get(part)
                rows.append(
                    [
                        f"{run['task_name']} ({_model(run)})",
                        part,
                        f"{scores['n']} ({scores['positives']})",
                        _percent(scores["accuracy"]),
                        f"{100 * study:.2f}" if study else "",
                        f"{100 * scores['majority_rate']:.2f}",
                        *(_fraction(scores[name]) for name in SHOWN),
                    ]
                )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def _model(run: dict[str, Any]) -> str:
    """The variant, and which of its stages lacked the weights that the others had."""
    weights = run["weights"]
    lacking = [stage for stage in weights["random"] if stage != "head"] if weights["loaded"] else []
    return run["model"] + (f", random {', '.join(lacking)}" if lacking else "")


def _percent(score: dict[str, float]) -> str:
    return f"{100 * score['value']:.2f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def _fraction(score: dict[str, float] | None) -> str:
    if score is None:
        return "undefined"
    return f"{score['value']:.3f} [{score['low']:.2f}, {score['high']:.2f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or logs/<task>: its newest")
    folders = parser.parse_args().runs
    try:
        found = [newest(folder) for folder in folders]
        print(markdown([json.loads((run / "metrics.json").read_text(encoding="utf-8")) for run in found]))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print("\nIn brackets 95 % bootstrap intervals. The majority rate is the accuracy of always giving the same answer.")
    for run in found:
        print(f"  {run}")


if __name__ == "__main__":
    main()
