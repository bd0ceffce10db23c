"""The search: compose, refuse what cannot be compared, ask for a point, launch it, until the study is whole.

The sweeper of ``hydra-optuna-sweeper`` schedules ``n_trials`` more on every start, numbers their folders from 0 again,
repeats the sampler's first draws and ends with the first failure; this one takes over its search space, its samplers
and its launchers, and replaces that loop.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from omegaconf import DictConfig, open_dict
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from fractatlas.config import SearchConfig, TrainConfig, check, mode_of, parts
from fractatlas.errors import InputError
from fractatlas.search import report, storage
from fractatlas.search.trial import RunTrial

log = logging.getLogger(__name__)
ALLOWED = ("optuna.samplers.*", "optuna.pruners.*")
COMPARABLE, DATA = "comparable", "data"
# What two trials may differ in and still be compared: where and how fast, and what is only shown.
INCIDENTAL = ("paths.", "logger.", "resume", "task_name", "test", "report", "data.root", "data.cache", "data.cache_dir",
              "data.num_workers", "data.pin_memory", "model.weights_dir", "trainer.accelerator",
              "trainer.log_every_n_steps", "trainer.enable_model_summary", "trainer.profiler",
              "callbacks.checkpoint.dirpath", "callbacks.checkpoint.monitor", "callbacks.checkpoint.mode",
              "callbacks.learning_rate", "callbacks.progress_bar", "callbacks.progress_lines", "callbacks.input_grid",
              "callbacks.interrupt")  # fmt: skip
HOPELESS = 3  # failures in a row before anything succeeded
PROPOSALS = 100  # of points that were had already, before the space counts as exhausted


class StudySweeperImpl:
    """One process of a search.

    Args:
        hydra_context: composes the trials' configurations.
        task_function: unused; what is launched is a trial of this study.
        config: the whole configuration, with Hydra's node.
    """

    def __init__(self, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig):
        self.context, self.config = hydra_context, config
        self.search = check(config.hydra.sweeper, SearchConfig)
        self.folder = Path(config.hydra.sweep.dir)
        self.reported: int | None = None  # the winner that best.yaml holds
        run_trial = RunTrial(
            self.search["storage"], self.search["study_name"], self.search["lease"], self.search["pruner"]
        )
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=run_trial
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that the study still lacks.

        Raises:
            InputError: the search cannot be meant, does not fit the study, or fails from its first trials on.
        """
        if any(override.partition("=")[0] == "hydra.sweeper.params" for override in self.config.hydra.overrides.hydra):
            raise InputError(
                "hydra.sweeper.params=... would be merged with the space that is there: change one hyperparameter "
                "(hydra.sweeper.params.optimizer\\.lr='interval(1e-4,1e-3)'), or give it a value (optimizer.lr=1e-3)"
            )
        params = [f"{name}={value}" for name, value in self.search["params"].items()]
        space, fixed, deletions = create_params_from_overrides([*params, *arguments])
        self.space = {name: distribution for name, distribution in space.items() if name not in fixed}
        self.fixed = [f"{name}={value}" for name, value in fixed.items()] + deletions
        if not self.space:
            raise InputError("nothing to search: every hyperparameter of hydra.sweeper.params has a value")
        comparable, config = self._comparable()
        self.folder.parent.mkdir(parents=True, exist_ok=True)  # where the default storage lies, too
        self.study = self._open()
        self._refuse_another(comparable)
        self._refuse_another(comparable | _fingerprint(config))
        log.info("study %s in %s", self.study.study_name, self.folder)
        try:
            self._run()
        except KeyboardInterrupt:
            raise InputError("interrupted; the same command goes on with the study") from None
        finally:
            self._report()
        self._say_the_end()

    def compose(self, params: Mapping[str, Any]) -> DictConfig:
        """The configuration of a trial with ``params``, with Hydra's own node."""
        overrides = [*(f"{name}={value}" for name, value in params.items()), *self.fixed]
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.runtime.output_dir = str(self.folder)
        HydraConfig.instance().set_config(config)
        return config

    def _open(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        opened = storage.open_storage(self.search["storage"], self.search["lease"])
        return optuna.create_study(
            study_name=self.search["study_name"],
            storage=opened,
            sampler=storage.OwnStream(self._sampler, self.search["sampler"]["seed"]),
            pruner=instantiate(self.search["pruner"], _execution_whitelist_=ALLOWED),
            direction=f"{mode_of(self.monitor)}imize",
            load_if_exists=True,
        )

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return instantiate(self.search["sampler"], seed=seed, _execution_whitelist_=ALLOWED)

    def _comparable(self) -> tuple[dict[str, str], dict[str, Any]]:
        """What all trials of a study share, every value that is not searched and the space; and one configuration."""
        groups = {name for name in self.space if name in parts(TrainConfig)}
        firsts = {name: _any_value(distribution) for name, distribution in self.space.items()}
        shared: dict[str, str] = {}
        for name in groups or {""}:
            for choice in self.space[name].choices if name else ("",):
                config = self._checked(firsts | ({name: choice} if name else {}))
                for key, value in _flat(config):
                    if key in self.space or key.startswith(INCIDENTAL):
                        continue
                    group = key.partition(".")[0]
                    shared[f"{group}={choice}: {key}" if group == name else key] = json.dumps(value)
                shared = {key: value for key, value in shared.items() if key.partition(".")[0] not in groups}
        if config["test"]:
            raise InputError("a search does not read the test part: take out test=true")
        self.monitor = config["monitor"]
        shared |= {f"search space: {name}": _shown(distribution) for name, distribution in self.space.items()}
        return shared, config

    def _checked(self, params: Mapping[str, Any]) -> dict[str, Any]:
        config = self.compose(params)
        with open_dict(config):
            del config["hydra"]
        return check(config, TrainConfig)

    def _refuse_another(self, comparable: dict[str, str]) -> None:
        """Refuse a study of other trials; keep what a new one's trials share, once their data are known."""
        known = self.study.user_attrs.get(COMPARABLE)
        if known is None:
            if DATA in comparable:
                self.study.set_user_attr(COMPARABLE, comparable)
            return
        keys = known.keys() | comparable.keys()
        if DATA not in comparable:
            keys -= {DATA}
        if differing := {key for key in keys if known.get(key) != comparable.get(key)}:
            first = sorted(differing, key=lambda key: (not key.startswith("search space"), key))[:3]
            shown = "; ".join(
                f"{key} was {known.get(key, 'absent')}, is {comparable.get(key, 'absent')}" for key in first
            )
            more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise InputError(
                f"study {self.study.study_name} cannot be gone on with: {shown}{more}\n"
                "Take the change back, or begin another study: hydra.sweeper.study_name=NAME"
            )

    def _run(self) -> None:
        failures, promising, waited = 0, False, False
        while True:
            storage.reclaim(self.study)
            counted = [trial for trial in self.study.get_trials(deepcopy=False) if storage.counts(trial)]
            missing = self.search["n_trials"] - len(counted)
            if missing <= 0:
                running = [trial.number for trial in counted if trial.state == TrialState.RUNNING]
                if not running:
                    return
                if not waited:
                    log.info("waiting for trial %s of other processes", ", ".join(map(str, running)))
                    waited = True
                time.sleep(min(1, self.search["lease"] / 4))
                continue
            with storage.leased(self.study) as trials:
                for _ in range(min(missing, self.search["n_jobs"])):
                    self._ask(trials)
                self._launch(trials)
            if not trials:
                continue
            self._report()
            done = self.study.get_trials(deepcopy=False)
            failed = [done[trial.number].state == TrialState.FAIL for trial in trials]
            failures, promising = failures + sum(failed), promising or not all(failed)
            if failures >= HOPELESS and not promising:
                reason = done[trials[-1].number].user_attrs.get(storage.REASON, "lost")
                raise InputError(f"the first {failures} trials failed, the last with: {reason}")

    def _ask(self, trials: list[optuna.Trial]) -> None:
        """Add a trial with the next point; none where other processes have meanwhile asked for all that was missing."""
        for _ in range(PROPOSALS):
            trial = self.study.ask()
            trials.append(trial)
            storage.lease(self.study, trial)
            for name, distribution in self.space.items():
                trial._suggest(name, distribution)
            trial.set_user_attr(storage.DRAWN, True)
            earlier = self._earlier(trial)
            twin = next((other for other in earlier if other.params == trial.params), None)
            if len(earlier) < self.search["n_trials"] and not twin:
                return
            trials.remove(trial)
            if len(earlier) >= self.search["n_trials"]:
                storage.discard(self.study, trial, "not needed")
                return
            storage.discard(self.study, trial, f"same point as trial {twin.number}")
        raise InputError(f"the search space is exhausted: {PROPOSALS} proposals in a row had been tried already")

    def _earlier(self, trial: optuna.Trial) -> list[FrozenTrial]:
        """The trials before ``trial`` that count, with all their parameters."""
        said = time.monotonic() + 2
        while True:
            earlier = [
                other
                for other in self.study.get_trials(deepcopy=False)[: trial.number]
                if storage.counts(other) or other.state == TrialState.WAITING
            ]
            drawing = [
                other.number
                for other in earlier
                if other.state == TrialState.RUNNING and not storage.is_drawn(other, self.space)
            ]
            if not drawing:
                return earlier
            if time.monotonic() > said:
                log.info(
                    "waiting for another process to draw trial %s, at most %d s", ", ".join(map(str, drawing)),
                    self.search["lease"],
                )  # fmt: skip
                said = float("inf")
            time.sleep(0.05)
            storage.reclaim(self.study)

    def _launch(self, trials: Sequence[optuna.Trial]) -> None:
        overrides = [
            [*(f"{name}={value}" for name, value in trial.params.items()), *self.fixed,
             f"hydra.sweep.subdir={trial.number}"]
            for trial in trials
        ]  # fmt: skip
        returns = self.launcher.launch(overrides, initial_job_idx=trials[0].number) if trials else []
        for trial, job in zip(trials, returns, strict=True):
            if self.study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
                # Hydra could not even start it, and hands on why.
                trial.set_user_attr(storage.REASON, " ".join(str(job._return_value).split()))
                self.study.tell(trial, state=TrialState.FAIL)

    def _report(self) -> None:
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = self.study.best_trial if complete else None
        config = self.compose(best.params) if best and best.number != self.reported else None
        report.write(self.folder, self.study, list(self.space), self.monitor, config)
        self.reported = best.number if best else None

    def _say_the_end(self) -> None:
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if storage.counts(trial)]
        states = {state: sum(trial.state == state for trial in trials) for state in TrialState}
        log.info(
            "%d trials: %d complete, %d pruned, %d failed", len(trials), states[TrialState.COMPLETE],
            states[TrialState.PRUNED], states[TrialState.FAIL],
        )  # fmt: skip
        if not states[TrialState.COMPLETE]:
            raise InputError(f"no trial was completed; {self.folder / 'trials.csv'} says why")
        best = self.study.best_trial
        log.info("best: trial %d, %s %.4f; all in %s", best.number, self.monitor, best.value, self.folder)


def _fingerprint(config: dict[str, Any]) -> dict[str, str]:
    """The data of a configuration: images, labels, and who is where."""
    from fractatlas.training.run import build, build_data  # loads torch

    data = build_data(config, split=build(config["split"]))
    data.prepare_data()
    data.setup()
    columns = ["image_id", "content", "label", "excluded"]
    catalogue = data.catalogue[columns].to_csv(index=False) + data.split[["image_id", "split"]].to_csv(index=False)
    return {DATA: hashlib.sha256(catalogue.encode()).hexdigest()[:16]}


def _shown(distribution: BaseDistribution) -> str:
    """A distribution for people."""
    if isinstance(distribution, CategoricalDistribution):
        return "one of " + ", ".join(map(str, distribution.choices))
    step = f" in steps of {distribution.step}" if distribution.step else ""
    return f"{distribution.low} to {distribution.high}{' (log)' if distribution.log else ''}{step}"


def _any_value(distribution: BaseDistribution) -> Any:
    return distribution.choices[0] if isinstance(distribution, CategoricalDistribution) else distribution.low


def _flat(config: Mapping[str, Any], prefix: str = "") -> Any:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
