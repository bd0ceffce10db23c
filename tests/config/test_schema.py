import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from omegaconf import DictConfig, OmegaConf

from fractatlas.config.overrides import CONF, compose_config
from fractatlas.config.schema import TrainConfig
from fractatlas.config.validation import validate
from fractatlas.errors import InputError


def choices() -> Iterator[tuple[str, str]]:
    for folder in sorted(CONF.iterdir()):
        if folder.is_dir() and folder.name not in ("hydra", "hparams_search", "paths"):
            yield from ((folder.name, file.stem) for file in sorted(folder.glob("*.yaml")))


NEEDED = {"manifest": "split.path=split.csv", "table": "data.table=table.csv", "folders": "data.root=folder"}


def composed(group: str, choice: str) -> dict:
    return compose_config([f"{group}={choice}", *([NEEDED[choice]] if choice in NEEDED else [])])


def leaves(part: dict, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in part.items():
        yield from leaves(value, (*at, key)) if isinstance(value, dict) and value else [(*at, key)]


@contextmanager
def with_value(config: DictConfig, path: tuple[str, ...], value: object) -> Iterator[None]:
    """Set one key, which may be a new one, for the block."""
    part = OmegaConf.select(config, ".".join(path[:-1])) if path[1:] else config
    former = dict(part)
    part[path[-1]] = value
    yield
    if path[-1] in former:
        part[path[-1]] = former[path[-1]]
    else:
        del part[path[-1]]


@pytest.mark.fault("every key of every choice, misspelt, or with a list, a dict, NaN, infinity, a huge negative number",
                   "refused, one line for each wrong key, nothing read")  # fmt: skip
@pytest.mark.parametrize(("group", "choice"), list(choices()))
def test_every_choice_is_valid_and_every_key_of_it_refuses_wrong_values(group, choice, record_property):
    plain = composed(group, choice)
    config, tried = OmegaConf.create(plain), 0
    for path in leaves(plain):
        if choice != "default" and path[0] != group:
            continue  # each key once, not with every choice of the other groups
        key = ".".join(path)
        with (
            with_value(config, (*path[:-1], f"{path[-1]}x"), 1),
            pytest.raises(InputError, match=f"unknown key '{re.escape(key)}x'"),
        ):
            validate(config, TrainConfig)
        for wrong in ({"a": 1}, [[1]], math.nan, math.inf, -1e300):
            tried += 1
            with with_value(config, path, wrong), pytest.raises(InputError) as raised:
                validate(config, TrainConfig)
            assert all(path[0] in line for line in str(raised.value).split("\n")), key
    record_property("tried", tried + tried // 5)


def test_the_tuned_experiment_is_the_best_configuration_of_the_reference_report():
    config = compose_config(["experiment=tuned_densenet"])
    assert config["optimizer"]["_target_"] == "torch.optim.Adam"
    assert (config["optimizer"]["lr"], config["optimizer"]["weight_decay"]) == (0.0002, 0.00045)
    assert (config["data"]["batch_size"], config["trainer"]["max_epochs"], config["model"]["dropout"]) == (32, 2, 0.5)
    assert config["monitor"] == config["callbacks"]["checkpoint"]["monitor"] == "val/accuracy"
