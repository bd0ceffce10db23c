import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from fractatlas.data.images import decode
from fractatlas.data.sources.fracatlas import FracAtlas
from fractatlas.data.transforms import letterbox, light_augmentation, resize_and_crop
from fractatlas.errors import InputError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGENET = resize_and_crop(resize=256, crop=224, mean=MEAN, std=STD)
AUGMENT = light_augmentation(flip=0.5, degrees=10, brightness=0.2, contrast=0.2)
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
    boxes = FracAtlas(phantoms).boxes()
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
    images = torch.randint(0, 256, (3, 1, 64, 64), dtype=torch.uint8)
    torch.manual_seed(1)
    one = AUGMENT(images)
    torch.manual_seed(1)
    assert torch.equal(AUGMENT(images), one)
    assert (one.shape, one.dtype) == (images.shape, torch.float32)
    assert 0 <= one.min() < one.max() <= 255


def test_every_image_of_a_batch_is_augmented_differently():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8)
    different = AUGMENT(image.expand(50, -1, -1, -1)).flatten(1).unique(dim=0)
    assert len(different) == 50


def test_augmentation_has_the_distribution_of_torchvisions_transforms():
    torch.manual_seed(0)
    image = torch.zeros(1, 64, 64, dtype=torch.uint8)
    image[:, 20:40, 16:28], image[:, 28:32, 40:52] = 200, 90  # not symmetric, so that a flip and an angle can be seen
    each = v2.Compose(
        [v2.RandomHorizontalFlip(0.5), v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR),
         v2.ColorJitter(0.2, 0.2)]
    )  # fmt: skip
    ours = statistics(AUGMENT(image.expand(600, -1, -1, -1)))
    theirs = statistics(torch.stack([each(image) for _ in range(600)]).float())
    for name, values in ours.items():
        assert scipy.stats.ks_2samp(values, theirs[name]).pvalue > 0.001, name
        assert values.std() > 0, name


def statistics(images):
    """Return the mean, the brightest value, and the centre and the angle of the bright part of each image."""
    images = images[:, 0].double()
    weights = images / images.sum((1, 2), keepdim=True)
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    x, y = ((weights * position).sum((1, 2), keepdim=True) for position in (columns, rows))
    products = ((columns - x) * (rows - y), (columns - x) ** 2, (rows - y) ** 2)
    xy, xx, yy = ((weights * product).sum((1, 2)) for product in products)
    angle = torch.atan2(2 * xy, xx - yy)
    values = {"mean": images.mean((1, 2)), "maximum": images.amax((1, 2)), "x": x.flatten(), "y": y.flatten()}
    return {name: value.numpy() for name, value in (values | {"angle": angle}).items()}


@pytest.mark.parametrize("scale", [0.0, 0.25])
def test_boxes_and_masks_are_augmented_like_the_images(scale):
    torch.manual_seed(0)
    augment = light_augmentation(flip=0.5, degrees=10, brightness=0.2, contrast=0.2, scale=scale)
    images = torch.zeros(20, 1, 128, 128, dtype=torch.uint8)
    images[:, :, 30:60, 80:100] = 255
    boxes = [torch.tensor([[80.0, 30.0, 100.0, 60.0]]) if row else torch.zeros(0, 4) for row in range(20)]
    augmented, moved, masks = augment(images, boxes, (images > 0).float())
    assert moved[0].shape == (0, 4)
    assert masks.unique().tolist() == [0, 1]
    for image, box, mask in list(zip(augmented, moved, masks, strict=True))[1:]:
        rows, columns = torch.nonzero(image[0] > image[0].max() / 2, as_tuple=True)
        bounds = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert box[0] == pytest.approx(bounds, abs=2)
        bright = image > image.max() / 2
        assert (bright == mask.bool()).float().mean() > 0.99


def test_images_are_scaled_by_up_to_the_factor():
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 128, 128, dtype=torch.uint8)
    images[:, :, 44:84, 44:84] = 255
    augment = light_augmentation(flip=0.0, degrees=0.0, brightness=0.0, contrast=0.0, scale=0.25)
    factors = augment(images).sum(dim=(1, 2, 3)).sqrt() / images.float().sum(dim=(1, 2, 3)).sqrt()
    assert 0.78 < factors.min() < 0.83
    assert 1.2 < factors.max() < 1.27


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(InputError, match="preprocess.crop=256 should be at most preprocess.resize=224"):
        resize_and_crop(resize=224, crop=256, mean=MEAN, std=STD)
