import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.nn.functional import relu

from fractatlas.config import TrainConfig, check
from fractatlas.data.transforms import resize_and_crop
from fractatlas.evaluation.localisation import read_heatmaps
from fractatlas.models.backbones import densenet, resnet
from fractatlas.models.heatmaps import (
    CELL,
    activation_maps,
    lay_out,
    part_heatmaps,
    receptive_grid,
    with_heatmaps,
    write_heatmaps,
)
from fractatlas.training.run import train
from tests.conftest import REPOSITORY

REST = {"weights": None, "weights_dir": "", "dropout": 0.5, "freeze": "none", "stage_decay": 1.0, "mirror": False}
PREPROCESS = resize_and_crop(resize=64, crop=64, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def last_maps(network, images):
    """The maps before the mean, written out for each family."""
    if hasattr(network, "features"):
        return relu(network.features(images))
    images = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    return network.layer4(network.layer3(network.layer2(network.layer1(images))))


@pytest.fixture(params=[(densenet, "densenet_tiny"), (resnet, "resnet_tiny")], ids=["densenet", "resnet"])
def backbone(request):
    torch.manual_seed(0)
    family, variant = request.param
    return family(variant, channels_last=True, **REST).eval()


def test_a_heatmap_is_grad_cam_up_to_the_number_of_cells(backbone):
    images = torch.randn(3, 3, 96, 128)
    logits, (heat,) = activation_maps(backbone, images)
    maps = last_maps(backbone.network, images).detach().requires_grad_()
    head = backbone.network.get_submodule(backbone.head_name)
    literal = head(maps.mean(dim=(2, 3))).squeeze(1)
    (gradient,) = torch.autograd.grad(literal.sum(), maps)
    grad_cam = relu((gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1))
    torch.testing.assert_close(logits, literal)
    torch.testing.assert_close(heat, grad_cam.detach() * 12, rtol=1e-4, atol=1e-5)
    assert (heat.shape, heat.dtype, heat.min() >= 0) == ((3, 3, 4), torch.float32, True)
    assert heat.max() > 0


def test_a_resnets_heatmap_is_captums():
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    backbone = resnet("resnet_tiny", channels_last=False, **REST).eval()
    images = torch.randn(2, 3, 96, 96)
    theirs = captum.LayerGradCam(lambda x: backbone(x)[:, None], backbone.network.layer4).attribute(
        images, target=0, relu_attributions=True
    )
    torch.testing.assert_close(activation_maps(backbone, images)[1][0], theirs[:, 0].detach() * 9, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", [(5, 6), (8, 7)])
def test_a_cell_is_laid_where_its_receptive_field_is(backbone, cell):
    network, size = backbone.network, 512
    with torch.no_grad():  # so that every pixel of the receptive field counts, and none is rectified away
        for parameter in network.parameters():
            parameter.abs_()
    pooling = nn.AvgPool2d(3, stride=2, padding=1)  # for the same pixels of a maximum, of which one would count
    setattr(*((network, "maxpool") if hasattr(network, "maxpool") else (network.features, "pool0")), pooling)
    images = torch.rand(1, 3, size, size, requires_grad=True)
    last_maps(network, images)[0, :, cell[0], cell[1]].sum().backward()
    seen = images.grad[0, 0].abs() > 0
    first, step = receptive_grid(backbone)
    for axis, number in enumerate(cell):
        pixels = seen.any(dim=1 - axis).nonzero()
        assert pixels.min() > 0
        assert pixels.max() < size - 1
        assert (pixels.min() + pixels.max()) / 2 == first + step * number

    heat = torch.zeros(1, 16, 16)
    heat[0, cell[0], cell[1]] = 1
    tiles = lay_out(heat, backbone, size)[0]
    assert tiles.shape == (size // CELL, size // CELL)
    for axis, number in enumerate(cell):
        profile = tiles.sum(dim=1 - axis)
        centre = (profile * torch.arange(len(profile))).sum() / profile.sum() * CELL + (CELL - 1) / 2
        assert centre == pytest.approx(first + step * number, abs=0.1)


def test_the_logit_is_as_without_a_heatmap_and_no_hook_stays(backbone):
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(with_heatmaps(backbone, images)[0], backbone(images))
    assert not any(module._forward_hooks for module in backbone.modules())


def test_heat_of_a_backbone_that_looks_in_a_mirror_too_is_the_mean_of_both(backbone):
    images = torch.randn(2, 3, 64, 64)
    alone, mirrored = with_heatmaps(backbone, images), with_heatmaps(backbone, images.flip(-1))
    backbone.mirror = True
    logits, heat = with_heatmaps(backbone, images)
    torch.testing.assert_close(logits, (alone[0] + mirrored[0]) / 2)
    torch.testing.assert_close(heat, (alone[1] + mirrored[1].flip(-1)) / 2)


def test_a_part_is_scored_in_evaluation_mode_and_the_mode_comes_back(backbone):
    backbone.train()
    images = torch.randint(0, 256, (5, 1, 64, 64), dtype=torch.uint8)
    batches = [{"image": images[rows], "index": rows} for rows in (torch.tensor([2, 0]), torch.tensor([1, 3, 4]))]
    index, logits, heat = part_heatmaps(backbone, batches, PREPROCESS.normalise, "cpu")
    assert backbone.training
    expected = backbone.eval()(PREPROCESS.normalise(images)).detach().numpy()
    assert index.tolist() == [2, 0, 1, 3, 4]
    np.testing.assert_allclose(logits, expected[index], rtol=1e-4, atol=1e-5)
    assert (heat.shape, heat.dtype) == ((5, 16, 16), np.float32)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_what_is_written_is_read_again(tmp_path, kind):
    heat = np.random.default_rng(0).random((2, 3, 4)).astype(kind)
    file = tmp_path / "sub" / "heatmaps of val"
    write_heatmaps(file, ["IMG1.jpg", "Röntgen.jpg"], heat, [PREPROCESS.view(300, 200), PREPROCESS.view(200, 300)])
    found = read_heatmaps(file)
    assert found.image_id.tolist() == ["IMG1.jpg", "Röntgen.jpg"]
    assert found.heat.dtype == (np.float16 if kind is np.float16 else np.float32)
    np.testing.assert_allclose(found.heat, heat, rtol=1e-6)
    assert found.view.tolist() == [[50, 0, 250, 200], [0, 50, 200, 250]]
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_network_that_learnt_from_labels_alone_points_at_the_fracture(tmp_path):
    """Five minutes on two idle cores. Cells of 32 pixels want an image larger than the demo's 128."""
    shape = ("experiment=demo_resnet", "trainer=cpu", "preprocess.resize=256", "preprocess.crop=256")
    paths = (f"data.root={tmp_path}/phantoms", f"paths.root={tmp_path}", f"paths.output_dir={tmp_path}/run")
    with initialize_config_dir(str(REPOSITORY / "conf"), job_name="test"):
        config = check(compose("train", [*shape, *paths, f"paths.cache_dir={tmp_path}/cache"]), TrainConfig)
    train(config)
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())["localisation"]["test"]["all"]
    # Measured: hit 0.35 [0.25, 0.44], centre 0.07, chance 0.008; share 0.055, chance 0.008.
    assert report["hit_minus_centre"]["low"] > 0.05
    assert report["share"]["low"] > 3 * report["share_chance"]["value"]
