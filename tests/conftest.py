"""Phantoms in the published layout, real radiographs where they are, and runs without a command line."""

import os
import signal
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from fractatlas.config import TrainConfig, check
from fractatlas.data import phantom
from fractatlas.data.catalogue import read_catalogue

# A suite that a shell started in the background ignores Ctrl-C, and so would every command that it tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
REPOSITORY = Path(__file__).parents[1]
# A network of a few thousand weights on images of 64 pixels: enough for everything but accuracy.
SMALL = (
    "data=phantom", "model=densenet", "model.variant=densenet_tiny", "model.weights=null", "trainer=cpu",
    "preprocess.resize=64", "preprocess.crop=64", "data.batch_size=16", "data.num_workers=0", "report=false",
)  # fmt: skip


FAULTS = """# What was tried

`make faults` runs every test marked `fault` and writes this table. *Tried* counts kills, inputs or cases.

| fault or input | tried | outcome |
|---|--:|---|
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="write what the tests marked `fault` tried")


class FaultTable:
    """What the tests marked ``fault`` tried, gathered from the processes that ran them."""

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
            + (f"{counts['skipped']} not tried here; " if counts["skipped"] else "")
            + f"{outcome} |"
            for (what, outcome), counts in sorted(self.rows.items())
        ]
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
    return read_catalogue(phantoms)


@pytest.fixture(scope="session")
def radiographs() -> Path:
    """The folder of real radiographs."""
    root = Path(os.environ.get("FRACATLAS_ROOT", REPOSITORY.parent / "shared" / "fracatlas"))
    if not (root / "dataset.csv").is_file():
        pytest.skip("no FracAtlas: set FRACATLAS_ROOT to its folder")
    return root


@pytest.fixture(scope="session")
def real_catalogue(radiographs, tmp_path_factory) -> pd.DataFrame:
    return read_catalogue(radiographs, tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="session")
def pretrained() -> Path:
    """The folder of real ImageNet weights."""
    folder = Path(os.environ.get("FRACATLAS_WEIGHTS", REPOSITORY.parent / "shared" / "weights"))
    if not (folder / "densenet169_imagenet_features.pth").is_file():
        pytest.skip("no ImageNet weights: set FRACATLAS_WEIGHTS to their folder")
    return folder


@pytest.fixture(scope="session")
def configuration(phantoms, tmp_path_factory):
    """Compose and check a small run on the phantoms: ``configuration(run_folder, *overrides)``."""
    cache = tmp_path_factory.mktemp("cache")

    def make(run: Path, *overrides: str) -> dict:
        paths = (f"data.root={phantoms}", f"paths.root={run}", f"paths.output_dir={run}", f"paths.cache_dir={cache}")
        with initialize_config_dir(str(REPOSITORY / "conf"), job_name="test"):
            return check(compose("train", [*SMALL, *paths, *overrides]), TrainConfig)

    return make
