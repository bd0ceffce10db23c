"""``fractatlas serve``: what is refused before the server starts."""

import importlib.util

import pytest

from tests.cli.processes import refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "ckpt needs a value: ckpt=..."),
        (("ckpt=nowhere.ckpt",), "ckpt=nowhere.ckpt: no such file; correct the path"),
        (("ckpt=phantoms",), "phantoms has no checkpoints/best.ckpt"),
        (("ckpt=a", "port=99999"), "port=99999: should be less than or equal to 65535"),
        (("ckpt=a", "device=tpu"), "device=tpu: should be 'auto', 'cpu', 'cuda' or 'mps'"),
        (("ckpt=a", "-m", "port=1,2"), "-m: no effect on serve; remove it"),
        (("ckpt=a", "hydra.run.dir=x"), "hydra.run.dir=x: no effect on serve, which has no run folder; remove it"),
        (("ckpt=a", "+max_pixels=3"), "unknown key 'max_pixels'"),
        (("ckpt_path=a",), "unknown key 'ckpt_path'; here: ckpt=RUN"),
        (
            ("ckpt=phantoms/dataset.csv", "host=not.a.host.invalid"),
            "cannot listen on host=not.a.host.invalid port=8000",
        ),
        (("ckpt=phantoms/dataset.csv", "port=0"), "dataset.csv"),
    ],
)
def test_a_mistake_is_one_line_and_creates_nothing(fractatlas, folder, arguments, message):
    before = sorted(folder.iterdir())
    refused(fractatlas("serve", *arguments), message)
    assert sorted(folder.iterdir()) == before


def test_missing_packages_are_named(fractatlas, monkeypatch):
    found = importlib.util.find_spec
    missing = ("fastapi", "python_multipart")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    message = fractatlas("serve", "ckpt=phantoms/dataset.csv")
    refused(message, "serve needs fastapi, python-multipart: pip install fastapi python-multipart")


def test_help_has_each_key_and_no_option_of_hydra(fractatlas, capsys):
    assert fractatlas("serve", "--help") == 0
    printed = capsys.readouterr().out
    assert "  port=8000  " in printed
    assert "  max_requests=16  " in printed
    assert "usage: fractatlas serve [KEY=VALUE ...]" in printed
    assert "hydra" not in printed
    assert max(map(len, printed.splitlines())) <= 100
