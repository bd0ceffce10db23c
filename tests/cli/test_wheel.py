"""The wheel, installed without the checkout; the dependencies are those of this environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SMALL

pytestmark = pytest.mark.integration
PLAIN = {key: value for key, value in os.environ.items() if not key.startswith(("FRACATLAS_", "PYTHON"))}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("fractatlas", "conf"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    line = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
    ]
    subprocess.run([*line, str(source)], check=True, env=PLAIN)
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The scripts folder of a new environment."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    # A .pth file within a .pth folder is not read, so the editable installation of the checkout stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    line = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index",
            "--ignore-installed", str(wheel)]  # fmt: skip
    subprocess.run(line, check=True, env=PLAIN)
    return environment / "bin"


def run(*line: str | Path, folder: Path) -> str:
    result = subprocess.run(list(map(str, line)), cwd=folder, env=PLAIN, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_contains_every_configuration_template_and_module(wheel):
    files = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"fractatlas/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "conf").rglob("*.yaml")}
    suffixes = (".py", ".jinja", ".typed", ".yaml", ".html", ".css", ".js")
    package = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "fractatlas").rglob("*.*")
               if path.suffix in suffixes}  # fmt: skip
    assert {name for name in files if ".dist-info/" not in name} == conf | package


def test_an_installed_package_trains_and_takes_experiments_of_the_user(installed, tmp_path):
    location = run(installed / "python", "-c", "import fractatlas; print(fractatlas.__file__)", folder=tmp_path)
    assert Path(location).is_relative_to(installed.parent)
    small = [*SMALL, "data.prepare.images=60", "trainer.max_epochs=1"]
    run(installed / "fractatlas", "train", *small, folder=tmp_path)
    assert list(tmp_path.glob("logs/train/runs/*/metrics.json"))
    (tmp_path / "my conf" / "experiment").mkdir(parents=True)
    mine = tmp_path / "my conf" / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\ntask_name: mine\nmodel:\n  dropout: 0.25\n")
    run(installed / "fractatlas", "train", "--config-dir", mine.parents[1], "experiment=mine", *small, folder=tmp_path)
    (config,) = tmp_path.glob("logs/mine/runs/*/.hydra/config.yaml")
    assert "dropout: 0.25" in config.read_text()
