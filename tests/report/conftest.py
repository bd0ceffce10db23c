"""A run folder as training leaves it, with predictions that know the label a little; no network is trained."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fractatlas.data.catalogue import read_boxes
from fractatlas.data.splits import grouped_split


@pytest.fixture(scope="session")
def run(phantoms, catalogue, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("logs") / "made_up" / "runs" / "1"
    folder.mkdir(parents=True)
    split = grouped_split(catalogue, ratios=[0.4, 0.3, 0.3], seed=0)
    catalogue.to_csv(folder / "catalogue.csv", index=False)
    split.to_csv(folder / "split.csv", index=False)
    scored = split[split["split"] != "train"]
    made_up_predictions(scored, 0).to_csv(folder / "predictions.csv", index=False)
    boxes = read_boxes(phantoms)
    rows = catalogue.set_index("image_id").loc[[name for name in scored["image_id"] if name in boxes]]
    # As if the network looked at the upper left of every image.
    heat = np.zeros((len(rows), 4, 4), dtype=np.float32)
    heat[:, 0, 0] = 1
    view = np.array([[0, 0, row.width, row.height] for row in rows.itertuples()], dtype=np.float32)
    np.savez(folder / "heatmaps.npz", image_id=rows.index.to_numpy(dtype=np.str_), heat=heat, view=view)
    record = {
        "task_name": "baseline_densenet",
        "operating_point": {"rule": "fixed", "threshold": 0.5, "temperature": 1.2},
        "data": {"root": str(phantoms), "images": len(catalogue), "excluded": {"truncated": 2},
                 "crossings": {name: dict.fromkeys(("train", "val", "test"), 0) for name in ("duplicates", "groups")},
                 "split": {"val": {"n": 1, "positives": 1}}},
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder


def made_up_predictions(split: pd.DataFrame, seed: int, skill: float = 1.5) -> pd.DataFrame:
    noise = np.random.default_rng(seed).normal(size=len(split))
    return split.assign(probability=1 / (1 + np.exp(-(noise + skill * (split["label"] - 0.5)))))
