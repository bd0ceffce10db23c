import json
import math
import socket
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from fractatlas.config import EvaluateConfig, check
from fractatlas.errors import InputError
from fractatlas.evaluation.operating_point import calibrate
from fractatlas.models.weights import read_checkpoint
from fractatlas.training.run import checkpoint_config, evaluate, train


@pytest.fixture(scope="module")
def finished(configuration, tmp_path_factory):
    """One small run of three epochs, and what it returned."""
    run = tmp_path_factory.mktemp("run")
    config = configuration(
        run, "trainer.max_epochs=3", "scheduler=cosine", "augment=light", "optimizer.lr=0.01", "report=true"
    )
    return run, train(config), config


def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_a_run_leaves_what_it_should(finished):
    run, _, _ = finished
    names = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file() and "tensorboard" not in str(file)}
    assert names == {
        *("catalogue.csv", "split.csv", "predictions.csv", "metrics.json"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt", ".lock"),
        *("heatmaps.npz", "strata.csv", "localisation.csv", "model_card.md", "report.html"),
    }


def test_the_best_checkpoints_value_is_returned_and_not_the_last_epochs(finished):
    run, value, config = finished
    curve = [event.value for event in events(run).Scalars(config["monitor"])]
    assert len(curve) == 3
    assert value == pytest.approx(max(curve))
    report = json.loads((run / "metrics.json").read_text())
    assert report["monitor"]["epoch"] == 1 + curve.index(max(curve))
    # Scored again from the file, with another library.
    assert report["val"]["auroc"]["value"] == pytest.approx(value, abs=1e-6)


def test_predictions_are_those_of_validation_and_test_in_the_splits_order(finished):
    run, _, _ = finished
    split, predictions = pd.read_csv(run / "split.csv"), pd.read_csv(run / "predictions.csv")
    assert list(predictions) == [*("image_id", "group", "split", "label", "probability", "probability_calibrated")]
    for part in ("val", "test"):
        of_split, of_run = (table[table["split"] == part] for table in (split, predictions))
        assert of_run["image_id"].tolist() == of_split["image_id"].tolist()
        assert of_run["label"].tolist() == of_split["label"].tolist()
    assert set(predictions["split"]) == {"val", "test"}
    assert predictions["probability"].between(0, 1).all()


def test_threshold_and_temperature_are_settled_on_validation_and_kept_in_the_checkpoint(configuration, tmp_path):
    config = configuration(tmp_path, "trainer.max_epochs=1", "threshold=sensitivity", "threshold.sensitivity=0.8")
    train(config)
    point = json.loads((tmp_path / "metrics.json").read_text())["operating_point"]
    assert point == read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["operating_point"]
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    val = predictions[predictions["split"] == "val"]
    assert point["rule"] == "target_sensitivity"
    assert (val.loc[val["label"] == 1, "probability"] >= point["threshold"]).mean() >= 0.8
    assert predictions["probability_calibrated"].to_numpy() == pytest.approx(
        calibrate(predictions["probability"], point["temperature"])
    )
    again = rescored(tmp_path, tmp_path / "again", "test", report=True)
    assert again["test"]["threshold"] == point["threshold"]
    assert (tmp_path / "again" / "report.html").is_file()


def test_excluded_images_are_counted_and_listed(finished):
    run, _, _ = finished
    catalogue = pd.read_csv(run / "catalogue.csv", keep_default_na=False)
    excluded = catalogue[catalogue["excluded"] != ""]
    report = json.loads((run / "metrics.json").read_text())
    assert report["data"]["excluded"] == {"truncated": len(excluded)}
    assert not set(excluded["image_id"]) & set(pd.read_csv(run / "split.csv")["image_id"])


def test_tensorboard_has_curves_images_and_hyperparameters_with_metrics(finished):
    run, _, _ = finished
    logs = events(run)
    tags = set(logs.Tags()["scalars"])
    for part in ("train", "val", "best/val", "test"):
        for name in ("loss", "accuracy", "balanced_accuracy", "auroc", "average_precision", "f1", "mcc", "sensitivity",
                     "specificity", "majority_rate"):  # fmt: skip
            assert f"{part}/{name}" in tags
    assert any(tag.startswith("lr-") for tag in tags)
    assert set(logs.Tags()["images"]) == {"input/train", "heatmaps/val", "heatmaps/test"}
    hparams = logs.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(hparams).session_start_info.hparams
    assert start["optimizer/lr"].number_value == 0.01
    assert start["model/variant"].string_value == "densenet_tiny"
    assert {"final/val/auroc", "final/test/auroc", "final/test/majority_rate"} <= tags


def test_a_checkpoint_alone_says_how_it_was_made(finished):
    run, _, config = finished
    assert checkpoint_config(run / "checkpoints" / "best.ckpt") == config


def rescored(run: Path, tmp_path: Path, part: str, **changes) -> dict:
    config = {"task_name": "evaluate", "ckpt": str(run / "checkpoints" / "best.ckpt"), "split_part": part}
    config |= {"predictions": None, "catalogue": None, "heatmaps": None, "report": False, "data_root": None}
    config |= {"threshold": checkpoint_config(run / "checkpoints" / "best.ckpt")["threshold"]}
    config |= {"trainer": checkpoint_config(run / "checkpoints" / "best.ckpt")["trainer"]}
    config |= {
        "paths": dict.fromkeys(("root", "data_dir", "data_root", "cache_dir", "weights", "log_dir"), str(tmp_path))
    }
    config["paths"]["output_dir"] = str(tmp_path)
    evaluate(check(OmegaConf.create(config | changes), EvaluateConfig))
    return json.loads((tmp_path / "metrics.json").read_text())


@pytest.mark.parametrize("part", ["val", "test"])
def test_scoring_a_checkpoint_again_reproduces_its_metrics(finished, tmp_path, part):
    run, _, _ = finished
    assert rescored(run, tmp_path, part)[part] == json.loads((run / "metrics.json").read_text())[part]
    before, after = pd.read_csv(run / "predictions.csv"), pd.read_csv(tmp_path / "predictions.csv")
    assert before[before["split"] == part].reset_index(drop=True).equals(after)


def test_the_training_part_can_be_scored(finished, tmp_path):
    run, _, _ = finished
    report = rescored(run, tmp_path, "train")
    assert report["train"]["n"] == report["data"]["split"]["train"]["n"]


def test_a_checkpoint_without_its_run_folder_says_what_is_missing(finished, tmp_path):
    run, _, _ = finished
    copy = tmp_path / "a" / "b" / "best.ckpt"
    copy.parent.mkdir(parents=True)
    copy.write_bytes((run / "checkpoints" / "best.ckpt").read_bytes())
    with pytest.raises(InputError, match=r"there is no .*split.csv; score a checkpoint in the run folder"):
        rescored(run, tmp_path, "test", ckpt=str(copy))


def test_another_data_folder_is_never_filled_with_phantoms(configuration, tmp_path):
    run = tmp_path / "run"
    generated = tmp_path / "phantoms"
    train(configuration(run, f"data.root={generated}", "data.prepare.images=60", "trainer.max_epochs=1", "test=false"))
    assert generated.is_dir()
    with pytest.raises(InputError, match=r"no FracAtlas in .*nowhere"):
        rescored(run, tmp_path, "val", data_root=str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.fault("foreign or broken checkpoint", "refused in one line")
def test_what_is_no_checkpoint_of_ours_is_refused(finished, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(InputError, match="is not a checkpoint of this project"):
        checkpoint_config(tmp_path / "foreign.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(InputError, match="is not a PyTorch file"):
        checkpoint_config(tmp_path / "text.ckpt")


def test_a_checkpoint_of_another_architecture_is_refused(finished, tmp_path):
    run, _, _ = finished
    content = read_checkpoint(run / "checkpoints" / "best.ckpt")
    content["config"]["model"] |= {"_target_": "fractatlas.models.backbones.resnet", "variant": "resnet_tiny"}
    other = tmp_path / "run" / "checkpoints" / "best.ckpt"
    other.parent.mkdir(parents=True)
    torch.save(content, other)
    (tmp_path / "run" / "split.csv").write_bytes((run / "split.csv").read_bytes())
    with pytest.raises(InputError, match="holds another architecture"):
        rescored(run, tmp_path, "test", ckpt=str(other))


@pytest.mark.fault("checkpoint whose configuration names os.system", "refused, not run")
def test_a_checkpoint_cannot_name_what_is_run(finished, tmp_path):
    run, _, _ = finished
    content = read_checkpoint(run / "checkpoints" / "best.ckpt")
    content["config"]["augment"] = {"_target_": "os.system", "command": f"touch {tmp_path}/ran"}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match=r"augment._target_=os.system: should be one of"):
        checkpoint_config(tmp_path / "evil.ckpt")


def test_the_same_seed_gives_the_same_numbers(configuration, tmp_path):
    weights, tables, reports = [], [], []
    for name, workers in (("one", 0), ("two", 2)):
        run = tmp_path / name
        train(configuration(run, "trainer.max_epochs=2", "augment=light", f"data.num_workers={workers}"))
        weights.append(read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"])
        tables.append((run / "predictions.csv").read_bytes())
        reports.append(json.loads((run / "metrics.json").read_text()) | {"timing": None})
    assert tables[0] == tables[1]
    assert reports[0] == reports[1]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_without_the_test_part_nothing_of_it_is_predicted(configuration, tmp_path, monkeypatch):
    from fractatlas.data.datamodule import Radiographs

    read = set()
    original = Radiographs.__getitems__

    def watch(dataset, rows):
        read.update(dataset.table["image_id"][rows])
        return original(dataset, rows)

    monkeypatch.setattr(Radiographs, "__getitems__", watch)
    train(configuration(tmp_path, "test=false", "trainer.max_epochs=1"))
    split = pd.read_csv(tmp_path / "split.csv").set_index("image_id")["split"]
    assert {split[image_id] for image_id in read} == {"train", "val"}
    assert set(pd.read_csv(tmp_path / "predictions.csv")["split"]) == {"val"}
    assert "test" not in json.loads((tmp_path / "metrics.json").read_text())


def test_training_goes_on_where_it_stopped(configuration, tmp_path):
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    train(configuration(through, "trainer.max_epochs=3", "test=false"))
    train(configuration(stopped, "trainer.max_epochs=2", "test=false"))
    train(configuration(stopped, "trainer.max_epochs=3", "test=false", f"resume={stopped}"))
    one, two = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (through, stopped))
    assert one["global_step"] == two["global_step"]
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())
    assert (through / "predictions.csv").read_bytes() == (stopped / "predictions.csv").read_bytes()


def test_a_run_that_is_gone_on_with_keeps_its_split(configuration, tmp_path):
    train(configuration(tmp_path, "trainer.max_epochs=1", "test=false"))
    before = (tmp_path / "split.csv").read_bytes()
    train(configuration(tmp_path, "trainer.max_epochs=2", "test=false", "split.seed=5", f"resume={tmp_path}"))
    assert (tmp_path / "split.csv").read_bytes() == before


@pytest.mark.fault("foreign or broken checkpoint", "refused in one line")
def test_a_broken_checkpoint_is_refused_before_the_finished_run_is_touched(configuration, tmp_path):
    train(configuration(tmp_path, "trainer.max_epochs=1", "test=false"))
    before = {file: file.read_bytes() for file in tmp_path.glob("*.*")}
    last = tmp_path / "checkpoints" / "last.ckpt"
    torch.save({"loops": {}, "state_dict": {}}, last)
    with pytest.raises(InputError, match="is not a checkpoint that a run can go on from: take it away"):
        train(configuration(tmp_path, "trainer.max_epochs=2", "test=false", f"resume={tmp_path}"))
    last.write_bytes(b"junk")
    with pytest.raises(InputError, match="is not a PyTorch file"):
        train(configuration(tmp_path, "trainer.max_epochs=2", "test=false", f"resume={tmp_path}"))
    assert {file: file.read_bytes() for file in tmp_path.glob("*.*")} == before


@pytest.mark.fault("training that diverges", "one line, no metrics.json")
def test_a_run_that_diverges_says_so_and_does_not_finish(configuration, tmp_path):
    with pytest.raises(InputError, match="training diverged: some .* logits are not finite; lower optimizer.lr"):
        train(configuration(tmp_path, "optimizer.lr=1e30", "test=false"))
    assert not (tmp_path / "metrics.json").exists()


def test_a_last_batch_of_one_image_does_not_end_a_run(configuration, tmp_path):
    images = 111  # of the phantoms' training part
    changes = ("split=random", "model=resnet", "model.variant=resnet_tiny", "preprocess.resize=32",
               "preprocess.crop=32", f"data.batch_size={images - 1}", "trainer.max_epochs=1", "test=false")  # fmt: skip
    train(configuration(tmp_path, *changes))
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["data"]["split"]["train"]["n"] == images


def test_early_stopping_ends_a_run_that_no_longer_improves(configuration, tmp_path):
    changes = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=1e-12",
               "trainer.max_epochs=6", "test=false", "callbacks.early_stopping.min_delta=0.5")  # fmt: skip
    train(configuration(tmp_path, *changes))
    assert len(events(tmp_path).Scalars("val/auroc")) == 2


def test_half_precision_trains(configuration, tmp_path):
    value = train(configuration(tmp_path, "trainer.precision=bf16-mixed", "trainer.max_epochs=1", "test=false"))
    assert 0 <= value <= 1
    assert pd.read_csv(tmp_path / "predictions.csv")["probability"].notna().all()


def test_a_loss_is_monitored_downwards(configuration, tmp_path):
    changes = ("monitor=val/loss", "trainer.max_epochs=3", "optimizer.lr=0.05", "test=false")
    value = train(configuration(tmp_path, *changes))
    curve = [event.value for event in events(tmp_path).Scalars("val/loss")]
    assert value == pytest.approx(min(curve))
    assert all(math.isfinite(point) for point in curve)


def test_with_or_without_the_cache_a_run_gives_the_same_numbers(configuration, tmp_path):
    reports = []
    for cache in ("true", "false"):
        train(configuration(tmp_path / cache, f"data.cache={cache}", "trainer.max_epochs=1", "augment=light"))
        reports.append(json.loads((tmp_path / cache / "metrics.json").read_text()))
    assert reports[0]["val"] == reports[1]["val"]
    assert reports[0]["test"] == reports[1]["test"]


@pytest.mark.fault("network cut while training and scoring", "not missed")
def test_a_run_needs_no_network(configuration, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    train(configuration(tmp_path, "trainer.max_epochs=1", "report=true"))
    assert (tmp_path / "report.html").is_file()
