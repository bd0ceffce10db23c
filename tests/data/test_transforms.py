import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from fractatlas.data.images import decode
from fractatlas.data.sources.fracatlas import read_boxes
from fractatlas.data.transforms import letterbox, light_augmentation, resize_and_crop
from fractatlas.errors import InputError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGENET = resize_and_crop(resize=256, crop=224, mean=MEAN, std=STD)
LETTERBOX = letterbox(size=224, fill=0, mean=MEAN, std=STD)
TORCHVISION = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


def ours_and_torchvisions(file):
    with Image.open(file) as image:
        expected = TORCHVISION(image.convert("RGB"))
    return IMAGENET.normalise(IMAGENET(decode(file.read_bytes()))[None])[0], expected


def test_imagenet_preprocessing_equals_torchvision_to_one_grey_level(phantoms, catalogue):
    for path in catalogue.loc[catalogue["excluded"] == "", "path"][:40]:
        ours, expected = ours_and_torchvisions(phantoms / path)
        assert ours.shape == (3, 224, 224)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1.01 / 255 / min(STD))


def test_real_radiographs_equal_torchvision_to_one_grey_level(radiographs):
    for file in sorted((radiographs / "images" / "Fractured").iterdir())[::40]:
        with Image.open(file) as image:
            if image.getexif().get(0x0112, 1) != 1:
                continue
        ours, expected = ours_and_torchvisions(file)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1.01 / 255 / min(STD))


def test_denormalise_inverts_normalise():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(IMAGENET.denormalise(IMAGENET.normalise(pixels)), pixels.expand(1, 3, 16, 16))


@pytest.mark.parametrize("preprocess", [IMAGENET, LETTERBOX], ids=["imagenet", "letterbox"])
def test_boxes_are_transformed_like_the_pixels(phantoms, catalogue, preprocess):
    boxes = read_boxes(phantoms)
    for row in catalogue[catalogue["label"] == 1].itertuples():
        mask = np.zeros((row.height, row.width), dtype=np.uint8)
        left, top, right, bottom = boxes[row.image_id][0]
        mask[round(top) : round(bottom), round(left) : round(right)] = 255
        pixels = preprocess(Image.fromarray(mask))[0] > 127
        moved = preprocess.boxes(boxes[row.image_id], row.width, row.height)[0]
        drawn = torch.zeros(224, 224, dtype=torch.bool)
        drawn[round(moved[1].item()) : round(moved[3].item()), round(moved[0].item()) : round(moved[2].item())] = True
        if not pixels.any():
            continue
        assert (pixels & drawn).sum() / (pixels | drawn).sum() > 0.75


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (101, 100), (50, 50), (3000, 11)])
def test_a_letterbox_contains_the_complete_image_and_padding(width, height):
    image = Image.fromarray(np.full((height, width), 200, dtype=np.uint8))
    pixels = letterbox(size=96, fill=7, mean=MEAN, std=STD)(image)[0].numpy()
    assert pixels.shape == (96, 96)
    inside = pixels == 200
    rows, columns = inside.any(1).sum(), inside.any(0).sum()
    assert max(rows, columns) == 96
    assert min(rows, columns) == max(1, int(96 * min(width, height) / max(width, height)))
    assert (pixels[~inside] == 7).all()
    if rows < 96:  # centred
        assert abs(int(np.argmax(inside.any(1))) - (96 - rows) // 2) <= 1


@pytest.mark.parametrize("preprocess", [IMAGENET, LETTERBOX], ids=["imagenet", "letterbox"])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (2304, 2880), (101, 100), (50, 50), (3000, 11)])
def test_the_view_is_the_region_that_the_square_shows(preprocess, width, height):
    left, top, right, bottom = preprocess.view(width, height)
    square = preprocess.boxes(np.array([[left, top, right, bottom]]), width, height)
    np.testing.assert_allclose(square, [[0, 0, 224, 224]], atol=1e-3)
    # A view that is too large would be cut to the same square, but its quarters would not be quarters of the square.
    inner = np.array([[left + (right - left) / 2, top + (bottom - top) / 2, right, bottom]])
    np.testing.assert_allclose(preprocess.boxes(inner, width, height)[0, :2], 112, atol=1e-3)
    margins = np.array([left, top, width - right, height - bottom])
    assert (margins > -1e-3).all() if preprocess is IMAGENET else (margins < 1e-3).all()


def test_a_bright_square_is_at_the_position_that_the_view_gives():
    for preprocess in (IMAGENET, LETTERBOX):
        pixels = np.zeros((480, 640), dtype=np.uint8)
        pixels[200:240, 360:400] = 255
        rows, columns = np.nonzero(preprocess(Image.fromarray(pixels))[0].numpy() > 127)
        left, top, right, bottom = preprocess.view(640, 480)
        assert left + (columns.mean() + 0.5) / 224 * (right - left) == pytest.approx(380, abs=1)
        assert top + (rows.mean() + 0.5) / 224 * (bottom - top) == pytest.approx(220, abs=1)


def test_augmentation_depends_on_the_seed_only():
    augment = light_augmentation(flip=0.5, degrees=10, brightness=0.2, contrast=0.2)
    image = torch.randint(0, 256, (1, 64, 64), dtype=torch.uint8)
    torch.manual_seed(1)
    one = augment(image)
    torch.manual_seed(1)
    assert torch.equal(augment(image), one)
    assert (one.shape, one.dtype) == (image.shape, torch.uint8)
    assert not torch.equal(one, image)


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(InputError, match="preprocess.crop=256 should be at most preprocess.resize=224"):
        resize_and_crop(resize=224, crop=256, mean=MEAN, std=STD)
