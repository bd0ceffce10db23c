"""A sampler with one random stream per trial."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from fractatlas.search.storage import DISCARDED, REPEATS, SAMPLED

WINDOW = 20  # trials; if half of the last ones repeated a point, the next trial is sampled uniformly


class TrialStreamSampler(BaseSampler):
    """Sample every trial from a random stream of its own.

    The stream depends on the seed and on the number of trials that were sampled before. A resumed search therefore
    samples the same trials as one that ran without a stop, and processes with one seed do not sample the same trials.

    If few points of a finite space are left, a model-based sampler proposes the best known points again and again.
    Uniform sampling finds the others.

    Args:
        make: returns the sampler for a seed.
        seed: of the search.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int):
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Start the random stream of ``trial``."""
        earlier = study.get_trials(deepcopy=False)[: trial.number]
        sampled = sum(SAMPLED in other.user_attrs and REPEATS not in other.user_attrs for other in earlier)
        stream = int(np.random.SeedSequence([self._seed, sampled]).generate_state(1)[0])
        discarded = sum(DISCARDED in other.user_attrs for other in earlier[-WINDOW:])
        self._sampler = RandomSampler(stream) if discarded >= WINDOW // 2 else self._make(stream)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the hyperparameters that the trial's sampler samples together."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample these hyperparameters together with the trial's sampler."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample one hyperparameter with the trial's sampler."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)
