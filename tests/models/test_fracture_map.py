import copy
from functools import partial

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from fractatlas.errors import InputError
from fractatlas.models.backbones import Backbone, densenet, resnet
from fractatlas.models.fracture_map import FractureMap, cell_targets, hottest_cell_is_in_box
from fractatlas.models.heatmaps import with_heatmaps

REST = {"weights": None, "weights_dir": "", "dropout": 0.0, "freeze": "none", "stage_decay": 1.0, "mirror": False,
        "channels_last": True, "compile": False}  # fmt: skip
OPTIONS = {"stride": 8, "channels": 16, "pooling": "topk", "loss": "focal", "weight": 1.0}
FAMILIES = [(densenet, "densenet_tiny"), (resnet, "resnet_tiny")]


def make(family=densenet, variant="densenet_tiny", rest=(), **options):
    torch.manual_seed(0)
    return family(variant, map=partial(FractureMap, **(OPTIONS | options)), **(REST | dict(rest)))


def only_map(**options):
    torch.manual_seed(0)
    return FractureMap([8, 16], **(OPTIONS | options))


@pytest.mark.parametrize(("family", "variant"), FAMILIES, ids=["densenet", "resnet"])
@pytest.mark.parametrize(("stride", "cells"), [(8, 8), (4, 16)])
def test_the_map_has_one_logit_for_each_cell(family, variant, stride, cells):
    backbone = make(family, variant, stride=stride).eval()
    logits, maps = backbone.with_map(torch.randn(2, 3, 64, 64))
    assert (logits.shape, maps.shape, maps.dtype) == ((2,), (2, cells, cells), torch.float32)
    torch.testing.assert_close(backbone(torch.ones(2, 3, 64, 64)), backbone.with_map(torch.ones(2, 3, 64, 64))[0])


@pytest.mark.parametrize("size", [50, 100, 101])
@pytest.mark.parametrize(("family", "variant"), FAMILIES, ids=["densenet", "resnet"])
def test_inputs_that_are_no_multiple_of_the_stride_are_accepted(family, variant, size):
    backbone = make(family, variant)
    _logits, maps = backbone.with_map(torch.randn(2, 3, size, size))
    outlines = torch.ones(2, size, size, dtype=torch.uint8)
    assert backbone.map.loss(maps, outlines, torch.ones(2)).isfinite()
    assert hottest_cell_is_in_box(maps, outlines).all()


@pytest.mark.parametrize(("family", "variant"), FAMILIES, ids=["densenet", "resnet"])
@pytest.mark.parametrize("pooling", ["topk", "logsumexp", "none"])
def test_without_the_pooled_map_the_logit_is_that_of_the_network_without_a_map(family, variant, pooling):
    torch.manual_seed(0)
    without = family(variant, **REST).eval()
    backbone = make(family, variant, pooling=pooling).eval()
    backbone.network.load_state_dict(without.network.state_dict())
    images = torch.randn(3, 3, 64, 64)
    logits, maps = backbone.with_map(images)
    torch.testing.assert_close(logits - backbone.map.pool(maps), without(images), rtol=1e-4, atol=1e-5)
    assert (backbone.map.pool(maps).abs() < 0.5).all()  # at first, the map changes the logits little


def test_a_network_without_a_map_is_unchanged():
    torch.manual_seed(0)
    backbone = densenet("densenet_tiny", **REST)
    assert backbone.map is None
    assert not any("map" in name for name in backbone.state_dict())


@pytest.mark.parametrize(("family", "variant"), FAMILIES, ids=["densenet", "resnet"])
def test_every_weight_is_trained(family, variant):
    backbone = make(family, variant)  # DDP requires a gradient of each parameter
    outlines = torch.zeros(4, 64, 64)
    outlines[:2, 10:30, 10:30] = 1
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0])
    logits, maps = backbone.with_map(torch.randn(4, 3, 64, 64))
    (binary_cross_entropy_with_logits(logits, labels) + backbone.map.loss(maps, outlines, labels)).backward()
    assert [name for name, weight in backbone.named_parameters() if weight.grad is None] == []


def test_a_batch_without_a_known_target_keeps_the_gradients_of_all_weights():
    backbone = make(pooling="none")
    logits, maps = backbone.with_map(torch.randn(2, 3, 64, 64))
    loss = backbone.map.loss(maps, torch.zeros(2, 64, 64), torch.ones(2))
    assert loss == 0
    (loss + logits.sum()).backward()
    assert all(weight.grad is not None for weight in backbone.parameters())


def test_groups_of_parameters_contain_the_map_at_the_full_rate():
    backbone = make(rest={"stage_decay": 0.5, "freeze": 2})
    groups = {group["name"]: group for group in backbone.parameter_groups()}
    assert groups["map"]["scale"] == 1.0
    assert sum(len(group["params"]) for group in groups.values()) == sum(p.requires_grad for p in backbone.parameters())


def test_the_average_with_the_mirror_image_mirrors_the_map():
    backbone = make(rest={"mirror": True}).eval()
    images = torch.randn(2, 3, 64, 64)
    (logits, maps), (mirrored_logits, mirrored_maps) = (backbone.with_map(x) for x in (images, images.flip(-1)))
    torch.testing.assert_close(logits, mirrored_logits)
    torch.testing.assert_close(maps, mirrored_maps.flip(-1))


def test_a_copy_of_the_network_is_independent():
    backbone = make().eval()
    images = torch.randn(1, 3, 64, 64)
    duplicate = copy.deepcopy(backbone)  # as weight averaging does
    expected = backbone.with_map(images)[1]
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.zero_()
    torch.testing.assert_close(duplicate.with_map(images)[1], expected)
    assert not torch.allclose(backbone.with_map(images)[1], expected)


def test_heatmaps_are_the_probabilities_of_the_map():
    backbone = make().eval()
    images = torch.randn(2, 3, 64, 64)
    logits, heat = with_heatmaps(backbone, images)
    expected_logits, maps = backbone.with_map(images)
    torch.testing.assert_close(heat, maps.sigmoid())
    torch.testing.assert_close(logits, expected_logits)


def test_a_backbone_without_stages_for_a_pyramid_is_refused():
    network = densenet("densenet_tiny", **REST).network
    options = {name: REST[name] for name in ("freeze", "stage_decay", "mirror", "channels_last", "compile")}
    with pytest.raises(InputError, match="DenseNet names no stages for it; use map=none"):
        Backbone(network, "classifier", {"stem": []}, {}, map=partial(FractureMap, **OPTIONS), **options)


def test_cells_are_targets_if_an_outline_covers_a_quarter_of_them_or_if_it_covers_no_cell_more():
    outlines = torch.zeros(3, 32, 32)
    outlines[0, 0:8, 4:12] = 1  # half of two cells
    outlines[0, 0:8, 16:17] = 1  # an eighth of a third
    outlines[1, 9:11, 9:11] = 1  # a sixteenth of one cell
    expected = torch.zeros(3, 4, 4)
    expected[0, 0, :2] = expected[1, 1, 1] = 1
    torch.testing.assert_close(cell_targets(outlines, (4, 4)), expected)


@pytest.mark.parametrize("loss", ["focal", "dice"])
def test_the_loss_is_smaller_for_a_better_map(loss):
    fracture_map = only_map(loss=loss)
    outlines, labels = torch.zeros(2, 32, 32), torch.tensor([1.0, 0.0])
    outlines[0, 8:16, 8:16] = 1
    good, bad = torch.full((2, 2, 4, 4), -6.0)
    good[0, 1, 1], bad[1, 1, 1] = 6.0, 6.0
    assert fracture_map.loss(good, outlines, labels) < 0.1 * fracture_map.loss(bad, outlines, labels)


def test_a_fractured_image_without_an_outline_does_not_change_the_loss():
    fracture_map = only_map()
    outlines, labels = torch.zeros(3, 32, 32), torch.tensor([1.0, 0.0, 1.0])
    outlines[0, 8:16, 8:16] = 1
    logits = torch.randn(3, 4, 4)
    torch.testing.assert_close(
        fracture_map.loss(logits, outlines, labels), fracture_map.loss(logits[:2], outlines[:2], labels[:2])
    )


def test_pooled_logits_increase_with_the_hottest_cells():
    logits = torch.full((2, 20, 20), -4.595)
    logits[1, 3, 3:5] = 4.0
    for pooling in ("topk", "logsumexp"):
        cold, hot = only_map(pooling=pooling).pool(logits)
        assert cold.abs() < 1e-3
        assert hot > 2


def test_the_hottest_cell_is_in_a_box_if_its_centre_is():
    logits = torch.zeros(3, 4, 4)
    logits[:, 1, 2] = 1  # centre at x 20, y 12 of 32 x 32 pixels
    boxes = torch.zeros(3, 32, 32)
    boxes[0, 10:14, 18:22] = 1
    boxes[1, 13:20, 18:22] = 1
    assert hottest_cell_is_in_box(logits, boxes).tolist() == [True, False, False]


@pytest.mark.parametrize(("family", "variant"), FAMILIES, ids=["densenet", "resnet"])
def test_the_map_learns_the_place_of_a_bright_square(family, variant):
    """A cell of the map must describe the pixels that it covers, not those of a neighbour."""
    backbone = make(family, variant)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        places = torch.randint(0, 8, (count, 2), generator=generator)
        cells = torch.zeros(count, 8, 8)
        cells[torch.arange(count), places[:, 0], places[:, 1]] = 1
        labels = (torch.arange(count) % 2).float()
        outlines = interpolate(cells[:, None], 64)[:, 0] * labels[:, None, None]
        noise = 0.3 * torch.randn(count, 3, 64, 64, generator=generator)
        return noise + 2 * outlines[:, None], outlines, labels

    for _ in range(60):
        images, outlines, labels = draw(16)
        logits, maps = backbone.with_map(images)
        loss = binary_cross_entropy_with_logits(logits, labels) + backbone.map.loss(maps, outlines, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, outlines, labels = draw(64)
    logits, maps = backbone.eval().with_map(images)
    hits = hottest_cell_is_in_box(maps[labels == 1], outlines[labels == 1])
    assert hits.float().mean() > 0.9
    assert ((logits > 0).float() == labels).float().mean() > 0.9
