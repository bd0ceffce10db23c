"""The runs of an experiment and its table: ``python -m fractatlas.search.plan experiments/01_baseline/cpu.yaml``.

A plan has ``seeds``, ``common`` (options of ``train.py`` for every run), and either or both of

- ``recipes``, a name and options each: trained under every seed, then the test part scored, all seeds in one pass;
- ``steps``, likewise, each on top of the ones before it that were kept. A step is kept unless the mean validation AUROC
  over the seeds is lower with it. The test part is not read.

Runs lie in ``logs/plans/<experiment>/<plan>/<name>/seed_<n>`` and are gone on with where they were left. Tables and
figures are written beside the plan, into ``<experiment>/<plan>/``, and again after every recipe and step.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from pydantic import TypeAdapter, ValidationError

from fractatlas.config import Count, Strict
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


def read_plan(path: Path) -> Plan:
    """Read and check a plan.

    Raises:
        InputError: the file is no plan.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(Plan).validate_python({"common": [], "recipes": {}, "steps": {}} | content)
    except (OSError, UnicodeDecodeError, TypeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not YAML with seeds, recipes, steps"
        raise InputError(f"{path}: {reason}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def carry_out(plan: Plan, out: Path, logs: Path) -> None:
    """Train, score and tabulate all that a plan lists.

    Args:
        plan: of ``read_plan``.
        out: the folder for ``recipes.csv, recipes.md``, ``steps.csv, steps.md`` and the figures.
        logs: the folder for the runs.

    Raises:
        InputError: a run failed, or was begun with other settings.
    """
    kept: list[str] = []
    before: list[Path] = []
    rows = []
    for name, options in plan.steps.items():
        runs = _train(plan, logs, name, combine(plan.common, kept, options))
        row = results.step(name, runs, before)
        if row["kept"]:
            kept, before = combine(kept, options), runs
        rows.append(row)
        results.write_steps(out, pd.DataFrame(rows))
    rows = []
    for name, options in plan.recipes.items():
        runs = _train(plan, logs, name, combine(plan.common, options))
        for run in runs:
            score_test(run)
        rows += results.recipe(name, runs)
        results.write_recipes(out, pd.DataFrame(rows))


def combine(*several: Sequence[str]) -> list[str]:
    """Put options together, the later of two for one key in place of the earlier."""
    merged: dict[str, str] = {}
    for option in (option for options in several for option in options):
        key = option.partition("=")[0]
        merged.pop(key, None)
        merged[key] = option
    return list(merged.values())


def _train(plan: Plan, logs: Path, name: str, options: Sequence[str]) -> list[Path]:
    runs = [logs / re.sub(r"\W+", "_", name).strip("_").lower() / f"seed_{seed}" for seed in plan.seeds]
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
    try:
        plan, path = read_plan(options.plan), options.plan.absolute()
        if options.only:
            plan = _only(plan, options.only, options.plan)
        out = options.out or path.with_suffix("")
        carry_out(plan, out, options.logs or Path("logs/plans") / path.parent.name / path.stem)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")
    for file in sorted(out.glob("*.md")):
        print(file.read_text(encoding="utf-8"))
    print(f"Tables and figures: {out}")


def _only(plan: Plan, names: Sequence[str], path: Path) -> Plan:
    if unknown := [name for name in names if name not in {*plan.recipes, *plan.steps}]:
        raise InputError(f"{path} has no {unknown[0]!r}; it has {', '.join({**plan.steps, **plan.recipes})}")
    chosen = {name: options for name, options in plan.recipes.items() if name in names}
    # A step stands on those before it.
    last = max((number for number, name in enumerate(plan.steps) if name in names), default=-1)
    return Plan(plan.seeds, plan.common, chosen, dict(list(plan.steps.items())[: last + 1]))


if __name__ == "__main__":
    main()
