"""The commands in this process, and a finished run."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fractatlas.cli.main import main
from tests.cli.processes import PLAIN
from tests.conftest import SMALL


@pytest.fixture(scope="session")
def folder(phantoms, tmp_path_factory) -> Path:
    """The working directory of the commands; Hydra's grammar does not accept its name."""
    folder = tmp_path_factory.mktemp("Röntgen (alt)")
    (folder / "phantoms").symlink_to(phantoms)
    return folder


@pytest.fixture(scope="session")
def fractatlas(folder) -> Callable[..., int | str]:
    """Run a verb in this process and in ``folder``; return its exit status, or the message that it exits with."""

    def call(*arguments: str) -> int | str:
        with pytest.MonkeyPatch.context() as patch:
            for name in set(os.environ) - set(PLAIN):
                patch.delenv(name)
            for name in ("FRACATLAS_VERB", "HYDRA_FULL_ERROR"):
                patch.setenv(name, "")
            patch.setattr(logging, "raiseExceptions", True)
            patch.setattr(sys, "argv", ["fractatlas", *arguments])
            patch.chdir(folder)
            try:
                main()
            except SystemExit as end:
                return end.code or 0
            return 0

    return call


@pytest.fixture(scope="session")
def run(fractatlas, folder) -> Path:
    """The folder of a finished run."""
    arguments = [*SMALL, "task_name=finished", "data.root=phantoms", "split=random", "trainer.max_epochs=2"]
    assert fractatlas("train", *arguments) == 0
    (run,) = (folder / "logs" / "finished" / "runs").iterdir()
    return run
