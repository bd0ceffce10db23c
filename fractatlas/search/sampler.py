"""A sampler with one random stream per trial, and the space-filling points of the first trials."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from fractatlas.search.storage import DISCARDED, REPEATS, SAMPLED

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
WINDOW = 20  # trials; if half of the last ones repeated a point, the next trial is sampled uniformly
DESIGNS = 200  # Latin hypercubes, of which the one with the best spread is used


def start_points(space: Mapping[str, Distribution], count: int, seed: int) -> list[dict[str, Any]]:
    """Return points that fill a search space: a maximin Latin hypercube.

    The range of each hyperparameter (its logarithm if the distribution is logarithmic) is divided into ``count`` equal
    intervals, and each interval has one point. The points of one hyperparameter have equal distances. A discrete
    hyperparameter with at most ``count`` values has each value equally often, or once more. Of ``DESIGNS`` such
    designs, the one with the lowest sum of inverse powers of the distances between points is returned. The distance is
    that of Gower (1971): the mean difference over the hyperparameters, where two different categories have distance 1.

    Latin hypercubes: McKay, Beckman and Conover (1979). The criterion: Morris and Mitchell (1995).

    Returns:
        At most ``count`` different points; fewer if the space is smaller. They depend on the names in ``space``, not
        on their order.
    """
    if not count:
        return []
    draw = np.random.default_rng(seed)
    names = sorted(space)
    nominal = np.array([isinstance(space[name], CategoricalDistribution) for name in names])
    best: list[dict[str, Any]] = []
    lowest = np.inf
    for _ in range(DESIGNS):
        columns = [_column(space[name], count, draw) for name in names]
        positions = np.stack([position for _, position in columns], axis=1)
        difference = np.abs(positions[:, None] - positions[None, :])
        difference[:, :, nominal] = difference[:, :, nominal] > 0
        distance = difference.mean(axis=2)[np.triu_indices(count, k=1)]
        with np.errstate(divide="ignore"):
            crowding = np.sum(distance**-15.0)
        if not best or crowding < lowest:
            lowest = crowding
            rows = zip(*(values for values, _ in columns), strict=True)
            best = [dict(zip(names, row, strict=True)) for row in rows]
    return [point for index, point in enumerate(best) if point not in best[:index]]


def _column(one: Distribution, count: int, draw: np.random.Generator) -> tuple[list[Any], NDArray[np.float64]]:
    """Return ``count`` values of a hyperparameter in random order, and their positions from 0 to 1 in its range."""
    rank = draw.permutation(count)
    unit = (rank + draw.random()) / count

    def spread(number: int) -> NDArray[np.int64]:
        return rank * number // count if number <= count else (unit * number).astype(np.int64)

    # In a random order, because otherwise the first values would always be the more frequent ones.
    if isinstance(one, CategoricalDistribution):
        index = draw.permutation(len(one.choices))[spread(len(one.choices))]
        return [one.choices[i] for i in index], index / max(1, len(one.choices) - 1)
    number = 1 + round((one.high - one.low) / one.step) if one.step else 0
    if number and (number <= count or not one.log):
        index = draw.permutation(number)[spread(number)] if number <= count else spread(number)
        return [min(one.high, one.low + (one.step or 0) * int(i)) for i in index], index / max(1, number - 1)
    low, high = (np.log(one.low), np.log(one.high)) if one.log else (one.low, one.high)
    value = low + unit * (high - low)
    value = np.clip(np.exp(value) if one.log else value, one.low, one.high)
    return [round(x) if isinstance(one, IntDistribution) else float(x) for x in value], unit


class TrialStreamSampler(BaseSampler):
    """Sample every trial from a random stream of its own.

    The stream depends on the seed and on the number of trials that were sampled before. A resumed search therefore
    samples the same trials as one that ran without a stop, and processes with one seed do not sample the same trials.

    The first ``startup`` trials have the points of ``start_points``, each of them once: a resumed search and other
    processes take those that no trial has.

    If few points of a finite space are left, a model-based sampler proposes the best known points again and again.
    Uniform sampling finds the others.

    Args:
        make: returns the sampler for a seed.
        seed: of the search.
        space: the distributions of the hyperparameters.
        startup: number of start points; 0 leaves the first trials to the sampler that ``make`` returns.
    """

    def __init__(
        self, make: Callable[[int], BaseSampler], seed: int, space: Mapping[str, Distribution], startup: int = 0
    ):
        self._make, self._seed, self._space = make, seed, space
        self._start = start_points(space, startup, seed)
        self._sampler = make(seed)
        self._point: dict[str, Any] = {}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Start the random stream of ``trial``, or select its start point."""
        earlier = study.get_trials(deepcopy=False)[: trial.number]
        sampled = sum(SAMPLED in other.user_attrs and REPEATS not in other.user_attrs for other in earlier)
        stream = int(np.random.SeedSequence([self._seed, sampled]).generate_state(1)[0])
        discarded = sum(DISCARDED in other.user_attrs for other in earlier[-WINDOW:])
        self._sampler = RandomSampler(stream) if discarded >= WINDOW // 2 else self._make(stream)
        self._sampler.before_trial(study, trial)
        self._point = self._start_point(earlier)

    def _start_point(self, earlier: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Return the first free start point after those of the trials that other processes are sampling now."""
        new = [other for other in earlier if not {REPEATS, DISCARDED} & other.user_attrs.keys()]
        taken = [other.params for other in new if SAMPLED in other.user_attrs]
        sampling = sum(other.state == TrialState.RUNNING and SAMPLED not in other.user_attrs for other in new)
        free = [point for point in self._start if point not in taken]
        return free[sampling] if len(taken) + sampling < len(self._start) and sampling < len(free) else {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the hyperparameters of the start point, or those that the trial's sampler samples together."""
        if self._point:
            return dict(self._space)
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the start point, or sample these hyperparameters together with the trial's sampler."""
        return self._point or self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample one hyperparameter with the trial's sampler."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)
