import pytest
import torch

from fractatlas.errors import InputError
from fractatlas.training.run import build, build_data


@pytest.fixture
def data(configuration, tmp_path):
    config = configuration(tmp_path, "split=random")
    module = build_data(config, split=build(config["split"]))
    module.setup()
    return module


def test_a_batch_is_normalised_images_labels_and_rows(data):
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "image": (torch.float32, (16, 3, 64, 64)),
        "label": (torch.float32, (16,)),
        "index": (torch.int64, (16,)),
    }
    assert batch["label"].tolist() == data.part("val")["label"][:16].tolist()


@pytest.mark.parametrize("part", ["val", "test"])
def test_every_image_of_a_part_is_seen_once(data, part):
    rows = torch.cat([batch["index"] for batch in data.evaluation_dataloader(part)])
    assert sorted(rows.tolist()) == list(range(len(data.part(part))))


def test_an_epoch_is_gone_on_with_after_the_batches_that_are_done(data):
    whole = [batch["index"].tolist() for batch in data.train_dataloader()]
    data.load_state_dict({"batches_done": 2})
    assert [batch["index"].tolist() for batch in data.train_dataloader()] == whole[2:]


def test_each_epoch_has_its_own_order(data):
    loader = data.train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        orders.append([row for batch in loader for row in batch["index"].tolist()])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(data.part("train"))))


def test_boxes_are_those_of_the_fractured(data):
    for boxes, label in zip(data.boxes("train"), data.part("train")["label"], strict=True):
        assert (len(boxes) > 0) == label


def test_with_or_without_the_cache_batches_are_the_same(data, configuration, tmp_path):
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


def test_leaks_of_a_split_are_told(data, configuration, tmp_path, caplog):
    assert data.crossings["studies"]["train"] > 0
    config = configuration(tmp_path)
    grouped = build_data(config, split=build(config["split"]))
    with caplog.at_level("INFO"):
        grouped.setup()
    assert not any(grouped.crossings["groups"].values())
    assert "leak check: no near-duplicates and no neighbours" in caplog.text


def test_images_that_a_manifest_does_not_list_are_in_no_part(data, configuration, tmp_path, caplog):
    data.split[["image_id", "split"]].drop(5).to_csv(tmp_path / "mine.csv", index=False)
    config = configuration(tmp_path, "split=manifest", f"split.path={tmp_path}/mine.csv")
    module = build_data(config, split=build(config["split"]))
    with caplog.at_level("INFO"):
        module.setup()
    assert "in no part: 1 images" in caplog.text
    assert len(module.split) == len(data.split) - 1


def test_missing_data_says_how_to_get_it(configuration, tmp_path):
    config = configuration(tmp_path, "data=fracatlas", f"data.root={tmp_path}/nowhere")
    with pytest.raises(InputError) as raised:
        build_data(config, split=build(config["split"])).setup()
    first, second = str(raised.value).split("\n")
    assert first == f"no FracAtlas in {tmp_path}/nowhere (no dataset.csv there)"
    assert "FRACATLAS_ROOT=DIR" in second
