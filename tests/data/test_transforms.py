import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from fractatlas.data.catalogue import read_boxes
from fractatlas.data.inspection import decode
from fractatlas.data.transforms import letterbox, light_augmentation, resize_and_crop
from fractatlas.errors import InputError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
STUDY = resize_and_crop(resize=256, crop=224, mean=MEAN, std=STD)
LETTERBOX = letterbox(size=224, fill=0, mean=MEAN, std=STD)
REFERENCE = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


def both(file):
    with Image.open(file) as image:
        reference = REFERENCE(image.convert("RGB"))
    return STUDY.normalise(STUDY(decode(file.read_bytes()))[None])[0], reference


def test_the_studys_preprocessing_is_torchvisions_to_the_pixel(phantoms, catalogue):
    for path in catalogue.loc[catalogue["excluded"] == "", "path"][:40]:
        ours, reference = both(phantoms / path)
        assert ours.shape == (3, 224, 224)
        torch.testing.assert_close(ours, reference, rtol=0, atol=1.01 / 255 / min(STD))


def test_real_radiographs_differ_from_torchvisions_by_a_grey_level_at_most(radiographs):
    for file in sorted((radiographs / "images" / "Fractured").iterdir())[::40]:
        with Image.open(file) as image:
            if image.getexif().get(0x0112, 1) != 1:
                continue
        ours, reference = both(file)
        torch.testing.assert_close(ours, reference, rtol=0, atol=1.01 / 255 / min(STD))


def test_people_see_the_pixels_that_the_network_gets():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(STUDY.denormalise(STUDY.normalise(pixels)), pixels.expand(1, 3, 16, 16))


@pytest.mark.parametrize("preprocess", [STUDY, LETTERBOX], ids=["study", "letterbox"])
def test_boxes_move_with_the_pixels(phantoms, catalogue, preprocess):
    boxes = read_boxes(phantoms)
    for row in catalogue[catalogue["label"] == 1].itertuples():
        mask = np.zeros((row.height, row.width), dtype=np.uint8)
        left, top, right, bottom = boxes[row.image_id][0]
        mask[round(top) : round(bottom), round(left) : round(right)] = 255
        seen = preprocess(Image.fromarray(mask))[0] > 127
        moved = preprocess.boxes(boxes[row.image_id], row.width, row.height)[0]
        drawn = torch.zeros(224, 224, dtype=torch.bool)
        drawn[round(moved[1].item()) : round(moved[3].item()), round(moved[0].item()) : round(moved[2].item())] = True
        if not seen.any():
            continue
        assert (seen & drawn).sum() / (seen | drawn).sum() > 0.75


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (101, 100), (50, 50), (3000, 11)])
def test_a_letterbox_holds_the_whole_image_and_grey(width, height):
    image = Image.fromarray(np.full((height, width), 200, dtype=np.uint8))
    seen = letterbox(size=96, fill=7, mean=MEAN, std=STD)(image)[0].numpy()
    assert seen.shape == (96, 96)
    inside = seen == 200
    rows, columns = inside.any(1).sum(), inside.any(0).sum()
    assert max(rows, columns) == 96
    assert min(rows, columns) == max(1, int(96 * min(width, height) / max(width, height)))
    assert (seen[~inside] == 7).all()
    if rows < 96:  # in the middle
        assert abs(int(np.argmax(inside.any(1))) - (96 - rows) // 2) <= 1


@pytest.mark.parametrize("preprocess", [STUDY, LETTERBOX], ids=["study", "letterbox"])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (2304, 2880), (101, 100), (50, 50), (3000, 11)])
def test_the_view_is_the_part_of_the_image_that_the_square_shows(preprocess, width, height):
    left, top, right, bottom = preprocess.view(width, height)
    square = preprocess.boxes(np.array([[left, top, right, bottom]]), width, height)
    np.testing.assert_allclose(square, [[0, 0, 224, 224]], atol=1e-3)
    # The square would also come back from a view that is too large, cut: a part of the view is the same part of it.
    inner = np.array([[left + (right - left) / 2, top + (bottom - top) / 2, right, bottom]])
    np.testing.assert_allclose(preprocess.boxes(inner, width, height)[0, :2], 112, atol=1e-3)
    inwards = np.array([left, top, width - right, height - bottom])
    assert (inwards > -1e-3).all() if preprocess is STUDY else (inwards < 1e-3).all()


def test_a_bright_square_is_seen_where_the_view_says():
    for preprocess in (STUDY, LETTERBOX):
        pixels = np.zeros((480, 640), dtype=np.uint8)
        pixels[200:240, 360:400] = 255
        rows, columns = np.nonzero(preprocess(Image.fromarray(pixels))[0].numpy() > 127)
        left, top, right, bottom = preprocess.view(640, 480)
        assert left + (columns.mean() + 0.5) / 224 * (right - left) == pytest.approx(380, abs=1)
        assert top + (rows.mean() + 0.5) / 224 * (bottom - top) == pytest.approx(220, abs=1)


def test_augmentation_changes_pixels_by_the_seed_alone():
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
