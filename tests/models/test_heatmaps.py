import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from fractatlas.data.transforms import resize_and_crop
from fractatlas.evaluation.localisation import Heatmaps, read_heatmaps
from fractatlas.models.backbones import densenet, resnet
from fractatlas.models.heatmaps import (
    CELL,
    activation_maps,
    compute_heatmaps,
    receptive_grid,
    tile_input,
    with_heatmaps,
    write_heatmaps,
)

REST = {
    "weights": None,
    "weights_dir": "",
    "dropout": 0.5,
    "freeze": "none",
    "stage_decay": 1.0,
    "mirror": False,
    "compile": False,
}
PREPROCESS = resize_and_crop(resize=64, crop=64, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def feature_maps(network, images):
    """Compute the last feature maps layer by layer."""
    if hasattr(network, "features"):
        return relu(network.features(images))
    images = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    return network.layer4(network.layer3(network.layer2(network.layer1(images))))


@pytest.fixture(params=[(densenet, "densenet_tiny"), (resnet, "resnet_tiny")], ids=["densenet", "resnet"])
def backbone(request):
    torch.manual_seed(0)
    family, variant = request.param
    return family(variant, channels_last=True, **REST).eval()


def test_activation_maps_equal_grad_cam_times_the_number_of_cells(backbone):
    images = torch.randn(3, 3, 96, 128)
    logits, (actual,) = activation_maps(backbone, images)
    maps = feature_maps(backbone.network, images).detach().requires_grad_()
    expected = backbone.head(maps.mean(dim=(2, 3))).squeeze(1)
    (gradient,) = torch.autograd.grad(expected.sum(), maps)
    grad_cam = relu((gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1))
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(actual, grad_cam.detach() * 12, rtol=1e-4, atol=1e-5)
    assert (actual.shape, actual.dtype, actual.min() >= 0) == ((3, 3, 4), torch.float32, True)
    assert actual.max() > 0


def test_activation_maps_of_a_resnet_equal_those_of_captum():
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    backbone = resnet("resnet_tiny", channels_last=False, **REST).eval()
    images = torch.randn(2, 3, 96, 96)
    expected = captum.LayerGradCam(lambda x: backbone(x)[:, None], backbone.network.layer4).attribute(
        images, target=0, relu_attributions=True
    )
    torch.testing.assert_close(
        activation_maps(backbone, images)[1][0], expected[:, 0].detach() * 9, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("cell", [(5, 6), (8, 7)])
def test_the_centre_of_a_tiled_cell_is_the_centre_of_its_receptive_field(backbone, cell):
    network, size = backbone.network, 512
    with torch.no_grad():  # positive weights, so that the ReLUs pass the gradient of every pixel
        for parameter in network.parameters():
            parameter.abs_()
    pooling = nn.AvgPool2d(3, stride=2, padding=1)  # of all pixels that the max pooling covers
    setattr(*((network, "maxpool") if hasattr(network, "maxpool") else (network.features, "pool0")), pooling)
    images = torch.rand(1, 3, size, size, requires_grad=True)
    feature_maps(network, images)[0, :, cell[0], cell[1]].sum().backward()
    field = images.grad[0, 0].abs() > 0
    first, step = receptive_grid(backbone)
    for axis, number in enumerate(cell):
        pixels = field.any(dim=1 - axis).nonzero()
        assert pixels.min() > 0
        assert pixels.max() < size - 1
        assert (pixels.min() + pixels.max()) / 2 == first + step * number

    maps = torch.zeros(1, 16, 16)
    maps[0, cell[0], cell[1]] = 1
    tiles = tile_input(maps, backbone, size)[0]
    assert tiles.shape == (size // CELL, size // CELL)
    for axis, number in enumerate(cell):
        profile = tiles.sum(dim=1 - axis)
        centre = (profile * torch.arange(len(profile))).sum() / profile.sum() * CELL + (CELL - 1) / 2
        assert centre == pytest.approx(first + step * number, abs=0.1)


def test_heatmaps_do_not_change_the_logits_and_leave_no_hook(backbone):
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(with_heatmaps(backbone, images)[0], backbone(images))
    assert not any(module._forward_hooks for module in backbone.modules())


def test_the_heatmap_of_a_mirroring_backbone_is_the_mean_of_both_heatmaps(backbone):
    images = torch.randn(2, 3, 64, 64)
    plain, mirrored = with_heatmaps(backbone, images), with_heatmaps(backbone, images.flip(-1))
    backbone.mirror = True
    logits, heatmaps = with_heatmaps(backbone, images)
    torch.testing.assert_close(logits, (plain[0] + mirrored[0]) / 2)
    torch.testing.assert_close(heatmaps, (plain[1] + mirrored[1].flip(-1)) / 2)


def test_heatmaps_are_computed_in_evaluation_mode_and_the_mode_is_restored(backbone):
    backbone.train()
    images = torch.randint(0, 256, (5, 1, 64, 64), dtype=torch.uint8)
    batches = [{"image": images[rows], "index": rows} for rows in (torch.tensor([2, 0]), torch.tensor([1, 3, 4]))]
    index, heatmaps = compute_heatmaps(backbone, batches, PREPROCESS.normalise, "cpu")
    assert backbone.training
    expected = with_heatmaps(backbone.eval(), PREPROCESS.normalise(images))[1].detach().numpy()
    assert index.tolist() == [2, 0, 1, 3, 4]
    np.testing.assert_allclose(heatmaps, expected[index], rtol=1e-4, atol=1e-5)
    assert (heatmaps.shape, heatmaps.dtype) == ((5, 16, 16), np.float32)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_written_heatmaps_are_read_unchanged(tmp_path, kind):
    heat = np.random.default_rng(0).random((2, 3, 4)).astype(kind)
    views = np.array([PREPROCESS.view(300, 200), PREPROCESS.view(200, 300)], dtype=np.float32)
    file = tmp_path / "sub" / "heatmaps of val"
    write_heatmaps(file, Heatmaps(np.array(["IMG1.jpg", "Röntgen.jpg"]), heat, views))
    for written, read in zip(
        (np.array(["IMG1.jpg", "Röntgen.jpg"]), heat, views), vars(read_heatmaps(file)).values(), strict=True
    ):
        assert read.dtype == written.dtype
        assert np.array_equal(read, written)
    assert views.tolist() == [[50, 0, 250, 200], [0, 50, 200, 250]]
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
