import json
from dataclasses import replace

import pandas as pd
import pytest

from fractatlas.experiments.pooled_folder import write_pooled
from fractatlas.experiments.run_records import RunRecord, read_images
from fractatlas.report.comparison_page import write_comparison


def divide(record: RunRecord, seed: int = 1) -> list[RunRecord]:
    """Divide the images of a record into three folds by group."""
    folds = pd.Series(pd.factorize(record.predictions["group"])[0] % 3, index=record.predictions["image_id"])
    settings = record.settings | {"split._target_": "fractatlas.data.splits.kfold_split", "split.folds": 3}
    tables = [
        [table[table["image_id"].map(folds) == fold] for table in (record.predictions, record.boxes, record.candidates)]
        for fold in range(3)
    ]
    return [
        replace(
            record,
            facts=record.facts | {"seed": seed, "fold": fold, "settings": settings | {"split.fold": fold}},
            predictions=predictions,
            boxes=boxes,
            candidates=candidates,
        )
        for fold, (predictions, boxes, candidates) in enumerate(tables)
    ]


def test_the_folder_has_the_scores_of_all_images_and_a_page(kept, tmp_path):
    record, folder, run = kept
    out = tmp_path / "pooled" / "a"
    write_pooled(out, "A", [divide(record)], read_images(folder))
    metrics = json.loads((out / "metrics.json").read_text())
    found, whole = metrics["detection"]["test"], run.metrics["detection"]["test"]
    assert (found["n"], found["boxes"]) == (whole["n"], whole["boxes"])
    for name in ("ap_30", "ap_50"):  # of the same candidates, in another order between the folds
        assert found[name]["value"] == pytest.approx(whole[name]["value"], abs=0.002)
    assert found["froc"]["4"]["value"] == pytest.approx(whole["froc"]["4"]["value"], abs=0.05)
    hits = run.metrics["localisation"]["test"]
    assert {name: row["n"] for name, row in metrics["localisation"]["test"].items()} == {
        name: row["n"] for name, row in hits.items()
    }
    assert metrics["localisation"]["test"]["all"]["hit_centre"] == pytest.approx(hits["all"]["hit_centre"])
    strata = set(pd.read_csv(out / "strata.csv")["attribute"])
    assert {"all", "body part", "view", "hardware", "image size", "box size"} <= strata
    page = (out / "report.html").read_text()
    assert "AP at IoU 0.5" in page
    assert "Each of 3 folds is test for one network" in page
    assert "The temperatures of the 3 networks are" in page
    assert "Most confident errors" not in page  # there are no radiographs
    assert "3 networks, 3 for each seed" in (out / "model_card.md").read_text()


def test_several_seeds_are_an_ensemble_and_folders_can_be_compared(kept, tmp_path):
    record = kept[0]
    other = replace(record, predictions=record.predictions.assign(probability=0.3 + 0.4 * record.predictions["label"]))
    out = tmp_path / "pooled"
    write_pooled(out / "one", "one", [divide(record)], None)
    write_pooled(out / "two", "two", [divide(record), divide(other, seed=2)], None)
    found = json.loads((out / "two" / "metrics.json").read_text())
    assert (found["seed"], found["operating_point"]["folds"]["networks"]) == ("1, 2", 6)
    assert "detection" not in found or not found["detection"]  # an ensemble has no heatmaps
    assert "averaged over the seeds" in (out / "two" / "model_card.md").read_text()
    _, differences = write_comparison(tmp_path / "comparison", [out / "one", out / "two"])
    auroc = differences.query("metric == 'auroc'").iloc[0]
    assert auroc["n"] == (record.predictions["split"] == "test").sum()
    assert auroc["difference"] > 0
