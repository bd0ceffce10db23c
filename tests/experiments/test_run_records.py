import json

import numpy as np
import pandas as pd
import pytest

from fractatlas.errors import InputError
from fractatlas.evaluation.detection import FALSE_ALARMS, score
from fractatlas.evaluation.localisation import summarise
from fractatlas.experiments.pooling import pool
from fractatlas.experiments.run_records import (
    collect,
    configuration_hash,
    read_images,
    read_record,
    require_equal_settings,
    run_name,
    write_record,
)


@pytest.mark.parametrize("subset", ["val", "test"])
def test_scores_of_heatmaps_are_computed_from_a_record_alone(kept, subset):
    record, _, run = kept
    pooled = pool([record], subset)
    expected, found = run.metrics["detection"][subset], score(pooled.detections(pooled.table))
    assert (found["n"], found["boxes"], found["negatives"]) == tuple(
        expected[name] for name in ("n", "boxes", "negatives")
    )
    for name in FALSE_ALARMS:
        assert found["froc"][name] == pytest.approx(expected["froc"][name])
    for name in ("ap_30", "ap_50"):
        assert found[name]["value"] == pytest.approx(expected[name]["value"])
    assert 0 < found["froc"]["2"]["value"] < 1
    groups = pooled.table.set_index("image_id")["group"]
    for size, scores in summarise(pooled.located(), groups).items():
        assert scores["n"] == run.metrics["localisation"][subset][size]["n"]
        if scores["n"]:
            assert scores["share"] == pytest.approx(run.metrics["localisation"][subset][size]["share"], abs=1e-5)


def test_predictions_have_seven_digits_and_decide_the_same(kept):
    record, _, run = kept
    table = run.predictions.sort_values("image_id")
    found = record.predictions.sort_values("image_id")
    assert found["probability"].to_numpy() == pytest.approx(table["probability"].to_numpy(), rel=1e-6)
    assert (found["probability"].astype(str).str.len() <= 12).all()
    assert (
        (found["probability"] >= run.threshold).to_numpy() == (table["probability"] >= run.threshold).to_numpy()
    ).all()


def test_a_record_is_small_and_contains_no_path_of_the_machine(kept, phantoms, tmp_path):
    _, folder, _ = kept
    files = {file.name: file for file in folder.iterdir()}
    assert set(files) == {"a_seed_1.json", "a_seed_1.csv", "a_seed_1_boxes.csv", "a_seed_1_candidates.csv.gz",
                          "images.csv.gz"}  # fmt: skip
    text = files["a_seed_1.json"].read_text()
    assert str(phantoms) not in text
    assert str(tmp_path) not in text
    before = files["a_seed_1_candidates.csv.gz"].read_bytes()
    record = read_record(folder, "a_seed_1")
    write_record(folder, "a_seed_1", record, None)
    assert files["a_seed_1_candidates.csv.gz"].read_bytes() == before
    assert files["a_seed_1.json"].read_text() == text


def test_images_of_several_runs_are_joined(kept):
    record, folder, run = kept
    images = read_images(folder)
    more = run.catalogue.head(3).assign(image_id=["x1", "x2", run.catalogue["image_id"].iloc[2]], hand=7)
    write_record(folder, "b_seed_1", record, more)
    both = read_images(folder)
    assert len(both) == len(images) + 2
    assert both.set_index("image_id")["hand"][[*more["image_id"]]].tolist() == [7, 7, 7]


def test_hash_depends_on_settings_but_not_on_paths(make_run):
    first, same, other = (
        collect(make_run(name, *options), "A", 1, None).facts
        for name, options in (("a", []), ("b", ["paths.cache_dir=elsewhere", "data.num_workers=0"]),
                              ("c", ["optimizer.lr=0.5"]))
    )  # fmt: skip
    assert first["configuration_hash"] == same["configuration_hash"] == configuration_hash(first["settings"])
    assert first["configuration_hash"] != other["configuration_hash"]


def test_runs_of_a_recipe_may_differ_in_seed_and_fold_only(make_run):
    kfold = ["split=kfold", "seed=1"]
    first, second, other = (
        collect(make_run(name, *kfold, *options), "A", 1, 0)
        for name, options in (("a", []), ("b", ["split.fold=1", "seed=2"]), ("c", ["optimizer.lr=0.5"]))
    )
    require_equal_settings([first, second], ["a", "b"])
    with pytest.raises(InputError, match=r"c and a have other settings: optimizer.lr was 0.0002, is 0.5; delete one"):
        require_equal_settings([first, second, other], ["a", "b", "c"])


def test_a_damaged_or_incomplete_record_is_refused_in_one_line(kept):
    _, folder, _ = kept
    (folder / "a_seed_1_boxes.csv").unlink()
    with pytest.raises(InputError, match=r"a_seed_1_boxes.csv: No such file"):
        read_record(folder, "a_seed_1")
    for text in ("{", "[]", "{}", '{"located": []}'):
        (folder / "a_seed_1.json").write_text(text)
        with pytest.raises(InputError, match=r"a_seed_1.json: not the record of a run .*; restore the file, or delete"):
            read_record(folder, "a_seed_1")


def test_a_run_whose_data_folder_is_missing_is_refused(make_run, tmp_path):
    run = make_run("run")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["data"]["root"] = str(tmp_path / "nowhere")
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(InputError, match=r"its data folder .*nowhere is missing, but its boxes are needed; restore"):
        collect(run, "A", 1, None)


def test_a_run_without_heatmaps_has_no_files_of_boxes(make_run, tmp_path):
    run = make_run("run")
    for folder in (run, run / "test"):
        (folder / "localisation.csv").unlink()
    write_record(tmp_path / "out", "a_seed_1", collect(run, "A", 1, None), None)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"a_seed_1.csv", "a_seed_1.json"}
    pooled = pool([read_record(tmp_path / "out", "a_seed_1")], "test")
    assert pooled.boxes.empty
    assert pooled.detections(pooled.table) is None


def test_names_of_runs():
    assert run_name("with_map", 1, None) == "with_map_seed_1"
    assert run_name("with_map", 1, 0) == "with_map_seed_1_fold_0"


def test_boxes_have_the_highest_score_of_their_candidates(kept, phantoms):
    record, _, run = kept
    candidates = pd.read_csv(run.path / "candidates.csv").query("split == 'test'")
    boxes = record.boxes.query("split == 'test'")
    found = 0
    for row in boxes.itertuples():
        left, top, right, bottom = run.boxes[row.image_id][0]
        of_image = candidates[candidates["image_id"] == row.image_id]
        inside = of_image[of_image["x"].between(left, right) & of_image["y"].between(top, bottom)]
        assert np.isnan(row.score) if inside.empty else row.score == pytest.approx(inside["score"].max())
        found += not inside.empty
    assert 0 < found < len(boxes)
