import json
import math
import shutil
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from fractatlas.data.datamodule import Radiographs
from fractatlas.errors import InputError
from fractatlas.evaluation.operating_point import calibrate
from fractatlas.inference.model import load_model
from fractatlas.models.checkpoint import read_checkpoint
from fractatlas.training.fit import train


@pytest.fixture(scope="module")
def finished(configuration, tmp_path_factory):
    """A run of three epochs: its folder, the value that ``train`` returned, and its configuration."""
    run = tmp_path_factory.mktemp("run")
    config = configuration(
        run, "trainer.max_epochs=3", "scheduler=cosine", "augment=light", "optimizer.lr=0.01", "report=true",
        "threshold=sensitivity", "threshold.sensitivity=0.8",
    )  # fmt: skip
    return run, train(config), config


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_a_run_writes_the_documented_files(finished):
    run, _, _ = finished
    names = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file() and "tensorboard" not in str(file)}
    assert names == {
        *("catalogue.csv", "split.csv", "predictions.csv", "metrics.json", "timing.json"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt", ".lock"),
        *("heatmaps.npz", "strata.csv", "localisation.csv", "candidates.csv"),
    }


def test_the_value_of_the_best_checkpoint_is_returned(finished):
    run, value, config = finished
    curve = [event.value for event in events(run).Scalars(config["monitor"])]
    assert len(curve) == 3
    assert value == pytest.approx(max(curve))
    metrics = metrics_of(run)
    assert metrics["monitor"]["epoch"] == 1 + curve.index(max(curve))
    # Computed again from predictions.csv, with another library.
    assert metrics["val"]["auroc"]["value"] == pytest.approx(value, abs=1e-6)


def test_predictions_are_those_of_validation_and_test_in_the_order_of_the_split(finished):
    run, _, _ = finished
    split, predictions = pd.read_csv(run / "split.csv"), pd.read_csv(run / "predictions.csv")
    assert list(predictions) == [*("image_id", "group", "split", "label", "probability", "probability_calibrated")]
    for subset in ("val", "test"):
        expected, actual = (table[table["split"] == subset] for table in (split, predictions))
        assert actual["image_id"].tolist() == expected["image_id"].tolist()
        assert actual["label"].tolist() == expected["label"].tolist()
    assert set(predictions["split"]) == {"val", "test"}
    assert predictions["probability"].between(0, 1).all()


def test_the_operating_point_is_chosen_on_validation_and_stored_in_the_checkpoint(finished):
    run, _, _ = finished
    point = metrics_of(run)["operating_point"]
    assert point == read_checkpoint(run / "checkpoints" / "best.ckpt")["operating_point"]
    predictions = pd.read_csv(run / "predictions.csv")
    fractured = predictions[(predictions["split"] == "val") & (predictions["label"] == 1)]
    assert point["rule"] == "target_sensitivity"
    assert (fractured["probability"] >= point["threshold"]).mean() >= 0.8
    assert predictions["probability_calibrated"].to_numpy() == pytest.approx(
        calibrate(predictions["probability"], point["temperature"])
    )


def test_excluded_images_are_counted_and_listed(finished):
    run, _, _ = finished
    catalogue = pd.read_csv(run / "catalogue.csv", keep_default_na=False)
    excluded = catalogue[catalogue["excluded"] != ""]
    assert metrics_of(run)["data"]["excluded"] == {"truncated": len(excluded)}
    assert not set(excluded["image_id"]) & set(pd.read_csv(run / "split.csv")["image_id"])


def comparison(run: Path) -> dict:
    """Return what the HPARAMS tab shows about a run."""
    content = events(run).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_tensorboard_has_charts_of_training_and_validation_only(finished):
    run, _, _ = finished
    logs = events(run)
    metrics = ("loss", "accuracy", "balanced_accuracy", "auroc", "average_precision", "f1", "mcc", "sensitivity",
               "specificity", "majority_rate")  # fmt: skip
    curves = {f"{subset}/{name}" for subset in ("train", "val") for name in metrics}
    assert set(logs.Tags()["scalars"]) == curves | {"train/loss_step", "train/lr"}
    assert all(len(logs.Scalars(tag)) == 3 for tag in curves)


def test_tensorboard_opens_on_the_curves(finished):
    # It sorts groups by name, and shows the charts of the first two.
    run, _, _ = finished
    tags = events(run).Tags()
    groups = sorted({tag.partition("/")[0] for kind in ("scalars", "images") for tag in tags[kind]})
    assert groups[:2] == ["train", "val"]
    assert set(tags["images"]) == {"x-rays/train_input", "x-rays/val_heatmaps", "x-rays/test_heatmaps"}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_learning_rate_has_the_same_name_for_every_optimizer(configuration, tmp_path, optimizer):
    train(configuration(tmp_path, f"optimizer={optimizer}", "trainer.max_epochs=1", "test=false",
                        "trainer.log_every_n_steps=1"))  # fmt: skip
    assert [tag for tag in events(tmp_path).Tags()["scalars"] if "lr" in tag] == ["train/lr"]


def test_each_stage_with_a_rate_of_its_own_has_a_curve(configuration, tmp_path):
    train(configuration(tmp_path, "model.stage_decay=0.5", "trainer.max_epochs=1", "test=false", "optimizer.lr=0.01",
                        "trainer.log_every_n_steps=1"))  # fmt: skip
    logs = events(tmp_path)
    rates = {tag: logs.Scalars(tag)[0].value for tag in logs.Tags()["scalars"] if "lr" in tag}
    assert rates["train/lr/head"] == pytest.approx(0.01)
    assert min(rates.values()) == pytest.approx(0.01 * 0.5 ** (len(rates) - 1))
    assert all(tag.startswith("train/lr/") for tag in rates)


def test_the_hparams_tab_has_hyperparameters_and_final_scores(finished):
    run, value, _ = finished
    shown, metrics = comparison(run), metrics_of(run)
    assert shown["optimizer.lr"] == 0.01
    assert shown["trainer.max_epochs"] == 3
    assert shown["model.mirror"] == "false"
    assert (shown["optimizer"], shown["scheduler"], shown["augment"]) == ("Adam", "cosine", "light")
    assert (shown["model.variant"], shown["model.weights"]) == ("densenet_tiny", "random")
    assert shown["Best val/auroc"] == value
    assert shown["test/accuracy"] == metrics["test"]["accuracy"]["value"]
    assert shown["test/majority_rate"] == metrics["test"]["majority_rate"]
    assert shown["val/f1 (best epoch)"] == metrics["val"]["f1"]["value"]


def test_the_hparams_tab_shows_first_what_differs_and_has_no_fixed_columns(finished):
    # A run that describes the columns would hide parameters that only other runs have.
    run, _, _ = finished
    assert "_hparams_/experiment" not in events(run).summary_metadata
    # Of the values that differ, the tab shows the first five by name.
    assert sorted(comparison(run))[:2] == ["Best val/auroc", "Final test/auroc"]


def test_a_run_trained_for_more_epochs_replaces_its_final_scores(configuration, tmp_path):
    train(configuration(tmp_path, "trainer.max_epochs=1"))
    train(configuration(tmp_path, "trainer.max_epochs=2", f"resume={tmp_path}"))
    shown = comparison(tmp_path)
    assert shown["trainer.max_epochs"] == 2
    assert shown["Final test/auroc"] == metrics_of(tmp_path)["test"]["auroc"]["value"]


def test_a_run_writes_one_event_file(finished):
    run, _, _ = finished
    files = [file.suffix for file in (run / "tensorboard").iterdir() if file.suffix != ".hparams"]
    assert len(files) == 1


def test_a_checkpoint_contains_the_configuration(finished):
    run, _, config = finished
    precision = metrics_of(run)["precision"]
    used = config | {"trainer": config["trainer"] | {"precision": precision}}
    assert read_checkpoint(run / "checkpoints" / "best.ckpt")["config"] == used
    assert precision in ("32-true", "bf16-mixed")


@pytest.mark.integration
def test_the_same_seed_gives_the_same_numbers(configuration, tmp_path):
    weights, tables, metrics = [], [], []
    for name, workers in (("one", 0), ("two", 2)):
        run = tmp_path / name
        train(configuration(run, "trainer.max_epochs=2", "augment=light", f"data.num_workers={workers}"))
        weights.append(read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"])
        tables.append((run / "predictions.csv").read_bytes())
        metrics.append(metrics_of(run) | {"timing": None})
    assert tables[0] == tables[1]
    assert metrics[0] == metrics[1]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_without_the_test_subset_its_images_are_not_read(configuration, tmp_path, monkeypatch):
    read = set()
    original = Radiographs.__getitems__

    def record(dataset, rows):
        read.update(dataset.table["image_id"][rows])
        return original(dataset, rows)

    monkeypatch.setattr(Radiographs, "__getitems__", record)
    train(configuration(tmp_path, "test=false", "trainer.max_epochs=1"))
    split = pd.read_csv(tmp_path / "split.csv").set_index("image_id")["split"]
    assert {split[image_id] for image_id in read} == {"train", "val"}
    assert set(pd.read_csv(tmp_path / "predictions.csv")["split"]) == {"val"}
    assert "test" not in metrics_of(tmp_path)


def test_a_finished_run_can_be_trained_for_more_epochs(configuration, tmp_path):
    longer, resumed = tmp_path / "longer", tmp_path / "resumed"
    train(configuration(longer, "trainer.max_epochs=2", "test=false"))
    train(configuration(resumed, "trainer.max_epochs=1", "test=false"))
    split = (resumed / "split.csv").read_bytes()
    # The split of the run is used, not the one of the configuration.
    train(configuration(resumed, "trainer.max_epochs=2", "test=false", "split.seed=5", f"resume={resumed}"))
    assert (resumed / "split.csv").read_bytes() == split
    one, two = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (longer, resumed))
    assert one["global_step"] == two["global_step"]
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())
    assert (longer / "predictions.csv").read_bytes() == (resumed / "predictions.csv").read_bytes()


@pytest.mark.fault("foreign or broken checkpoint", "refused in one line")
def test_a_broken_checkpoint_is_refused_before_any_file_of_the_run_changes(configuration, tmp_path):
    names = {"metrics.json", "split.csv", "predictions.csv"}
    for name in names:
        (tmp_path / name).write_text("finished")
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    torch.save({"loops": {}, "state_dict": {}}, last)
    with pytest.raises(InputError, match=r"last.ckpt: not a checkpoint of a training run; delete it"):
        train(configuration(tmp_path, "trainer.max_epochs=2", f"resume={tmp_path}"))
    last.write_bytes(b"junk")
    with pytest.raises(InputError, match=r"last.ckpt is not a PyTorch file, or is broken; delete it"):
        train(configuration(tmp_path, "trainer.max_epochs=2", f"resume={tmp_path}"))
    assert {(tmp_path / name).read_text() for name in names} == {"finished"}
    assert {file.name for file in tmp_path.iterdir()} == names | {"checkpoints", ".lock"}


@pytest.mark.fault("training that diverges", "one line, no metrics.json")
def test_a_run_that_diverges_is_reported_and_has_no_metrics(configuration, tmp_path):
    with pytest.raises(InputError, match="training diverged: some .* logits are not finite; lower optimizer.lr"):
        train(configuration(tmp_path, "optimizer.lr=1e30", "test=false"))
    assert not (tmp_path / "metrics.json").exists()


def test_a_last_batch_of_one_image_does_not_end_a_run(configuration, tmp_path):
    images = 111  # of the phantoms' training subset
    changes = ("split=random", "model=resnet", "model.variant=resnet_tiny", "preprocess.resize=32",
               "preprocess.crop=32", f"data.batch_size={images - 1}", "trainer.max_epochs=1", "test=false")  # fmt: skip
    train(configuration(tmp_path, *changes))
    assert metrics_of(tmp_path)["data"]["split"]["train"]["n"] == images


def test_early_stopping_ends_a_run_that_no_longer_improves(configuration, tmp_path):
    changes = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=1e-12",
               "trainer.max_epochs=6", "test=false", "callbacks.early_stopping.min_delta=0.5")  # fmt: skip
    train(configuration(tmp_path, *changes))
    assert len(events(tmp_path).Scalars("val/auroc")) == 2


def test_a_network_trained_in_bfloat16_is_scored_in_float32(configuration, tmp_path):
    train(configuration(tmp_path, "trainer.precision=bf16-mixed", "trainer.max_epochs=1", "test=false"))
    assert metrics_of(tmp_path)["precision"] == "bf16-mixed"
    table = pd.read_csv(tmp_path / "predictions.csv").merge(pd.read_csv(tmp_path / "catalogue.csv"), on="image_id")
    root = Path(read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["config"]["data"]["root"])
    model = load_model(tmp_path / "checkpoints" / "best.ckpt")
    predictions = model.predict([root / path for path in table["path"]], heatmaps=False)
    assert table["probability"].to_numpy() == pytest.approx([one.probability for one in predictions], abs=1e-6)


def test_automatic_precision_without_native_bfloat16_is_float32_and_logged(
    configuration, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with caplog.at_level("INFO"):
        train(configuration(tmp_path, "trainer.precision=auto", "trainer.max_epochs=1", "test=false"))
    assert "precision 32-true: a processor without AVX512-BF16 or AMX" in caplog.text
    assert metrics_of(tmp_path)["precision"] == "32-true"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    train(configuration(tmp_path, "trainer.precision=auto", "trainer.max_epochs=2", "test=false", f"resume={tmp_path}"))
    assert metrics_of(tmp_path)["precision"] == "32-true", "a resumed run keeps its precision"


def test_compilation_without_a_compiler_is_refused_before_the_data_are_read(configuration, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match=r"model.compile=true: there is no C\+\+ compiler; install g\+\+ or use"):
        train(configuration(tmp_path, "model.compile=true", "data.root=nowhere"))


def test_the_best_checkpoint_by_loss_has_the_lowest_loss(configuration, tmp_path):
    changes = ("monitor=val/loss", "trainer.max_epochs=3", "optimizer.lr=0.05", "test=false")
    value = train(configuration(tmp_path, *changes))
    curve = [event.value for event in events(tmp_path).Scalars("val/loss")]
    assert value == pytest.approx(min(curve))
    assert all(math.isfinite(point) for point in curve)


@pytest.mark.integration
def test_a_run_gives_the_same_numbers_with_and_without_the_cache(configuration, tmp_path):
    metrics = []
    for cache in ("true", "false"):
        train(configuration(tmp_path / cache, f"data.cache={cache}", "trainer.max_epochs=1", "augment=light"))
        metrics.append(metrics_of(tmp_path / cache))
    assert metrics[0]["val"] == metrics[1]["val"]
    assert metrics[0]["test"] == metrics[1]["test"]


@pytest.mark.integration
@pytest.mark.fault("training and scoring without a network", "no access to the network")
def test_a_run_needs_no_network(configuration, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    train(configuration(tmp_path, "trainer.max_epochs=1", "report=true"))
    assert (tmp_path / "heatmaps.npz").is_file()


def test_a_run_with_a_fracture_map_logs_its_hits_and_selects_the_best_epoch_by_them(configuration, tmp_path):
    changes = ("map=fpn", "map.channels=8", "monitor=val/hit", "trainer.max_epochs=2", "augment=light", "report=true",
               "callbacks=averaged", "optimizer.lr=0.01")  # fmt: skip
    value = train(configuration(tmp_path, *changes))
    logs = events(tmp_path)
    hits = [event.value for event in logs.Scalars("val/hit")]
    assert len(hits) == 2
    assert value == pytest.approx(max(hits))
    assert all(event.value > 0 for event in logs.Scalars("train/map_loss"))
    assert len(logs.Images("x-rays/val_fracture_map")) == 2
    with np.load(tmp_path / "heatmaps.npz") as file:
        heat = file["heat"]
    assert heat.shape[1:] == (8, 8)
    assert (heat >= 0).all()
    assert (heat <= 1).all()


def test_hits_of_the_training_are_those_of_the_heatmaps(configuration, tmp_path):
    train(configuration(tmp_path, "map=fpn", "map.channels=8", "trainer.max_epochs=1", "report=true", "test=false"))
    scored = metrics_of(tmp_path)["localisation"]["val"]["all"]["hit"]["value"]
    logged = events(tmp_path).Scalars("val/hit")[0].value
    # The heatmap is scored at another size, where a centre can be on the other side of the edge of a box.
    assert scored == pytest.approx(logged, abs=0.15)


def test_a_fracture_map_without_boxes_trains_with_the_image_loss_alone(configuration, phantoms, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantoms, root)
    shutil.rmtree(root / "Annotations")
    options = ("map=fpn", "map.channels=8", "trainer.max_epochs=1", f"data.root={root}", "data.prepare=null")
    train(configuration(tmp_path / "run", *options, "test=false"))
    assert not {tag for tag in events(tmp_path / "run").Tags()["scalars"] if "map_loss" in tag or "hit" in tag}
    with pytest.raises(InputError, match="monitor=val/hit: no image of the validation subset in .* has a box"):
        train(configuration(tmp_path / "other", *options, "monitor=val/hit"))
