"""The container image: its steps, and the same steps in a clean environment."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
INSTALL = (REPOSITORY / "docker" / "install.sh").read_text(encoding="utf-8")
PAGE = (REPOSITORY / "docs" / "howto" / "container.md").read_text(encoding="utf-8")


def instructions(name: str) -> list[str]:
    """Return the arguments of an instruction of the Dockerfile, each time that it occurs."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def copied() -> dict[str, str]:
    """Return what the image contains, by path in the repository."""
    paths = {}
    for line in instructions("COPY"):
        *sources, target = line.split()
        paths |= dict.fromkeys(sources, target)
    return paths


def test_the_image_runs_the_command_as_a_user_without_privileges():
    order = re.findall(r"^(RUN|USER|ENTRYPOINT|WORKDIR) ?(.*)$", DOCKERFILE, re.MULTILINE)
    (user,) = instructions("USER")
    assert user == "fractatlas"
    assert f"useradd --create-home --uid 1000 {user}" in DOCKERFILE
    names = [name for name, _ in order]
    assert "RUN" not in names[names.index("USER") :]
    assert instructions("ENTRYPOINT") == ['["fractatlas"]']


def test_everything_that_is_copied_exists_and_is_not_ignored():
    rules = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert rules[1] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    for path in copied():
        assert (REPOSITORY / path).exists(), path
        assert path.partition("/")[0] in kept, path
    assert {"data", "logs", "weights", ".venv", ".git", "experiments"}.isdisjoint(kept)


def test_the_installation_has_the_same_uv_as_the_makefile_and_all_extras_of_a_server():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    version = re.search(r"uv==([\d.]+)", makefile)[1]
    assert f"uv=={version}" in INSTALL
    assert "'.[serve,dicom,export]'" in INSTALL
    assert instructions("RUN")[0] == 'docker/install.sh "$TORCH"'


def test_the_commands_of_the_page_are_those_of_the_makefile_and_the_dockerfile():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^image:.*\n\t(.*)$", makefile, re.MULTILINE)[1]
    arguments = set(re.findall(r"--build-arg (\w+)=", recipe + PAGE))
    assert arguments == {line.partition("=")[0] for line in instructions("ARG")}
    (port,) = instructions("EXPOSE")
    assert f"-p 127.0.0.1:{port}:{port}" in PAGE
    assert re.search(r"^port: (\d+)", (REPOSITORY / "conf" / "serve.yaml").read_text(), re.MULTILINE)[1] == port
    for path in re.findall(r"-v \S+?:(/\S+?)(?::ro)?\s", PAGE):
        assert path.startswith("/work/")
    assert "make image TORCH=" in PAGE


@pytest.mark.integration
def test_the_steps_of_the_image_work_in_a_clean_environment(tmp_path):
    """Run the same script on the same files as the image, with the registry's build of PyTorch."""
    context, environment = tmp_path / "context", tmp_path / "environment"
    for path, target in copied().items():
        source, folder = REPOSITORY / path, context / target
        if source.is_dir():
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / source.name)
    venv.create(environment, with_pip=True)
    work = tmp_path / "work"
    work.mkdir()
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FRACATLAS_"))}

    def run(*line: str, folder: Path = work) -> str:
        done = subprocess.run(line, cwd=folder, env=kept | {"PATH": path}, capture_output=True, text=True, timeout=550)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert "fractatlas" in run("docker/install.sh", folder=context)
    shutil.rmtree(context)  # the image works without the sources, too
    assert "Serve a page" in run("fractatlas", "--help")
    assert "ckpt=???" in run("fractatlas", "serve", "--help")
    located = run("python", "-c", "import fractatlas.serving.app as app; print(app.PAGE, sorted(app.PAGE.iterdir()))")
    assert str(environment) in located
    assert "page.js" in located
    small = ["data=phantom", "model.variant=densenet_tiny", "model.weights=null", "data.prepare.images=60",
             "preprocess.resize=64", "preprocess.crop=64", "trainer=cpu", "trainer.max_epochs=1", "data.num_workers=0",
             "report=false", "hydra.run.dir=run"]  # fmt: skip
    run("fractatlas", "train", *small)
    run("fractatlas", "predict", "ckpt=run", "input=data/phantom-60-0/images/Fractured", "trainer=cpu")
    assert sys.prefix not in run("python", "-c", "import fractatlas; print(fractatlas.__file__)")
