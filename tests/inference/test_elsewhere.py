"""Score a checkpoint on data from elsewhere."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from fractatlas.config.overrides import prepare
from fractatlas.config.schema import EvaluateConfig
from fractatlas.config.validation import validate
from fractatlas.data.audit import audit_source
from fractatlas.data.catalogue import SEEN
from fractatlas.data.export import export_table
from fractatlas.data.sources import phantom
from fractatlas.data.sources.fracatlas import FracAtlas
from fractatlas.data.sources.grazpedwri import GrazPedWri
from fractatlas.data.sources.mura import Mura
from fractatlas.errors import InputError
from fractatlas.inference.evaluate import evaluate
from fractatlas.report.report_page import write_report
from fractatlas.training.fit import train
from tests.conftest import REPOSITORY
from tests.data.sources.miniatures import write_grazpedwri, write_mura


@pytest.fixture(scope="module")
def run(configuration, tmp_path_factory) -> Path:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("run")
    train(configuration(folder, "trainer.max_epochs=1", "threshold=youden"))
    return folder


@pytest.fixture(scope="module")
def table(phantoms, tmp_path_factory) -> Path:
    """A table of 160 other phantoms, with exams, a split, an attribute, and copies of five images of ``phantoms``."""
    root = tmp_path_factory.mktemp("other") / "phantoms"
    phantom.generate(root, images=160, seed=1)
    export_table(FracAtlas(root), root.parent / "export")
    file = root.parent / "export" / "table.csv"
    images = pd.read_csv(file)
    for number in range(5):
        shutil.copy(sorted((phantoms / "images/Fractured").iterdir())[number], file.parent / images["path"][number])
    images["exam"] = [f"e{number // 2}" for number in range(160)]
    images.assign(split=["test", "train"] * 80, ward=["a", "b", "c", "c"] * 40).to_csv(file, index=False)
    return file


def score(run: Path, out: Path, *overrides: str) -> dict:
    paths = [f"paths.root={out}", f"paths.output_dir={out}", f"paths.cache_dir={out}/cache"]
    arguments = [f"ckpt={run}", "trainer=cpu", "report=false", *paths, *overrides]
    with initialize_config_dir(str(REPOSITORY / "conf"), job_name="test"):
        config = compose("evaluate", list(prepare(arguments, EvaluateConfig)))
    evaluate(validate(config, EvaluateConfig))
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def scored(run, table, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("scored")
    boxes = f"data.boxes={table.with_name('boxes.json')}"
    return out, score(run, out, "data=table", f"data.table={table}", boxes, "report=true")


def test_all_usable_images_are_scored_with_the_threshold_and_temperature_of_the_checkpoint(run, scored):
    out, metrics = scored
    own = json.loads((run / "metrics.json").read_text())
    assert metrics["operating_point"] == own["operating_point"]
    catalogue = pd.read_csv(out / "catalogue.csv", keep_default_na=False)
    assert metrics["all"]["n"] == (catalogue["excluded"] == "").sum()
    assert metrics["all"]["threshold"] == own["operating_point"]["threshold"]
    assert metrics["data"]["name"].endswith("table.csv")


def test_images_that_the_network_was_trained_with_are_excluded_and_counted(run, scored):
    out, metrics = scored
    catalogue = pd.read_csv(out / "catalogue.csv", keep_default_na=False)
    seen = catalogue[catalogue["excluded"] == SEEN]
    split = pd.read_csv(run / "split.csv").set_index("image_id")["split"]
    copied = sorted(split.index[split.index.isin(seen["note"].str.partition(" ")[0])])
    assert len(copied) == len(seen) == metrics["elsewhere"]["near_duplicates"]["n"] > 0
    assert not (split[copied] == "test").any()
    assert sorted(metrics["elsewhere"]["near_duplicates"]["image_ids"]) == sorted(seen["image_id"])


def test_the_drop_against_the_own_test_subset_is_in_the_metrics_and_on_the_page(run, scored):
    out, metrics = scored
    own = json.loads((run / "metrics.json").read_text())["test"]
    auroc = metrics["elsewhere"]["differences"]["auroc"]
    assert auroc["own"]["value"] == own["auroc"]["value"]
    assert auroc["other"]["value"] == metrics["all"]["auroc"]["value"]
    assert auroc["difference"]["low"] < auroc["difference"]["value"] < auroc["difference"]["high"]
    again = metrics["elsewhere"]["recalibration"]
    assert again["n"] + again["n_rest"] == metrics["all"]["n"]
    page = write_report(out).read_text()
    for text in (
        "Data from elsewhere",
        "own test subset",
        "Calibration with a new temperature",
        "Scores by exam",
        "ward",
    ):
        assert text in page, text
    assert f"{metrics['elsewhere']['near_duplicates']['n']} images that nearly equal a training" in page
    assert f"own test subset ({metrics['elsewhere']['own']['name']})" in page
    assert f"{100 * metrics['all']['accuracy']['value']:.1f} %" in page[page.index("own test subset") :]
    assert '<p class="notice">None of these images' not in page
    card = (out / "model_card.md").read_text()
    assert "| 32 | External validation | In part. These data overlap with those of the training: " in card


def test_a_score_has_the_same_interval_in_all_tables(run, scored):
    _, metrics = scored
    own, differences = json.loads((run / "metrics.json").read_text())["test"], metrics["elsewhere"]["differences"]
    for name, row in differences.items():
        assert (row["own"], row["other"]) == (own[name], metrics["all"][name]), name


def test_exams_of_the_table_are_scored(scored):
    _, metrics = scored
    assert metrics["exams"]["all"]["n"] > 70
    assert metrics["exams"]["all"]["kappa"]["low"] is not None


def test_the_given_test_subset_alone_is_scored_on_request(run, table, tmp_path, caplog):
    caplog.set_level("INFO")
    metrics = score(run, tmp_path, "data=table", f"data.table={table}", "subset=test", "recalibrate=null")
    assert 70 < metrics["test"]["n"] <= 80
    assert "recalibration" not in metrics["elsewhere"]
    assert "of the other subsets that the data set gives, which are not scored" in caplog.text
    assert "training images, which are not listed" not in caplog.text
    with pytest.raises(InputError, match="subset=test: the data have no column split with test or val; use subset=all"):
        score(run, tmp_path / "no", "data=table", f"data.table={table}", "data.columns.split=null", "subset=test")


def test_without_the_run_folder_neither_the_drop_nor_near_duplicates_are_known(run, table, tmp_path, caplog):
    shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "lone.ckpt")
    metrics = score(tmp_path / "lone.ckpt", tmp_path / "out", "data=table", f"data.table={table}")
    assert metrics["elsewhere"]["near_duplicates"] is None
    assert "differences" not in metrics["elsewhere"]
    assert "near-duplicates of training images: not checked" in caplog.text


def test_images_of_one_class_are_one_warning_of_this_package(run, table, tmp_path, caplog, recwarn):
    images = pd.read_csv(table)
    images["path"] = [str((table.parent / path).resolve()) for path in images["path"]]
    images[images["label"] == 1].to_csv(tmp_path / "table.csv", index=False)
    metrics = score(run, tmp_path / "out", "data=table", f"data.table={tmp_path}/table.csv", "recalibrate=null")
    assert metrics["all"]["auroc"] is None
    assert "all: images of one class only: AUROC and average precision are undefined" in caplog.messages
    assert not [one for one in recwarn if "samples in targets" in str(one.message)]


def test_the_data_of_the_training_are_not_data_from_elsewhere(run, phantoms, tmp_path, caplog):
    metrics = score(run, tmp_path, "data=fracatlas", f"data.root={phantoms}")
    assert metrics["elsewhere"]["same_source"]
    assert "is the data set of the training, not data from elsewhere" in caplog.text
    assert metrics["elsewhere"]["near_duplicates"]["n"] > 100


@pytest.mark.integration
def test_a_network_trained_on_mura_is_scored_on_grazpedwri_and_fine_tuned_there(configuration, tmp_path, caplog):
    """From audit to report, on miniatures in the layouts of both data sets."""
    mura, graz = (
        write_mura(tmp_path / "MURA-v1.1", studies=80, valid=20),
        write_grazpedwri(tmp_path / "graz", patients=60),
    )
    for source in (Mura(mura, True), GrazPedWri(graz)):
        audit_source(source, tmp_path / f"audit {source.name}", tmp_path / "cache")
        page = (tmp_path / f"audit {source.name}" / "audit.html").read_text()
        assert f"{source.name} audit" in page
        assert "published for a complete release" not in page
    first, second = tmp_path / "mura", tmp_path / "graz_run"
    # The fixture sets data.root of phantoms first; the last value counts.
    train(configuration(first, "data=mura", f"data.root={mura}", "trainer.max_epochs=1", "report=true"))
    metrics = json.loads((first / "metrics.json").read_text())
    assert metrics["test"]["n"] == 40
    assert set(metrics["exams"]) == {"val", "test"}
    page = write_report(first).read_text()
    assert "means abnormality, not fracture" in page
    assert "body part" in page
    out = tmp_path / "scored"
    scored = score(first, out, "data=grazpedwri", f"data.root={graz}", "report=true")
    assert scored["all"]["n"] == 120
    assert scored["elsewhere"]["near_duplicates"]["n"] == 0
    assert "auroc" in scored["elsewhere"]["differences"]
    assert "trained on MURA, where label 1 means abnormality" in write_report(out).read_text()
    assert scored["localisation"]["all"]["all"]["n"] == 60
    weights = [f"model.weights={first}", "model.head=keep"]
    train(configuration(second, "data=grazpedwri", f"data.root={graz}", "trainer.max_epochs=1", *weights))
    assert json.loads((second / "metrics.json").read_text())["weights"]["random"] == []
    assert "this network was trained to detect abnormality, not fracture" in caplog.text


@pytest.mark.integration
def test_a_table_of_fracatlas_gives_the_same_predictions_as_fracatlas(configuration, phantoms, tmp_path):
    export_table(FracAtlas(phantoms), tmp_path / "export")
    own, table = tmp_path / "own", tmp_path / "table"
    train(configuration(own, "trainer.max_epochs=1", "report=true"))
    files = [f"data.table={tmp_path / 'export' / 'table.csv'}", f"data.boxes={tmp_path / 'export' / 'boxes.json'}"]
    train(configuration(table, "data=table", *files, "data.root=null", "trainer.max_epochs=1", "report=true"))
    assert (own / "predictions.csv").read_bytes() == (table / "predictions.csv").read_bytes()
    assert (own / "strata.csv").read_bytes() == (table / "strata.csv").read_bytes()
    assert (own / "candidates.csv").read_bytes() == (table / "candidates.csv").read_bytes()
