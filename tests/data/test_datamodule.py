import re
import shutil

import pandas as pd
import pytest
import torch

from fractatlas.build import build, build_data
from fractatlas.data.sources.fracatlas import FracAtlas
from fractatlas.data.splits import all_images
from fractatlas.errors import InputError


@pytest.fixture
def data(configuration, tmp_path):
    config = configuration(tmp_path, "split=random")
    module = build_data(config, split=build(config["split"]))
    module.setup()
    return module


def test_a_batch_contains_normalised_images_labels_and_row_numbers(data):
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "image": (torch.float32, (16, 3, 64, 64)),
        "label": (torch.float32, (16,)),
        "index": (torch.int64, (16,)),
    }
    assert batch["label"].tolist() == data.subset("val")["label"][:16].tolist()


@pytest.mark.parametrize("subset", ["val", "test"])
def test_each_image_of_a_subset_occurs_once(data, subset):
    rows = torch.cat([batch["index"] for batch in data.evaluation_dataloader(subset)])
    assert sorted(rows.tolist()) == list(range(len(data.subset(subset))))


def test_a_resumed_epoch_starts_after_the_completed_batches(data):
    complete = [batch["index"].tolist() for batch in data.train_dataloader()]
    data.load_state_dict({"batches_done": 2})
    assert [batch["index"].tolist() for batch in data.train_dataloader()] == complete[2:]


def test_each_epoch_has_its_own_order(data):
    loader = data.train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        orders.append([row for batch in loader for row in batch["index"].tolist()])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(data.subset("train"))))


def test_only_fractured_images_have_boxes(data):
    for boxes, label in zip(data.boxes("train"), data.subset("train")["label"], strict=True):
        assert (len(boxes) > 0) == label


def test_the_cache_does_not_change_batches(data, configuration, tmp_path):
    config = configuration(tmp_path, "split=random", "data.cache=false", "data.num_workers=2")
    uncached = build_data(config, split=build(config["split"]))
    uncached.setup()
    for one, other in zip(data.val_dataloader(), uncached.val_dataloader(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_the_cache_nothing_is_written(configuration, tmp_path):
    config = configuration(tmp_path, "data.cache=false", f"paths.cache_dir={tmp_path}/cache")
    module = build_data(config, split=build(config["split"]))
    module.setup()
    next(iter(module.train_dataloader()))
    assert not (tmp_path / "cache").exists()


def test_leaks_of_a_split_are_counted_and_logged(data, configuration, tmp_path, caplog):
    assert data.crossings["exams"]["train"] > 0
    config = configuration(tmp_path)
    grouped = build_data(config, split=build(config["split"]))
    with caplog.at_level("INFO"):
        grouped.setup()
    assert not any(grouped.crossings["groups"].values())
    assert "leak check: near-duplicates: no image has one" in caplog.text
    assert "leak check: patients: not checked: there is no column patient" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_patients_of_a_manifest_that_are_in_several_subsets_are_named(data, configuration, tmp_path, caplog):
    manifest = data.split[["image_id", "split"]].assign(patient=[f"p{n // 3:02}" for n in range(len(data.split))])
    manifest.to_csv(tmp_path / "mine.csv", index=False)
    config = configuration(tmp_path, "split=manifest", f"split.path={tmp_path}/mine.csv")
    module = build_data(config, split=build(config["split"]))
    with caplog.at_level("INFO"):
        module.setup()
    (line,) = (text for text in caplog.messages if "column patient):" in text)
    assert re.search(r"\d+ of 53 are in several subsets \(p\d\d, p\d\d, p\d\d, p\d\d, p\d\d, and \d+ more\)", line)
    assert line.endswith("assign each to one subset in the file")
    assert "Intervals resample groups of images: patients (column patient)" in caplog.text
    assert (module.subset("test").groupby("patient")["group"].nunique() == 1).all()
    assert (module.catalogue.groupby("patient")["group"].nunique()[lambda counts: counts.index != ""] == 1).all()


def test_images_that_a_manifest_does_not_contain_are_in_no_subset(data, configuration, tmp_path, caplog):
    data.split[["image_id", "split"]].drop(5).to_csv(tmp_path / "mine.csv", index=False)
    config = configuration(tmp_path, "split=manifest", f"split.path={tmp_path}/mine.csv")
    module = build_data(config, split=build(config["split"]))
    with caplog.at_level("INFO"):
        module.setup()
    assert "in no subset: 1 image that the split does not contain" in caplog.text
    assert len(module.split) == len(data.split) - 1


def test_of_a_long_list_five_names_are_logged(phantoms, configuration, tmp_path, caplog):
    root = tmp_path / "data"
    shutil.copytree(phantoms, root)
    table = pd.read_csv(root / "dataset.csv")
    fractured = table.index[table["fractured"] == 1]
    table.loc[fractured[:9], ["fractured", "fracture_count"]] = 0  # the folder and the boxes give the other label
    table.drop(fractured[-7:]).to_csv(root / "dataset.csv", index=False)
    config = configuration(tmp_path, f"data.root={root}", f"paths.cache_dir={tmp_path}/cache")
    module = build_data(config, split=build(config["split"]))
    with caplog.at_level("INFO"):
        module.setup()
    notes = [line for line in caplog.messages if "is used" in line]
    assert len(notes) == 5
    assert "and 4 more notes (catalogue.csv)" in caplog.messages
    (line,) = (
        line for line in caplog.messages if line.startswith("excluded (catalogue.csv): 7 images, not in dataset.csv: ")
    )
    assert line.count("IMG") == 5
    assert line.endswith(" and 2 more")


def test_the_error_for_missing_data_contains_the_remedy(configuration, tmp_path):
    config = configuration(tmp_path, "data=fracatlas", f"data.root={tmp_path}/nowhere")
    with pytest.raises(InputError) as raised:
        build_data(config, split=build(config["split"])).setup()
    problem, _, remedy = str(raised.value).partition("; ")
    assert problem == f"no FracAtlas in {tmp_path}/nowhere (dataset.csv is missing)"
    assert "FRACATLAS_ROOT=DIR" in remedy


@pytest.fixture
def table(phantoms, tmp_path):
    """A table of 24 phantoms in two given subsets, three images per patient."""
    images = FracAtlas(phantoms).rows()
    images = pd.concat([images[images["label"] == label].head(12) for label in (0, 1)]).sort_values("image_id")
    images["path"] = [str(phantoms / path) for path in images["path"]]
    images["patient"] = [f"p{number // 3}" for number in range(24)]
    images["split"] = ["train", "val", "test"] * 8
    images[["image_id", "path", "label", "patient", "split"]].to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_a_patient_in_two_given_subsets_is_a_warning(configuration, table, tmp_path, caplog):
    config = configuration(tmp_path, "data=table", f"data.table={table}", "data.root=null")
    module = build_data(config)
    module.setup()
    assert module.subset_names == ["train", "val", "test"]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (warning,) = (text for text in warnings if "patients (column patient): 8 of 8 are in several subsets" in text)
    assert warning.endswith("correct the given split, or draw the split (data.columns.split=null)")


def test_data_without_patients_exams_and_groups_are_reported_as_such(configuration, table, tmp_path, caplog):
    caplog.set_level("INFO")
    columns = ["data.columns.patient=null", "data.columns.split=null"]
    images = pd.read_csv(table).drop(columns=["patient", "split"])
    images.to_csv(table, index=False)
    build_data(configuration(tmp_path, "data=table", f"data.table={table}", "data.root=null", *columns)).setup()
    assert "no patients, exams or groups are known: only near-duplicates stay together" in caplog.messages
    assert "leak check: exams: not checked: there is no column exam, and none are inferred" in caplog.messages


def test_label_and_source_that_go_together_are_a_warning(configuration, table, tmp_path, caplog):
    images = pd.read_csv(table)
    images.assign(source=["a" if label else "b" for label in images["label"]]).to_csv(table, index=False)
    build_data(configuration(tmp_path, "data=table", f"data.table={table}", "data.root=null")).setup()
    assert any(text.startswith("label and source go together") for text in caplog.messages)


def test_the_log_names_the_tables(configuration, table, tmp_path, caplog):
    caplog.set_level("INFO")
    build_data(configuration(tmp_path, "data=table", f"data.table={table}", "data.root=null")).setup()
    assert f"reading the data in {table}" in caplog.messages


def test_a_subset_of_one_class_is_a_warning(configuration, table, tmp_path, caplog):
    images = pd.read_csv(table)
    images[images["label"] == 1].to_csv(table, index=False)
    config = configuration(tmp_path, "data=table", f"data.table={table}", "data.root=null", "data.columns.split=null")
    build_data(config, split=all_images).setup()
    assert "all: images of one class only: AUROC and average precision are undefined" in caplog.messages
