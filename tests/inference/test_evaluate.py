import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fractatlas.config.overrides import prepare
from fractatlas.config.schema import EvaluateConfig
from fractatlas.config.validation import validate
from fractatlas.data.sources import phantom
from fractatlas.data.sources.fracatlas import COCO
from fractatlas.errors import InputError
from fractatlas.evaluation.external_predictions import evaluate_predictions
from fractatlas.evaluation.localisation import read_heatmaps
from fractatlas.inference.evaluate import evaluate
from fractatlas.inference.model import load_model
from fractatlas.models.checkpoint import read_checkpoint
from fractatlas.report.comparison_page import write_comparison
from fractatlas.report.report_page import write_report
from fractatlas.report.run_table import run_table
from fractatlas.training.fit import train
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def run(configuration, tmp_path_factory) -> Path:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("run")
    train(configuration(folder, "trainer.max_epochs=1", "threshold=sensitivity", "threshold.sensitivity=0.8"))
    return folder


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def score(run: Path, output: Path, subset: str, **changes) -> dict:
    """Evaluate the best checkpoint of ``run`` on ``subset`` and return the metrics."""
    checkpoint = run / "checkpoints" / "best.ckpt"
    trained = read_checkpoint(checkpoint)["config"]
    config = {
        "task_name": "evaluate", "ckpt": str(checkpoint), "subset": subset, "report": False, "data_root": None,
        "split_file": None, "predictions": None, "catalogue": None, "heatmaps": None, "gradcam": False,
        "threshold": trained["threshold"], "trainer": trained["trainer"],
        "paths": trained["paths"] | {"output_dir": str(output)},
    }  # fmt: skip
    evaluate(validate(OmegaConf.create(config | changes), EvaluateConfig))
    return metrics_of(output)


@pytest.mark.parametrize("subset", ["val", "test"])
def test_evaluation_of_a_checkpoint_reproduces_the_results_of_its_run(run, tmp_path, subset):
    metrics = score(run, tmp_path, subset, report=subset == "test")
    assert metrics[subset] == metrics_of(run)[subset]
    assert metrics["operating_point"] == metrics_of(run)["operating_point"]
    expected, actual = pd.read_csv(run / "predictions.csv"), pd.read_csv(tmp_path / "predictions.csv")
    assert expected[expected["split"] == subset].reset_index(drop=True).equals(actual)
    assert (tmp_path / "heatmaps.npz").is_file() == (subset == "test")


@pytest.mark.parametrize("changes", [(), ("map=fpn", "map.channels=8")], ids=["Grad-CAM", "fracture map"])
def test_a_run_is_scored_with_the_averaged_weights_that_its_checkpoint_contains(configuration, tmp_path, changes):
    run, again = tmp_path / "run", tmp_path / "again"
    options = ("callbacks=averaged", "optimizer.lr=0.02", "trainer.max_epochs=2", "report=true", *changes)
    train(configuration(run, *options))
    expected, heat = pd.read_csv(run / "predictions.csv"), read_heatmaps(run / "heatmaps.npz")
    for subset in ("val", "test"):
        score(run, again / subset, subset, report=True)
        actual, actual_heat = (
            pd.read_csv(again / subset / "predictions.csv"),
            read_heatmaps(again / subset / "heatmaps.npz"),
        )
        assert expected[expected["split"] == subset].reset_index(drop=True).equals(actual)
        of_subset = np.isin(heat.image_id, actual_heat.image_id)
        assert (heat.image_id[of_subset] == actual_heat.image_id).all()
        assert (heat.heat[of_subset] == actual_heat.heat).all()


def test_scores_of_training_images_begin_with_this_fact_and_baselines_are_cross_fitted(run, tmp_path, caplog):
    with caplog.at_level("INFO"):
        metrics = score(run, tmp_path, "train", report=True)
    assert metrics["train"]["n"] == metrics["train"]["n_subset"] == metrics["data"]["split"]["train"]["n"]
    (number,) = (number for number, text in enumerate(caplog.messages) if "majority rate" in text)
    assert caplog.messages[number - 1].startswith("train: The network was trained on these images: ")
    page = write_report(tmp_path).read_text()
    assert page.index("The network was trained on these images") < page.index('<p class="summary">')
    assert (tmp_path / "model_card.md").read_text().splitlines()[2].startswith("**The network was trained on these im")
    assert all(baseline["classifier_above"] is None for baseline in metrics["shortcuts"]["train"].values())
    assert "classifier minus this" not in page


def test_scores_of_validation_images_begin_with_what_was_selected_on_them(run, tmp_path, caplog):
    with caplog.at_level("INFO"):
        score(run, tmp_path, "val")
    expected = "The epoch, the threshold and the temperature were selected on these images: the scores are optimistic."
    (number,) = (number for number, text in enumerate(caplog.messages) if text.startswith("val: AUROC "))
    assert caplog.messages[number - 1] == f"val: {expected}"


def test_a_subset_that_is_scored_in_part_is_reported_as_such(run, tmp_path, caplog):
    trained = read_checkpoint(run / "checkpoints" / "best.ckpt")["config"]["trainer"]
    metrics = score(run, tmp_path, "test", report=True, trainer=trained | {"limit_test_batches": 1})
    assert (metrics["test"]["n"], metrics["test"]["n_subset"]) == (16, metrics["data"]["split"]["test"]["n"])
    counted = f"16 of {metrics['test']['n_subset']} images"
    assert f"test: only {counted} were scored, because trainer.limit_test_batches is set" in caplog.messages
    page = write_report(tmp_path).read_text()
    assert page.index(f"Only {counted} of the test subset were scored.") < page.index('<p class="summary">')


@pytest.fixture(scope="module")
def located(configuration, phantoms, tmp_path_factory) -> Path:
    """A run of one epoch with heatmaps, on phantoms with boxes so large that an untrained network hits some."""
    folder, root = (tmp_path_factory.mktemp("located") / name for name in ("run", "phantoms"))
    shutil.copytree(phantoms, root)
    content = json.loads((root / COCO).read_text())
    for annotation in content["annotations"]:
        left, top, width, height = annotation["bbox"]
        annotation["bbox"] = [left - 60, top - 60, width + 120, height + 120]
    (root / COCO).write_text(json.dumps(content))
    train(configuration(folder, f"data.root={root}", "trainer.max_epochs=1", "report=true"))
    return folder


def test_a_run_scores_the_heatmaps_of_all_images_and_stores_the_box_threshold(located):
    metrics, predictions = metrics_of(located), pd.read_csv(located / "predictions.csv")
    heatmaps = read_heatmaps(located / "heatmaps.npz")
    assert sorted(heatmaps.image_id) == sorted(predictions["image_id"])
    assert heatmaps.heat.dtype == np.float16
    assert metrics["heatmaps"] == "Grad-CAM"
    point = read_checkpoint(located / "checkpoints" / "best.ckpt")["operating_point"]
    assert point == metrics["operating_point"]
    assert point["box_threshold"] > 0
    assert {name: score["n"] for name, score in metrics["detection"].items()} == (
        predictions["split"].value_counts().to_dict()
    )
    assert all(score["box_threshold"] == point["box_threshold"] for score in metrics["detection"].values())
    assert "box threshold and the temperature were selected on these images" in write_report(located).read_text()


def test_an_evaluation_reproduces_the_detection_of_its_run(located, tmp_path):
    metrics = score(located, tmp_path / "test", "test", report=True)
    assert metrics["detection"]["test"] == metrics_of(located)["detection"]["test"]
    assert metrics["localisation"]["test"] == metrics_of(located)["localisation"]["test"]
    expected, actual = (pd.read_csv(folder / "candidates.csv") for folder in (located, tmp_path / "test"))
    assert expected[expected["split"] == "test"].reset_index(drop=True).equals(actual)


@pytest.mark.parametrize("given", [False, True])
def test_an_evaluation_of_predictions_and_heatmaps_reproduces_the_detection(located, tmp_path, given):
    overrides = [f"predictions={located}/predictions.csv", f"paths.root={tmp_path}", f"paths.output_dir={tmp_path}"]
    if given:  # the threshold is chosen again, on the same images
        overrides.append(f"heatmaps={located}/heatmaps.npz")
    with initialize_config_dir(str(REPOSITORY / "conf"), job_name="test"):
        composed = compose("evaluate", list(prepare(overrides, EvaluateConfig)))
    evaluate_predictions(validate(composed, EvaluateConfig))
    metrics = metrics_of(tmp_path)
    assert metrics["detection"] == metrics_of(located)["detection"]
    assert metrics.get("heatmaps") == (None if given else "Grad-CAM")


@pytest.mark.usefixtures("fracture_map")
def test_the_fracture_map_of_a_network_is_scored_and_grad_cam_on_request(located, tmp_path):
    metrics = score(located, tmp_path / "map", "test", report=True)
    assert metrics["heatmaps"] == "fracture map"
    assert read_heatmaps(tmp_path / "map" / "heatmaps.npz").heat.shape[1:] == (8, 8)
    assert "alarm_rate" in metrics["detection"]["test"]
    metrics = score(located, tmp_path / "gradcam", "test", report=True, gradcam=True)
    assert metrics["heatmaps"] == "Grad-CAM"
    # The threshold in the checkpoint is a probability of the map.
    assert "box_threshold" not in metrics["operating_point"]
    assert "alarm_rate" not in metrics["detection"]["test"]
    assert metrics["detection"]["test"]["froc"] == metrics_of(located)["detection"]["test"]["froc"]


@pytest.fixture
def lone(run, tmp_path) -> Path:
    """A copy of the best checkpoint without its run folder."""
    copy = tmp_path / "a" / "b" / "lone.ckpt"
    copy.parent.mkdir(parents=True)
    copy.write_bytes((run / "checkpoints" / "best.ckpt").read_bytes())
    return copy


@pytest.mark.parametrize("subset", ["train", "val", "test"])
def test_a_subset_of_a_checkpoint_without_its_split_is_refused(run, lone, tmp_path, subset):
    remedy = rf"subset={subset}: .*lone.ckpt is not in a run folder .no split.csv.; give .*split_file=FILE.*subset=all"
    with pytest.raises(InputError, match=remedy):
        score(run, tmp_path / "out", subset, ckpt=str(lone))
    with pytest.raises(InputError, match="split_file=nowhere.csv: no such file"):
        score(run, tmp_path / "out", subset, ckpt=str(lone), split_file="nowhere.csv")
    assert not (tmp_path / "out").exists()


def test_a_lone_checkpoint_is_scored_on_its_test_subset_with_the_split_file(run, lone, tmp_path):
    metrics = score(run, tmp_path / "out", "test", ckpt=str(lone), split_file=str(run / "split.csv"))
    assert metrics["test"] == metrics_of(run)["test"]


def test_a_lone_checkpoint_is_scored_on_every_usable_image(run, lone, tmp_path, catalogue, caplog):
    out = tmp_path / "out"
    caplog.set_level("INFO")
    metrics = score(run, out, "all", ckpt=str(lone), report=True)
    usable = catalogue[catalogue["excluded"] == ""]
    assert metrics["all"]["n"] == len(usable)
    assert metrics["all"]["positives"] == usable["label"].sum()
    assert not {"train", "val", "test"} & set(metrics)
    assert metrics["all_images"] == dict.fromkeys(("split", "train", "val", "test", "none"))
    predictions = pd.read_csv(out / "predictions.csv")
    assert predictions["image_id"].tolist() == usable["image_id"].tolist()
    assert set(predictions["split"]) == {"all"}
    known = pd.read_csv(run / "predictions.csv").set_index("image_id")["probability"]
    same = predictions.set_index("image_id")["probability"][known.index]
    assert same.to_numpy() == pytest.approx(known.to_numpy(), abs=1e-5)  # in batches of other images
    assert f"all: {len(usable)} images" in caplog.text
    unknown = "It is not known which of these images the network was trained on."
    assert any(text.startswith(f"all: {unknown} Scores of training images are too high.") for text in caplog.messages)
    assert any(text.startswith("all: AUROC ") and "majority rate" in text for text in caplog.messages)
    assert "near-duplicates" in caplog.text
    assert "leak check: exams" in caplog.text
    assert "training images, which are not listed" not in caplog.text
    assert "nan" not in caplog.text


@pytest.mark.parametrize("given", [True, False])
def test_the_pages_of_all_images_state_what_is_known_about_the_training(run, lone, tmp_path, given):
    out = tmp_path / "out"
    metrics = score(run, out, "all", ckpt=str(lone), report=True, split_file=str(run / "split.csv") if given else None)
    text, card = write_report(out).read_text(), (out / "model_card.md").read_text()
    split = pd.read_csv(run / "split.csv")["split"].value_counts()
    counts = {name: int(split[name]) for name in ("train", "val", "test")}
    if given:
        assert metrics["all_images"] == {
            "split": str(run / "split.csv"), **counts, "none": 0, "found_by": "content"
        }  # fmt: skip
        expected = (
            f"Of these images, {counts['train']} are in the training subset of the network and {counts['val']} in its "
            "validation subset: the scores are optimistic."
        )
    else:
        expected = "It is not known which of these images the network was trained on"
    assert text.index(expected) < text.index('<p class="summary">')
    assert card.splitlines()[2].startswith(f"**{expected}")


def test_runs_on_all_images_are_tabulated_and_compared(run, lone, tmp_path):
    for name in ("one", "two"):
        score(run, tmp_path / name, "all", ckpt=str(lone))
    folders = [tmp_path / "one", tmp_path / "two"]
    assert run_table(folders).count("| all ") == 2
    _, differences = write_comparison(tmp_path / "comparison", folders)
    assert set(differences["subset"]) == {"all"}
    assert (differences["difference"] == 0).all()


def test_the_split_of_the_run_folder_is_used_for_all_images(run, tmp_path):
    facts = score(run, tmp_path, "all")["all_images"]
    assert facts["split"] == str(run / "split.csv")
    assert facts["train"] > 0


def test_images_that_a_split_does_not_contain_are_counted(run, lone, tmp_path):
    split = pd.read_csv(run / "split.csv")
    split[split["split"] != "val"].to_csv(tmp_path / "other.csv", index=False)
    facts = score(run, tmp_path / "out", "all", ckpt=str(lone), split_file=str(tmp_path / "other.csv"))["all_images"]
    assert facts["val"] == 0
    assert facts["none"] == (split["split"] == "val").sum()

    assert facts["found_by"] == "name"


@pytest.fixture
def other_data(run, phantoms, catalogue, tmp_path) -> Path:
    """Phantoms with the names of ``phantoms`` and other pixels, except two training images that have other names."""
    root = tmp_path / "other"
    phantom.generate(root, images=160, seed=1)
    split = pd.read_csv(run / "split.csv").merge(catalogue[["image_id", "path"]], on="image_id")
    training = split[(split["split"] == "train") & (split["label"] == 1)].head(2)
    theirs = sorted((root / "images" / "Fractured").iterdir())[-2:]
    for path, file in zip(training["path"], theirs, strict=True):
        file.write_bytes((phantoms / path).read_bytes())
    return root


def test_training_images_among_all_images_are_found_by_content(run, other_data, tmp_path, caplog):
    caplog.set_level("INFO")
    facts = score(run, tmp_path / "out", "all", data_root=str(other_data))["all_images"]
    assert (facts["train"], facts["val"], facts["found_by"]) == (2, 0, "content")
    assert "all: Of these images, 2 are in the training subset of the network and 0 in its validation" in caplog.text


def test_images_are_found_by_name_without_the_catalogue_of_the_training(run, lone, other_data, tmp_path):
    split = tmp_path / "split.csv"
    split.write_bytes((run / "split.csv").read_bytes())
    out = tmp_path / "out"
    score(run, out, "all", ckpt=str(lone), data_root=str(other_data), split_file=str(split), report=True)
    stated = "Images were compared by name, not by content, because the catalogue.csv of the training is missing."
    assert stated in write_report(out).read_text()
    assert stated in (out / "model_card.md").read_text()


def test_images_of_a_subset_with_another_content_than_in_the_training_are_counted(run, other_data, tmp_path, caplog):
    metrics = score(run, tmp_path / "out", "test", data_root=str(other_data), report=True)
    changed, n = metrics["changed_images"]["test"], metrics["test"]["n"]
    assert n - 2 <= changed <= n
    stated = f"{changed} of {n} images of the test subset have another content than in the data of the training"
    assert stated in caplog.text
    assert stated in write_report(tmp_path / "out").read_text()
    assert score(run, tmp_path / "same", "test")["changed_images"] == {"test": 0}


def test_a_run_folder_stands_for_its_best_checkpoint(run, tmp_path):
    metrics = score(run, tmp_path, "test", ckpt=str(run))
    assert metrics["test"] == metrics_of(run)["test"]
    assert metrics["checkpoint"] == str(run / "checkpoints" / "best.ckpt")
    assert load_model(run).checkpoint == run / "checkpoints" / "best.ckpt"


def test_the_weights_of_a_run_folder_are_loaded(run, configuration, tmp_path):
    train(configuration(tmp_path, f"model.weights={run}", "trainer.max_epochs=1", "test=false"))
    weights = metrics_of(tmp_path)["weights"]
    assert weights["file"] == "best.ckpt"
    assert weights["loaded"] == weights["of"]


def test_a_folder_without_a_best_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no checkpoints/best.ckpt; give the run folder of a training"):
        load_model(tmp_path)


def test_no_phantoms_are_generated_in_another_data_folder(configuration, tmp_path):
    run, generated = tmp_path / "run", tmp_path / "phantoms"
    train(configuration(run, f"data.root={generated}", "data.prepare.images=60", "trainer.max_epochs=1", "test=false"))
    assert generated.is_dir()
    with pytest.raises(InputError, match="nowhere"):
        score(run, tmp_path, "val", data_root=str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.fault("foreign or broken checkpoint", "refused in one line")
def test_a_file_that_is_no_checkpoint_of_this_project_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(InputError, match="is not a checkpoint of fractatlas"):
        load_model(tmp_path / "foreign.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(InputError, match="is not a PyTorch file"):
        load_model(tmp_path / "text.ckpt")


def test_weights_of_another_architecture_than_the_configuration_are_refused(run, tmp_path):
    content = read_checkpoint(run / "checkpoints" / "best.ckpt")
    content["config"]["model"] |= {"_target_": "fractatlas.models.backbones.resnet", "variant": "resnet_tiny"}
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="weights do not match the configuration"):
        load_model(tmp_path / "other.ckpt")


@pytest.mark.fault("checkpoint whose configuration names os.system", "refused, not called")
def test_a_target_outside_the_schema_in_a_checkpoint_is_not_called(run, tmp_path):
    content = read_checkpoint(run / "checkpoints" / "best.ckpt")
    content["config"]["augment"] = {"_target_": "os.system", "command": f"touch {tmp_path}/called"}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match=r"augment._target_=os.system: should be one of"):
        load_model(tmp_path / "evil.ckpt")
    assert not (tmp_path / "called").exists()
