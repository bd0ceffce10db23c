"""Write the results of a study: a table, a page of figures, an experiment with the best trial, and a plan for it."""

from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import plotly.io
from omegaconf import DictConfig, OmegaConf
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from fractatlas.evaluation.markdown import to_markdown
from fractatlas.io import write_csv, write_text
from fractatlas.pages import render
from fractatlas.search import storage

# The columns of the reference report's table; they come first, for the hyperparameters that are searched.
COLUMNS = {
    "optimizer.lr": "learning rate",
    "data.batch_size": "batch size",
    "trainer.max_epochs": "epochs",
    "optimizer": "optimizer",
    "optimizer.weight_decay": "weight decay",
    "model.dropout": "dropout",
}
TREES = 32  # of the importance's forest: half of Optuna's, because it is computed after every trial
SCORES = {
    "train/accuracy": "train accuracy",
    "val/accuracy": "val accuracy",
    "train/loss": "train loss",
    "val/auroc": "val AUROC",
}
# The groups of the configuration that define a training; the others state where it runs and what it displays.
GROUPS = ("data", "split", "preprocess", "augment", "model", "loss", "optimizer", "scheduler", "threshold", "trainer")
REFIT = "refit.yaml"
SEEDS = [0, 1, 2]


def write(folder: Path, study: optuna.Study, space: list[str], monitor: str, best: DictConfig | None) -> None:
    """Write ``trials.csv``, ``trials.md`` and ``search.html``; for a new best trial, also its experiment and plan.

    The experiment is ``experiment/best.yaml``: ``fractatlas train --config-dir FOLDER experiment=best``. The plan is
    ``refit.yaml``: ``fractatlas plan FOLDER/refit.yaml`` trains the experiment with several seeds, then scores the
    test subset once. The recipe's name contains the trial's number, so that another best trial has other run folders.

    ``space`` has the names of the searched hyperparameters. ``best`` is the configuration of a new best trial, Hydra's
    node included; ``None`` keeps the earlier files.
    """
    # A copy in memory: the figures read the trials many times, and other processes change the study meanwhile.
    copy = optuna.create_study(study_name=study.study_name, direction=study.direction)
    copy.add_trials(study.get_trials(deepcopy=False))
    table = trials_table(copy.get_trials(deepcopy=False), space)
    write_csv(folder / "trials.csv", table)
    write_text(folder / "trials.md", to_markdown(_format(table)))
    write_text(folder / "search.html", page(copy, table, monitor))
    if best is not None:
        write_text(folder / "experiment" / "best.yaml", experiment(copy, best, monitor))
        write_text(folder / REFIT, refit_plan(copy.best_trial.number))


def trials_table(trials: list[FrozenTrial], space: list[str]) -> pd.DataFrame:
    """Return one row per sampled trial, without the discarded ones.

    Returns:
        ``iteration`` (the trial's number and the name of its folder), the hyperparameters, the scores at the epoch
        that ``monitor`` selected, ``state, seconds, seed``, and in ``note`` the reason of a failure. Training scores
        are from the predictions made during the epoch.
    """
    names = [name for name in COLUMNS if name in space] + [name for name in space if name not in COLUMNS]
    rows = []
    for trial in trials:
        attributes = trial.user_attrs
        if storage.SAMPLED not in attributes or storage.DISCARDED in attributes:
            continue
        repeated, state = attributes.get(storage.REPEATS), trial.state.name.lower().replace("fail", "failed")
        notes = [attributes.get(storage.REASON), None if repeated is None else f"repeats trial {repeated}"]
        rows.append(
            {"iteration": trial.number}
            | {COLUMNS.get(name, name): trial.params.get(name) for name in names}
            | {title: attributes.get(name) for name, title in SCORES.items()}
            | {
                "state": "interrupted" if storage.is_interrupted(trial) else state,
                "seconds": attributes.get("seconds", trial.duration and trial.duration.total_seconds()),
                "seed": attributes.get("seed"),
                "note": "; ".join(note for note in notes if note),
            }
        )
    table = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["iteration"])
    return table.astype({"seed": "Int64"}) if rows else table


def page(study: optuna.Study, table: pd.DataFrame, monitor: str) -> str:
    """Return an HTML page without external files: history, importance, parallel coordinates, slices, table."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    figures = []
    if complete:
        draw = optuna.visualization
        figures.append(draw.plot_optimization_history(study, target_name=monitor))
        if len({trial.value for trial in complete}) > 1:
            evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=0)
            figures.append(draw.plot_param_importances(study, evaluator=evaluator, target_name=monitor))
        figures.append(draw.plot_parallel_coordinate(study, target_name=monitor))
        figures.append(draw.plot_slice(study, target_name=monitor))
    for figure in figures:
        figure.update_layout(width=None, height=450, autosize=True)  # as wide as the page
    cells = _format(table)
    return render(
        "search.html.jinja",
        study=study.study_name,
        monitor=monitor,
        best=study.best_trial if complete else None,
        columns=list(cells.columns),
        rows=cells.to_numpy().tolist(),
        figures=[
            plotly.io.to_html(figure, include_plotlyjs=index == 0, full_html=False, config={"displaylogo": False})
            for index, figure in enumerate(figures)
        ],
    )


def experiment(study: optuna.Study, best: DictConfig, monitor: str) -> str:
    """Return the best trial as the text of an experiment file."""
    choices = best.hydra.runtime.choices
    values: dict[str, Any] = {"task_name": f"{study.study_name}_best", "seed": best.seed, "monitor": best.monitor}
    values |= {group: OmegaConf.to_container(best[group]) for group in GROUPS}
    defaults = [{f"override /{group}": choices[group]} for group in GROUPS]
    return (
        "# @package _global_\n"
        f"# Trial {study.best_trial.number} of the study {study.study_name}: {monitor} {study.best_value:.4f}.\n"
        f"{OmegaConf.to_yaml(OmegaConf.create({'defaults': defaults}))}\n{OmegaConf.to_yaml(OmegaConf.create(values))}"
    )


def refit_plan(number: int) -> str:
    """Return the text of the plan that trains trial ``number`` again with several seeds."""
    return (
        "# The best trial of the study with three seeds; the test subset is scored once, after all trainings.\n"
        f"config_dir: .\nseeds: {SEEDS}\nrecipes:\n  trial {number}: [experiment=best]\n"
    )


def _format(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text: accuracies and losses with four digits, hyperparameters with three."""
    return pd.DataFrame({name: [_format_cell(name, value) for value in table[name]] for name in table})


def _format_cell(name: str, value: Any) -> str:
    if pd.isna(value):
        return ""
    if name in SCORES.values():
        return f"{value:.4f}"
    if name == "seconds":
        return f"{value:.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
