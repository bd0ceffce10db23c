"""Run a plan: train, score and tabulate the runs of an experiment.

A plan is a YAML file with ``seeds``, ``common`` (options of ``fractatlas train`` for every run), ``config_dir`` (a
folder with more configuration files, relative to the plan), ``folds``, and at least one of

- ``recipes``: names with options. Each is trained with every seed; the test subset is scored once for each run.
- ``steps``: names with options. Each is trained with the options of all kept steps before it. A step is kept unless it
  lowers the mean validation AUROC over the seeds. The test subset is not used.

With ``folds``, each recipe and step is trained once for each seed and fold of ``split=kfold``, and scores are those of
all folds together.

The runs are in ``logs/plans/<experiment>/<plan>/<name>/seed_<n>`` (with folds, ``seed_<n>_fold_<i>``), where
``<experiment>`` is the name of the plan's folder; repeat the command to resume them. Tables and figures are in the
folder ``<plan>/`` next to the plan's file, and are written again after every recipe and step. A finished run leaves its
record in ``<plan>/predictions`` (``run_records``). Tables and figures are made from the records only, and a run with a
record is not trained again, even if its run folder is gone.
"""

import itertools
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import yaml
from annotated_types import Interval
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from fractatlas.config.overrides import compose_config
from fractatlas.config.schema import Count, Strict
from fractatlas.config.validation import differences, known_keys
from fractatlas.errors import InputError
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.experiments import result_tables
from fractatlas.experiments.pooled_folder import write_pooled
from fractatlas.experiments.run_records import (
    RunRecord,
    collect,
    read_images,
    read_record,
    require_equal_settings,
    run_name,
    seed_name,
    write_record,
)
from fractatlas.experiments.train_and_score import compared_settings, score_test, train
from fractatlas.wording import plural

log = logging.getLogger(__name__)
DEFAULTS: dict[str, Any] = {"folds": None, "config_dir": "", "common": [], "recipes": {}, "steps": {}}


class Plan(Strict):
    """The contents of a plan's file; ``config_dir`` is absolute, or empty."""

    seeds: list[Count]
    folds: Annotated[int, Interval(ge=3, le=100)] | None
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
            if self.folds and option.startswith(("split=", "split.folds=", "split.fold=")):
                raise ValueError(f"{option}: remove it, or remove folds, which sets this option")

    def options(self, *several: Sequence[str]) -> list[str]:
        """Return the options of a run: those of all runs, then ``several``; later values replace earlier ones."""
        config_dir = [f"--config-dir={self.config_dir}"] if self.config_dir else []
        return config_dir + combine(self.common, *several)

    @property
    def test_folds(self) -> list[int] | list[None]:
        """The test fold of each run of one seed; a single ``None`` without folds."""
        return list(range(self.folds)) if self.folds else [None]

    def run_options(self, seed: int, fold: int | None) -> list[str]:
        """Return the options of one run in addition to ``options``."""
        folds = [] if fold is None else ["split=kfold", f"split.folds={self.folds}", f"split.fold={fold}"]
        return [*folds, f"seed={seed}"]


def read_plan(path: Path) -> Plan:
    """Read and check a plan.

    Raises:
        InputError: the file is not a valid plan.
    """
    try:
        # OmegaConf's reader, because it raises an error for duplicate names.
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        plan = check_plan(DEFAULTS | content, str(path))
    except (OSError, UnicodeDecodeError, TypeError, yaml.YAMLError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else getattr(error, "strerror", None)
        raise InputError(f"{path}: {reason or 'not a plan; should be YAML with seeds, and recipes or steps'}") from None
    if plan.config_dir:
        folder = path.absolute().parent / plan.config_dir
        if not folder.is_dir():
            raise InputError(f"{path}: config_dir: no folder {folder}; correct config_dir")
        plan.config_dir = str(folder.resolve())
    return plan


def check_plan(content: dict[str, Any], place: str = "") -> Plan:
    """Return a plan from its contents.

    Args:
        content: all keys of ``Plan``.
        place: where the contents come from, for the message.

    Raises:
        InputError: a key is missing or unknown, or has a wrong value.
    """
    try:
        return TypeAdapter(Plan).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["type"] == "unexpected_keyword_argument":
            message = f"unknown key; a plan has {', '.join(known_keys(Plan))}"
        raise InputError(": ".join(filter(None, [place, key, message]))) from None


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
            compose_config([*options, *plan.run_options(plan.seeds[0], plan.test_folds[-1])])
        except InputError as error:
            raise InputError(f"{name}: {error}") from None


def run_plan(
    file: Path,
    out: Path | None = None,
    logs: Path | None = None,
    only: Collection[str] = (),
    tables: bool = False,
) -> Path:
    """Run the plan in a file, or resume it.

    Args:
        file: the plan.
        out: the folder for tables and figures; by default in the folder of the plan, with its name.
        logs: the folder for the runs; by default ``logs/plans/<experiment>/<plan>``.
        only: names of recipes and steps; with a step, all earlier steps are run, too. Empty for all.
        tables: train nothing. Write the records of finished runs that have none, and all tables and figures of the
            recipes and steps whose runs are all finished.

    Returns:
        The folder with tables and figures.

    Raises:
        InputError: the plan is invalid, a run failed, or a run folder or record was started with other settings; with
            ``tables``, no recipe or step is finished.
        SystemExit: this process received a stop signal.
    """
    plan, path = read_plan(file), file.absolute()
    names = [*plan.steps, *plan.recipes]
    if unknown := [name for name in only if name not in names]:
        raise InputError(f"--only {unknown[0]}: not in {file}; its recipes and steps are {', '.join(names)}")
    if not tables:
        check_options(plan)
    out = out or path.with_suffix("")
    out.mkdir(parents=True, exist_ok=True)
    logs = logs or Path("logs/plans") / path.parent.name / path.stem
    runs = PlanRuns(plan, out / "predictions", logs)
    finished: dict[str, list[list[RunRecord]]] = {}
    kept: list[str] = []
    before: list[list[RunRecord]] = []
    rows: dict[str, list[dict[str, Any]]] = {}
    steps = list(plan.steps.items())
    last = max((number for number, (name, _) in enumerate(steps) if name in only), default=-1) if only else len(steps)
    for name, options in steps[: last + 1]:
        seeds = runs.recorded(name, "val") if tables else runs.finish(name, plan.options(kept, options), "val")
        if seeds is None:
            break
        finished[name], row = seeds, result_tables.step_row(name, seeds, before)
        if row["kept"]:
            kept, before = combine(kept, options), seeds
        rows[name] = [row]
        result_tables.write_steps(out, result_tables.merge(out / "steps.csv", list(plan.steps), rows))
    rows = {}
    for name in [name for name in plan.recipes if name in only or not only]:
        seeds = runs.recorded(name, "test") if tables else runs.finish(name, plan.options(plan.recipes[name]), "test")
        if seeds is None:
            continue
        finished[name], rows[name] = seeds, result_tables.recipe_rows(name, seeds)
        result_tables.write_recipes(out, result_tables.merge(out / "recipes.csv", list(plan.recipes), rows))
        if plan.folds:
            write_pooled(out / "pooled" / folder_name(name), name, seeds, read_images(runs.records))
    if not finished:
        raise InputError(f"{file}: no recipe or step is finished; run fractatlas plan {file}")
    for name in names:
        if name not in finished and (seeds := runs.recorded(name, "test" if name in plan.recipes else "val")):
            finished[name] = seeds
    _write_joint_tables(plan, out, {name: finished[name] for name in names if name in finished})
    return out


def _write_joint_tables(plan: Plan, out: Path, finished: Mapping[str, Sequence[Sequence[RunRecord]]]) -> None:
    """Write the scores of each run, and compare each finished recipe with the first one, if that is finished, too."""
    rows = [row for name, seeds in finished.items() for row in result_tables.run_rows(name, seeds)]
    result_tables.write_runs(out, pd.DataFrame(rows))
    first = next(iter(plan.recipes), None)
    if first is None or first not in finished:
        return
    others = [name for name in finished if name in plan.recipes and name != first]
    rows = [row for name in others for row in result_tables.difference_rows(name, finished[name], finished[first])]
    if rows:
        result_tables.write_differences(out, pd.DataFrame(rows), first)


class PlanRuns:
    """The runs of a plan and their records.

    Args:
        plan: the plan.
        records: the folder of the records.
        logs: the folder of the run folders.
    """

    def __init__(self, plan: Plan, records: Path, logs: Path):
        self.plan, self.records, self.logs = plan, records, logs

    def finish(self, name: str, options: Sequence[str], subset: str) -> list[list[RunRecord]]:
        """Train and score the runs of a recipe or step that have no record, and write their records.

        A run is scored on the test subset right after its training, so that its record is complete.

        Args:
            name: of the recipe or step.
            options: of its runs, without seed and fold.
            subset: ``test`` to score the test subset, too, otherwise ``val``.

        Returns:
            For each seed, the records of its folds, or of its single run.

        Raises:
            InputError: a run failed, or a run folder or record has other settings.
            SystemExit: this process received a stop signal.
        """
        settings: dict[str, Any] = {}
        seeds: list[list[RunRecord]] = [[] for _ in self.plan.seeds]
        for folds, seed in zip(seeds, self.plan.seeds, strict=True):
            for fold in self.plan.test_folds:
                own = [*options, *self.plan.run_options(seed, fold)]
                run, file = self._run(name, seed, fold), run_name(folder_name(name), seed, fold)
                record = self._read(file, subset)
                if record:
                    settings = settings or compared_settings(own)
                    now = settings | ({"seed": seed} if fold is None else {"seed": seed, "split.fold": fold})
                    if changes := differences(record.settings, now):
                        raise InputError(
                            f"{self.records / file}.json was trained with other settings: {'; '.join(changes[:3])}; "
                            "move or delete it to train the run again"
                        )
                else:
                    train(run, own)
                    if subset == "test":
                        score_test(run, own)
                    record = self._write(file, run, name, seed, fold)
                folds.append(record)
        return seeds

    def recorded(self, name: str, subset: str) -> list[list[RunRecord]] | None:
        """Return the records of a recipe or step as ``finish`` does, without training.

        Finished run folders without a record get one.

        Returns:
            ``None`` if a run is not finished.

        Raises:
            InputError: a record is damaged, or the runs have other settings than each other.
        """
        found: dict[str, RunRecord] = {}
        seeds: list[list[RunRecord]] = [[] for _ in self.plan.seeds]
        for folds, seed in zip(seeds, self.plan.seeds, strict=True):
            for fold in self.plan.test_folds:
                run, file = self._run(name, seed, fold), run_name(folder_name(name), seed, fold)
                record = self._read(file, subset)
                needed = [run, run / "test"] if subset == "test" else [run]
                if record is None and all((folder / "metrics.json").is_file() for folder in needed):
                    record = self._write(file, run, name, seed, fold)
                if record:
                    found[file] = record
                    folds.append(record)
        expected = len(self.plan.seeds) * len(self.plan.test_folds)
        if len(found) < expected:
            if found:
                log.info("%s: %d of %s finished, so it is in no table", name, len(found), plural(expected, "run"))
            return None
        require_equal_settings(list(found.values()), list(found))
        return seeds

    def _run(self, name: str, seed: int, fold: int | None) -> Path:
        return self.logs / folder_name(name) / seed_name(seed, fold)

    def _read(self, file: str, subset: str) -> RunRecord | None:
        if not (self.records / f"{file}.json").is_file():
            return None
        record = read_record(self.records, file)
        return record if subset in record.tables else None

    def _write(self, file: str, run: Path, name: str, seed: int, fold: int | None) -> RunRecord:
        write_record(self.records, file, collect(run, name, seed, fold), RunFolder(run).catalogue)
        return read_record(self.records, file)  # as later commands read it


def combine(*several: Sequence[str]) -> list[str]:
    """Join lists of options; a later option replaces an earlier one with the same key."""
    return list({option.partition("=")[0]: option for option in itertools.chain(*several)}.values())


def folder_name(name: str) -> str:
    """Return the name of the folder for the runs of a recipe or step: lower-case letters, digits, underscores."""
    return re.sub(r"\W+", "_", name).strip("_").lower()
