"""Interactive figures of a study as HTML: history, importance, score against each hyperparameter, parallel coordinates.

Pruned trials are drawn with their last score. The figures are as wide as the window. Their labels fit a width of 390
pixels, except those of the parallel coordinates, which the page scrolls.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
import plotly.io
from optuna.distributions import CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

TREES = 32  # of the importance's forest: half of Optuna's, because it is computed after every trial
PARALLEL = "All hyperparameters of each trial"
COMPLETE, PRUNED, MAJORITY = "#0969da", "#8c959f", "#bc4c00"


def draw(
    study: optuna.Study, names: Mapping[str, str], score: str, majority_rate: float | None
) -> dict[str, list[str]]:
    """Return the figures of a study as HTML by title; the first one contains the script of plotly.

    Args:
        study: with at least one complete trial.
        names: the title of each hyperparameter.
        score: the name of the objective.
        majority_rate: drawn as a line in figures whose axis is the score; ``None`` if the score is not an accuracy.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if last_score(trial) is not None]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    figures = {"Score of each trial": [_history(study, trials, score, majority_rate)]}
    if len({trial.value for trial in complete}) > 1:
        evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=0)
        importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
        figures["Importance of each hyperparameter"] = [_importance(importances, names)]
    figures["Score for each value of a hyperparameter"] = [
        _slice(trials, name, distribution, names[name], score, majority_rate)
        for name, distribution in complete[0].distributions.items()
    ]
    figures[PARALLEL] = [_parallel(study, trials, names, score)]
    script = iter([True])
    return {
        title: [
            plotly.io.to_html(
                figure,
                include_plotlyjs=next(script, False),
                full_html=False,
                config={"displayModeBar": False, "responsive": True},
            )
            for figure in group
        ]
        for title, group in figures.items()
    }


def last_score(trial: FrozenTrial) -> float | None:
    """Return the score of a complete trial, the last reported score of a pruned trial, and ``None`` for others."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        return trial.intermediate_values[max(trial.intermediate_values)]
    return None


def _layout(figure: go.Figure, height: int, legend: bool = False) -> go.Figure:
    figure.update_layout(
        height=height,
        autosize=True,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        showlegend=legend,
        template="plotly_white",
        font={"size": 12},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(automargin=True, nticks=6, exponentformat="none")  # 0.0002 instead of 200µ
    figure.update_yaxes(automargin=True, nticks=6, exponentformat="none")
    return figure


def _points(trials: Sequence[FrozenTrial], place: Any) -> list[go.Scatter]:
    """Return the points of complete trials and of pruned trials; ``place(trial)`` is their horizontal place."""
    traces = []
    for state, colour, symbol in ((TrialState.COMPLETE, COMPLETE, "circle"), (TrialState.PRUNED, PRUNED, "x")):
        chosen = [trial for trial in trials if trial.state == state]
        if chosen:
            traces.append(
                go.Scatter(
                    x=[place(trial) for trial in chosen],
                    y=[last_score(trial) for trial in chosen],
                    mode="markers",
                    name="pruned (last score)" if state == TrialState.PRUNED else "complete",
                    marker={"color": colour, "symbol": symbol, "size": 8},
                    text=[f"trial {trial.number}" for trial in chosen],
                    hovertemplate="%{text}<br>%{x}<br>%{y:.4f}<extra></extra>",
                )
            )
    return traces


def _add_majority_rate(figure: go.Figure, rate: float | None) -> None:
    """Add the majority rate as a line with a legend entry."""
    if rate is None:
        return
    figure.add_hline(rate, line={"color": MAJORITY, "dash": "dot", "width": 2})
    line = {"color": MAJORITY, "dash": "dot", "width": 2}
    figure.add_trace(go.Scatter(x=[None], y=[rate], mode="lines", line=line, name=f"majority rate {rate:.4f}"))


def _history(study: optuna.Study, trials: Sequence[FrozenTrial], score: str, rate: float | None) -> go.Figure:
    figure = go.Figure(_points(trials, lambda trial: trial.number))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = np.minimum if study.direction == optuna.study.StudyDirection.MINIMIZE else np.maximum
    figure.add_trace(
        go.Scatter(
            x=[trial.number for trial in complete],
            y=best.accumulate(np.array([trial.value for trial in complete])),
            mode="lines",
            name="best so far",
            line={"color": COMPLETE, "width": 1, "shape": "hv"},
            hoverinfo="skip",
        )
    )
    _add_majority_rate(figure, rate)
    figure.update_xaxes(title="trial", tickformat="d")
    figure.update_yaxes(title=score)
    figure = _layout(figure, 420, legend=True)
    # Whole numbers only: Plotly would label fractions of a few trials as 0 1 1 2 2.
    last = max(trial.number for trial in trials)
    return figure.update_xaxes(tick0=0, dtick=max(1, math.ceil(last / 6)))


def _importance(importances: Mapping[str, float], names: Mapping[str, str]) -> go.Figure:
    ordered = sorted(importances.items(), key=lambda item: item[1])
    values = [value for _, value in ordered]
    bars = go.Bar(
        x=values,
        y=[names[name] for name, _ in ordered],
        orientation="h",
        marker={"color": COMPLETE},
        text=[f"{value:.2f}" for value in values],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    figure = go.Figure(bars)
    figure.update_xaxes(title="importance (fANOVA, complete trials)", range=[0, 1.1 * max(values)])
    return _layout(figure, 80 + 32 * len(values))


def _slice(
    trials: Sequence[FrozenTrial],
    name: str,
    distribution: Any,  # of Optuna
    title: str,
    score: str,
    rate: float | None,
) -> go.Figure:
    categorical = isinstance(distribution, CategoricalDistribution)
    figure = go.Figure(
        _points(trials, lambda trial: str(trial.params[name]) if categorical else trial.params.get(name))
    )
    _add_majority_rate(figure, rate)
    if isinstance(distribution, CategoricalDistribution):
        choices = [str(choice) for choice in distribution.choices]
        ends = [-0.5, len(choices) - 0.5]
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=choices, range=ends)
    elif distribution.log:
        ticks = _log_ticks(distribution)
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_xaxes(title=title)
    figure.update_yaxes(title=score)
    return _layout(figure, 280)


def _log_ticks(distribution: Any) -> list[float]:
    """Return at most six round numbers in the range of a logarithmic distribution."""
    exponents = range(math.floor(math.log10(distribution.low)), math.ceil(math.log10(distribution.high)) + 1)
    for factors in ((1, 3), (1,)):
        ticks = [float(f"{factor}e{exponent}") for exponent in exponents for factor in factors]
        ticks = [tick for tick in ticks if distribution.low <= tick <= distribution.high]
        if len(ticks) <= 6:
            break
    return ticks[:: math.ceil(len(ticks) / 6)] if ticks else [distribution.low, distribution.high]


def _parallel(study: optuna.Study, trials: Sequence[FrozenTrial], names: Mapping[str, str], score: str) -> go.Figure:
    scores = [last_score(trial) for trial in trials]
    dimensions: list[dict[str, Any]] = [{"label": score, "values": scores, "tickformat": ".3f"}]
    distributions: dict[str, Any] = dict(trials[0].distributions)
    for name, distribution in distributions.items():
        values = [trial.params[name] for trial in trials]
        dimension: dict[str, Any] = {"label": names[name]}
        if isinstance(distribution, CategoricalDistribution):
            choices = list(distribution.choices)
            dimension |= {"values": [choices.index(value) for value in values], "range": [0, max(1, len(choices) - 1)]}
            dimension |= {"tickvals": list(range(len(choices))), "ticktext": [str(choice) for choice in choices]}
        elif distribution.log:
            ticks, ends = _log_ticks(distribution), np.log10([distribution.low, distribution.high])
            dimension |= {"values": np.log10(values), "range": ends}
            dimension |= {"tickvals": np.log10(ticks), "ticktext": [f"{tick:g}" for tick in ticks]}
        else:
            dimension |= {"values": values, "range": [distribution.low, distribution.high]}
            dimension |= {"tickformat": ".4~g"}
        dimensions.append(dimension)
    pruned = [int(trial.state == TrialState.PRUNED) for trial in trials]
    if any(pruned):
        states = {"tickvals": [0, 1], "ticktext": ["complete", "pruned"], "range": [0, 1]}
        dimensions.append({"label": "state", "values": pruned} | states)
    colours = ["#c6d3e3", "#0a3069"]  # of the worst and the best score
    scale = colours[::-1] if study.direction == optuna.study.StudyDirection.MINIMIZE else colours
    lines = go.Parcoords(dimensions=dimensions, line={"color": scores, "colorscale": scale}, labelangle=-25)
    return _layout(go.Figure(lines), 400).update_layout(margin={"l": 60, "r": 50, "t": 80, "b": 20})
