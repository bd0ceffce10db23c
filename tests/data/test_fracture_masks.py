import numpy as np
import pandas as pd
import pytest
import torch

from fractatlas.data.datamodule import RadiographDataModule
from fractatlas.data.fracture_masks import BOXES, OUTLINES, FractureMasks
from fractatlas.data.sources.fracatlas import FracAtlas
from fractatlas.data.transforms import letterbox, light_augmentation, resize_and_crop

CHANNELS = {"mean": [0.5] * 3, "std": [0.5] * 3}
TRIANGLE = np.array([[20, 20], [60, 20], [20, 60]], dtype=np.float32)
BOX = np.array([[20, 20, 60, 60]], dtype=np.float32)


def table(label=1, width=100, height=200):
    return pd.DataFrame({"image_id": ["a"], "label": [label], "width": [width], "height": [height]})


def test_outlines_and_boxes_are_drawn_where_the_geometry_moves_them():
    masks = FractureMasks(table(), {"a": [TRIANGLE]}, {"a": BOX}, letterbox(size=100, fill=0, **CHANNELS))([0])
    assert (masks.shape, masks.dtype) == ((1, 2, 100, 100), torch.uint8)
    # Half the size, and 25 pixels of padding on the left.
    expected = torch.zeros(100, 100, dtype=torch.uint8)
    expected[10:30, 35:55] = 1
    torch.testing.assert_close(masks[0, BOXES], expected)
    outline = masks[0, OUTLINES]
    assert 200 <= outline.sum() < 240  # half of the box, and the pixels that the edge crosses
    assert (outline <= masks[0, BOXES]).float().mean() > 0.995
    assert (outline[12, 37], outline[28, 53]) == (1, 0)


def test_an_image_without_outlines_has_its_boxes_as_outlines():
    masks = FractureMasks(table(), {}, {"a": BOX}, letterbox(size=100, fill=0, **CHANNELS))([0])
    torch.testing.assert_close(masks[0, OUTLINES], masks[0, BOXES])


@pytest.mark.parametrize(("label", "boxes"), [(0, {"a": BOX}), (1, {})], ids=["not fractured", "no box"])
def test_other_images_have_empty_masks(label, boxes):
    geometry = letterbox(size=64, fill=0, **CHANNELS)
    assert FractureMasks(table(label), {}, boxes, geometry)([0, 0]).sum() == 0


def test_a_box_that_the_crop_removes_is_not_drawn():
    masks = FractureMasks(table(), {}, {"a": BOX}, resize_and_crop(resize=100, crop=50, **CHANNELS))([0])
    assert masks.sum() == 0


def test_masks_are_augmented_with_the_images():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 2, (8, 1, 64, 64), generator=generator, dtype=torch.uint8) * 255
    images = torch.nn.functional.interpolate(images[..., :8, :8], 64).to(torch.uint8)  # squares of 8 pixels
    torch.manual_seed(0)
    augmented, *_, masks = light_augmentation(flip=0.5, degrees=10.0, brightness=0.0, contrast=0.0)(
        images, None, (images / 255).repeat(1, 2, 1, 1)
    )
    for channel in range(2):
        agreement = ((augmented[:, 0] > 127) == (masks[:, channel] > 0.5)).float().mean()
        assert agreement > 0.97
    assert ((augmented > 127) == (images > 127)).float().mean() < 0.9


def test_batches_contain_masks_only_on_request_and_if_there_are_boxes(phantoms, tmp_path):
    from functools import partial

    from torchvision.transforms import v2

    from fractatlas.data.splits import grouped_split

    options = {
        "split": partial(grouped_split, ratios=[0.7, 0.15, 0.15], seed=0, previous=None),
        "preprocess": letterbox(size=64, fill=0, **CHANNELS), "augment": v2.Identity(), "batch_size": 8,
        "num_workers": 0, "pin_memory": False, "seed": 0, "cache": True, "cache_dir": str(tmp_path),
        "keep_contradictions": False,
    }  # fmt: skip
    without, with_masks = (
        RadiographDataModule(FracAtlas(str(phantoms)), masks=masks, **options) for masks in (False, True)
    )
    for data in (without, with_masks):
        data.setup()
    assert "mask" not in next(iter(without.val_dataloader()))
    batch = next(iter(with_masks.val_dataloader()))
    assert batch["mask"].shape == (8, 2, 64, 64)
    torch.testing.assert_close(batch["mask"].flatten(1).amax(dim=1).float(), batch["label"])
