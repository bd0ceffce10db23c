"""Open the study's storage, write heartbeats, and repeat the trials of workers that stopped.

The search uses private interfaces of Optuna in this file only: its loop uses ``ask`` and ``tell``, for which Optuna has
no public heartbeats.
"""

import datetime
import functools
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from hydra.utils import instantiate
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from fractatlas.errors import InputError

log = logging.getLogger(__name__)
# Attributes of a trial.
SAMPLED = "sampled"  # every hyperparameter has a value, and the worker writes heartbeats
MONITORED = "monitored"  # has a heartbeat that another process wrote; its worker may have stopped before the first one
DISCARDED = "discarded"  # why the trial was not needed
REASON = "reason"  # why the training failed; a failed trial without it was interrupted
SECONDS = "seconds"  # the time that the trial ran; until its last heartbeat if it was interrupted
REPEATS = "repeats"  # the number of the interrupted trial that this one repeats
OPTUNA_CLASSES = ("optuna.samplers.*", "optuna.pruners.*")  # that a configuration may instantiate
ATTEMPTS = 5

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used")


class Storage(RDBStorage):
    """Optuna's storage, whose heartbeats continue after an error of the database."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Write a heartbeat and the trial's seconds; log an error, because it would end Optuna's heartbeat thread."""
        try:
            super().record_heartbeat(trial_id)
            trial = self.get_trial(trial_id)
            if trial.state == TrialState.RUNNING and trial.datetime_start:
                seconds = (datetime.datetime.now() - trial.datetime_start).total_seconds()
                self.set_trial_user_attr(trial_id, SECONDS, round(seconds, 1))
        except optuna.exceptions.UpdateFinishedTrialError:
            pass  # the trial has ended meanwhile
        except Exception as error:
            log.warning("heartbeat not written, will try again: %s", " ".join(str(error).split()))


@functools.cache
def open_storage(url: str, heartbeat_timeout: int) -> Storage:
    """Open the storage at an address of SQLAlchemy; create its tables if it has none.

    Raises:
        InputError: the address is invalid, or the database cannot be opened.
    """
    try:
        address = make_url(url)
    except ArgumentError:
        message = f"hydra.sweeper.storage={url}: should be like sqlite:///FILE or postgresql://HOST/NAME"
        raise InputError(message) from None
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if address.get_backend_name() == "sqlite" and address.database:
        if not (folder := Path(address.database).absolute().parent).is_dir():
            raise InputError(f"hydra.sweeper.storage={url}: no folder {folder}; create it or change the path")
        engine["connect_args"] = {"timeout": 120}  # seconds to wait while another process writes
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return Storage(
                url,
                engine_kwargs=engine,
                heartbeat_interval=max(1, heartbeat_timeout // 6),
                grace_period=heartbeat_timeout,
                heartbeat_stale_trial_callback=_repeat,
            )
        except (ImportError, SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
            # If two processes create the tables at the same moment, the second one succeeds on its next attempt.
            if isinstance(error, ImportError) or attempt == ATTEMPTS:
                reason = " ".join(str(error.__cause__ or error).split())
                problem = f"{address.render_as_string(hide_password=True)} cannot be opened: {reason}"
                raise InputError(f"hydra.sweeper.storage={problem}; start the database or correct it") from None
            time.sleep(0.3 * attempt)
    raise AssertionError


def load_trial(search: Mapping[str, Any], number: int) -> optuna.Trial:
    """Load a sampled trial by its number; ``search`` is a checked ``SearchConfig``, plain."""
    study = optuna.load_study(
        study_name=search["study_name"],
        storage=open_storage(search["storage"], search["heartbeat_timeout"]),
        sampler=optuna.samplers.RandomSampler(),  # unused: the hyperparameters have their values
        pruner=instantiate(search["pruner"], _execution_whitelist_=OPTUNA_CLASSES),
    )
    return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


@contextmanager
def heartbeats(study: optuna.Study, trial: optuna.Trial) -> Iterator[None]:
    """Write heartbeats for a sampled trial until the block ends; if an exception ends it, enqueue the trial again."""
    study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]  # before the attribute: a trial with it always has a heartbeat
    trial.set_user_attr(SAMPLED, True)
    try:
        with get_heartbeat_thread(trial._trial_id, study._storage):
            yield
    except BaseException:
        interrupted = study.get_trials(deepcopy=False)[trial.number]
        if interrupted.state == TrialState.RUNNING:
            study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]  # and its seconds
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            _enqueue(study, interrupted)
        raise


def repeat_stale_trials(study: optuna.Study) -> None:
    """Mark running trials without a heartbeat as failed, and enqueue their hyperparameters again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # Optuna never marks a trial without any heartbeat as failed; its worker may have stopped before the first one.
        if not {SAMPLED, MONITORED} & trial.user_attrs.keys():
            study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
            study._storage.set_trial_user_attr(trial._trial_id, MONITORED, True)
    optuna.storages.fail_stale_trials(study)


def is_sampled(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> bool:
    """Return whether all hyperparameters of a trial are visible.

    A storage reads parameters before attributes: while another process samples a trial, it may be read with the
    attribute but without some of its parameters.
    """
    return SAMPLED in trial.user_attrs and trial.params.keys() >= space.keys()


def is_interrupted(trial: FrozenTrial) -> bool:
    """Return whether a trial's worker stopped before the trial ended."""
    return trial.state == TrialState.FAIL and not {REASON, DISCARDED} & trial.user_attrs.keys()


def counted_trials(study: optuna.Study, waiting: bool = False) -> list[FrozenTrial]:
    """Return the trials that ``n_trials`` counts: running, finished, or failed in training; optionally the waiting."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if DISCARDED not in trial.user_attrs
        and not is_interrupted(trial)
        and (waiting or trial.state != TrialState.WAITING)
    ]


def _repeat(study: optuna.Study, trial: FrozenTrial) -> None:
    log.info("trial %d was interrupted (no heartbeat); a new trial replaces it", trial.number)
    _enqueue(study, trial)


def _enqueue(study: optuna.Study, trial: FrozenTrial) -> None:
    if SAMPLED in trial.user_attrs:
        study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})
