"""The study's storage: opened by many processes, with a lease that tells dead trials from running ones."""

import functools
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from fractatlas.errors import InputError

log = logging.getLogger(__name__)
# Attributes of a trial. A failed one without a REASON was lost: its process died or was interrupted. One that was lost
# before it was DRAWN has no point that could be done again.
REASON, DISCARDED, LEASED, DRAWN, REDO_OF = "reason", "discarded", "leased", "drawn", "redo_of"
ATTEMPTS = 5
STUCK = 20  # trials; where half of the last of them repeated a point, the next one is drawn uniformly

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used")


@functools.cache
def open_storage(url: str, lease: int) -> optuna.storages.RDBStorage:
    """Open, and where need be create, a storage whose trials are leased for ``lease`` seconds.

    Raises:
        InputError: the address cannot be meant, or nothing answers there.
    """
    try:
        address = make_url(url)
    except ArgumentError:
        raise InputError(
            f"hydra.sweeper.storage={url}: should be like sqlite:///FILE or postgresql://HOST/NAME"
        ) from None
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if address.get_backend_name() == "sqlite" and address.database:
        if not (folder := Path(address.database).absolute().parent).is_dir():
            raise InputError(f"hydra.sweeper.storage={url}: there is no folder {folder}")
        engine["connect_args"] = {"timeout": 120}  # seconds to wait while another process writes
    for attempt in range(ATTEMPTS):
        try:
            return optuna.storages.RDBStorage(
                url,
                engine_kwargs=engine,
                heartbeat_interval=max(1, lease // 6),
                grace_period=lease,
                heartbeat_stale_trial_callback=_redo,
            )
        except (ImportError, SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
            # Two processes that create the tables in the same moment: the second finds them on its next try.
            if isinstance(error, ImportError) or attempt == ATTEMPTS - 1:
                shown = address.render_as_string(hide_password=True)
                said = " ".join(str(error.__cause__ or error).split())
                raise InputError(f"hydra.sweeper.storage={shown} cannot be opened: {said}") from None
            time.sleep(0.3 * (attempt + 1))
    raise AssertionError


class OwnStream(BaseSampler):
    """A sampler that draws every point from a random stream of its own: of the seed and how many were drawn before.

    A search that is started again therefore neither repeats its first draws nor leaves one out, and processes with one
    seed do not propose the same points. Where most points of a finite space are had, a model-based sampler proposes the
    best of them for ever; uniform draws find the rest.

    Args:
        make: the sampler of a seed.
        seed: of the whole search.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int):
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin the trial's stream."""
        earlier = study.get_trials(deepcopy=False)[: trial.number]
        drawn = sum(DRAWN in other.user_attrs and REDO_OF not in other.user_attrs for other in earlier)
        stream = int(np.random.SeedSequence([self._seed, drawn]).generate_state(1)[0])
        repeated = sum(DISCARDED in other.user_attrs for other in earlier[-STUCK:])
        self._sampler = RandomSampler(stream) if repeated >= STUCK // 2 else self._make(stream)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler does."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler does."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler does."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler does."""
        self._sampler.after_trial(study, trial, state, values)


@contextmanager
def leased(study: optuna.Study) -> Iterator[list[optuna.Trial]]:
    """Give an empty list, and show signs of life for every trial that is put into it, until the block ends.

    Where it ends with an exception, the trials that still run are given up, to be done again.
    """
    storage, ended = study._storage, threading.Event()
    trials: list[optuna.Trial] = []

    def beat() -> None:
        while not ended.wait(storage.get_heartbeat_interval()):
            for trial in list(trials):
                try:
                    storage.record_heartbeat(trial._trial_id)
                except Exception as error:  # the storage may answer again before the lease is over
                    log.warning("no sign of life for trial %d: %s", trial.number, error)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield trials
    except BaseException:
        for trial in trials:
            give_up(study, trial.number)
        raise
    finally:
        ended.set()
        thread.join()


def lease(study: optuna.Study, trial: optuna.Trial) -> None:
    """Take the lease of a trial that was just asked for."""
    study._storage.record_heartbeat(trial._trial_id)
    trial.set_user_attr(LEASED, True)


def reclaim(study: optuna.Study) -> None:
    """Mark running trials whose lease is over as failed, and put their points into the queue again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if LEASED not in trial.user_attrs:  # its process may have died before its first sign of life
            study._storage.record_heartbeat(trial._trial_id)
            study._storage.set_trial_user_attr(trial._trial_id, LEASED, True)
    optuna.storages.fail_stale_trials(study)


def give_up(study: optuna.Study, number: int) -> None:
    """Mark a trial of ours that was interrupted, and put its point into the queue again."""
    trial = study.get_trials(deepcopy=False)[number]
    if trial.state == TrialState.RUNNING:
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        _enqueue(study, trial)


def discard(study: optuna.Study, trial: optuna.Trial, why: str) -> None:
    """Take back a trial that was asked for and is not needed."""
    trial.set_user_attr(DISCARDED, why)
    study.tell(trial, state=TrialState.FAIL)


def is_shown(trial: FrozenTrial) -> bool:
    """Whether a trial has a row in the table: it has a point, and was not taken back."""
    return DRAWN in trial.user_attrs and DISCARDED not in trial.user_attrs


def is_drawn(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> bool:
    """Whether all of a trial's point can be seen. A storage reads parameters first and attributes after them, so that
    a trial that another process is drawing may be DRAWN and lack a part of its point."""
    return DRAWN in trial.user_attrs and trial.params.keys() >= space.keys()


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of ``n_trials``: finished, failed by itself, or running."""
    return trial.state != TrialState.WAITING and DISCARDED not in trial.user_attrs and not is_lost(trial)


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial's process ended before the trial did."""
    return trial.state == TrialState.FAIL and not {REASON, DISCARDED} & trial.user_attrs.keys()


def _redo(study: optuna.Study, trial: FrozenTrial) -> None:
    log.info("trial %d: its process died; its point is done again", trial.number)
    _enqueue(study, trial)


def _enqueue(study: optuna.Study, trial: FrozenTrial) -> None:
    if DRAWN in trial.user_attrs:
        study.enqueue_trial(trial.params, user_attrs={REDO_OF: trial.number})
