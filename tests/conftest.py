"""Fixtures that several folders of tests use, and the table of fault tests."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from fractatlas.config.schema import TrainConfig
from fractatlas.config.validation import validate
from fractatlas.data.catalogue import read_catalogue
from fractatlas.data.leaks import find_leaks
from fractatlas.data.sources import phantom
from fractatlas.data.sources.fracatlas import FracAtlas
from fractatlas.data.splits import grouped_split
from fractatlas.evaluation import metrics, subset_assessment
from fractatlas.evaluation.localisation import read_heatmaps

# A shell starts background jobs with SIGINT ignored, and the commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
REPOSITORY = Path(__file__).parents[1]
# A network of a few thousand weights on images of 64 pixels: too small for accuracy, large enough for the rest.
SMALL = (
    "data=phantom", "model=densenet", "model.variant=densenet_tiny", "model.weights=null", "trainer=cpu",
    "preprocess.resize=64", "preprocess.crop=64", "data.batch_size=16", "data.num_workers=0", "report=false",
)  # fmt: skip


FAULTS = """# Fault tests

`make faults` runs every test that is marked `fault` and writes this table. The second column
counts kills, inputs or cases.

| fault or input | cases | outcome |
|---|--:|---|
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="write the table of the tests marked `fault` to this file")


class FaultTable:
    """Collect the outcomes of the tests marked ``fault`` from all test processes, and write them as Markdown."""

    def __init__(self, file: Path):
        self.file, self.rows = file, {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if "fault" in properties and (report.when == "call" or not report.passed):
            counts = self.rows.setdefault(tuple(properties["fault"]), {"passed": 0, "failed": 0, "skipped": 0})
            counts[report.outcome] += properties.get("tried", 1)

    def pytest_sessionfinish(self) -> None:
        lines = [
            f"| {what} | {sum(counts.values()):,} | "
            + (f"**{counts['failed']} FAILED**; " if counts["failed"] else "")
            + (f"{counts['skipped']} skipped; " if counts["skipped"] else "")
            + f"{outcome} |"
            for (what, outcome), counts in sorted(self.rows.items())
        ]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(FAULTS + "\n".join(lines) + "\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    if (file := config.getoption("--fault-table")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FaultTable(file))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if marker := item.get_closest_marker("fault"):
        item.user_properties.append(("fault", marker.args))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A data folder of 160 phantoms."""
    root = tmp_path_factory.mktemp("data") / "phantoms"
    phantom.generate(root, images=160, seed=0)
    return root


@pytest.fixture(scope="session")
def catalogue(phantoms) -> pd.DataFrame:
    return read_catalogue(FracAtlas(phantoms))


@pytest.fixture(scope="session")
def radiographs() -> Path:
    """The folder of real radiographs."""
    if not (root := os.environ.get("FRACATLAS_ROOT")):
        pytest.skip("needs real radiographs: set FRACATLAS_ROOT to the folder of FracAtlas")
    return Path(root)


@pytest.fixture(scope="session")
def real_catalogue(radiographs, tmp_path_factory) -> pd.DataFrame:
    return read_catalogue(FracAtlas(radiographs), tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="session")
def pretrained() -> Path:
    """The folder of real ImageNet weights."""
    if not (folder := os.environ.get("FRACATLAS_WEIGHTS")):
        pytest.skip("needs ImageNet weights: set FRACATLAS_WEIGHTS to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def configuration(phantoms, tmp_path_factory):
    """Compose and check a small run on the phantoms: ``configuration(run_folder, *overrides)``."""
    cache = tmp_path_factory.mktemp("cache")

    def make(run: Path, *overrides: str) -> dict:
        paths = (f"data.root={phantoms}", f"paths.root={run}", f"paths.output_dir={run}", f"paths.cache_dir={cache}")
        with initialize_config_dir(str(REPOSITORY / "conf"), job_name="test"):
            return validate(compose("train", [*SMALL, *paths, *overrides]), TrainConfig)

    return make


@pytest.fixture(scope="session")
def run_folder(phantoms, catalogue, tmp_path_factory) -> Path:
    """A finished run folder with random predictions that correlate with the labels; no network is trained."""
    folder = tmp_path_factory.mktemp("logs") / "made_up" / "runs" / "1"
    folder.mkdir(parents=True)
    split = grouped_split(catalogue, ratios=[0.4, 0.3, 0.3], seed=0)
    catalogue.to_csv(folder / "catalogue.csv", index=False)
    split.to_csv(folder / "split.csv", index=False)
    scored = split[split["split"] != "train"]
    predictions = made_up_predictions(scored, 0)
    predictions.to_csv(folder / "predictions.csv", index=False)
    boxes = FracAtlas(phantoms).boxes()
    rows = catalogue.set_index("image_id").loc[scored["image_id"]]
    heat = np.zeros((len(rows), 8, 8), dtype=np.float16)
    heat[:, 0, 0] = 1  # the maximum is always at the upper left
    for number, (name, row) in enumerate(rows.iterrows()):
        if name in boxes and number % 3:  # and a lower peak in the box of two of three fractured images
            x, y = boxes[name][0].reshape(2, 2).mean(axis=0) * 8 / [row["width"], row["height"]]
            heat[number, int(y), int(x)] = max(heat[number, int(y), int(x)], 0.6)
    view = np.array([[0, 0, row.width, row.height] for row in rows.itertuples()], dtype=np.float32)
    np.savez(folder / "heatmaps.npz", image_id=rows.index.to_numpy(dtype=np.str_), heat=heat, view=view)
    record = {
        "task_name": "baseline_densenet",
        "operating_point": {"rule": "fixed", "threshold": 0.5, "temperature": 1.2, "box_threshold": 0.55},
        "heatmaps": "Grad-CAM",
        "data": {"root": str(phantoms), "images": len(catalogue), "excluded": {"truncated": 2},
                 "split": {"val": {"n": 1, "positives": 1}}},
        "leaks": find_leaks(split, catalogue),
    }  # fmt: skip
    record |= {name: metrics.evaluate(table) for name, table in predictions.groupby("split")}
    train = split.loc[split["split"] == "train", ["image_id", "label"]]
    heatmaps = read_heatmaps(folder / "heatmaps.npz")
    assessed = subset_assessment.assess(predictions, 0.5, catalogue, train, boxes, heatmaps, 0.55)
    record |= subset_assessment.write(folder, assessed)
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder


def made_up_predictions(split: pd.DataFrame, seed: int, skill: float = 1.5) -> pd.DataFrame:
    """Add random probabilities to a split; they correlate more with the labels if ``skill`` is higher."""
    noise = np.random.default_rng(seed).normal(size=len(split))
    return split.assign(probability=1 / (1 + np.exp(-(noise + skill * (split["label"] - 0.5)))))
