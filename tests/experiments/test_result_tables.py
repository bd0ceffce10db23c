import json
import shutil

import pandas as pd
import pytest
import yaml

from fractatlas.errors import InputError
from fractatlas.experiments.result_tables import (
    difference_rows,
    recipe_rows,
    recipes_markdown,
    step_row,
    steps_markdown,
    write_differences,
)
from fractatlas.experiments.run_records import RunRecord, collect
from tests.conftest import made_up_predictions

CONFIG = {
    "task_name": "made_up", "model": {"variant": "densenet_tiny"},
    "split": {"_target_": "fractatlas.data.splits.grouped_split"}, "preprocess": {"size": 64},
    "threshold": {"_target_": "fractatlas.evaluation.operating_point.fixed", "_partial_": True, "value": 0.5},
}  # fmt: skip


@pytest.fixture
def make_run(run_folder, tmp_path):
    """Make the record of a run with an evaluation of the test subset, with or without its localisation.

    It omits one fractured image of each subset if asked to.
    """

    def make(name: str, seed: int, omit: bool = False, located: bool = False) -> list[RunRecord]:
        run = tmp_path / name
        split = pd.read_csv(run_folder / "split.csv")
        for folder, subset in ((run, "val"), (run / "test", "test")):
            shutil.copytree(run_folder, folder)
            if not located:
                (folder / "localisation.csv").unlink()
            (folder / ".hydra").mkdir()
            (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(CONFIG))
            metrics = json.loads((folder / "metrics.json").read_text())
            metrics |= {"model": "densenet_tiny", "versions": {"commit": "abc"}}
            (folder / "metrics.json").write_text(json.dumps(metrics))
            table = made_up_predictions(split[split["split"] == subset], seed)
            if omit:
                table = table.drop(index=table[table["label"] == 1].index[0])
            table.to_csv(folder / "predictions.csv", index=False)
        return [collect(run, name, seed, None)]

    return make


def rows_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_recipes_with_other_images_than_the_first_are_marked(make_run):
    same = [*recipe_rows("one", [make_run("a", 0)]), *recipe_rows("two", [make_run("b", 1)])]
    assert "†" not in recipes_markdown(pd.DataFrame(same))
    text = recipes_markdown(pd.DataFrame([*same, *recipe_rows("three", [make_run("c", 1, omit=True)])]))
    assert [") †" in row for row in rows_of(text)] == [False] * 4 + [True] * 2
    assert "† The images differ from those of the first row" in text


def test_rows_of_earlier_versions_are_marked_by_their_number_of_images(make_run):
    table = pd.DataFrame([*recipe_rows("a", [make_run("a", 0)]), *recipe_rows("b", [make_run("b", 0, omit=True)])])
    table = table.drop(columns="images")
    assert [") †" in row for row in rows_of(recipes_markdown(table))] == [False, False, True, True]


def test_a_step_with_other_images_states_the_number_of_common_images(make_run):
    first, second = make_run("a", 0), make_run("b", 1, omit=True)
    table = pd.DataFrame([step_row("first", [second], []), step_row("second", [first], [second])])
    n = table["n"].tolist()
    assert (n[0] + 1, table["difference_n"].iloc[1]) == (n[1], n[0])
    assert f" on {n[0]} common images" in steps_markdown(table)
    assert ") †" in rows_of(steps_markdown(table))[1]


def test_seeds_with_different_images_are_refused(make_run):
    with pytest.raises(InputError, match="one: the seeds have other val images; train them again"):
        recipe_rows("one", [make_run("a", 0), make_run("b", 1, omit=True)])


def test_recipes_are_compared_on_their_common_images(make_run, tmp_path):
    first, second = [make_run("a", 0, located=True)], [make_run("b", 1, located=True)]
    table = pd.DataFrame(difference_rows(("one", first), ("two", second)))
    assert set(table["score"]) == {"accuracy", "auroc", "average_precision", "hit", "froc", "ap_30", "ap_50"}
    recipes = pd.DataFrame([*recipe_rows("one", first), *recipe_rows("two", second)]).set_index(["recipe", "subset"])
    for row in table.itertuples():
        assert (row.first, row.second) == ("one", "two")
        assert row.first_value == pytest.approx(recipes.loc[("one", row.subset), row.score])
        assert row.second_value == pytest.approx(recipes.loc[("two", row.subset), row.score])
        assert row.difference == pytest.approx(row.second_value - row.first_value)
    auroc = table[table["score"] == "auroc"]
    assert (auroc["low"] < auroc["difference"]).all()
    assert (auroc["difference"] < auroc["high"]).all()
    assert (table.loc[table["score"] == "hit", "difference"] == 0).all()  # both have the same heatmaps
    write_differences(tmp_path, table)
    text = (tmp_path / "differences.md").read_text()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows_of(text)]
    assert [row[:4] for row in rows] == [["two", "one", subset, str(n)] for subset, n in
                                         table[["subset", "n"]].drop_duplicates().to_numpy().tolist()]  # fmt: skip
    value, low, high = auroc[["difference", "low", "high"]].iloc[0]
    assert rows[0][5] == f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    write_differences(tmp_path, table.assign(low=None, high=None, p=None))  # too few groups for an interval
    assert f"| {value:+.3f} " in (tmp_path / "differences.md").read_text()


def test_recipes_without_heatmaps_are_compared_by_their_predictions(make_run):
    first, second = ("a", [make_run("a", 0, located=True, omit=True)]), ("b", [make_run("b", 1)])
    table = pd.DataFrame(difference_rows(first, second))
    assert set(table["score"]) == {"accuracy", "auroc", "average_precision"}


def test_detection_scores_are_shown_if_there_are_any(make_run):
    title = "AP at IoU 0.5"
    assert title not in recipes_markdown(pd.DataFrame(recipe_rows("one", [make_run("a", 0)])))
    assert title in recipes_markdown(pd.DataFrame(recipe_rows("one", [make_run("b", 0, located=True)])))
