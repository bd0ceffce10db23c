import copy
import functools
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fractatlas.cli import prepare
from fractatlas.config import TrainConfig, check, known_keys, mode_of, unknown_key
from fractatlas.errors import InputError

CONF = Path(__file__).parents[1] / "conf"
HERE = ("paths.root=/tmp", "paths.output_dir=/tmp")


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), job_name="test"):
        return check(compose("train", [*HERE, *overrides]), TrainConfig)


@pytest.mark.parametrize("group", ["experiment", "debug", "model", "optimizer", "scheduler", "trainer", "augment",
                                   "callbacks", "data", "split", "preprocess", "loss", "logger"])  # fmt: skip
def test_every_choice_of_a_group_composes_into_a_valid_configuration(group):
    choices = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
    assert choices
    for choice in choices:
        composed(f"{group}={choice}", *(["split.path=split.csv"] if choice == "manifest" else []))


def test_the_tuned_experiment_is_the_studys_best_configuration():
    config = composed("experiment=tuned_densenet")
    assert config["optimizer"]["_target_"] == "torch.optim.Adam"
    assert (config["optimizer"]["lr"], config["optimizer"]["weight_decay"]) == (0.0002, 0.00045)
    assert (config["data"]["batch_size"], config["trainer"]["max_epochs"], config["model"]["dropout"]) == (32, 2, 0.5)
    assert config["monitor"] == config["callbacks"]["checkpoint"]["monitor"] == "val/accuracy"


@pytest.mark.fault("wrong value of a key", "refused in one line, nothing read")
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.dropout=abc", "model.dropout=abc: should be a valid number"),
        ("model.dropout=1.5", "model.dropout=1.5: should be less than 1"),
        ("data.batch_size=0", "data.batch_size=0: should be greater than or equal to 1"),
        ("data.batch_size=true", "data.batch_size=true: should be a valid integer"),
        ("optimizer.lr=-1", "optimizer.lr=-1: should be greater than 0"),
        ("seed='1'", "seed=1: should be a valid integer"),
        ("monitor=val/acc", "monitor=val/acc: should be 'val/loss', 'val/accuracy'"),
        ("split.ratios=[0.5,0.5]", "split.ratios=[0.5, 0.5]: List should have at least 3 items"),
        ("+trainer.max_epoch=3", "unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        ("++model.droput=0.1", "unknown key 'model.droput'; did you mean 'model.dropout'?"),
        ("+lr=1", "unknown key 'lr'; did you mean 'optimizer.lr'?"),
        ("optimizer._target_=os.system", "optimizer._target_=os.system: should be one of 'torch.optim.Adam'"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0: should be greater than or equal to 1"),
        ("trainer.check_val_every_n_epoch=9", "no epoch would be validated"),
        ("~callbacks.checkpoint", "callbacks.checkpoint needs a value"),
        ("~model.dropout", "model.dropout needs a value"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(override, says):
    with pytest.raises(InputError, match=re.escape(says)) as raised:
        composed(override)
    assert "\n" not in str(raised.value)


def test_a_key_of_another_choice_is_told_from_an_unknown_one():
    assert unknown_key("optimizer.momentum", TrainConfig) == (
        "'optimizer.momentum' does not belong to the 'optimizer' that is chosen"
    )
    assert "optimizer.momentum" in known_keys(TrainConfig)


def test_only_a_loss_is_better_when_small():
    assert mode_of("val/loss") == "min"
    assert {mode_of(f"val/{name}") for name in ("accuracy", "auroc", "mcc")} == {"max"}


@pytest.mark.parametrize("value", ["/data/Röntgen (alt)", "~/x ray's", "a#b=c", "it's \\", "a,b[c"])
def test_a_path_reaches_the_program_as_it_was_typed(value):
    (argument,) = prepare([f"data.root={value}"], TrainConfig)
    assert OverridesParser.create().parse_override(argument).value() == value


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_resuming_what_is_no_run_folder_is_refused(tmp_path, plus):
    for folder in (tmp_path, ""):
        with pytest.raises(InputError, match="not a run folder"):
            prepare([f"{plus}resume={folder}"], TrainConfig)


@pytest.mark.parametrize("argument", ["model=resnet", "split.seed=1", "optimizer.lr=0.5", "data.batch_size=8", "-m"])
def test_resuming_with_what_was_not_learnt_with_is_refused(tmp_path, argument):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").touch()
    with pytest.raises(InputError, match=f"take out {argument}"):
        prepare([f"resume={tmp_path}", argument], TrainConfig)


def test_a_flag_of_hydra_may_be_followed_by_its_value():
    assert prepare(["--config-dir", "logs/a b", "experiment=best", "--cfg", "job", "-m"], TrainConfig) == [
        "--config-dir=logs/a b", "experiment=best", "--cfg=job", "-m"
    ]  # fmt: skip


def choices() -> Iterator[tuple[str, str]]:
    for folder in sorted(CONF.iterdir()):
        if folder.is_dir() and folder.name not in ("hydra", "hparams_search", "paths"):
            yield from ((folder.name, file.stem) for file in sorted(folder.glob("*.yaml")))


def leaves(part: dict, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in part.items():
        yield from leaves(value, (*at, key)) if isinstance(value, dict) and value else [(*at, key)]


def with_value(config: dict, path: tuple[str, ...], value: object) -> DictConfig:
    changed = copy.deepcopy(config)
    functools.reduce(dict.__getitem__, path[:-1], changed)[path[-1]] = value
    return OmegaConf.create(changed)


@pytest.mark.fault("every key of every choice, misspelt, or with a list, a dict, NaN, infinity, a huge negative number",
                   "refused, one line for each wrong key, nothing read")  # fmt: skip
@pytest.mark.parametrize(("group", "choice"), list(choices()))
def test_every_key_refuses_what_it_cannot_be(group, choice, record_property):
    config = composed(f"{group}={choice}", *(["split.path=split.csv"] if choice == "manifest" else []))
    tried = 0
    for path in leaves(config):
        if choice != "default" and path[0] != group:
            continue  # each key once, not with every choice of the other groups
        key = ".".join(path)
        with pytest.raises(InputError, match=f"unknown key '{re.escape(key)}x'"):
            check(with_value(config, (*path[:-1], f"{path[-1]}x"), 1), TrainConfig)
        for wrong in ({"a": 1}, [[1]], math.nan, math.inf, -1e300):
            tried += 1
            with pytest.raises(InputError) as raised:
                check(with_value(config, path, wrong), TrainConfig)
            assert all(path[0] in line for line in str(raised.value).split("\n")), key
    record_property("tried", tried + tried // 5)
