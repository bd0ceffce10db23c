"""Read the jobs of a grid from its folder, and write ``sweep.csv``, ``sweep.md`` and ``sweep.html`` there."""

import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from fractatlas.config.validation import differing_keys, metric_mode
from fractatlas.evaluation.markdown import (
    METRIC_TITLES,
    OTHER_IMAGES,
    OTHER_IMAGES_NOTE,
    format_fraction,
    mark_other_images,
    to_markdown,
)
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.io import try_lock, write_csv, write_json, write_text
from fractatlas.pages import render
from fractatlas.report.run_table import same_but_seed

JOB, LOCK = "job.json", ".job.lock"
FINISHED, FAILED, INTERRUPTED, RUNNING, WAITING = "finished", "failed", "interrupted", "running", "waiting"
STATES = (FINISHED, FAILED, INTERRUPTED, RUNNING, WAITING)
SUBSETS = ("val", "test", "train")
SCORES = ("auroc", "accuracy")


def read_job(folder: Path) -> dict[str, Any]:
    """Return the record of a job: ``overrides, identity, outputs, state, reason, seconds``.

    A job that was running when its process ended is interrupted; one without a record is waiting.
    """
    job: dict[str, Any] = {
        "overrides": [],
        "identity": "",
        "outputs": [],
        "state": WAITING,
        "reason": "",
        "seconds": None,
    }
    if not (folder / JOB).is_file():
        return job
    job |= json.loads((folder / JOB).read_text(encoding="utf-8"))
    if job["state"] == FINISHED and (folder / "checkpoints").is_dir() and not (folder / "metrics.json").is_file():
        job["state"] = INTERRUPTED  # resumed by hand, and not finished
    if job["state"] == RUNNING:
        with try_lock(folder / LOCK) as locked:
            job["state"] = INTERRUPTED if locked else RUNNING
    return job


def write_job(folder: Path, job: dict[str, Any]) -> None:
    """Write the record of a job."""
    write_json(folder / JOB, job)


@dataclass
class Job:
    """A job of a grid."""

    name: str
    folder: Path
    settings: dict[str, str]
    state: str
    reason: str
    seconds: float | None

    @cached_property
    def run(self) -> RunFolder:
        """The run folder of the job."""
        return RunFolder(self.folder, given={})

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The scores of a finished job."""
        return self.run.metrics if self.state == FINISHED else {}

    @cached_property
    def images(self) -> dict[str, frozenset[str]]:
        """The ids of the scored images of each subset."""
        if not self.metrics or not self.run.file("predictions.csv"):
            return {}
        return {str(subset): frozenset(rows["image_id"]) for subset, rows in self.run.predictions.groupby("split")}

    @property
    def link(self) -> str:
        """The path of the report, or of the folder, relative to the grid's folder."""
        report = self.folder / "report.html"
        return f"{self.name}/report.html" if report.is_file() else f"{self.name}/"


def read_jobs(sweep: Path) -> list[Job]:
    """Return the jobs in the folder of a grid, ordered by their settings, the seed last."""
    records = {file.parent: read_job(file.parent) for file in sweep.glob(f"**/{JOB}")}
    overrides = [_settings(record["overrides"]) for record in records.values()]
    differing = differing_keys(overrides) if overrides else []
    keys = [key for key in dict.fromkeys(key for one in overrides for key in one) if key in differing]
    keys.sort(key=lambda key: key == "seed")
    jobs = [
        Job(
            folder.relative_to(sweep).as_posix(), folder, {key: settings.get(key, "") for key in keys},
            record["state"], record["reason"], record["seconds"],
        )
        for (folder, record), settings in zip(records.items(), overrides, strict=True)
    ]  # fmt: skip
    return sorted(jobs, key=lambda job: [*map(_natural_order, job.settings.values()), _natural_order(job.name)])


def best_job(jobs: Sequence[Job]) -> Job | None:
    """Return the job with the best value of ``monitor``.

    Returns ``None`` if fewer than two jobs have one, or if they have different metrics or validation images.
    """
    scored = [job for job in jobs if _monitor(job)]
    if len(scored) < 2 or len({(_monitor(job)["name"], job.images.get("val")) for job in scored}) != 1:
        return None
    sign = -1 if metric_mode(_monitor(scored[0])["name"]) == "min" else 1
    return max(scored, key=lambda job: sign * _monitor(job)["value"])


def jobs_with_other_images(jobs: Sequence[Job]) -> set[str]:
    """Return the names of the jobs whose images of a subset differ from those of the first job with this subset."""
    rows = [(job, subset) for job in jobs for subset in _subsets([job])]
    marks = mark_other_images([subset for _, subset in rows], [job.images.get(subset) for job, subset in rows])
    return {job.name for (job, _), mark in zip(rows, marks, strict=True) if mark}


def jobs_table(jobs: Sequence[Job]) -> pd.DataFrame:
    """Return one row per job.

    Returns:
        ``job`` (name of the folder), the settings in which the jobs differ, ``state, reason, seconds, best``,
        ``monitor, monitor_value``, for each subset ``<subset>_n``, ``_positives``, ``_majority_rate``, and for AUROC
        and accuracy ``<subset>_<score>``, ``_low``, ``_high``, and ``link`` (the report or the folder).
    """
    best, rows = best_job(jobs), []
    subsets = _subsets(jobs)
    for job in jobs:
        monitor = _monitor(job)
        row: dict[str, Any] = {"job": job.name} | job.settings
        row |= {"state": job.state, "reason": job.reason, "seconds": job.seconds, "best": job is best}
        row |= {"monitor": monitor.get("name"), "monitor_value": monitor.get("value")}
        for subset in subsets:
            scores = job.metrics.get(subset, {})
            row |= {f"{subset}_{key}": scores.get(key) for key in ("n", "positives", "majority_rate")}
            for name in SCORES:
                score = scores.get(name) or {}
                ends = {"": "value", "_low": "low", "_high": "high"}
                row |= {f"{subset}_{name}{end}": score.get(key) for end, key in ends.items()}
        rows.append(row | {"link": job.link})
    return pd.DataFrame(rows).astype({f"{subset}_{key}": "Int64" for subset in subsets for key in ("n", "positives")})


def seed_means(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the mean and the range of the scores over finished jobs that differ only in their seed, best first.

    Returns:
        For each such set of at least two jobs: ``settings`` (without the seed), ``seeds``, ``monitor`` (mean), and
        ``scores``: for each subset and score, mean, minimum and maximum over the seeds.
    """
    finished = {job.name: job for job in jobs if job.metrics}
    rows = []
    for names in same_but_seed({name: job.run for name, job in finished.items()}):
        group = [finished[name] for name in names]
        seeds = [_seed(job) for job in group]
        # A seed that occurs twice: the jobs also differ in a setting that changes no result, or evaluate one run.
        if len(group) < 2 or len(set(seeds)) < len(seeds) or len({_monitor(job).get("name") for job in group}) != 1:
            continue
        scores = {}
        for subset in _subsets(group):
            for score in SCORES:
                found = [(job.metrics.get(subset, {}).get(score) or {}).get("value") for job in group]
                values = [value for value in found if value is not None]
                if len(values) == len(group):
                    scores[subset, score] = (sum(values) / len(values), min(values), max(values))
        monitors = [_monitor(job)["value"] for job in group] if _monitor(group[0]) else [math.nan]
        rows.append({
            "settings": {key: value for key, value in group[0].settings.items() if key != "seed"},
            "seeds": sorted(seeds),
            "monitor": sum(monitors) / len(monitors),
            "scores": scores,
        })  # fmt: skip
    minimise = bool(finished) and metric_mode(_monitor(next(iter(finished.values()))).get("name", "")) == "min"
    return sorted(rows, key=lambda row: row["monitor"], reverse=not minimise)


def write_sweep(sweep: Path) -> str:
    """Write the tables and the page of a grid from the files in its folder; return the best job in words.

    One process at a time reads and writes, so that an older table never replaces a newer one.
    """
    sweep.mkdir(parents=True, exist_ok=True)
    with FileLock(sweep / ".lock"):
        jobs = read_jobs(sweep)
        write_csv(sweep / "sweep.csv", jobs_table(jobs))
        means, best, marked = seed_means(jobs), best_job(jobs), jobs_with_other_images(jobs)
        parts = [to_markdown(_format_jobs(jobs, marked))]
        if marked:
            parts.append(OTHER_IMAGES_NOTE)
        if means:
            parts.append(f"Mean over seeds (minimum to maximum):\n\n{to_markdown(_format_means(means))}")
        write_text(sweep / "sweep.md", "\n".join(parts))
        monitor = _monitor(best) if best else {}
        page = render(
            "sweep.html.jinja",
            title=sweep.name,
            jobs=jobs,
            best=best,
            marked=marked,
            monitor=monitor,
            best_score=_best_score(best) if best else "",
            counts={state: count for state in STATES if (count := sum(job.state == state for job in jobs))},
            settings=list(jobs[0].settings) if jobs else [],
            subsets=_subsets(jobs),
            scores=SCORES,
            titles=METRIC_TITLES,
            means=means,
            duration=format_duration,
        )
        write_text(sweep / "sweep.html", page)
    return f"{best.name}, {monitor['name']} {_best_score(best)}" if best else ""


def format_duration(seconds: float | None) -> str:
    """Return ``45 s``, ``12 min`` or ``3 h 20 min``; an empty text for ``None``."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _format_jobs(jobs: Sequence[Job], marked: Collection[str]) -> pd.DataFrame:
    best, rows = best_job(jobs), []
    for job in jobs:
        row = dict(job.settings) or {"job": job.name}
        mark = OTHER_IMAGES if job.name in marked else ""
        row |= {"state": f"**{job.state}, best**" if job is best else job.state + mark}
        for subset in _subsets(jobs):
            scores = job.metrics.get(subset, {})
            for name in SCORES:
                row[f"{subset} {METRIC_TITLES[name]}"] = (
                    format_fraction(**scores[name] or {"value": None}) if scores else ""
                )
            row[f"{subset} majority rate"] = f"{scores['majority_rate']:.3f}" if scores else ""
        row |= {"duration": format_duration(job.seconds), "reason": job.reason}
        rows.append(row | {"run": f"[{'report' if job.link.endswith('.html') else 'folder'}](<{job.link}>)"})
    table = pd.DataFrame(rows)
    return table.loc[:, [name for name in table if name != "reason" or table[name].any()]]


def _format_means(means: Sequence[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for row in means:
        cells = row["settings"] | {"seeds": ", ".join(map(str, row["seeds"]))}
        for (subset, score), (mean, low, high) in row["scores"].items():
            cells[f"{subset} {METRIC_TITLES[score]}"] = f"{mean:.3f} ({low:.3f} to {high:.3f})"
        rows.append(cells)
    return pd.DataFrame(rows).fillna("")


def _subsets(jobs: Sequence[Job]) -> list[str]:
    return [subset for subset in SUBSETS if any(subset in job.metrics for job in jobs)]


def _monitor(job: Job) -> dict[str, Any]:
    return job.metrics.get("monitor", {})


def _best_score(job: Job) -> str:
    """Return the value of ``monitor``, its interval, and for an accuracy the majority rate.

    The interval is that of the subset's score in ``metrics.json``, and is omitted if that score has another value: an
    accuracy there has the threshold of the operating point.
    """
    monitor = _monitor(job)
    subset, _, name = monitor["name"].partition("/")
    scores, text = job.metrics.get(subset, {}), f"{monitor['value']:.4f}"
    score = scores.get(name) or {}
    if isinstance(score, dict) and math.isclose(score.get("value", math.nan), monitor["value"], abs_tol=1e-4):
        text += f" [{score['low']:.4f}, {score['high']:.4f}]"
    if name == "accuracy" and "majority_rate" in scores:
        text += f", majority rate {scores['majority_rate']:.4f}"
    return text


def _seed(job: Job) -> int:
    return job.run.config["seed"] if job.run.config else 0


def _settings(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+"): value.strip("'\"") for key, _, value in pairs}


def _natural_order(text: str) -> list[tuple[int, float, str]]:
    """Return a sort key that orders numbers by value, and the numbers in a text, too."""
    try:
        return [(0, float(text), "")]
    except ValueError:
        parts = re.split(r"(\d+)", text)
        return [(1, float(part), "") if part.isdecimal() else (2, 0.0, part) for part in parts if part]
