import json

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from fractatlas.config.overrides import prepare
from fractatlas.config.schema import EvaluateConfig
from fractatlas.config.validation import validate
from fractatlas.errors import InputError
from fractatlas.evaluation.external_predictions import evaluate_predictions
from fractatlas.report.report_page import write_report
from tests.conftest import REPOSITORY


@pytest.fixture
def score(tmp_path):
    """Write a table of predictions and evaluate it; return the contents of metrics.json."""

    def evaluate(table: pd.DataFrame, *overrides: str) -> dict:
        table.to_csv(tmp_path / "theirs.csv", index=False)
        out = tmp_path / "out"
        arguments = (f"predictions={tmp_path}/theirs.csv", f"paths.root={tmp_path}", f"paths.output_dir={out}")
        with initialize_config_dir(str(REPOSITORY / "conf"), job_name="test"):
            composed = compose("evaluate", list(prepare([*arguments, *overrides], EvaluateConfig)))
        evaluate_predictions(validate(composed, EvaluateConfig))
        return json.loads((out / "metrics.json").read_text())

    return evaluate


@pytest.fixture
def table() -> pd.DataFrame:
    """Four images each of 60 patients; the images of one patient have the same label and nearly the same score."""
    generator = np.random.default_rng(0)
    patient = np.arange(240) // 4
    label = (generator.random(60) < 0.4).astype(int)[patient]
    score = generator.normal(size=60)[patient] + generator.normal(size=240) / 10 + 1.5 * label
    return pd.DataFrame(
        {"image_id": [f"i{n:03}.png" for n in range(240)], "label": label, "probability": 1 / (1 + np.exp(1 - score))}
    )


@pytest.mark.parametrize("name", ["patient", "group"])
def test_intervals_resample_the_patients_or_groups_of_the_table(score, table, name, caplog):
    single = score(table)["test"]
    with caplog.at_level("INFO"):
        record = score(table.assign(**{name: [f"p{n // 4}" for n in range(240)]}))
    grouped = record["test"]
    for metric in ("accuracy", "auroc"):
        assert grouped[metric]["value"] == single[metric]["value"]
        assert grouped[metric]["high"] - grouped[metric]["low"] > 1.4 * (single[metric]["high"] - single[metric]["low"])
    title = {"patient": "patients (column patient)", "group": "groups (column group)"}[name]
    assert f"Intervals resample groups of images: {title}." in caplog.text
    assert f"leak check: {title}: 60, all in test; not checked against the training images" in caplog.text


def test_without_groups_log_page_and_card_state_that_single_images_are_resampled(score, table, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert score(table)["leaks"] == {}
    stated = "Intervals resample single images, because no related images are known."
    page = write_report(tmp_path / "out").read_text()
    for text in (caplog.text, page, (tmp_path / "out" / "model_card.md").read_text()):
        assert stated in text
        assert "near-duplicates: not checked" in text


def test_patients_in_validation_and_test_are_named(score, table, caplog):
    split = np.where(np.arange(240) % 4 == 0, "val", "test")
    with caplog.at_level("INFO"):
        leaks = score(table.assign(patient=[f"p{n // 4:02}" for n in range(240)], split=split))["leaks"]
    assert (leaks["patients"]["divided"], leaks["patients"]["groups"]) == (60, 60)
    (line,) = (record for record in caplog.records if record.message.startswith("leak check: patients"))
    assert line.levelname == "WARNING"
    assert (
        "60 of 60 are in several subsets (p00, p01, p02, p03, p04, and 55 more); images: val 60, test 180"
        in caplog.text
    )


def test_scores_of_metrics_json_and_strata_use_the_groups_of_the_catalogue(score, table, tmp_path):
    catalogue = table[["image_id"]].assign(group=[f"i{4 * (n // 4):03}.png" for n in range(240)])
    catalogue = catalogue.assign(exam=catalogue["group"], duplicates="")
    catalogue.to_csv(tmp_path / "theirs_catalogue.csv", index=False)
    record = score(table, f"catalogue={tmp_path}/theirs_catalogue.csv")
    strata = pd.read_csv(tmp_path / "out" / "strata.csv").iloc[0]
    assert record["test"]["auroc"]["low"] == pytest.approx(strata["auroc_low"])
    assert record["leaks"]["exams"]["groups"] == 60
    assert pd.read_csv(tmp_path / "out" / "predictions.csv")["group"].nunique() == 60
    assert "given_groups" not in record["leaks"]


def test_rows_of_the_training_subset_are_checked_for_leaks_and_not_scored(score, table, tmp_path, caplog):
    split = np.where(np.arange(240) < 122, "train", "test")
    with caplog.at_level("INFO"):
        record = score(table.assign(patient=[f"p{n // 4:02}" for n in range(240)], split=split))
    assert "122 rows with another split than val and test ('train'): not scored" in caplog.text
    assert record["leaks"]["patients"]["names"] == ["p30"]
    assert record["test"]["n"] == 118


def test_a_catalogue_without_any_image_of_the_table_is_refused(score, table, tmp_path):
    catalogue = table[["image_id"]].assign(group=table["image_id"], exam=table["image_id"], duplicates="")
    catalogue.to_csv(tmp_path / "ids.csv", index=False)
    table["image_id"] = table["image_id"].str.removesuffix(".png")
    message = r"theirs.csv: no image_id is in .*ids.csv \(for example i000, and there i000.png\); use the same ids"
    with pytest.raises(InputError, match=message):
        score(table, f"catalogue={tmp_path}/ids.csv")
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_images_that_the_catalogue_does_not_contain_are_counted_in_the_leak_check(score, table, tmp_path, caplog):
    catalogue = table[["image_id"]].assign(group=table["image_id"], exam=table["image_id"], duplicates="")
    catalogue.head(200).to_csv(tmp_path / "ids.csv", index=False)
    with caplog.at_level("INFO"):
        score(table, f"catalogue={tmp_path}/ids.csv")
    for line in ("neighbouring ids: every image is an exam of its own", "near-duplicates: no image has one"):
        assert f"{line}; not checked for 40 of 240 images, which are not in the catalogue" in caplog.text


def test_a_table_without_the_column_split_is_stated_as_such(score, table, tmp_path, caplog):
    stated = "The table of predictions has no column split: all rows are taken as test."
    with caplog.at_level("INFO"):
        score(table)
    assert caplog.text.count(stated) == 1
    assert stated in write_report(tmp_path / "out").read_text()
    caplog.clear()
    with caplog.at_level("INFO"):
        score(table.assign(split="test"))
    assert stated not in caplog.text


def test_the_card_promises_no_strata_and_no_images_that_are_not_known(score, table, tmp_path):
    score(table)
    write_report(tmp_path / "out")
    card = (tmp_path / "out" / "model_card.md").read_text()
    assert "| 30 | Robustness | Not measured: no attribute of the images is known. |" in card
    assert "report.html shows the most confident errors" not in card


def test_another_value_of_the_column_split_is_named(score, table):
    with pytest.raises(InputError, match=r"column split: no row is 'val' or 'test' \(found 'Testing'\)"):
        score(table.assign(split="Testing"))


def test_a_table_with_semicolons_is_refused_as_such(score, table, tmp_path, monkeypatch):
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda self, file, index: file.write_text("image_id;label\na;1\n"))
    with pytest.raises(InputError, match="the columns are separated by semicolons, should be by commas"):
        score(table)


@pytest.mark.parametrize("several", [False, True])
def test_few_images_of_a_class_are_counted_as_images_or_groups(score, table, several):
    few = table[(table["label"] == 0) | (table["label"].cumsum() <= 8)].reset_index(drop=True)
    record = score(few.assign(patient=[f"p{n // 2}" for n in range(len(few))]) if several else few)
    noun = "groups" if several else "images"
    assert f" {noun} with a fracture, fewer than 20" in record["test"]["mcc"]["reason"]
