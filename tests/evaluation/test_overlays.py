import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fractatlas.evaluation.localisation import Heatmaps
from fractatlas.evaluation.overlays import (
    BOX_COLOUR,
    CANDIDATE_COLOUR,
    FRAME_COLOUR,
    SIDE,
    annotate,
    colour_key,
    draw_radiographs,
    full_heat,
    overlay,
    tile,
)


def test_heat_colours_only_the_pixels_where_it_is():
    image = Image.fromarray(np.full((60, 80), 100, dtype=np.uint8))
    heat = np.zeros((60, 80))
    heat[10:20, 30:50] = 1
    drawn = np.asarray(overlay(image, heat))
    assert drawn.shape == (60, 80, 3)
    hot = drawn[10:20, 30:50].reshape(-1, 3)
    assert (hot[:, 0] > hot[:, 2] + 30).all()  # red where it is hottest
    drawn = drawn.copy()
    drawn[10:20, 30:50] = 100
    assert (drawn == 100).all()


def test_boxes_are_outlines_also_beyond_the_image():
    image = Image.fromarray(np.zeros((60, 80), dtype=np.uint8))
    drawn = np.asarray(overlay(image, None, np.array([[20, 10, 40, 30], [70, 50, 95, 75]], dtype=np.float32)))
    outline = (drawn == BOX_COLOUR).all(axis=2)
    assert outline[10, 20:40].all()
    assert outline[29, 20:40].all()
    assert not outline[30].any()
    assert outline[10:30, 39].all()
    assert not outline[12:28, 22:38].any()
    assert outline[50, 70:80].all()


def test_candidates_are_outlines_in_their_own_colour_with_the_score_inside_the_image():
    image = Image.fromarray(np.full((200, 200), 90, dtype=np.uint8))
    candidates = np.array([[60, 80, 120, 140, 0.75], [150, 0, 200, 40, 0.5]])
    drawn = np.asarray(overlay(image, None, np.array([[10, 150, 40, 190]]), candidates=candidates))
    outline = (drawn == CANDIDATE_COLOUR).all(axis=2)
    assert outline[139, 60:120].all()
    assert outline[80:140, 119].all()
    assert outline[39, 150:190].any()
    assert not outline[141:].any()
    assert (drawn[150, 10:40] == BOX_COLOUR).all()
    label = (drawn > 150).all(axis=2)  # white, with soft edges
    assert label[60:80, 60:100].any()  # above the first box
    assert label[40:60, 150:].any()  # below the second, which is at the upper edge
    other = np.asarray(overlay(image, None, candidates=candidates + np.array([0, 0, 0, 0, 0.1])))
    assert (other[60:80] != drawn[60:80]).any()
    empty = overlay(image, None, candidates=np.zeros((0, 5)))
    assert (np.asarray(empty) == 90).all()


def test_without_heat_and_boxes_the_image_is_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20), dtype=np.uint8)
    assert (np.asarray(overlay(Image.fromarray(pixels), np.zeros((30, 20)))) == pixels[..., None]).all()


def test_the_part_that_the_network_receives_has_a_frame():
    image = Image.fromarray(np.zeros((60, 80), dtype=np.uint8))
    drawn = np.asarray(overlay(image, None, view=np.array([10.0, 5.0, 70.0, 55.0])))
    frame = (drawn == FRAME_COLOUR).all(axis=2)
    assert frame[5, 10:70].all()
    assert frame[54, 10:70].all()
    assert frame[5:55, 69].all()
    assert frame.sum() == 2 * 60 + 2 * 48


@pytest.mark.parametrize("view", [(0, 0, 80, 60), (0, -10, 80, 70)])  # the whole image, and a letterbox
def test_a_view_of_the_whole_radiograph_has_no_frame(view):
    image = Image.fromarray(np.zeros((60, 80), dtype=np.uint8))
    assert not np.asarray(overlay(image, None, view=np.array(view, dtype=float))).any()


def test_the_colour_key_has_the_colours_of_the_heat():
    key = np.asarray(colour_key(101, 4))
    heat = np.tile(np.linspace(0, 1, 101), (4, 1))
    assert (key == np.asarray(overlay(Image.new("L", (101, 4), 128), heat))).all()
    assert (key[:, 0] == 128).all()
    assert (key[:, -1, 0] > key[:, -1, 2] + 30).all()


def strip(**changes) -> np.ndarray:
    """The pixels that ``annotate`` adds below an image."""
    values = {"probability": 0.25, "highest": 1.0} | changes
    return np.asarray(annotate(Image.new("RGB", (256, 256)), **values))[256:]


def test_a_drawn_radiograph_has_its_probability_and_the_colour_key():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    assert (np.asarray(annotate(image, 0.25, 1.0))[:256] == np.asarray(image)).all()
    assert (strip() != strip(probability=0.75)).any()
    colours = np.abs(np.diff(strip().astype(int), axis=2)).max()
    assert colours > 30
    # Without heat there is no key, and the strip states it; without a heatmap there is one line less.
    assert not np.diff(strip(highest=0.0).astype(int), axis=2).any()
    assert len(strip(highest=None)) < len(strip(highest=0.0))
    assert len(strip(highest=0.0)) == len(strip())
    assert len(strip(note="2 boxes")) > len(strip())


def write_grey(file, shape):
    """Write a grey image with one brighter pixel, because constant images are refused."""
    pixels = np.full(shape, 90, dtype=np.uint8)
    pixels[-1, -1] = 91
    Image.fromarray(pixels).save(file)


@pytest.fixture
def radiograph(tmp_path):
    """A table of three images in a folder: with heat in a crop, with a heatmap of zeros, and without one."""
    for name in "abc":
        write_grey(tmp_path / f"{name}.png", (300, 400))
    table = pd.DataFrame({"image_id": list("abc"), "path": [f"{name}.png" for name in "abc"], "label": 1,
                          "probability": [0.9, 0.5, 0.1]})  # fmt: skip
    heat = np.stack([np.eye(2, dtype=np.float32), np.zeros((2, 2), dtype=np.float32)])
    view = np.array([[50, 0, 350, 300], [0, 0, 400, 300]], dtype=np.float32)
    return draw_radiographs(table, tmp_path, {}, Heatmaps(np.array(["a", "b"]), heat, view))


def test_drawn_radiographs_state_whether_heat_is_absent_or_cropped(radiograph):
    assert [item["highest"] for item in radiograph] == [1.0, 0.0, None]
    assert [item["cropped"] for item in radiograph] == [True, False, False]


def test_the_box_threshold_is_in_the_middle_of_the_colours():
    assert [full_heat(threshold) for threshold in (0.2, 0.6, 0.0, None)] == [0.4, 1.0, 1.0, 1.0]


def test_heat_is_drawn_with_the_colours_of_all_images_and_candidates_at_the_scale_of_the_picture(tmp_path):
    write_grey(tmp_path / "a.png", (512, 512))
    table = pd.DataFrame({"image_id": ["a"], "path": ["a.png"], "label": [1], "probability": [0.9]})
    heatmaps = Heatmaps(np.array(["a"]), np.full((1, 2, 2), 0.25, np.float16), np.float32([[0, 0, 512, 512]]))
    candidates = pd.DataFrame(
        [["a", 100, 200, 300, 400, 0.3], ["b", 0, 0, 50, 50, 0.9]],
        columns=["image_id", "left", "top", "right", "bottom", "score"],
    )
    (of_all,), (above,), (own,) = (
        draw_radiographs(table, tmp_path, {}, heatmaps, candidates, full) for full in (0.5, 0.1, None)
    )
    assert [item["highest"] for item in (of_all, above, own)] == [0.5, 1.0, 1.0]
    assert np.array_equal(np.asarray(above["image"]), np.asarray(own["image"]))
    assert np.ptp(np.asarray(of_all["image"])[0, 0]) < np.ptp(np.asarray(own["image"])[0, 0])
    rows, columns = np.nonzero((np.asarray(of_all["image"]) == CANDIDATE_COLOUR).all(axis=2))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (50, 100, 149, 199)


def test_a_grid_has_the_probability_below_each_radiograph(radiograph):
    grid = tile(radiograph, columns=2)
    assert grid.shape[1] == 2 * SIDE
    assert grid.shape[0] > 2 * SIDE
    assert (grid[SIDE : grid.shape[0] // 2, :SIDE] == 255).any()  # white text


def test_a_long_note_is_wrapped_to_the_width_of_the_image():
    note = "12 boxes of the fracture map and more\nresearch only, not a medical device"
    narrow = np.asarray(annotate(Image.new("RGB", (256, 512)), 0.25, 1.0, note))
    wide = np.asarray(annotate(Image.new("RGB", (512, 256)), 0.25, 1.0, note))
    assert narrow.shape[0] - 512 > wide.shape[0] - 256
    assert (narrow[512:, -2:] == 0).all(), "no letter is cut at the right edge"
