"""An untrained network, and a client of its server in this process."""

import asyncio
import io
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from fractatlas.build import build_classifier
from fractatlas.config.overrides import CONF
from fractatlas.config.schema import ServeConfig
from fractatlas.config.validation import validate
from fractatlas.inference.model import Model, load_model
from fractatlas.models.checkpoint import write_checkpoint

POINT = {"rule": "fixed", "threshold": 0.4, "temperature": 2.0, "box_threshold": 0.3}


@pytest.fixture(scope="session")
def make_checkpoint(configuration, tmp_path_factory):
    """Write a checkpoint of an untrained network: ``make_checkpoint(*overrides)``."""

    def make(*overrides: str) -> Path:
        run = tmp_path_factory.mktemp("untrained")
        config = configuration(run, *overrides)
        torch.manual_seed(config["seed"])
        content = {"config": config, "state_dict": build_classifier(config).state_dict(), "operating_point": POINT}
        file = run / "checkpoints" / "best.ckpt"
        file.parent.mkdir()
        write_checkpoint(file, content)
        (run / "model_card.md").write_text("# Card\n\nüber\n", encoding="utf-8")
        return file

    return make


@pytest.fixture(scope="session")
def with_map(make_checkpoint) -> Path:
    return make_checkpoint("map=fpn", "map.channels=8")


@pytest.fixture(scope="session")
def without_map(make_checkpoint) -> Path:
    return make_checkpoint()


@pytest.fixture(scope="session")
def model(with_map) -> Model:
    return load_model(with_map)


def serve_config(*overrides: str) -> dict:
    """Return a checked ``ServeConfig``."""
    with initialize_config_dir(str(CONF), job_name="test"):
        return validate(compose("serve", ["ckpt=unused", "threads=2", *overrides]), ServeConfig)


@pytest.fixture
def client(model):
    """Return a client of the server of ``model``: ``client(*overrides)``."""
    with serving(model) as make:
        yield make


def serving(model: Model):
    """Return a context with a function ``client(*overrides)`` for the server of ``model``."""
    from contextlib import ExitStack, contextmanager

    from starlette.testclient import TestClient

    from fractatlas.serving.app import create_app

    @contextmanager
    def context():
        with ExitStack() as stack:
            yield lambda *overrides: stack.enter_context(
                TestClient(create_app(model, serve_config(*overrides)), raise_server_exceptions=False)
            )

    return context()


def png(size: tuple[int, int] = (60, 80), grey: int = 90) -> bytes:
    """Return a PNG with a bright square."""
    image = Image.new("L", size, grey)
    image.paste(250, (10, 10, 30, 30))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def files(*contents: bytes, name: str = "a.png") -> list:
    """Return the files of a request."""
    return [("files", (name, content, "application/octet-stream")) for content in contents]


def run(awaitable):
    """Run a coroutine."""
    return asyncio.run(awaitable)
