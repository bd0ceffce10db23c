import json
import math
import re
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from fractatlas.search import report, storage
from fractatlas.search.sampler import TrialStreamSampler

SPACE = {
    "optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True),
    "data.batch_size": CategoricalDistribution([32, 64]),
    "trainer.max_epochs": CategoricalDistribution([2, 3]),
    "optimizer": CategoricalDistribution(["sgd", "adam"]),
    "optimizer.weight_decay": FloatDistribution(1e-4, 5e-3, log=True),
    "model.dropout": CategoricalDistribution([0.1, 0.3, 0.5]),
}
RATE = 0.8235


def made_up_study(folder: Path, n_trials: int = 15, best: float = 0.87) -> optuna.Study:
    """Return a study with scores computed from the hyperparameters; every fifth trial is pruned, one has failed."""
    sampler = TrialStreamSampler(
        lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5), seed=42, space=SPACE, startup=5
    )
    study = optuna.create_study(study_name="densenet121_fracatlas", sampler=sampler, direction="maximize")
    for number in range(n_trials):
        trial = study.ask(dict(SPACE))
        trial.set_user_attr(storage.SAMPLED, True)
        score = best - 0.03 * (math.log10(trial.params["optimizer.lr"]) + 3.4) ** 2
        score -= 0.01 * abs(trial.params["model.dropout"] - 0.3) + 0.01 * (trial.params["optimizer"] == "sgd")
        trial.report(score - 0.02, 1)
        attributes = {
            "val/accuracy": score,
            "train/accuracy": score - 0.04,
            "train/loss": 1 - score,
            "val/auroc": score,
        }
        attributes |= {report.MAJORITY_RATE: RATE, report.INTERVAL: [score - 0.03, score + 0.03]}
        attributes |= {storage.SECONDS: 100.0 + number, "seed": 42}
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        if number == 7:
            trial.set_user_attr(storage.REASON, "out of memory")
            study.tell(trial, state=TrialState.FAIL)
            continue
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        if number % 5 == 3:
            trial.set_user_attr(report.PRUNED, 1)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, score)
    return study


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return the folder of a study with complete, pruned and failed trials; one trial has a report."""
    made = tmp_path_factory.mktemp("study")
    study = made_up_study(made)
    (made / "2" / "report.html").touch()
    (made / "4").rmdir()
    report.write(made, study, list(SPACE), "val/accuracy", None)
    return made


def figures_of(page: str) -> list[list[dict]]:
    """Return the traces of each figure of a page."""
    starts = [found.end() for found in re.finditer(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*(?=\[)", page)]
    return [json.JSONDecoder().raw_decode(page, start)[0] for start in starts]


def trace(figure: list[dict], name: str) -> dict | None:
    return next((one for one in figure if one.get("name") == name), None)


def test_pruned_trials_are_drawn_with_their_last_score(folder):
    history, _, *slices, _ = figures_of((folder / "search.html").read_text())
    assert len(slices) == len(SPACE)
    for figure in (history, *slices):
        pruned, complete = trace(figure, "pruned (last score)"), trace(figure, "complete")
        assert pruned["text"] == ["trial 3", "trial 8", "trial 13"]
        assert len(complete["text"]) == 11
        assert pruned["marker"]["symbol"] != complete["marker"]["symbol"]
    rows = pd.read_csv(folder / "trials.csv").set_index("iteration")
    assert rows.loc[3, "state"] == "pruned"
    assert rows.loc[3, "note"] == "pruned after epoch 1"


def test_parallel_coordinates_mark_pruned_trials(folder):
    (lines,) = figures_of((folder / "search.html").read_text())[-1]
    assert [one["label"] for one in lines["dimensions"]] == [
        "val/accuracy", "learning rate", "batch size", "epochs", "optimizer", "weight decay", "dropout", "state",
    ]  # fmt: skip
    assert lines["dimensions"][-1]["ticktext"] == ["complete", "pruned"]


def test_majority_rate_is_a_line_only_where_the_axis_is_accuracy(folder, tmp_path):
    history, _, *slices, _ = figures_of((folder / "search.html").read_text())
    assert all(trace(figure, f"majority rate {RATE}") for figure in (history, *slices))
    report.write(tmp_path, made_up_study(tmp_path, 3), list(SPACE), "val/auroc", None)
    by_auroc = (tmp_path / "search.html").read_text()
    assert f"majority rate {RATE}" not in str(figures_of(by_auroc))
    assert "majority rate 0.8235" in by_auroc  # in the text, next to the accuracy


def test_trials_link_to_their_report_or_run_folder(folder):
    page = (folder / "search.html").read_text()
    assert '<td><a href="2/report.html">2</a></td>' in page
    assert '<td><a href="3/">3</a></td>' in page
    assert "<td>4</td>" in page  # it has no folder
    links = re.findall(r'<td><a href="([^"]+)"', page)
    assert len(links) == 14
    assert all((folder / link).exists() for link in links)


def test_axis_labels_fit_a_narrow_window(folder):
    page = (folder / "search.html").read_text()
    for ticks in re.findall(r'"ticktext":(\[[^]]*\])', page):
        assert len(json.loads(ticks)) <= 6
        assert max(map(len, json.loads(ticks))) <= 8
    assert "\\u00b5" not in page  # "100µ" as a learning rate


def best_trial(accuracy: float, low: float, high: float) -> FrozenTrial:
    attributes = {"val/accuracy": accuracy, report.MAJORITY_RATE: RATE, report.INTERVAL: [low, high]}
    return optuna.trial.create_trial(value=accuracy, user_attrs=attributes)


@pytest.mark.parametrize(
    ("accuracy", "low", "high", "expected"),
    [
        (RATE, 0.79, 0.85, "the best trial equals the majority rate: val/accuracy 0.8235"),
        (0.80, 0.77, 0.83, "the best trial is below the majority rate: val/accuracy 0.8000, majority rate 0.8235"),
        (0.84, 0.81, 0.87, "the best trial is not above the majority rate, given its 95 % interval: "
                           "val/accuracy 0.8400 [0.8100, 0.8700], majority rate 0.8235"),
        (0.86, 0.83, 0.89, None),
    ],
)  # fmt: skip
def test_best_trial_is_compared_with_the_majority_rate(accuracy, low, high, expected):
    assert report.majority_warning(best_trial(accuracy, low, high)) == expected


def test_best_trial_of_an_older_study_has_no_comparison():
    assert report.majority_warning(optuna.trial.create_trial(value=0.8)) is None


def test_page_states_that_the_best_trial_is_not_above_the_majority_rate(tmp_path):
    study = made_up_study(tmp_path, 3, best=0.84)
    report.write(tmp_path, study, list(SPACE), "val/accuracy", None)
    assert (
        "The best trial is not above the majority rate, given its 95 % interval"
        in (tmp_path / "search.html").read_text()
    )
    report.write(tmp_path, made_up_study(tmp_path, 3, best=0.95), list(SPACE), "val/accuracy", None)
    assert "The best trial is not above" not in (tmp_path / "search.html").read_text()


def test_outcome_of_a_trial_is_one_line_with_its_numbers(tmp_path):
    study = made_up_study(tmp_path)
    best = f"best so far {study.best_value:.4f} (trial {study.best_trial.number}), majority rate 0.8235"
    value = study.trials[0].value
    assert report.describe(study, 0, "val/accuracy") == f"val/accuracy {value:.4f}, {best}"
    assert report.describe(study, 7, "val/accuracy") == f"failed, {best}"
    last = study.trials[3].intermediate_values[1]
    assert report.describe(study, 3, "val/accuracy") == f"pruned after epoch 1 with val/accuracy {last:.4f}, {best}"
    assert report.describe(study, 0, "val/auroc") == f"val/auroc {value:.4f}, val/accuracy {value:.4f}, {best}"


def test_page_of_a_finished_study_has_the_best_trial_and_the_command_for_it(tmp_path):
    study = made_up_study(tmp_path, 3)
    (folder := tmp_path / "a study").mkdir()
    for finished, text in ((False, "Best trial so far: "), (True, "Best trial: ")):
        report.write(folder, study, list(SPACE), "val/accuracy", None, finished)
        page = (folder / "search.html").read_text()
        assert f"{text}{study.best_trial.number}, val/accuracy" in page
    assert f"fractatlas plan &#39;{folder}/refit.yaml&#39;</code>" in page
    assert "<th>trial</th><th>learning rate</th>" in page


def test_ticks_are_whole_trials_and_plain_numbers(tmp_path):
    report.write(tmp_path, made_up_study(tmp_path, 3), list(SPACE), "val/accuracy", None)
    page = (tmp_path / "search.html").read_text()
    assert re.search(r'"tickformat":"d"[^}]*"dtick":1\b', page)
    assert page.count('"exponentformat":"none"') == 2 * len(figures_of(page))


def test_page_of_a_study_without_a_complete_trial_has_no_figures(tmp_path):
    study = optuna.create_study()
    study.ask(dict(SPACE)).set_user_attr(storage.SAMPLED, True)
    report.write(tmp_path, study, list(SPACE), "val/accuracy", None)
    page = (tmp_path / "search.html").read_text()
    assert "No trial is complete yet" in page
    assert figures_of(page) == []
