"""Properties that hold for arbitrary inputs."""

import json
import math
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fractatlas.data.catalogue import read_catalogue
from fractatlas.data.sources.fracatlas import COCO, FracAtlas
from fractatlas.data.splits import SUBSETS, grouped_split, recorded_split
from fractatlas.errors import InputError
from fractatlas.evaluation.metrics import evaluate
from fractatlas.evaluation.predictions_table import read_predictions

REFUSED = "one error line, or a valid table"
# FRACTATLAS_EXAMPLES=10 runs ten times as many examples.
FACTOR = int(os.environ.get("FRACTATLAS_EXAMPLES", 1))
many = settings(max_examples=100 * FACTOR, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
few = settings(many, max_examples=20 * FACTOR)
tables = st.lists(
    st.lists(st.sampled_from(["a", "b", "1", "0", "", "0.5", "nan", "inf", "-1", "1e400", '"', "=1+1", "\r", "\0", "Ö"])
             | st.text(max_size=6), max_size=5),
    max_size=6,
)  # fmt: skip


def as_csv(header: str, rows: list[list[str]], codec: str) -> bytes:
    return "\n".join([header, *(",".join(row) for row in rows)]).encode(codec, errors="replace")


codecs = st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"])


def record_tried(record_property, how: settings) -> None:
    record_property("tried", how.max_examples)


@pytest.mark.fault("arbitrary predictions.csv (cells, quotes, encodings, bytes)", REFUSED)
def test_any_file_is_a_table_of_predictions_or_refused(tmp_path, record_property):
    @many
    @given(st.binary(max_size=200) | st.builds(as_csv, st.just("image_id,label,probability,group"), tables, codecs))
    def holds(content):
        file = tmp_path / "predictions.csv"
        file.write_bytes(content)
        try:
            table = read_predictions(file)
        except InputError:
            return
        assert table["label"].isin([0, 1]).all()
        assert table["probability"].between(0, 1).all()
        assert table["image_id"].is_unique
        assert table[["group", "split"]].notna().all(axis=None)

    holds()
    record_tried(record_property, many)


@pytest.mark.fault("arbitrary split.csv", REFUSED)
def test_any_file_is_a_split_or_refused(catalogue, tmp_path, record_property):
    @many
    @given(st.binary(max_size=200) | st.builds(as_csv, st.just("image_id,label,group,split"), tables, codecs))
    def holds(content):
        file = tmp_path / "split.csv"
        file.write_bytes(content)
        with pytest.raises(InputError):  # no generated file contains the images of this catalogue
            recorded_split(catalogue, path=str(file))

    holds()
    record_tried(record_property, many)


@pytest.fixture(scope="module")
def dozen(phantoms, tmp_path_factory):
    """A data folder of a dozen images."""
    root = tmp_path_factory.mktemp("dozen") / "data"
    listed = pd.read_csv(phantoms / "dataset.csv")
    kept = pd.concat([listed[listed["fractured"] == value].head(6) for value in (0, 1)])
    for name, folder in zip(kept["image_id"], kept["fractured"].map({0: "Non_fractured", 1: "Fractured"}), strict=True):
        (root / "images" / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(phantoms / "images" / folder / name, root / "images" / folder)
    kept.to_csv(root / "dataset.csv", index=False)
    return root


@pytest.mark.fault("arbitrary dataset.csv", REFUSED)
def test_any_file_is_a_dataset_csv_or_refused(dozen, record_property):
    header, *lines = (dozen / "dataset.csv").read_text().splitlines()

    @few
    @given(st.binary(max_size=200) | st.builds(as_csv, st.just(header), tables, codecs)
           | st.builds(lambda row, at, cell: "\n".join([header, *lines[:row], _with(lines[row], at, cell)]).encode(),
                       st.integers(0, len(lines) - 1), st.integers(0, 20), st.text(max_size=5)))  # fmt: skip
    def holds(content):
        (dozen / "dataset.csv").write_bytes(content)
        try:
            table = read_catalogue(FracAtlas(dozen))
        except InputError:
            return
        assert table["label"].isin([0, 1]).all()
        assert table["image_id"].is_unique

    holds()
    (dozen / "dataset.csv").write_text("\n".join([header, *lines]))
    record_tried(record_property, few)


def _with(line: str, at: int, cell: str) -> str:
    cells = line.split(",")
    cells[at % len(cells)] = cell
    return ",".join(cells)


@pytest.mark.fault("arbitrary COCO JSON", "one error line, or boxes of finite numbers")
def test_any_json_gives_boxes_or_is_refused(dozen, record_property):
    (dozen / COCO).parent.mkdir(parents=True, exist_ok=True)
    atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("IMG0000001.jpg")
    keys = st.sampled_from(["images", "annotations", "id", "image_id", "file_name", "bbox", "width", "height"])
    some_json = st.recursive(
        atoms, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=12
    )

    box = st.fixed_dictionaries({"image_id": st.integers(0, 1), "bbox": st.lists(st.floats() | atoms, max_size=5)})
    image = st.fixed_dictionaries({"id": st.integers(0, 1), "file_name": atoms})
    nearly = st.fixed_dictionaries({"images": st.lists(image, max_size=3), "annotations": st.lists(box, max_size=3)})
    four = st.lists(st.floats(), min_size=4, max_size=4)
    shaped = st.builds(
        lambda bbox: {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": bbox}]}, four
    )

    @many
    @given(some_json | nearly | shaped)
    def holds(content):
        (dozen / COCO).write_text(json.dumps(content))
        try:
            boxes = FracAtlas(dozen).boxes()
        except InputError:
            return
        assert all(isinstance(name, str) for name in boxes)
        assert all(np.isfinite(one).all() and one.shape[1:] == (4,) for one in boxes.values())

    holds()
    (dozen / COCO).unlink()
    record_tried(record_property, many)


@pytest.mark.fault(
    "arbitrary labels and probabilities (ties, one class, one image)",
    "in range with low < high, without an interval, or undefined",
)
def test_each_metric_is_in_its_range_or_undefined(record_property):
    row = st.tuples(st.integers(0, 1), st.integers(0, 16).map(lambda k: k / 16) | st.floats(0, 1), st.integers(0, 4))

    @many
    @given(st.lists(row, min_size=1, max_size=20), st.floats(0, 1))
    def holds(rows, threshold):
        table = pd.DataFrame(rows, columns=["label", "probability", "group"])
        scores = evaluate(table, threshold)
        shuffled = evaluate(table.sample(frac=1, random_state=0), threshold)
        for name, score in scores.items():
            if not isinstance(score, dict):
                continue
            least = -1 if name == "mcc" else 0
            assert math.isfinite(score["value"])
            assert shuffled[name]["value"] == pytest.approx(score["value"])
            if score["low"] is None:
                assert score["reason"]
                continue
            assert math.isfinite(score["low"])
            assert math.isfinite(score["high"])
            assert least - 1e-9 <= score["low"] < score["high"] <= 1 + 1e-9
        both = table["label"].nunique() == 2
        assert (scores["auroc"] is not None) == both
        if both and (table["probability"] * 16 % 1 == 0).all():  # 1 - p is exact
            swapped = evaluate(table.assign(label=1 - table["label"], probability=1 - table["probability"]))
            assert swapped["auroc"]["value"] == pytest.approx(scores["auroc"]["value"])

    holds()
    record_tried(record_property, many)


@pytest.mark.fault("arbitrary groups and labels, split", "no group in two subsets, no image lost, or refused")
def test_no_group_is_divided(record_property):
    @few
    @given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=1, max_size=120), st.integers(0, 99))
    def holds(rows, seed):
        catalogue = pd.DataFrame(rows, columns=["group", "label"])
        catalogue["image_id"] = [f"IMG{number:07d}.jpg" for number in range(len(rows))]
        catalogue["group"] = catalogue["group"].astype(str)
        catalogue = catalogue.assign(excluded="", duplicates="", exam=catalogue["group"])
        try:
            split = grouped_split(catalogue, ratios=(0.7, 0.15, 0.15), seed=seed)
        except InputError:
            return
        assert (split.groupby("group")["split"].nunique() == 1).all()
        assert sorted(split["image_id"]) == sorted(catalogue["image_id"])
        assert set(split["split"]) == set(SUBSETS)

    holds()
    record_tried(record_property, few)
