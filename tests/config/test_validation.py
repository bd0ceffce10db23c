import re
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from fractatlas.config import validation
from fractatlas.config.overrides import CONF, compose_config
from fractatlas.config.schema import EvaluateConfig, PredictConfig, ServeConfig, TrainConfig
from fractatlas.config.validation import (
    explain,
    group_keys,
    known_keys,
    metric_mode,
    path_keys,
    path_list_keys,
    unknown_key_message,
)
from fractatlas.errors import InputError


@pytest.mark.fault("wrong value of a key", "refused in one line, nothing read")
@pytest.mark.parametrize(
    ("override", "message"),
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
        (
            "trainer.precision=16-mixed trainer.gradient_clip_val=1.0",
            "trainer.gradient_clip_val=1.0 with 16-mixed precision needs optimizer.fused=false",
        ),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_states_what_is_allowed(override, message):
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        compose_config(override.split())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "name", "problem"),
    [
        ('hydra.sweeper.params.loss\\.pos_weight="interval(1,5)"', "loss.pos_weight", "not in the search space"),
        ('hydra.sweeper.params.split="choice(grouped,random)"', "split", "not in the search space"),
        ('hydra.sweeper.params.optimizer.lr="interval(1e-4,1e-3)"', "optimizer.lr", "the dots of the name need"),
        ('+hydra.sweeper.params.optimizer\\.lr="interval(1e-4,1e-3)"', "optimizer.lr", "already there"),
    ],
)
def test_a_wrong_axis_of_a_search_is_refused_with_the_argument_that_works(override, name, problem):
    with initialize_config_dir(str(CONF)):
        with pytest.raises(HydraException) as raised:
            compose("train", ["hparams_search=optuna", override], return_hydra_config=True)
        message = explain(raised.value, TrainConfig, CONF)
        assert "\n" not in message
        assert f": {problem}" in message
        (argument,) = shlex.split(message.partition("; write ")[2])
        config = compose("train", ["hparams_search=optuna", argument], return_hydra_config=True)
    assert config.hydra.sweeper.params[name] == override.partition("=")[2].strip('"')


def test_a_key_of_another_choice_is_distinguished_from_an_unknown_key():
    message = unknown_key_message("optimizer.momentum", TrainConfig)
    assert message.startswith("'optimizer.momentum' does not belong to the chosen 'optimizer'")
    assert "optimizer.momentum" in known_keys(TrainConfig)


def test_groups_and_paths_of_a_schema():
    assert {"data", "model", "optimizer", "trainer", "callbacks"} <= group_keys(TrainConfig)
    assert not {"seed", "resume", "monitor"} & group_keys(TrainConfig)
    assert path_keys(EvaluateConfig) == {"ckpt", "split_file", "predictions", "catalogue", "heatmaps", "data_root"}
    assert path_list_keys(PredictConfig) == {"ckpt"}
    assert path_list_keys(EvaluateConfig) == set()


def test_a_smaller_value_is_better_for_a_loss_only():
    assert metric_mode("val/loss") == "min"
    assert {metric_mode(f"val/{name}") for name in ("accuracy", "auroc", "mcc")} == {"max"}


@pytest.mark.parametrize(
    ("typed", "here"),
    [
        ("print_config=true", "--cfg job prints the configuration"),
        ("+trainer.fast_dev_run=true", "debug=one_batch runs one batch of each subset"),
        ("trainer.fast_dev_run=true", "debug=one_batch runs one batch of each subset"),
        ("tags=[dev,test]", "task_name=NAME names the folder of the run"),
        ("ckpt_path=last.ckpt", "resume=RUN continues a run, model.weights=RUN starts from its weights"),
        ("callbacks.model_checkpoint.monitor=val/acc", "monitor=METRIC selects the best checkpoint"),
        ("model.optimizer.lr=0.1", "optimizer=adamw optimizer.lr=RATE"),
        ("logger.save_dir=logs", "logger.tensorboard.save_dir=DIR"),
        ("extras.enforce_tags=true", "--cfg job prints the configuration"),
    ],
)
def test_switches_of_similar_projects_are_answered_with_the_name_used_here(typed, here):
    key = typed.lstrip("+").partition("=")[0]
    with pytest.raises(InputError) as error:
        compose_config([typed])
    assert str(error.value).startswith(f"unknown key '{key}'; here: {here}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("typed", validation.OTHER_CHOICES)
def test_choices_of_similar_projects_are_answered_with_the_one_used_here(typed):
    with pytest.raises(InputError) as error:
        compose_config([typed])
    here = validation.OTHER_CHOICES[typed]
    assert str(error.value) == f"{typed}: no such choice; here: {here}"
    first = here.partition(",")[0] if "[" not in here else here
    if "SHARE" not in first:
        compose_config([first.replace("'", "")])


def test_an_unknown_choice_in_a_list_is_answered_with_the_choices():
    with pytest.raises(InputError, match="logger=foo: no such choice; the choices are csv, mlflow, "):
        compose_config(["logger=[tensorboard,foo]"])


def test_every_key_that_an_answer_names_exists():
    known = {*known_keys(TrainConfig), *group_keys(TrainConfig), "hydra.run.dir", "ckpt", "debug"}
    for key, text in validation.OTHER_NAMES.items():
        assert key not in known - {"logger.save_dir", "logger.name", "logger.version"}
        named = re.findall(r"([a-z_.]+)=", text)
        assert named or text.startswith("--cfg job")
        assert set(named) <= known, key


def test_the_checkpoint_of_the_other_commands_has_their_key():
    assert unknown_key_message("ckpt_path", EvaluateConfig) == "unknown key 'ckpt_path'; here: ckpt=RUN"
    assert "; here:" not in unknown_key_message("tags", PredictConfig)
    assert "; here: the threshold of the decision is" in unknown_key_message("threshold", ServeConfig)
