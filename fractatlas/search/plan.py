"""The runs of an experiment and its table: ``python -m fractatlas.search.plan experiments/01_baseline/full.yaml``.

A plan has ``seeds``, ``common`` (options of ``train.py`` for every run), and either or both of

- ``recipes``, a name and options each: trained under every seed; only then is the test part scored, once a seed;
- ``steps``, likewise, each on top of the ones before it that were kept. A step is kept unless the mean validation AUROC
  over the seeds is lower with it. The test part is not read.

Runs lie in ``logs/plans/<experiment>/<plan>/<name>/seed_<n>`` and are gone on with where they were left. Tables and
figures are written beside the plan, into ``<experiment>/<plan>/``, and again after every recipe and step; rows of
recipes and steps that are not there yet, or not asked for, stay as they are.
"""

import argparse
import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from fractatlas.cli import composed, one_line_errors
from fractatlas.config import Count, Strict, TrainConfig
from fractatlas.errors import InputError
from fractatlas.report import results
from fractatlas.search.runs import score_test, train


@dataclass
class Plan(Strict):
    """The contents of a plan's file."""

    seeds: list[Count]
    common: list[str]
    recipes: dict[str, list[str]]
    steps: dict[str, list[str]]

    def __post_init__(self):
        if not self.seeds or not (self.recipes or self.steps):
            raise ValueError("a plan needs a seed, and a recipe or a step")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is there twice")
        if both := self.steps.keys() & self.recipes.keys():
            raise ValueError(f"{min(both)!r} is a step and a recipe: give them two names")
        folders: dict[str, str] = {}
        for name in [*self.steps, *self.recipes]:
            if not folder_of(name):
                raise ValueError(f"{name!r} needs a letter or a digit")
            if (other := folders.setdefault(folder_of(name), name)) != name:
                raise ValueError(f"{name!r} and {other!r} would share a folder")
        for option in itertools.chain(self.common, *self.steps.values(), *self.recipes.values()):
            if option.startswith(("-", "hydra.", "seed=", "test=", "resume=")):
                raise ValueError(f"{option} is the plan's to say, not an option's")


def read_plan(path: Path) -> Plan:
    """Read and check a plan.

    Raises:
        InputError: the file is no plan.
    """
    try:
        # OmegaConf's reader, because it refuses a name that is there twice.
        content = OmegaConf.to_container(OmegaConf.load(path))
        return TypeAdapter(Plan).validate_python({"common": [], "recipes": {}, "steps": {}} | content)
    except (OSError, UnicodeDecodeError, TypeError, yaml.YAMLError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1}: {error.problem}" if mark else getattr(error, "strerror", None)
        raise InputError(f"{path}: {reason or 'not YAML with seeds, recipes, steps'}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["type"] == "unexpected_keyword_argument":
            said = f"unknown key; a plan has {', '.join(field.name for field in fields(Plan))}"
        raise InputError(": ".join(filter(None, [str(path), where, said]))) from None


def check_options(plan: Plan) -> None:
    """Compose every run of a plan, each step on top of all before it, before any of them is trained.

    Raises:
        InputError: an option cannot be meant; names the recipe or step.
    """
    kept: list[str] = []
    runs = {name: combine(plan.common, options) for name, options in plan.recipes.items()}
    for name, options in plan.steps.items():
        kept = combine(kept, options)
        runs[name] = combine(plan.common, kept)
    for name, options in runs.items():
        try:
            composed(options)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None


def carry_out(plan: Plan, out: Path, logs: Path, only: Collection[str] = ()) -> None:
    """Train, score and tabulate all that a plan lists.

    Args:
        plan: of ``read_plan``.
        out: the folder for ``recipes.csv, recipes.md``, ``steps.csv, steps.md`` and the figures.
        logs: the folder for the runs.
        only: the names of recipes, and of steps with those that they stand on; none for all.

    Raises:
        InputError: a run failed, or was begun with other settings.
        SystemExit: this process was asked to stop.
    """
    kept: list[str] = []
    before: list[Path] = []
    found: dict[str, list[dict[str, Any]]] = {}
    steps = list(plan.steps.items())
    last = max((number for number, (name, _) in enumerate(steps) if name in only), default=-1) if only else len(steps)
    for name, options in steps[: last + 1]:
        runs = _train(plan, logs, name, combine(plan.common, kept, options))
        row = results.step(name, runs, before)
        if row["kept"]:
            kept, before = combine(kept, options), runs
        found[name] = [row]
        results.write_steps(out, results.merged(out / "steps.csv", list(plan.steps), found))
    found = {}
    for name in [name for name in plan.recipes if name in only or not only]:
        runs = _train(plan, logs, name, combine(plan.common, plan.recipes[name]))
        for run in runs:
            score_test(run)
        found[name] = results.recipe(name, runs)
        results.write_recipes(out, results.merged(out / "recipes.csv", list(plan.recipes), found))


def combine(*several: Sequence[str]) -> list[str]:
    """Put options together, the later of two for one key in place of the earlier."""
    merged: dict[str, str] = {}
    for option in (option for options in several for option in options):
        key = option.partition("=")[0]
        merged.pop(key, None)
        merged[key] = option
    return list(merged.values())


def folder_of(name: str) -> str:
    """The folder of a recipe's or step's runs: its name in small letters, digits and underscores."""
    return re.sub(r"\W+", "_", name).strip("_").lower()


def _train(plan: Plan, logs: Path, name: str, options: Sequence[str]) -> list[Path]:
    runs = [logs / folder_of(name) / f"seed_{seed}" for seed in plan.seeds]
    for seed, run in zip(plan.seeds, runs, strict=True):
        train(run, *options, f"seed={seed}")
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Carry out a plan."""
    parser = argparse.ArgumentParser(
        prog="python -m fractatlas.search.plan", description="Train, score and tabulate the runs of an experiment."
    )
    parser.add_argument("plan", type=Path, metavar="PLAN", help="experiments/<experiment>/<plan>.yaml")
    parser.add_argument("--only", action="append", metavar="NAME", help="this recipe or step alone (again for more)")
    parser.add_argument("--out", type=Path, help="where the tables go (a folder named as the plan, beside it)")
    parser.add_argument("--logs", type=Path, help="where the runs go (logs/plans/<experiment>/<plan>)")
    options = parser.parse_args(arguments)
    with one_line_errors(TrainConfig, "interrupted; the same command goes on"):
        plan, path = read_plan(options.plan), options.plan.absolute()
        names, only = [*plan.steps, *plan.recipes], options.only or ()
        if unknown := [name for name in only if name not in names]:
            raise InputError(f"{options.plan} has no {unknown[0]!r}; it has {', '.join(names)}")
        check_options(plan)
        out = options.out or path.with_suffix("")
        out.mkdir(parents=True, exist_ok=True)
        carry_out(plan, out, options.logs or Path("logs/plans") / path.parent.name / path.stem, only)
    for file in sorted(out.glob("*.md")):
        print(file.read_text(encoding="utf-8"))
    print(f"Tables and figures: {out}")


if __name__ == "__main__":
    main()
