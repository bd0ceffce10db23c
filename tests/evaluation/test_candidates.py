import time

import numpy as np
import pytest
from PIL import Image

from fractatlas.data.images import read_radiograph
from fractatlas.data.transforms import Preprocess, letterbox, resize_and_crop
from fractatlas.evaluation.candidates import COLUMNS, MOST, find_candidates, find_image_candidates
from fractatlas.evaluation.localisation import Heatmaps

NORMALISATION = {"mean": [0.5] * 3, "std": [0.5] * 3}


def find(heat, view, width, height):
    return find_image_candidates(np.asarray(heat, dtype=np.float32), np.array(view, dtype=np.float32), width, height)


def blob(x: float, y: float, radius: float, shape=(56, 56), peak: float = 1.0) -> np.ndarray:
    """A round peak with its centre at (x, y) in cells, half as high at the distance ``radius``."""
    rows, columns = np.indices(shape) + 0.5
    return peak * 0.5 ** (((columns - x) ** 2 + (rows - y) ** 2) / radius**2)


def test_one_hot_cell_is_one_box_of_the_size_of_the_cell():
    heat = np.zeros((4, 8))
    heat[1, 6] = 0.75
    np.testing.assert_allclose(find(heat, (0, 0, 160, 80), 160, 80), [[120, 20, 140, 40, 0.75, 130, 30]])


def test_the_box_of_a_peak_between_two_cells_reaches_to_half_of_its_heat():
    (found,) = find(blob(20.4, 30.9, 5), (0, 0, 448, 448), 448, 448)
    cell = 8
    expected = [(20.4 - 5) * cell, (30.9 - 5) * cell, (20.4 + 5) * cell, (30.9 + 5) * cell]
    np.testing.assert_allclose(found[:4], expected, atol=cell / 2)
    np.testing.assert_allclose(found[5:], [20.4 * cell, 30.9 * cell], atol=cell / 2)
    assert 0.98 < found[4] <= 1


def test_candidates_have_decreasing_scores_and_small_peaks_in_a_region_are_none():
    heat = blob(15, 15, 6) + blob(40, 40, 4, peak=0.6) + blob(15, 45, 3, peak=0.3)
    heat[18, 18] += 0.05  # a peak of its own, in the region of the first
    found = find(heat, (0, 0, 448, 448), 448, 448)
    assert found[:, 4].tolist() == pytest.approx([1, 0.6, 0.3], abs=0.05)
    np.testing.assert_allclose(found[:, 5:], [[120, 120], [320, 320], [120, 360]], atol=8)


def test_the_region_of_a_candidate_does_not_contain_that_of_a_larger_one():
    heat = np.zeros((1, 9))
    heat[0] = [0, 0.8, 1, 0.45, 0.6, 0.4, 0.35, 0, 0]
    found = find(heat, (0, 0, 90, 10), 90, 10)
    assert found[:, 4].tolist() == pytest.approx([1, 0.6])
    (_, _, end, _), (start, _, last, _) = found[:, :4]
    assert found[0, 0] < 20
    assert 30 < end <= start < 40
    assert 60 < last < 80


def test_at_most_ten_candidates_are_returned_and_none_without_heat():
    generator = np.random.default_rng(0)
    heat = np.zeros((56, 56))
    heat[::4, ::4] = generator.random((14, 14))
    found = find(heat, (0, 0, 448, 448), 448, 448)
    assert len(found) == MOST
    assert found[:, 4].tolist() == pytest.approx(np.sort(heat.ravel())[::-1][:MOST].tolist())
    assert find(np.zeros((56, 56)), (0, 0, 448, 448), 448, 448).shape == (0, 7)


def test_a_constant_heatmap_is_one_box_of_the_radiograph_around_its_centre():
    np.testing.assert_allclose(find(np.full((7, 7), 0.5), (0, 0, 70, 140), 70, 140), [[0, 0, 70, 140, 0.5, 35, 70]])


@pytest.mark.parametrize("cells", [28, 112])
def test_heat_in_the_padding_of_a_letterbox_is_ignored(cells):
    heat = np.zeros((cells, cells))
    heat[:, : cells // 4] = 1  # the padding ends here
    heat[cells // 2, cells // 2] = 0.5
    (found,) = find(heat, (-128, 0, 384, 512), 256, 512)
    assert found[4] == 0.5
    heat[cells // 2, cells // 2 - cells // 4] = 0.9  # the outermost column of the radiograph
    found = find(heat, (-128, 0, 384, 512), 256, 512)
    np.testing.assert_allclose(found[0, :4], [0, 256, 512 / cells, 256 + 512 / cells], atol=1e-3)


def test_boxes_are_clipped_to_a_radiograph_that_ends_within_a_cell():
    heat = np.zeros((4, 4))
    heat[1, 3] = 1
    np.testing.assert_allclose(find(heat, (0, 0, 80, 80), 67, 80), [[60, 20, 67, 40, 1, 67, 30]])


def test_candidates_of_a_crop_are_in_pixels_of_the_radiograph():
    preprocess = resize_and_crop(resize=64, crop=32, **NORMALISATION)
    heat = np.zeros((8, 8))
    heat[0, 0] = 1
    view = preprocess.view(200, 100)
    (found,) = find(heat, view, 200, 100)
    np.testing.assert_allclose(found[:4], [75, 25, 75 + 50 / 8, 25 + 50 / 8], atol=1)


@pytest.mark.parametrize("axis", [0, 1])
def test_mirrored_heat_gives_mirrored_boxes(axis):
    generator = np.random.default_rng(1)
    heat = sum(blob(*generator.uniform(0, 56, 2), generator.uniform(1, 5), peak=generator.random()) for _ in range(9))
    view, size = (-40, -20, 488, 488), (448, 468)  # symmetric in both axes
    mirrored = find(np.flip(heat, axis), view, *size)
    expected = find(heat, view, *size)
    first, second, centre = ((1, 3, 6), (0, 2, 5))[axis]
    expected[:, [first, second]] = size[1 - axis] - expected[:, [second, first]]
    expected[:, centre] = size[1 - axis] - expected[:, centre]
    np.testing.assert_allclose(mirrored, expected, atol=1e-3)


def heat_of(pixels: np.ndarray) -> np.ndarray:
    """Take the mean of 8 x 8 pixels of the network's input as heat: it is highest where the image is brightest."""
    side = pixels.shape[-1] // 8
    return pixels.reshape(side, 8, side, 8).mean(axis=(1, 3)) / 255


@pytest.mark.parametrize("preprocess", [letterbox(size=256, fill=0, **NORMALISATION),
                                        resize_and_crop(resize=256, crop=224, **NORMALISATION)])  # fmt: skip
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_box_of_a_bright_square_is_in_pixels_of_the_upright_image(tmp_path, preprocess: Preprocess, orientation):
    pixels = np.zeros((600, 400), dtype=np.uint8)
    pixels[260:340, 120:180] = 255
    stored = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    upright = read_radiograph(tmp_path / "a.png")
    rows, columns = np.nonzero(np.asarray(upright) > 128)
    view = np.array(preprocess.view(*upright.size))
    (found,) = find_image_candidates(heat_of(preprocess(upright).numpy()[0]), view, *upright.size)
    cell = (view[2] - view[0]) / (preprocess.size / 8)
    square = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(found[:4], square, atol=0.6 * cell)
    assert square[0] < found[5] < square[2]
    assert square[1] < found[6] < square[3]


def test_the_table_has_the_candidates_of_the_images_whose_size_is_given():
    heat = np.zeros((3, 4, 4), dtype=np.float16)
    heat[0, 0, 0], heat[2, 3, 3], heat[2, 0, 0] = 0.5, 0.25, 0.75
    heatmaps = Heatmaps(np.array(["b", "c", "a"]), heat, np.tile(np.float32([0, 0, 40, 80]), (3, 1)))
    table = find_candidates(heatmaps, {"a": (40, 80), "b": (40, 80)})
    assert list(table) == COLUMNS
    assert table[["image_id", "left", "bottom", "score"]].to_numpy().tolist() == [
        ["b", 0, 20, 0.5], ["a", 0, 20, 0.75], ["a", 30, 80, 0.25]
    ]  # fmt: skip
    empty = find_candidates(heatmaps, {})
    assert list(empty) == COLUMNS
    assert empty.empty


def test_600_heatmaps_take_a_few_seconds():
    heat = np.random.default_rng(0).random((600, 56, 56)).astype(np.float16)
    ids = np.array([str(number) for number in range(600)])
    heatmaps = Heatmaps(ids, heat, np.tile(np.float32([0, 0, 448, 448]), (600, 1)))
    started = time.process_time()
    assert len(find_candidates(heatmaps, dict.fromkeys(ids.tolist(), (448, 448)))) == 600 * MOST
    assert time.process_time() - started < 20  # measured: 0.9
