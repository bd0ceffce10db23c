"""Write the results of a study: a table, a page of figures, an experiment with the best trial, and a plan for it."""

import shlex
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, TrialState

from fractatlas.evaluation.markdown import to_markdown
from fractatlas.io import write_csv, write_text
from fractatlas.pages import render
from fractatlas.search import figures, storage

# The columns of the reference report's table; they come first, for the hyperparameters that are searched.
COLUMNS = {
    "optimizer.lr": "learning rate",
    "data.batch_size": "batch size",
    "trainer.max_epochs": "epochs",
    "optimizer": "optimizer",
    "optimizer.weight_decay": "weight decay",
    "model.dropout": "dropout",
}
ACCURACY = "val/accuracy"
SCORES = {
    "train/accuracy": "train accuracy",
    ACCURACY: "val accuracy",
    "train/loss": "train loss",
    "val/auroc": "val AUROC",
}
# Further attributes of a trial: the majority rate of the validation subset, the 95 % interval of its accuracy, and the
# epoch after which the trial was pruned.
MAJORITY_RATE, INTERVAL, PRUNED = "val/majority_rate", "interval of val/accuracy", "pruned after epoch"
# The groups of the configuration that define a training; the others state where it runs and what it displays.
GROUPS = ("data", "split", "preprocess", "augment", "model", "loss", "optimizer", "scheduler", "threshold", "trainer")
PAGE, REFIT = "search.html", "refit.yaml"
SEEDS = [0, 1, 2]


def write(
    folder: Path,
    study: optuna.Study,
    space: list[str],
    monitor: str,
    best: DictConfig | None,
    finished: bool = False,
) -> None:
    """Write ``trials.csv``, ``trials.md`` and ``search.html``; for a new best trial, also its experiment and plan.

    The experiment is ``experiment/best.yaml``: ``fractatlas train --config-dir FOLDER experiment=best``. The plan is
    ``refit.yaml``: ``fractatlas plan FOLDER/refit.yaml`` trains the experiment with several seeds, then scores the
    test subset once. The recipe's name contains the trial's number, so that another best trial has other run folders.

    ``space`` has the names of the searched hyperparameters. ``best`` is the configuration of a new best trial, Hydra's
    node included; ``None`` keeps the earlier files. ``finished``: the study has all its trials.
    """
    # A copy in memory: the figures read the trials many times, and other processes change the study meanwhile.
    copy = optuna.create_study(study_name=study.study_name, direction=study.direction)
    copy.add_trials(study.get_trials(deepcopy=False))
    table = trials_table(copy.get_trials(deepcopy=False), space)
    write_csv(folder / "trials.csv", table)
    write_text(folder / "trials.md", to_markdown(_format(table)))
    write_text(folder / PAGE, page(copy, table, monitor, folder, finished))
    if best is not None:
        write_text(folder / "experiment" / "best.yaml", experiment(copy, best, monitor))
        write_text(folder / REFIT, refit_plan(copy.best_trial.number))


def trials_table(trials: list[FrozenTrial], space: list[str]) -> pd.DataFrame:
    """Return one row per sampled trial, without the discarded ones.

    Returns:
        ``iteration`` (the trial's number and the name of its folder), the hyperparameters, the scores at the epoch
        that ``monitor`` selected, ``state, seconds, seed``, and in ``note`` the reason of a failure. Training scores
        are from the predictions made during the epoch. ``seconds`` is the time that this trial ran: for an interrupted
        trial, until its last heartbeat; for the trial that repeats it, without the interrupted one.
    """
    names = [name for name in COLUMNS if name in space] + [name for name in space if name not in COLUMNS]
    rows = []
    for trial in trials:
        attributes = trial.user_attrs
        if storage.SAMPLED not in attributes or storage.DISCARDED in attributes:
            continue
        repeated, state = attributes.get(storage.REPEATS), trial.state.name.lower().replace("fail", "failed")
        stopped = f"pruned after epoch {attributes[PRUNED]}" if PRUNED in attributes else None
        notes = [attributes.get(storage.REASON), stopped, None if repeated is None else f"repeats trial {repeated}"]
        rows.append(
            {"iteration": trial.number}
            | {COLUMNS.get(name, name): trial.params.get(name) for name in names}
            | {title: attributes.get(name) for name, title in SCORES.items()}
            | {
                "state": "interrupted" if storage.is_interrupted(trial) else state,
                "seconds": _seconds(trial),
                "seed": attributes.get("seed"),
                "note": "; ".join(note for note in notes if note),
            }
        )
    table = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["iteration"])
    return table.astype({"seed": "Int64"}) if rows else table


def page(study: optuna.Study, table: pd.DataFrame, monitor: str, folder: Path, finished: bool = False) -> str:
    """Return an HTML page without external files: figures, and a table with links to the run folders in ``folder``."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = study.best_trial if complete else None
    drawn: dict[str, list[str]] = {}
    if best:
        names = {name: COLUMNS.get(name, name) for name in best.params}
        rate = best.user_attrs.get(MAJORITY_RATE) if monitor == ACCURACY else None
        drawn = figures.draw(study, names, monitor, rate)
    cells = _format(table)
    return render(
        "search.html.jinja",
        study=study.study_name,
        monitor=monitor,
        best=best,
        finished=finished,
        refit=shlex.quote(str(folder / REFIT)),
        scores=scores(best, monitor) if best else "",
        warning=majority_warning(best) if best else None,
        columns=list(cells.columns),
        rows=cells.to_numpy().tolist(),
        links={row: _link(folder, row) for row in cells["iteration"]},
        figures=drawn,
        parallel=figures.PARALLEL,
    )


def scores(trial: FrozenTrial, monitor: str) -> str:
    """Return the scores of a complete trial as text, its accuracy with interval and majority rate."""
    attributes = trial.user_attrs
    parts = [] if monitor == ACCURACY else [f"{monitor} {trial.value:.4f}"]
    if attributes.get(ACCURACY) is not None:
        interval = " [{:.4f}, {:.4f}]".format(*attributes[INTERVAL]) if INTERVAL in attributes else ""
        parts.append(f"{ACCURACY} {attributes[ACCURACY]:.4f}{interval}")
    if attributes.get(MAJORITY_RATE) is not None:
        parts.append(f"majority rate {attributes[MAJORITY_RATE]:.4f}")
    return ", ".join(parts) or f"{monitor} {trial.value:.4f}"


def majority_warning(best: FrozenTrial) -> str | None:
    """Return a warning if the accuracy of the best trial is not above the majority rate; otherwise ``None``.

    It is not above if it is lower or equal, or if the lower end of its 95 % interval is.
    """
    accuracy, rate = best.user_attrs.get(ACCURACY), best.user_attrs.get(MAJORITY_RATE)
    low, high = best.user_attrs.get(INTERVAL, (accuracy, accuracy))
    if accuracy is None or rate is None or low > rate:
        return None
    if abs(accuracy - rate) < 1e-6:
        return f"the best trial equals the majority rate: {ACCURACY} {accuracy:.4f}"
    if accuracy < rate:
        return f"the best trial is below the majority rate: {ACCURACY} {accuracy:.4f}, majority rate {rate:.4f}"
    interval = f"[{low:.4f}, {high:.4f}]"
    return (
        "the best trial is not above the majority rate, given its 95 % interval: "
        f"{ACCURACY} {accuracy:.4f} {interval}, majority rate {rate:.4f}"
    )


def describe(study: optuna.Study, number: int, monitor: str) -> str:
    """Return the outcome of an ended trial, the best score so far and the majority rate in one line."""
    trials = study.get_trials(deepcopy=False)
    trial, attributes = trials[number], trials[number].user_attrs
    score = figures.last_score(trial)
    if trial.state == TrialState.PRUNED:
        epoch = attributes.get(PRUNED)
        parts = [f"pruned after epoch {epoch}" + ("" if score is None else f" with {monitor} {score:.4f}")]
    else:
        parts = [trial.state.name.lower().replace("fail", "failed") if score is None else f"{monitor} {score:.4f}"]
    if monitor != ACCURACY and attributes.get(ACCURACY) is not None:
        parts.append(f"{ACCURACY} {attributes[ACCURACY]:.4f}")
    if any(one.state == TrialState.COMPLETE for one in trials):
        best = study.best_trial
        parts.append(f"best so far {best.value:.4f} (trial {best.number})")
        rate = attributes.get(MAJORITY_RATE, best.user_attrs.get(MAJORITY_RATE))
        parts += [] if rate is None else [f"majority rate {rate:.4f}"]
    return ", ".join(parts)


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


def format_value(value: Any) -> str:
    """Return a hyperparameter as text with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _seconds(trial: FrozenTrial) -> float | None:
    """Return the time that a trial ran; an interrupted trial may be marked as such long after it stopped."""
    if trial.state == TrialState.FAIL and storage.REASON in trial.user_attrs and trial.duration:
        return trial.duration.total_seconds()
    return trial.user_attrs.get(storage.SECONDS)


def _link(folder: Path, number: str) -> str | None:
    """Return the address of a trial's report, of its run folder if it has no report, or ``None`` without a folder."""
    if (folder / number / "report.html").is_file():
        return f"{number}/report.html"
    return f"{number}/" if (folder / number).is_dir() else None


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
    return format_value(value)
