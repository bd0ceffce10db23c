"""Hydra's sweeper of a hyperparameter search: compose, check, sample, launch, until the study has all its trials."""

import hashlib
import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import optuna
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna.distributions import CategoricalDistribution as Categorical
from optuna.trial import FrozenTrial, TrialState

from fractatlas.config.overrides import AXIS_SYNTAX
from fractatlas.config.schema import Sampler, SearchConfig, TrainConfig
from fractatlas.config.validation import (
    DOTS_NEED_BACKSLASHES,
    axis_error,
    differences,
    flatten,
    group_keys,
    metric_mode,
    validate,
)
from fractatlas.errors import InputError
from fractatlas.search import report, storage
from fractatlas.search.sampler import Distribution, TrialStreamSampler
from fractatlas.signals import check_received, exit_on_stop_signals
from fractatlas.wording import plural

log = logging.getLogger(__name__)
STARTUP_SAMPLERS = ("optuna.samplers.TPESampler", "optuna.samplers.GPSampler")  # the others have no start-up trials
SETTINGS, DATA = "settings", "data"  # an attribute of the study, and the key in it for the hash of images and split
# Settings in which the trials of one study may differ: where and how fast they run, and what they only display.
NOT_COMPARED = ("paths.", "logger.", "resume", "task_name", "test", "report", "data.root", "data.cache",
                "data.cache_dir", "data.num_workers", "data.pin_memory", "model.weights_dir", "trainer.accelerator",
                "trainer.log_every_n_steps", "trainer.enable_model_summary", "trainer.profiler",
                "callbacks.checkpoint.", "callbacks.learning_rate", "callbacks.progress",
                "callbacks.input_grid")  # fmt: skip
MAX_FIRST_FAILURES = 3  # in a row, before any trial succeeds
MAX_LOST = 3  # failures of the launcher in a row, before the search ends
MAX_REPETITIONS = 100  # samples in a row that repeat earlier trials, before the search ends


class _LauncherError(Exception):
    """Report that the launcher failed, for example because a cluster has ended a job; the message is the reason."""


class ResumableSweeper(Sweeper):
    """Run trials until the study has ``n_trials``, together with all processes that run the same search.

    Hydra's own Optuna sweeper runs ``n_trials`` more at every start, numbers their folders from 0 again, repeats the
    sampler's first points, and ends at the first failure. This class uses the same search space, samplers and
    launchers, and replaces the loop.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, **config: Any):
        pass  # ``setup`` receives the complete configuration, in which interpolations can be resolved

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the search's own configuration; ``task_function`` is not used."""
        self.hydra_context, self.config = hydra_context, config
        _check_axes(OmegaConf.to_container(config.hydra.sweeper.params))
        self.search = validate(config.hydra.sweeper, SearchConfig)
        self.folder = Path(config.hydra.sweep.dir)
        self.reported: int | None = None  # the number of the trial in best.yaml

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that the study does not have yet.

        Raises:
            InputError: the search is invalid, its settings differ from the study's, or its first trials fail.
        """
        if any(override.startswith("hydra.sweeper.params=") for override in self.config.hydra.overrides.hydra):
            raise InputError(
                "hydra.sweeper.params=... would be merged with the search space in conf/; change one hyperparameter "
                "(optimizer.lr='interval(1e-4,1e-3)') or fix its value (optimizer.lr=1e-3)"
            )
        params = [f"{name}={value}" for name, value in self.search["params"].items()]
        space, fixed, deletions = _read_space([*params, *arguments])
        self.space = {name: space[name] for name in space if name not in fixed}
        self.fixed = [f"{name}={_as_argument(value)}" for name, value in fixed.items()] + deletions
        if not self.space:
            raise InputError("nothing to search: all hydra.sweeper.params are fixed; remove a KEY=VALUE argument")
        settings, config = self._compose_settings()
        self.folder.parent.mkdir(parents=True, exist_ok=True)  # the default storage is there, too
        self.study = self._open_study()
        with exit_on_stop_signals(_typed_command()):
            self._check_settings(settings, config)
            ended = sum(trial.state.is_finished() for trial in storage.counted_trials(self.study))
            total = self.search["n_trials"]
            done = f"{ended} of {plural(total, 'trial')}" if ended <= total else f"{plural(ended, 'trial')}"
            log.info("study %s: %s done; results in %s", self.study.study_name, done, self.folder)

            from fractatlas.search.trial import run_trial  # after all checks, because torch is slow to import

            self.launcher = Plugins.instance().instantiate_launcher(
                config=self.config, hydra_context=self.hydra_context, task_function=partial(run_trial, self.search)
            )
            try:
                self._run()
            finally:
                self._report()
        self._log_result()

    def _overrides(self, params: Mapping[str, Any]) -> list[str]:
        return [*(f"{name}={_as_argument(value)}" for name, value in params.items()), *self.fixed]

    def _compose(self, params: Mapping[str, Any]) -> DictConfig:
        """Compose the configuration of a trial with ``params``, Hydra's own node included."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, self._overrides(params))
        with open_dict(config):
            config.hydra.runtime.output_dir = str(self.folder)
        HydraConfig.instance().set_config(config)
        return config

    def _compose_settings(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the settings and the search space that all trials share, by key, and one complete configuration.

        A searched group such as ``optimizer`` has other keys for each choice, so that every choice is composed.

        Raises:
            InputError: the configuration with a choice or an end of the range of an axis is invalid.
        """
        groups = self.space.keys() & group_keys(TrainConfig)
        choices = [(name, choice) for name in groups for choice in cast(Categorical, self.space[name]).choices]
        first = {name: one.choices[0] if isinstance(one, Categorical) else one.low for name, one in self.space.items()}
        settings = {f"search space: {name}": _describe(distribution) for name, distribution in self.space.items()}
        self._check_values(first)
        for group, choice in choices or [("", "")]:
            config = self._compose_and_check(first | ({group: choice} if group else {}))
            for key, value in flatten(config).items():
                part = key.partition(".")[0]
                if key not in self.space and not key.startswith(NOT_COMPARED) and part not in groups - {group}:
                    settings[f"{group}={choice}: {key}" if part == group else key] = json.dumps(value)
        if config["test"]:
            raise InputError("remove test=true: a search does not use the test subset")
        self.monitor = config["monitor"]
        return settings, config

    def _compose_and_check(self, params: Mapping[str, Any]) -> dict[str, Any]:
        composed = self._compose(params)
        with open_dict(composed):
            del composed["hydra"]
        return validate(composed, TrainConfig)

    def _check_values(self, first: Mapping[str, Any]) -> None:
        """Refuse choices and ends of ranges that are no valid values; the other axes have their ``first`` values."""
        mistakes: dict[str, None] = {}
        for name, one in self.space.items():
            for value in one.choices if isinstance(one, Categorical) else (one.low, one.high):
                try:
                    self._compose_and_check(dict(first) | {name: value})
                except InputError as error:
                    mistakes |= dict.fromkeys(str(error).splitlines())
        if mistakes:
            raise InputError("\nerror: ".join(mistakes))

    def _open_study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler, allowed = self.search["sampler"], storage.OPTUNA_CLASSES
        return optuna.create_study(
            study_name=self.search["study_name"],
            storage=storage.open_storage(self.search["storage"], self.search["heartbeat_timeout"]),
            sampler=TrialStreamSampler(
                lambda seed: instantiate(sampler, seed=seed, _execution_whitelist_=allowed),
                sampler["seed"],
                self.space,
                self._startup_trials(),
            ),
            pruner=instantiate(self.search["pruner"], _execution_whitelist_=allowed),
            direction="minimize" if metric_mode(self.monitor) == "min" else "maximize",
            load_if_exists=True,
        )

    def _startup_trials(self) -> int:
        """Return the number of trials that have start points."""
        sampler = self.search["sampler"]
        if self.search["start_points"] == "random" or sampler["_target_"] not in STARTUP_SAMPLERS:
            return 0
        return int(sampler.get("n_startup_trials", Sampler.n_startup_trials))

    def _check_settings(self, settings: dict[str, str], config: dict[str, Any]) -> None:
        """Compare the settings and the data with the study's; a new study stores them.

        Raises:
            InputError: they differ; for the settings, before the data are read, which can take minutes.
        """
        stored = self.study.user_attrs.get(SETTINGS)
        differing = differences(stored, settings | {DATA: stored[DATA]}) if stored else []
        if not differing:
            settings = settings | {DATA: _hash_data(config)}
            stored = self.study.user_attrs.get(SETTINGS)  # another process may have stored them meanwhile
            if not stored:
                self.study.set_user_attr(SETTINGS, settings)
                return
            differing = differences(stored, settings)
        if differing:
            differing.sort(key=lambda line: not line.startswith("search space"))
            more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise InputError(
                f"study {self.study.study_name} has trials with other settings: {'; '.join(differing[:3])}{more}\n"
                "Undo the change, or start another study: hydra.sweeper.study_name=NAME"
            )

    def _run(self) -> None:
        failures, succeeded, waiting, lost = 0, False, False, 0
        while True:
            check_received()
            storage.repeat_stale_trials(self.study)
            counted = storage.counted_trials(self.study)
            missing = self.search["n_trials"] - len(counted)
            running = [str(trial.number) for trial in counted if trial.state == TrialState.RUNNING]
            if missing <= 0:
                if not running:
                    return
                if not waiting:
                    log.info("waiting for trial %s of other processes", ", ".join(running))
                waiting = True
                time.sleep(min(1, self.search["heartbeat_timeout"] / 4))
                continue
            try:
                with ExitStack() as heartbeats:  # an exception enqueues the trials that are still running again
                    asked = [self._ask(heartbeats) for _ in range(min(missing, self.search["n_jobs"]))]
                    if not (trials := [trial for trial in asked if trial]):
                        continue
                    self._launch(trials)
            except _LauncherError as error:
                lost += 1
                if lost == MAX_LOST:
                    problem = f"the launcher failed {lost} times in a row, the last time with: {error}"
                    raise InputError(f"{problem}; correct hydra.launcher, and repeat the command") from None
                log.warning("the launcher failed, its unfinished trials are repeated: %s", error)
                continue
            lost = 0
            for trial in trials:
                log.info("%s: %s", self._place(trial.number), report.describe(self.study, trial.number, self.monitor))
            self._report()
            ended = [self.study.get_trials(deepcopy=False)[trial.number] for trial in trials]
            failed = sum(trial.state == TrialState.FAIL for trial in ended)
            failures, succeeded = failures + failed, succeeded or failed < len(ended)
            if failures >= MAX_FIRST_FAILURES and not succeeded:
                reason = ended[-1].user_attrs.get(storage.REASON, "no heartbeat")
                raise InputError(f"the first {failures} trials failed, the last one with: {reason}; correct the cause")

    def _ask(self, heartbeats: ExitStack) -> optuna.Trial | None:
        """Sample a new trial; return ``None`` if other processes have started all the missing trials meanwhile.

        Args:
            heartbeats: receives the context in which the trial's heartbeats are written.
        """
        for _ in range(MAX_REPETITIONS):
            with ExitStack() as stack:
                trial = self.study.ask(dict(self.space))
                stack.enter_context(storage.heartbeats(self.study, trial))
                earlier = self._wait_for_earlier(trial)
                same = next((other for other in earlier if other.params == trial.params), None)
                complete = len(earlier) >= self.search["n_trials"]
                if not complete and not same:
                    heartbeats.push(stack.pop_all())
                    return trial
                trial.set_user_attr(storage.DISCARDED, "not needed" if same is None else f"same as trial {same.number}")
                self.study.tell(trial, state=TrialState.FAIL)
                if complete:
                    return None
        raise InputError(f"the search space is exhausted: {MAX_REPETITIONS} repeated samples; lower n_trials")

    def _wait_for_earlier(self, trial: optuna.Trial) -> list[FrozenTrial]:
        """Return the counted and waiting trials before ``trial`` once all of them are sampled."""
        log_at = time.monotonic() + 2
        while True:
            counted = storage.counted_trials(self.study, waiting=True)
            earlier = [other for other in counted if other.number < trial.number]
            unsampled = [
                str(other.number)
                for other in earlier
                if other.state == TrialState.RUNNING and not storage.is_sampled(other, self.space)
            ]
            if not unsampled:
                return earlier
            if time.monotonic() > log_at:
                log_at, limit = float("inf"), self.search["heartbeat_timeout"]
                log.info("waiting at most %d s for another process to sample trial %s", limit, ", ".join(unsampled))
            time.sleep(0.05)
            storage.repeat_stale_trials(self.study)

    def _launch(self, trials: Sequence[optuna.Trial]) -> None:
        for trial in trials:
            repeated = trial.user_attrs.get(storage.REPEATS)
            values = " ".join(f"{name}={report.format_value(value)}" for name, value in trial.params.items())
            suffix = "" if repeated is None else f" (repeats trial {repeated})"
            log.info("%s: %s%s", self._place(trial.number), values, suffix)
        overrides = [[*self._overrides(trial.params), f"hydra.sweep.subdir={trial.number}"] for trial in trials]
        try:
            returns = self.launcher.launch(overrides, initial_job_idx=trials[0].number)
        except Exception as error:  # launchers raise exceptions of many packages
            check_received()
            raise _LauncherError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        for trial, job in zip(trials, returns, strict=True):
            if self.study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
                # Hydra could not start the trial, and returns its exception.
                trial.set_user_attr(storage.REASON, " ".join(str(job._return_value).split()))
                self.study.tell(trial, state=TrialState.FAIL)

    def _place(self, number: int) -> str:
        """Return the name of a trial with its place among the trials that ``n_trials`` counts."""
        place = sum(trial.number <= number for trial in storage.counted_trials(self.study))
        return f"trial {number} ({place} of {self.search['n_trials']})"

    def _report(self) -> None:
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = self.study.best_trial if complete else None
        config = self._compose(best.params) if best and best.number != self.reported else None
        counted = storage.counted_trials(self.study)
        finished = sum(trial.state.is_finished() for trial in counted) >= self.search["n_trials"]
        report.write(self.folder, self.study, list(self.space), self.monitor, config, finished)
        self.reported = best.number if best else None

    def _log_result(self) -> None:
        states = [trial.state for trial in storage.counted_trials(self.study)]
        complete, pruned, failed = map(states.count, (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        count = plural(len(states), "trial")
        log.info("%s: %d complete, %d pruned, %d failed", count, complete, pruned, failed)
        if not complete:
            raise InputError(f"no trial was completed; {self.folder / 'trials.csv'} lists the reasons")
        best = self.study.best_trial
        log.info("best: trial %d, %s", best.number, report.scores(best, self.monitor))
        if warning := report.majority_warning(best):
            log.warning("%s", warning)
        log.info("page: %s", self.folder / report.PAGE)
        seeds = len(report.SEEDS)
        refit = shlex.quote(str(self.folder / report.REFIT))
        log.info("to train the best trial with %d seeds: fractatlas plan %s", seeds, refit)


def _typed_command() -> str:
    """Return the command of this process for a shell."""
    words = sys.orig_argv[1:]
    if Path(words[0]).name == "fractatlas":  # the installed command is a script of the interpreter
        return shlex.join(["fractatlas", *words[1:]])
    return shlex.join(["python", *words])


def _check_axes(params: Any) -> None:
    """Refuse names and values of ``hydra.sweeper.params`` that are no axes of a search space.

    Raises:
        InputError: a name has dots without a backslash, or a value is not text.
    """
    for name, value in params.items():
        if isinstance(value, dict):
            key, inner = next(iter(flatten({name: value}).items()))
            raise InputError(axis_error(key, str(inner), DOTS_NEED_BACKSLASHES))
        if not isinstance(value, str):
            raise InputError(f"hydra.sweeper.params: {name} has the single value {value}; fix it with {name}={value}")


def _read_space(arguments: list[str]) -> tuple[dict[str, Distribution], dict[str, Any], list[str]]:
    """Return the search space, the fixed values and the deletions of overrides such as ``optimizer=choice(sgd,adam)``.

    Raises:
        InputError: a distribution is invalid.
    """
    for argument in arguments:
        try:
            create_params_from_overrides([argument])
        except (HydraException, ValueError, NotImplementedError) as error:
            reason = "brackets or commas are wrong" if isinstance(error, HydraException) else str(error).strip(".")
            raise InputError(f"{argument}: not a distribution: {reason}; write {AXIS_SYNTAX}") from None
    space, fixed, deletions = create_params_from_overrides(arguments)
    # The command line turns a value that only some choices of a searched group have into a choice of one value.
    # For null, it has two equal choices.
    single = {
        name: one.choices[0]
        for name, one in space.items()
        if isinstance(one, Categorical) and all(choice is one.choices[0] for choice in one.choices)
    }
    searched = {name: one for name, one in space.items() if name not in single}
    return cast(dict[str, Distribution], searched), fixed | single, deletions


def _as_argument(value: Any) -> str:
    """Return a value of a hyperparameter as it is written on the command line."""
    return "null" if value is None else str(value)


def _hash_data(config: dict[str, Any]) -> str:
    """Return a hash of the images, the labels and the split."""
    from fractatlas.build import build_data  # imports torch

    data = build_data(config)
    data.prepare_data()
    data.setup()
    columns = ["image_id", "content", "label", "excluded"]
    text = data.catalogue[columns].to_csv(index=False) + data.split[["image_id", "split"]].to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _describe(distribution: Distribution) -> str:
    if isinstance(distribution, Categorical):
        return "one of " + ", ".join(map(str, distribution.choices))
    step = f" in steps of {distribution.step}" if distribution.step else ""
    return f"{distribution.low} to {distribution.high}{' (log)' if distribution.log else ''}{step}"
