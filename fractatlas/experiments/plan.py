"""Run a plan: train, score and tabulate the runs of an experiment.

A plan is a YAML file with ``seeds``, ``common`` (options of ``fractatlas train`` for every run), ``config_dir`` (a
folder with more configuration files, relative to the plan), and at least one of

- ``recipes``: names with options. Each is trained with every seed; then the test subset is scored, once for each seed.
- ``steps``: names with options. Each is trained with the options of all kept steps before it. A step is kept unless it
  lowers the mean validation AUROC over the seeds. The test subset is not used.

The runs are in ``logs/plans/<experiment>/<plan>/<name>/seed_<n>``, where ``<experiment>`` is the name of the plan's
folder; repeat the command to resume them. Tables and figures are in the folder ``<plan>/`` next to the plan's file, and
are written again after every recipe and step. They keep the rows of recipes and steps that were not requested. The
folder ``<plan>/predictions`` contains the image-level predictions of each run, from which the tables can be computed.
"""

import itertools
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from fractatlas.config.overrides import compose_config
from fractatlas.config.schema import Count, Strict
from fractatlas.config.validation import known_keys
from fractatlas.errors import InputError
from fractatlas.experiments import result_tables
from fractatlas.experiments.train_and_score import score_test, train


class Plan(Strict):
    """The contents of a plan's file; ``config_dir`` is absolute, or empty."""

    seeds: list[Count]
    config_dir: str
    common: list[str]
    recipes: dict[str, list[str]]
    steps: dict[str, list[str]]

    def __post_init__(self):
        if not self.seeds or not (self.recipes or self.steps):
            raise ValueError("a plan needs a seed, and a recipe or a step")
        if repeated := [seed for seed in self.seeds if self.seeds.count(seed) > 1]:
            raise ValueError(f"seeds contains {repeated[0]} twice; remove one")
        if both := self.steps.keys() & self.recipes.keys():
            raise ValueError(f"{min(both)!r} is a step and a recipe; rename one of them")
        folders: dict[str, str] = {}
        for name in [*self.steps, *self.recipes]:
            if not folder_name(name):
                raise ValueError(f"name {name!r} should contain a letter or a digit")
            if (other := folders.setdefault(folder_name(name), name)) != name:
                raise ValueError(f"{name!r} and {other!r} would have the same folder; rename one of them")
        for option in itertools.chain(self.common, *self.steps.values(), *self.recipes.values()):
            if option.startswith(("-", "hydra.", "seed=", "test=", "resume=")):
                raise ValueError(f"{option}: remove it; fractatlas plan sets this option")

    def options(self, *several: Sequence[str]) -> list[str]:
        """Return the options of a run: those of all runs, then ``several``; later values replace earlier ones."""
        config_dir = [f"--config-dir={self.config_dir}"] if self.config_dir else []
        return config_dir + combine(self.common, *several)


def read_plan(path: Path) -> Plan:
    """Read and check a plan.

    Raises:
        InputError: the file is not a valid plan.
    """
    try:
        # OmegaConf's reader, because it raises an error for duplicate names.
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        plan = TypeAdapter(Plan).validate_python({"config_dir": "", "common": [], "recipes": {}, "steps": {}} | content)
    except (OSError, UnicodeDecodeError, TypeError, yaml.YAMLError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else getattr(error, "strerror", None)
        raise InputError(f"{path}: {reason or 'not a plan; should be YAML with seeds, and recipes or steps'}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["type"] == "unexpected_keyword_argument":
            message = f"unknown key; a plan has {', '.join(known_keys(Plan))}"
        raise InputError(": ".join(filter(None, [str(path), place, message]))) from None
    if plan.config_dir:
        folder = path.absolute().parent / plan.config_dir
        if not folder.is_dir():
            raise InputError(f"{path}: config_dir: no folder {folder}; correct config_dir")
        plan.config_dir = str(folder.resolve())
    return plan


def check_options(plan: Plan) -> None:
    """Compose the configuration of every run, each step added to all earlier steps, before any training.

    Raises:
        InputError: an option of a recipe or step is invalid.
    """
    kept: list[str] = []
    runs = {name: plan.options(options) for name, options in plan.recipes.items()}
    for name, options in plan.steps.items():
        kept = combine(kept, options)
        runs[name] = plan.options(kept)
    for name, options in runs.items():
        try:
            compose_config(options)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None


def run_plan(file: Path, out: Path | None = None, logs: Path | None = None, only: Collection[str] = ()) -> Path:
    """Run the plan in a file, or resume it.

    Args:
        file: the plan.
        out: the folder for tables and figures; by default in the folder of the plan, with its name.
        logs: the folder for the runs; by default ``logs/plans/<experiment>/<plan>``.
        only: names of recipes and steps; with a step, all earlier steps are run, too. Empty for all.

    Returns:
        The folder with tables and figures.

    Raises:
        InputError: the plan is invalid, a run failed, or a run folder was started with other settings.
        SystemExit: this process received a stop signal.
    """
    plan, path = read_plan(file), file.absolute()
    names = [*plan.steps, *plan.recipes]
    if unknown := [name for name in only if name not in names]:
        raise InputError(f"--only {unknown[0]}: not in {file}; its recipes and steps are {', '.join(names)}")
    check_options(plan)
    out = out or path.with_suffix("")
    out.mkdir(parents=True, exist_ok=True)
    logs = logs or Path("logs/plans") / path.parent.name / path.stem
    kept: list[str] = []
    kept_runs: list[Path] = []
    rows: dict[str, list[dict[str, Any]]] = {}
    steps = list(plan.steps.items())
    last = max((number for number, (name, _) in enumerate(steps) if name in only), default=-1) if only else len(steps)
    for name, options in steps[: last + 1]:
        runs = _train(plan, logs, name, plan.options(kept, options))
        row = result_tables.step_row(name, runs, kept_runs)
        if row["kept"]:
            kept, kept_runs = combine(kept, options), runs
        rows[name] = [row]
        result_tables.write_predictions(out / "predictions", folder_name(name), runs)
        result_tables.write_steps(out, result_tables.merge(out / "steps.csv", list(plan.steps), rows))
    rows = {}
    for name in [name for name in plan.recipes if name in only or not only]:
        options = plan.options(plan.recipes[name])
        runs = _train(plan, logs, name, options)
        for run in runs:
            score_test(run, options)
        rows[name] = result_tables.recipe_rows(name, runs)
        result_tables.write_predictions(out / "predictions", folder_name(name), runs)
        result_tables.write_recipes(out, result_tables.merge(out / "recipes.csv", list(plan.recipes), rows))
    _compare_recipes(plan, logs, out)
    return out


def _compare_recipes(plan: Plan, logs: Path, out: Path) -> None:
    """Compare each finished recipe with the first one, if that is finished, too."""
    every = {name: _runs(plan, logs, name) for name in plan.recipes}
    finished = {
        name: runs for name, runs in every.items() if all((run / "test" / "metrics.json").is_file() for run in runs)
    }
    first = next(iter(plan.recipes), None)
    if first is None or first not in finished or len(finished) < 2:
        return
    others = [name for name in finished if name != first]
    rows = [row for name in others for row in result_tables.difference_rows(name, finished[name], finished[first])]
    if rows:
        result_tables.write_differences(out, pd.DataFrame(rows), first)


def combine(*several: Sequence[str]) -> list[str]:
    """Join lists of options; a later option replaces an earlier one with the same key."""
    return list({option.partition("=")[0]: option for option in itertools.chain(*several)}.values())


def folder_name(name: str) -> str:
    """Return the name of the folder for the runs of a recipe or step: lower-case letters, digits, underscores."""
    return re.sub(r"\W+", "_", name).strip("_").lower()


def _runs(plan: Plan, logs: Path, name: str) -> list[Path]:
    return [logs / folder_name(name) / f"seed_{seed}" for seed in plan.seeds]


def _train(plan: Plan, logs: Path, name: str, options: Sequence[str]) -> list[Path]:
    runs = _runs(plan, logs, name)
    for seed, run in zip(plan.seeds, runs, strict=True):
        train(run, [*options, f"seed={seed}"])
    return runs
