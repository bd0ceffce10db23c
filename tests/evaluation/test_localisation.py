import pickle

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fractatlas.errors import InputError
from fractatlas.evaluation.localisation import Heatmaps, localise, place, read_heatmaps, summarise

FULL_VIEW = (0, 0, 512, 512)


def score(heat, view, boxes, width=512, height=512):
    """Return the row of a single radiograph."""
    heat = np.asarray(heat, dtype=np.float32)
    heatmaps = Heatmaps(np.array(["a.jpg"]), heat[None], np.array([view], dtype=np.float32))
    boxes = {"a.jpg": np.array(boxes, dtype=np.float32)}
    return localise(heatmaps, boxes, {"a.jpg": (width, height)}).iloc[0]


def single_cell(row, column, shape=(16, 16)):
    heat = np.zeros(shape)
    heat[row, column] = 1
    return heat


def test_heat_in_the_box_is_a_hit_with_a_share_of_1():
    row = score(single_cell(4, 10), FULL_VIEW, [[256, 64, 416, 224]])
    assert (row["hit"], row["share"]) == (1, 1.0)
    assert row["box_size"] == 80


def test_heat_outside_the_box_is_no_hit_with_a_share_of_0():
    row = score(single_cell(12, 3), FULL_VIEW, [[256, 64, 416, 224]])
    assert (row["hit"], row["share"]) == (0, 0.0)


def test_any_of_several_boxes_can_be_hit_and_their_overlap_counts_once():
    row = score(single_cell(12, 3), FULL_VIEW, [[0, 0, 64, 64], [64, 320, 192, 448], [128, 320, 192, 480]])
    assert row["hit"] == 1
    assert row["hit_chance"] == (64 * 64 + 128 * 128 + 64 * 32) / 512**2
    assert row["box_size"] == 80


def test_a_constant_heatmap_scores_like_chance():
    row = score(np.full((7, 7), 0.3), FULL_VIEW, [[33, 40, 101, 90]])
    assert row["share"] == pytest.approx(row["share_chance"])
    assert row["share_chance"] == pytest.approx(68 * 50 / 512**2, rel=0.05)
    assert row["hit"] == row["hit_centre"] == 0


def test_a_heatmap_of_zeros_is_no_hit():
    row = score(np.zeros((7, 7)), FULL_VIEW, [[200, 200, 300, 300]])
    assert (row["hit"], row["share"], row["hit_centre"]) == (0, 0.0, 1)


def test_a_box_outside_the_crop_is_no_hit():
    crop = (64, 64, 448, 448)
    for heat in (single_cell(0, 0, (7, 7)), np.ones((7, 7))):
        row = score(heat, crop, [[0, 0, 60, 60]])
        assert (row["hit"], row["share"]) == (0, 0.0)
        assert row["hit_chance"] > 0


def test_the_maximum_of_a_cell_at_the_edge_is_its_centre():
    assert score(single_cell(0, 15), FULL_VIEW, [[484, 12, 508, 20]])["hit"] == 0
    assert score(single_cell(0, 15), FULL_VIEW, [[499, 2, 510, 14]])["hit"] == 1


def test_the_padding_of_a_letterbox_does_not_count():
    view, box = (-128, 0, 384, 512), [[96, 192, 192, 320]]  # a radiograph of 256 x 512 in the middle
    padding, bone = single_cell(8, 1), single_cell(8, 8)
    row = score(padding + bone, view, box, width=256)
    assert (row["hit"], row["share"]) == (1, 1.0)
    assert score(padding, view, box, width=256)["hit"] == 0


@pytest.mark.parametrize("scale", [1, 3, 9])
def test_scores_do_not_depend_on_the_size_of_the_radiograph(scale):
    generator = np.random.default_rng(0)
    heat = generator.random((7, 7))
    boxes, view = np.array([[40, 60, 90, 100]]), np.array([16, 16, 240, 240])
    row = score(heat, view * scale, boxes * scale, width=256 * scale, height=256 * scale)
    assert row.drop("image_id").to_dict() == pytest.approx(
        score(heat, view, boxes, 256, 256).drop("image_id").to_dict()
    )


def test_place_resamples_like_pillows_bilinear_resize():
    heat = np.random.default_rng(0).random((7, 5)).astype(np.float32)
    theirs = np.asarray(Image.fromarray(heat).resize((50, 70), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(place(heat, (0, 0, 50, 70), 50, 70), theirs, atol=1e-6)
    placed = place(heat, (10, 20, 60, 90), 80, 100)
    np.testing.assert_allclose(placed[20:90, 10:60], theirs, atol=1e-6)
    placed[20:90, 10:60] = 0
    assert not placed.any()


def test_images_with_boxes_and_a_size_are_scored_and_need_a_heatmap():
    heatmaps = Heatmaps(
        np.array(["a", "b", "c"]), np.ones((3, 2, 2), np.float32), np.tile(np.float32(FULL_VIEW), (3, 1))
    )
    boxes = {name: np.array([[0.0, 0, 9, 9]]) for name in ("a", "c", "d")}
    sizes = {"c": (512, 512), "b": (512, 512)}
    assert localise(heatmaps, boxes, sizes)["image_id"].tolist() == ["c"]
    assert localise(heatmaps, {}, sizes).empty
    with pytest.raises(InputError, match="heatmaps: 1 images with boxes have none, such as d"):
        localise(heatmaps, boxes, sizes | {"d": (512, 512)})


def test_summarise_returns_means_and_paired_differences_by_box_size():
    generator = np.random.default_rng(0)
    table = pd.DataFrame({"image_id": [f"{n}" for n in range(300)], "hit": generator.random(300) < 0.6})
    table["hit_centre"] = table["hit"] & (generator.random(300) < 0.5)
    table = table.assign(hit_chance=0.01, share=0.2, share_chance=0.01, box_size=np.repeat([10.0, 20.0, 32.0], 100))
    report = summarise(table, {name: name for name in table["image_id"]})
    assert [report[name]["n"] for name in report] == [300, 100, 100, 100]
    assert report["all"]["hit"]["value"] == pytest.approx(table["hit"].mean())
    difference = report["all"]["hit_minus_centre"]
    assert difference["value"] == pytest.approx(table["hit"].mean() - table["hit_centre"].mean())
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    # The difference is paired, and here correlated with the hits, so its interval is narrower.
    assert difference["high"] - difference["low"] < report["all"]["hit"]["high"] - report["all"]["hit"]["low"]
    assert report["32 px and more"]["hit"]["value"] == pytest.approx(table["hit"][200:].mean())
    share = report["all"]["share_minus_chance"]
    assert (share["value"], share["low"]) == (pytest.approx(0.19), None)


def test_a_box_size_without_images_has_no_interval():
    row = score(single_cell(4, 10), FULL_VIEW, [[256, 64, 416, 224]])
    report = summarise(pd.DataFrame([row]), {"a.jpg": 1})
    assert report["below 16 px"]["n"] == 0
    assert report["below 16 px"]["hit"] is None
    empty = summarise(pd.DataFrame([row])[:0], {})
    assert empty["all"]["hit"] is None


VALID = {
    "image_id": np.array(["a", "b"]),
    "heat": np.ones((2, 3, 3), np.float32),
    "view": np.tile(np.float32(FULL_VIEW), (2, 1)),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heat": None}, "has no array 'heat"),
        ({"image_id": np.array(["a", "a"])}, "image_id contains a more than once"),
        ({"image_id": np.array([1, 2])}, r"should be strings \(n,\)"),
        ({"image_id": np.array(["a", "b"], dtype=object)}, "is not a complete .npz file of plain arrays"),
        ({"heat": np.ones((3, 3, 3))}, r"heat is float64 \(3, 3, 3\), should be floats \(2, height, width\)"),
        ({"heat": -VALID["heat"]}, "the heat of a should be finite and at least 0"),
        ({"heat": VALID["heat"] * [[[1]], [[np.nan]]]}, "the heat of b should be finite"),
        ({"view": np.ones((2, 4))}, "the view of a should be left < right"),
        ({"view": np.ones((2, 3))}, r"view is float64 \(2, 3\)"),
    ],
)
def test_invalid_arrays_are_refused_in_one_line(tmp_path, change, message):
    file = tmp_path / "heat.npz"
    np.savez(file, **{name: value for name, value in (VALID | change).items() if value is not None})
    with pytest.raises(InputError, match=message) as raised:
        read_heatmaps(file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 half a zip", pickle.dumps({"heat": 1})])
def test_a_file_that_is_not_npz_is_refused(tmp_path, content):
    (tmp_path / "heat.npz").write_bytes(content)
    with pytest.raises(InputError, match="is not a complete .npz file"):
        read_heatmaps(tmp_path / "heat.npz")
    np.save(tmp_path / "heat.npy", np.ones(3))
    with pytest.raises(InputError, match="is not a complete .npz file"):
        read_heatmaps(tmp_path / "heat.npy")
    with pytest.raises(InputError, match="nowhere.npz: no such file"):
        read_heatmaps(tmp_path / "nowhere.npz")
