"""Find and name finished runs, and write a Markdown table of them with the accuracies of the reference report."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fractatlas.config.overrides import NOT_COMPARED
from fractatlas.config.validation import differing_keys, flatten
from fractatlas.errors import InputError
from fractatlas.evaluation.markdown import (
    METRIC_TITLES,
    OTHER_IMAGES_NOTE,
    format_fraction,
    format_percent,
    mark_other_images,
    to_markdown,
)
from fractatlas.evaluation.provenance import count_cell
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.reference_report import REFERENCE_ACCURACY

SCORES = ("auroc", "average_precision", "sensitivity", "specificity")
DIFFERING, COUNT = "settings that differ", "n (fractured)"  # columns
# Settings that do not change a result, and the task's name, which is in the path.
NOT_SHOWN = (*NOT_COMPARED, "task_name", "logger.", "callbacks.checkpoint", "callbacks.input_grid", "callbacks.last",
             "callbacks.learning_rate", "callbacks.progress", "trainer.log_every_n_steps")  # fmt: skip
OWN_COLUMNS = ("seed", "model._target_", "model.variant")
SHOWN_SETTINGS = 4  # of those in which runs differ


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Return the run folders that the given folders stand for, without repetition.

    A folder is a finished run, or the folder of a task, which stands for the newest finished run in its ``runs/``, or
    the folder of a sweep, which stands for all finished runs that are its direct sub-folders, in natural order.

    Raises:
        InputError: a folder contains no finished run.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        for run in _runs_of(folder):
            found.setdefault(run.resolve(), run)
    return list(found.values())


def name_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """Return each of several different run folders by a unique name.

    The name is the task of ``<task>/runs/<run>``, or the last part of another path. If two runs have the same name,
    as many parts of the path are added as distinguish all runs.
    """
    paths = [folder.resolve() for folder in folders]
    for count in range(1, max(len(path.parts) for path in paths)):
        names = [_last_parts(path, count) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(names, folders, strict=True))
    return dict(zip(map(str, paths), folders, strict=True))


def differing_settings(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Return for each run the settings in which the runs differ, by key, ``seed`` first.

    Runs without a configuration have none. ``NOT_SHOWN`` are not compared.
    """
    configs = [flatten(run.config) | _precision(run) if run.config else {} for run in runs]
    keys = [
        key
        for key in differing_keys([config for config in configs if config])
        if not key.startswith(NOT_SHOWN)
        # Training stores interpolations of other keys, evaluation stores their values.
        and not any("${" in str(config.get(key)) for config in configs)
    ]
    keys.sort(key=lambda key: key != "seed")
    return [{key: config[key] for key in keys if key in config} for config in configs]


def same_but_seed(runs: Mapping[str, RunFolder]) -> list[list[str]]:
    """Return the names of the runs in sets that differ only in their seed, and in settings that change no result.

    Runs without a configuration are omitted.
    """
    sets: dict[str, list[str]] = {}
    for name, run in runs.items():
        if run.config:
            flat = flatten(run.config) | _precision(run)
            shown = {key: value for key, value in flat.items() if key == "data.root" or not key.startswith(NOT_SHOWN)}
            sets.setdefault(json.dumps(shown | {"seed": None}, sort_keys=True), []).append(name)
    return list(sets.values())


def _precision(run: RunFolder) -> dict[str, Any]:
    """Return the precision that the training chose; the configuration may contain ``auto``."""
    precision = run.metrics.get("precision")
    return {"trainer.precision": precision} if precision else {}


def format_settings(settings: dict[str, Any]) -> str:
    """Return ``key=value`` of the first settings, and how many more there are."""
    texts = []
    for key, value in settings.items():
        if key.endswith("._target_"):
            texts.append(f"{key.removesuffix('._target_')}={value.rpartition('.')[2]}")
        elif not key.endswith("._partial_"):
            texts.append(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}")
    more = [f"{len(texts) - SHOWN_SETTINGS} more"] if len(texts) > SHOWN_SETTINGS else []
    return ", ".join(texts[:SHOWN_SETTINGS] + more)


def run_table(folders: Sequence[Path]) -> str:
    """Return a Markdown table with one row per run and subset; accuracies are in per cent.

    A row whose images differ from those of the first row with the same subset is marked.

    Args:
        folders: different finished run folders.

    Raises:
        InputError: a folder is not a finished run folder.
    """
    rows: list[dict[str, str]] = []
    images: list[tuple[str, frozenset[str]]] = []
    runs = {name: RunFolder(folder) for name, folder in name_runs(folders).items()}
    for (name, run), settings in zip(runs.items(), differing_settings(list(runs.values())), strict=True):
        metrics = run.metrics
        others = {key: value for key, value in settings.items() if key not in OWN_COLUMNS}
        for subset in ("val", "test", "all"):
            if scores := metrics.get(subset):
                reference = REFERENCE_ACCURACY.get(metrics["task_name"], {}).get(subset)
                ids = run.predictions.loc[run.predictions["split"] == subset, "image_id"]
                images.append((subset, frozenset(ids)))
                row = {
                    "run": name,
                    "network": _model(metrics),
                    "seed": str((run.config or metrics).get("seed", "")),
                    DIFFERING: format_settings(others),
                    "subset": subset,
                    COUNT: count_cell(scores),
                    "accuracy": format_percent(**scores["accuracy"]),
                    "reference report": format_percent(reference) if reference else "",
                    "majority rate": format_percent(scores["majority_rate"]),
                }
                fractions = {METRIC_TITLES[key]: format_fraction(**scores[key] or {"value": None}) for key in SCORES}
                rows.append(row | fractions)
    table = pd.DataFrame(rows)
    marks = mark_other_images(*zip(*images, strict=True)) if images else []
    if any(marks):
        table[COUNT] += marks
    text = to_markdown(table.loc[:, [name for name in table if name != DIFFERING or table[name].any()]])
    return f"{text}\n{OTHER_IMAGES_NOTE}" if any(marks) else text


def _runs_of(folder: Path) -> list[Path]:
    if (folder / "metrics.json").is_file():
        return [folder]
    if finished := sorted(folder.glob("runs/*/metrics.json")):
        return [finished[-1].parent]
    runs = [file.parent for file in folder.glob("*/metrics.json")]
    if not runs:
        raise InputError(f"{folder}: no finished run (metrics.json) here, in runs/ or in */; give the folder of one")
    return sorted(runs, key=_natural_order)


def _natural_order(run: Path) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", run.name)]


def _last_parts(path: Path, count: int) -> str:
    """Return the last parts of a run's path; ``<task>/runs/<run>`` counts as ``<task>``, then as ``<task>/<run>``."""
    parts = path.parts
    if parts[-2] == "runs":
        parts = parts[:-2] if count == 1 else (*parts[:-2], parts[-1])
    return "/".join(parts[-count:])


def _model(metrics: dict[str, Any]) -> str:
    """Return the variant, and the stages that were not in the pretrained weights."""
    weights = metrics.get("weights", {"loaded": 0})
    missing = [stage for stage in weights["random"] if stage != "head"] if weights["loaded"] else []
    return metrics.get("model", "external predictions") + (f", random {', '.join(missing)}" if missing else "")
