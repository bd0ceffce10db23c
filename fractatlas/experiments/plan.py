"""Run a plan: train, score and tabulate the runs of an experiment.

A plan is a YAML file with ``seeds``, ``common`` (options of ``fractatlas train`` for every run), ``config_dir`` (a
folder with more configuration files, relative to the plan), ``folds``, ``threshold``, and at least one of

- ``recipes``: names with options. Each is trained with every seed; the test subset is scored once for each run.
- ``variants``: names with options. Each is trained with every seed, scored on the validation subset, and compared with
  the first one. The test subset is not used.
- ``steps``: names with options. Each is trained with the options of all kept steps before it. A step is kept unless it
  lowers the mean validation AUROC over the seeds. The test subset is not used.

``ensembles`` are names with lists of recipes. An ensemble is not trained: it averages the calibrated probabilities of
all seeds of its recipes, on the images that all of them have.

With ``folds``, each recipe, variant and step is trained once for each seed and fold of ``split=kfold``, and scores are
those of all folds together. With ``threshold``, the decision thresholds of all runs are chosen by this rule, on the
validation predictions in their records.

The runs are in ``logs/plans/<experiment>/<plan>/<name>/seed_<n>`` (with folds, ``seed_<n>_fold_<i>``), where
``<experiment>`` is the name of the plan's folder; repeat the command to resume them. Tables and figures are in the
folder ``<plan>/`` next to the plan's file, and are written again after every recipe, variant and step. A finished run
leaves its record in ``<plan>/predictions`` (``run_records``). Tables and figures are made from the records only
(``plan_tables``), and a run with a record is not trained again, even if its run folder is gone.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

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
from fractatlas.experiments.plan_tables import PlanTables, unfinished
from fractatlas.experiments.run_records import (
    RunRecord,
    choose_threshold,
    collect,
    folder_name,
    read_images,
    read_record,
    require_equal_settings,
    run_name,
    seed_name,
    write_record,
)
from fractatlas.experiments.train_and_score import Run, compared_settings, finish_runs, require_same_settings
from fractatlas.wording import plural

log = logging.getLogger(__name__)
DEFAULTS: dict[str, Any] = {
    "folds": None, "threshold": None, "config_dir": "", "common": [], "recipes": {}, "variants": {}, "steps": {},
    "ensembles": {},
}  # fmt: skip
SHOULD_BE = {  # by pydantic's type of error
    "dict_type": "should be names with lists, such as {name: []}",
    "list_type": "should be a list; write it in brackets",
    "string_type": "should be text; quote numbers",
}


class Plan(Strict):
    """The contents of a plan's file; ``config_dir`` is absolute, or empty, ``threshold`` a choice of this group."""

    seeds: list[Count]
    folds: Annotated[int, Interval(ge=3, le=100)] | None
    threshold: str | None
    config_dir: str
    common: list[str]
    recipes: dict[str, list[str]]
    variants: dict[str, list[str]]
    steps: dict[str, list[str]]
    ensembles: dict[str, list[str]]

    def __post_init__(self):
        trained = {"a step": self.steps, "a variant": self.variants, "a recipe": self.recipes}
        kinds = trained | {"an ensemble": self.ensembles}
        if not self.seeds or not any(trained.values()):
            raise ValueError("a plan needs a seed, and a recipe, a variant or a step")
        if repeated := [seed for seed in self.seeds if self.seeds.count(seed) > 1]:
            raise ValueError(f"seeds contains {repeated[0]} twice; remove one")
        for one, other in itertools.combinations(kinds, 2):
            if both := kinds[one].keys() & kinds[other].keys():
                raise ValueError(f"{min(both)!r} is {one} and {other}; rename one of them")
        for name, members in self.ensembles.items():
            if unknown := [member for member in members if member not in self.recipes]:
                raise ValueError(f"ensemble {name!r}: {unknown[0]!r} is not a recipe; quote a name with a comma")
            if len(members) < 2 or len({*members}) < len(members):
                raise ValueError(f"ensemble {name!r}: should be a list of two or more different recipes")
        folders: dict[str, str] = {}
        for name in [*self.names, *self.ensembles]:
            if not folder_name(name):
                raise ValueError(f"name {name!r} should contain a letter or a digit")
            if (other := folders.setdefault(folder_name(name), name)) != name:
                raise ValueError(f"{name!r} and {other!r} would have the same folder; rename one of them")
        of_runs = [options for kind in trained.values() for options in kind.values()]
        for option in itertools.chain(self.common, *of_runs):
            if option.startswith(("-", "hydra.", "seed=", "test=", "resume=")):
                raise ValueError(f"{option}: remove it; fractatlas plan sets this option")
            if self.folds and option.startswith(("split=", "split.folds=", "split.fold=")):
                raise ValueError(f"{option}: remove it, or remove folds, which sets this option")

    @property
    def names(self) -> list[str]:
        """The names of all steps, variants and recipes, which are trained."""
        return [*self.steps, *self.variants, *self.recipes]

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
        if not content:
            raise InputError(f"{path}: the file is empty; should be YAML with seeds and recipes")
        plan = check_plan(DEFAULTS | content, str(path))
    except (OSError, UnicodeDecodeError, TypeError, yaml.YAMLError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else getattr(error, "strerror", None)
        raise InputError(f"{path}: {reason or 'not a plan; should be YAML with seeds and recipes'}") from None
    if plan.threshold:
        try:
            compose_config([f"threshold={plan.threshold}"])
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
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
        message = SHOULD_BE.get(first["type"], message)
        raise InputError(": ".join(filter(None, [place, key, message]))) from None


def check_options(plan: Plan) -> None:
    """Compose the configuration of every run, each step added to all earlier steps, before any training.

    Raises:
        InputError: an option of a recipe, variant or step is invalid.
    """
    kept: list[str] = []
    runs = {name: plan.options(options) for name, options in (plan.recipes | plan.variants).items()}
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
    jobs: int = 1,
) -> Path:
    """Run the plan in a file, or resume it.

    Args:
        file: the plan.
        out: the folder for tables and figures; by default in the folder of the plan, with its name.
        logs: the folder for the runs; by default ``logs/plans/<experiment>/<plan>``.
        only: names of recipes, variants and steps; with a step, all earlier steps are run, too. Empty for all.
        tables: train nothing. Write the records of finished runs that have none, and all tables and figures.
        jobs: number of runs at the same time. Those of one step, or those of all recipes and variants, do not depend on
            each other.

    Returns:
        The folder with tables and figures.

    Raises:
        InputError: the plan is invalid, a run failed, or a run folder or record was started with other settings; with
            ``tables``, no run is finished.
        SystemExit: this process received a stop signal.
    """
    plan, path = read_plan(file), file.absolute()
    if averaged := [name for name in only if name in plan.ensembles]:
        raise InputError(f"--only {averaged[0]}: ensembles are not trained; use --tables, which scores them")
    if unknown := [name for name in only if name not in plan.names]:
        raise InputError(f"--only {unknown[0]}: not in {file}; its rows are {', '.join(plan.names)}")
    if not tables:
        check_options(plan)
    out = out or path.with_suffix("")
    out.mkdir(parents=True, exist_ok=True)
    logs = logs or Path("logs/plans") / path.parent.name / path.stem
    runs = PlanRuns(plan, out / "predictions", logs)
    written = PlanTables(out, plan.recipes, plan.variants, plan.steps, plan.folds, plan.ensembles)

    def write() -> bool:
        return written.write({name: runs.recorded(name) for name in plan.names}, read_images(runs.records))

    if tables:
        runs.record_finished(plan.names)
        if not write():
            raise InputError(
                f"{file}: no record in {runs.records}, and no finished run in {logs}; run fractatlas plan {file}"
            )
        if note := unfinished({name: runs.recorded(name) for name in plan.names}, plan.folds):
            log.info(note.strip())
        return out
    runs.record_finished([name for name in plan.names if only and name not in only])
    steps, kept = list(plan.steps.items()), list[str]()
    last = max((number for number, (name, _) in enumerate(steps) if name in only), default=-1) if only else len(steps)
    for name, options in steps[: last + 1]:
        runs.finish(runs.of(name, plan.options(kept, options)), jobs)
        write()
        if written.kept[name]:
            kept = combine(kept, options)
    chosen = {name: options for name, options in (plan.variants | plan.recipes).items() if name in only or not only}
    runs.finish([run for name in chosen for run in runs.of(name, plan.options(chosen[name]))], jobs, write)
    write()
    return out


class PlanRuns:
    """The runs of a plan and their records.

    Args:
        plan: the plan.
        records: the folder of the records.
        logs: the folder of the run folders.
    """

    def __init__(self, plan: Plan, records: Path, logs: Path):
        self.plan, self.records, self.logs = plan, records, logs
        self.read: dict[str, RunRecord] = {}  # by the start of the names of its files
        self.chosen: dict[RunRecord, RunRecord] = {}  # with the thresholds of the plan

    @cached_property
    def _rule(self) -> dict[str, Any] | None:
        """The configuration of the rule for the threshold; ``None`` for that of each run."""
        return compose_config([f"threshold={self.plan.threshold}"])["threshold"] if self.plan.threshold else None

    def of(self, name: str, options: Sequence[str] = ()) -> list[Run]:
        """Return the runs of a recipe, variant or step, with the folds of each seed after each other.

        Args:
            name: of the recipe, variant or step.
            options: of its runs, without seed and fold.
        """
        subset = "test" if name in self.plan.recipes else "val"
        return [
            Run(
                name, seed, fold, self.logs / folder_name(name) / seed_name(seed, fold),
                (*options, *self.plan.run_options(seed, fold)), subset,
            )
            for seed in self.plan.seeds for fold in self.plan.test_folds
        ]  # fmt: skip

    def finish(self, runs: Sequence[Run], jobs: int, completed: Callable[[], object] = lambda: None) -> None:
        """Train and score the runs that have no record, and write their records.

        A run is scored on the test subset right after its training, so that its record is complete.

        Args:
            runs: of steps, variants or recipes that do not depend on each other.
            jobs: number of runs at the same time.
            completed: called after the last run of each recipe, variant or step.

        Raises:
            InputError: a run failed, or a run folder or record has other settings.
            SystemExit: this process received a stop signal.
        """
        missing, settings = [], dict[str, dict[str, Any]]()
        for run in runs:
            if (record := self._find(run)) is None:
                require_same_settings(run)
                missing.append(run)
                continue
            if run.name not in settings:
                settings[run.name] = compared_settings(run.options)
            own = {"seed": run.seed} if run.fold is None else {"seed": run.seed, "split.fold": run.fold}
            if changes := differences(record.settings, settings[run.name] | own):
                raise InputError(
                    f"{self.records / _file(run)}.json was trained with other settings: {'; '.join(changes[:3])}; "
                    "move or delete it to train the run again"
                )
        remaining = Counter(run.name for run in missing)

        def finished(run: Run) -> None:
            self._write(run)
            remaining[run.name] -= 1
            if not remaining[run.name]:
                completed()

        if len(missing) < len(runs):
            log.info("%d of %s finished before", len(runs) - len(missing), plural(len(runs), "run"))
        if missing:
            finish_runs(missing, jobs, finished, len(runs))

    def record_finished(self, names: Collection[str]) -> None:
        """Write the records of finished run folders without one.

        Args:
            names: of recipes, variants and steps.
        """
        for run in [run for name in names for run in self.of(name)]:
            needed = [run.folder, run.folder / "test"] if run.subset == "test" else [run.folder]
            if self._find(run) is None and all((folder / "metrics.json").is_file() for folder in needed):
                self._write(run)

    def recorded(self, name: str) -> list[list[RunRecord]]:
        """Return the records of a recipe, variant or step.

        Returns:
            For each seed, the records of its finished folds, or of its single run.

        Raises:
            InputError: a record is damaged, or the runs have other settings than each other.
        """
        found = {run: record for run in self.of(name) if (record := self._find(run))}
        if found:
            require_equal_settings(list(found.values()), [_file(run) for run in found])
        if rule := self._rule:
            for record in found.values():
                if record not in self.chosen:
                    self.chosen[record] = choose_threshold(record, rule)
            found = {run: self.chosen[record] for run, record in found.items()}
        return [[record for run, record in found.items() if run.seed == seed] for seed in self.plan.seeds]

    def _find(self, run: Run) -> RunRecord | None:
        """Return the record of a run; ``None`` if there is none, or if it has no predictions of the subset."""
        file = _file(run)
        if file not in self.read:
            if not (self.records / f"{file}.json").is_file():
                return None
            self.read[file] = read_record(self.records, file)
        record = self.read[file]
        return record if run.subset in record.tables else None

    def _write(self, run: Run) -> None:
        record = collect(run.folder, run.name, run.seed, run.fold)
        write_record(self.records, _file(run), record, RunFolder(run.folder).catalogue)
        self.read.pop(_file(run), None)  # the record is used as later commands read it


def _file(run: Run) -> str:
    return run_name(folder_name(run.name), run.seed, run.fold)


def combine(*several: Sequence[str]) -> list[str]:
    """Join lists of options; a later option replaces an earlier one with the same key."""
    return list({option.partition("=")[0]: option for option in itertools.chain(*several)}.values())
