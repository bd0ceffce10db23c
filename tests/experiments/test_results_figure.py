import itertools
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.evaluation.localisation import BOX_SIZES
from fractatlas.experiments import plan_tables, results_figure
from fractatlas.experiments.plan_tables import PlanTables
from fractatlas.experiments.results_figure import (
    MOST_RECIPES,
    PRINTED,
    RecipeCurves,
    draw_results,
    score_curves,
    write_results,
)
from fractatlas.experiments.run_records import RunRecord
from fractatlas.experiments.where_tables import Located
from fractatlas.report.figures import GRID, precision_recall_curves, roc_curves

LONG = "a recipe whose name is longer than one line of the legend can be: "


@pytest.fixture(autouse=True)
def style():
    """Use the style of the figure, also where matplotlib reads it late."""
    with matplotlib.rc_context(PRINTED):
        yield


def other_seed(record: RunRecord) -> RunRecord:
    """Return a second run of a recipe, with other predictions of the same images."""
    probability = np.random.default_rng(0).random(len(record.predictions))
    return replace(
        record, facts=record.facts | {"seed": 2}, predictions=record.predictions.assign(probability=probability)
    )


def made_up(name: str, number: int, bands: bool, froc: bool = True, boxes: bool = True) -> tuple[RecipeCurves, Located]:
    """Return the curves and the scores of the heatmaps of a recipe."""
    curve = GRID ** (0.2 + 0.1 * number)
    several = np.array([curve, curve - 0.1, curve + 0.1] if bands else [curve])
    ends = {"false_alarms": [0.05, 4.0], "sensitivity": [0.2, 0.5], "low": [0.1, 0.4], "high": [0.3, 0.6]}
    rows = [
        {"subset": subset, "stratum": size, "n": 1000 + number, "hit": value, "hit_low": low, "hit_high": 0.9}
        for subset, value, low in (("val", 0.1, 0.05), ("test", 0.8, 0.6))
        for size in ["all", *BOX_SIZES, "hand"]
    ]
    return (
        RecipeCurves(name, 1 + number % 2, 1234, 200, several, several[:, ::-1]),
        Located(rows if boxes else [], {"test": ends} if froc else {}),
    )


def draw(names: list[str], bands: bool = True, froc: bool = True, boxes: bool = True) -> Figure:
    """Draw made-up recipes."""
    found = {name: made_up(name, number, bands, froc, boxes) for number, name in enumerate(names)}
    curves, located = ({name: pair[index] for name, pair in found.items()} for index in (0, 1))
    return draw_results(curves, located, bands)


def test_curves_and_bands_are_those_of_the_mean_over_seeds(kept):
    records = [kept[0], other_seed(kept[0])]
    found = score_curves("A", [[record] for record in records], bands=True)
    tables = [record.tables["test"] for record in records]
    weights = bootstrap_weights(tables[0]["group"])
    for curve, compute in ((found.roc, roc_curves), (found.precision_recall, precision_recall_curves)):
        one, other = (compute(table, weights) for table in tables)
        assert curve[0] == pytest.approx((one[0] + other[0]) / 2)
        assert not np.allclose(one[0], other[0])
        assert curve[1:] == pytest.approx(np.quantile((one[1:] + other[1:]) / 2, [0.025, 0.975], axis=0))
    assert (found.seeds, found.images, found.fractured) == (2, len(tables[0]), tables[0]["label"].sum())
    without = score_curves("A", [[record] for record in records], bands=False)
    assert without.roc == pytest.approx(found.roc[:1])


def test_curves_are_undefined_if_all_images_have_the_same_label(kept, tmp_path):
    record = replace(kept[0], predictions=kept[0].predictions.query("label == 0"))
    curves = score_curves("A", [[record]], bands=True)
    assert curves is None
    write_results(tmp_path, {"A": curves}, {"A": Located([], {})}, True)
    assert [*tmp_path.iterdir()] == [tmp_path / "predictions", tmp_path / "run"]  # of the record


def test_each_panel_shows_every_recipe_in_the_same_style():
    figure = draw(["A", "B"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b", "c", "d"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["A", "B"]
    expected = [(line.get_color(), line.get_linestyle()) for line in legend.get_lines()]
    assert len({colour for colour, _ in expected}) == len({style for _, style in expected}) == 2
    for axes in figure.axes[:3]:
        curves = [line for line in axes.get_lines() if line.get_linestyle() != ":"]
        assert [(line.get_color(), line.get_linestyle()) for line in curves] == expected
        assert len(axes.collections) == 2  # bands
    curve = made_up("A", 0, True)[0].roc[0]
    assert figure.axes[0].get_lines()[1].get_ydata() == pytest.approx(curve)
    assert figure.axes[1].get_lines()[1].get_ydata() == pytest.approx(curve[::-1])
    assert set(figure.axes[1].get_lines()[0].get_ydata()) == {200 / 1234}  # the prevalence
    points = [line for line in figure.axes[3].get_lines() if line.get_marker() in results_figure.MARKERS]
    assert [line.get_marker() for line in points] == [line.get_marker() for line in legend.get_lines()]
    assert [line.get_color() for line in points] == [colour for colour, _ in expected]
    for line, bars in zip(points, figure.axes[3].collections, strict=True):
        assert line.get_ydata() == pytest.approx([0.8] * 3)  # of the test subset
        assert [tuple(segment[:, 1]) for segment in bars.get_segments()] == [pytest.approx((0.6, 0.9))] * 3
    labels = [label.get_text() for label in figure.axes[3].get_xticklabels()]
    assert labels[0] == "below 16\nn = 1,000\nto 1,001"


def test_a_recipe_without_heatmaps_leaves_out_its_style():
    found = {"A": made_up("A", 0, True, froc=False, boxes=False), "B": made_up("B", 1, True)}
    curves, located = ({name: pair[index] for name, pair in found.items()} for index in (0, 1))
    figure = draw_results(curves, located, True)
    _, expected = figure.legends[0].get_lines()
    (curve,) = figure.axes[2].get_lines()
    assert (curve.get_color(), curve.get_linestyle()) == (expected.get_color(), expected.get_linestyle())
    assert figure.axes[3].get_xticklabels()[0].get_text() == "below 16\nn = 1,001"


@pytest.mark.parametrize(
    ("names", "froc", "boxes", "panels"),
    [
        (["A", "B"], True, True, 4),
        (["A", "B"], False, True, 3),
        (["A"], False, False, 2),
        ([f"{LONG}{number}" for number in range(MOST_RECIPES)], True, True, 4),
    ],
    ids=["four panels", "three panels", "two panels", "long names"],
)
def test_no_text_is_clipped_or_overlaps_another(names, froc, boxes, panels):
    figure = draw(names, bands=len(names) < 3, froc=froc, boxes=boxes)
    figure.draw_without_rendering()
    assert len(figure.axes) == panels
    texts = []
    for axes in figure.axes:
        texts += [axes.xaxis.label, axes.yaxis.label]
        for index, labels, (low, high) in (
            (0, axes.get_xticklabels(), axes.get_xlim()),
            (1, axes.get_yticklabels(), axes.get_ylim()),
        ):
            texts += [label for label in labels if low <= label.get_position()[index] <= high]
    extents = [text.get_window_extent() for text in texts] + [figure.legends[0].get_window_extent()]
    for extent in extents:
        assert extent.x0 >= 0
        assert extent.y0 >= 0
        assert extent.x1 <= figure.bbox.x1
        assert extent.y1 <= figure.bbox.y1
    for (one, first), (other, second) in itertools.combinations(zip([*texts, "legend"], extents, strict=True), 2):
        assert not first.overlaps(second), (one, other)
    assert min(text.get_fontsize() for text in [*texts, *figure.legends[0].get_texts()]) >= 7


def test_the_file_has_the_size_of_a_printed_page_and_a_caption(tmp_path):
    names = ["A", "B", "C", "D"]
    found = {name: made_up(name, number, True) for number, name in enumerate(names)}
    curves, located = ({name: pair[index] for name, pair in found.items()} for index in (0, 1))
    write_results(tmp_path, curves, located, True, "A note.\n")
    with Image.open(tmp_path / "results.png") as picture:
        assert picture.width == 2100
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert (tmp_path / "results.png").stat().st_size < 300_000
    caption = (tmp_path / "results.md").read_text()
    assert "(c) FROC curves. (d) Pointing game" in caption
    assert "vertical averages" in caption
    assert "Pointwise bands and error bars: 95 %" in caption
    assert "B: 1,234 images, 200 with a fracture, 2 seeds." in caption
    assert caption.endswith("A note.\n")
    write_results(tmp_path, {"A": curves["A"]}, {"A": Located([], {})}, False)
    caption = (tmp_path / "results.md").read_text()
    assert all(word not in caption for word in ("FROC", "(c)", "averages", "intervals"))


@pytest.mark.parametrize("most", [MOST_RECIPES, 0], ids=["few recipes", "too many recipes"])
def test_froc_curves_that_are_in_the_results_are_not_drawn_again(kept, tmp_path, monkeypatch, most):
    monkeypatch.setattr(results_figure, "MOST_RECIPES", most)
    drawn = []
    monkeypatch.setattr(
        plan_tables.where_tables,
        "write_froc",
        lambda out, located: drawn.append([(one.rows[-1]["recipe"], one.rows[-1]["subset"]) for one in located]),
    )
    out = tmp_path / "out"
    out.mkdir()
    for name in results_figure.FILES:
        (out / name).touch()  # of an earlier plan
    record, folder, _ = kept
    images = pd.read_csv(folder / "images.csv.gz")
    tables = PlanTables(out, ["A"], ["V"], [], None, {})
    assert tables.write({"A": [[record]], "V": [[record]]}, images)
    assert drawn == [[("V", "val")] if most else [("V", "val"), ("A", "test")]]
    assert [(out / name).exists() for name in results_figure.FILES] == [bool(most)] * 2
    if most:
        assert (out / "results.md").read_text().startswith("Test subset. (a) ROC curves")
        assert "(d) Pointing game" in (out / "results.md").read_text()
