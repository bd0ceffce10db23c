"""What a search leaves in its folder: the study's table, a page of pictures, and the winner as an experiment."""

from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import plotly.io
from jinja2 import Environment, PackageLoader, select_autoescape
from omegaconf import DictConfig, OmegaConf
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from fractatlas.files import whole, write_csv
from fractatlas.search import storage

# Where one of the study's six hyperparameters is searched under this name, its column comes first and is called:
STUDY = {
    "optimizer.lr": "learning rate",
    "data.batch_size": "batch size",
    "trainer.max_epochs": "epochs",
    "optimizer": "optimizer",
    "optimizer.weight_decay": "weight decay",
    "model.dropout": "dropout",
}
TREES = 32  # of the importance's forest: half of Optuna's, since it is grown again after every trial
SCORES = ("train/accuracy", "val/accuracy", "train/loss", "val/auroc")
# The groups of a configuration that say what a run is; the others say where it runs and what it shows.
KEPT = ("data", "split", "preprocess", "augment", "model", "loss", "optimizer", "scheduler", "threshold", "trainer")


def write(folder: Path, study: optuna.Study, space: list[str], monitor: str, best: DictConfig | None) -> None:
    """Write ``trials.csv, trials.md, search.html`` and, with a winner, ``experiment/best.yaml``, each whole.

    Args:
        folder: the study's.
        study: with its trials.
        space: the names of what is searched.
        monitor: what is optimised.
        best: a new winner's configuration with Hydra's node; ``None`` leaves ``best.yaml`` as it is.
    """
    study = _in_memory(study)
    trials = [trial for trial in study.get_trials(deepcopy=False) if storage.is_shown(trial)]
    rows = table(trials, space)
    write_csv(folder / "trials.csv", rows)
    with whole(folder / "trials.md") as temporary:
        temporary.write_text(markdown(rows), encoding="utf-8")
    with whole(folder / "search.html") as temporary:
        temporary.write_text(page(study, rows, monitor), encoding="utf-8")
    if best is not None:
        with whole(folder / "experiment" / "best.yaml") as temporary:
            temporary.write_text(experiment(study, best, monitor), encoding="utf-8")


def table(trials: list[FrozenTrial], space: list[str]) -> pd.DataFrame:
    """One row per trial: the study's columns, then AUROC, state, seconds, seed, and the reason of a failure.

    Scores are those of the epoch that ``monitor`` chose; training scores are over predictions made while the network
    was changing. ``iteration`` is the trial's number and its folder's name.
    """
    names = [name for name in STUDY if name in space] + [name for name in space if name not in STUDY]
    rows = []
    for trial in trials:
        row: dict[str, Any] = {"iteration": trial.number}
        row |= {STUDY.get(name, name): trial.params.get(name) for name in names}
        row |= {_plain(name): trial.user_attrs.get(name) for name in SCORES}
        row |= {
            "state": _state(trial),
            "seconds": trial.user_attrs.get("seconds", trial.duration and trial.duration.total_seconds()),
            "seed": trial.user_attrs.get("seed"),
        }
        redone = trial.user_attrs.get(storage.REDO_OF)
        notes = [trial.user_attrs.get(storage.REASON), None if redone is None else f"trial {redone} again"]
        rows.append(row | {"note": "; ".join(note for note in notes if note)})
    table = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["iteration"])
    return table.astype({"seed": "Int64"}) if rows else table


def markdown(rows: pd.DataFrame) -> str:
    """The table for reading: rates and losses to three or four digits."""
    shown = rows.copy().astype(object)
    for name in rows.columns:
        shown[name] = [_shown(name, value) for value in rows[name]]
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.values.tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def page(study: optuna.Study, rows: pd.DataFrame, monitor: str) -> str:
    """A page that needs nothing but itself: history, importance, parallel coordinates, slices, sortable table."""
    complete = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    figures = []
    if complete:
        draw = optuna.visualization
        figures.append(draw.plot_optimization_history(study, target_name=monitor))
        if len(complete) > 1 and len({trial.value for trial in complete}) > 1:
            figures.append(
                draw.plot_param_importances(
                    study, evaluator=FanovaImportanceEvaluator(n_trees=TREES, seed=0), target_name=monitor
                )
            )
        figures.append(draw.plot_parallel_coordinate(study, target_name=monitor))
        figures.append(draw.plot_slice(study, target_name=monitor))
    for figure in figures:
        figure.update_layout(width=None, autosize=True)  # as wide as the page
    template = Environment(loader=PackageLoader("fractatlas.search"), autoescape=select_autoescape()).get_template(
        "search.html.jinja"
    )
    return template.render(
        study=study.study_name,
        monitor=monitor,
        best=study.best_trial if complete else None,
        columns=list(rows.columns),
        rows=[[_shown(name, value) for name, value in row.items()] for row in rows.to_dict("records")],
        figures=[
            plotly.io.to_html(figure, include_plotlyjs=index == 0, full_html=False, config={"displaylogo": False})
            for index, figure in enumerate(figures)
        ],
    )


def experiment(study: optuna.Study, best: DictConfig, monitor: str) -> str:
    """The winner as an experiment: ``python train.py --config-dir <study> experiment=best``."""
    choices = best.hydra.runtime.choices
    values = {"task_name": f"{study.study_name}_best", "seed": best.seed, "monitor": best.monitor}
    values |= {group: OmegaConf.to_container(best[group]) for group in KEPT}
    defaults = [{f"override /{group}": choices[group]} for group in KEPT]
    return (
        "# @package _global_\n"
        f"# Trial {study.best_trial.number} of the study {study.study_name}: {monitor} {study.best_value:.4f}.\n"
        f"{OmegaConf.to_yaml(OmegaConf.create({'defaults': defaults}))}\n{OmegaConf.to_yaml(OmegaConf.create(values))}"
    )


def _in_memory(study: optuna.Study) -> optuna.Study:
    """A copy that need not ask the storage again for every figure, and that no other process changes meanwhile."""
    copy = optuna.create_study(study_name=study.study_name, direction=study.direction)
    copy.add_trials(study.get_trials(deepcopy=False))
    return copy


def _plain(name: str) -> str:
    return name.replace("/", " ").replace("auroc", "AUROC")


def _state(trial: FrozenTrial) -> str:
    if trial.state == TrialState.PRUNED:
        return "pruned"
    return "lost" if storage.is_lost(trial) else {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def _shown(name: str, value: Any) -> str:
    if pd.isna(value):
        return ""
    if "accuracy" in name or "AUROC" in name or "loss" in name:
        return f"{value:.4f}"
    if name == "seconds":
        return f"{value:.0f}"
    return f"{value:.3g}" if isinstance(value, float) and name != "seed" and name != "iteration" else str(value)
