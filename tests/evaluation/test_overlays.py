import numpy as np
from PIL import Image

from fractatlas.evaluation.overlays import BOX_COLOUR, overlay


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


def test_without_heat_and_boxes_the_image_is_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20), dtype=np.uint8)
    assert (np.asarray(overlay(Image.fromarray(pixels), np.zeros((30, 20)))) == pixels[..., None]).all()
