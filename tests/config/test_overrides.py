import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fractatlas.config.overrides import as_override, compose_config, prepare
from fractatlas.config.schema import EvaluateConfig, PredictConfig, TrainConfig
from fractatlas.errors import InputError


def parsed(argument: str) -> str:
    return OverridesParser.create().parse_override(argument).value()


@pytest.mark.parametrize("value", ["/data/Röntgen (alt)", "~/x ray's", "a#b=c", "it's \\", "a,b[c"])
def test_a_value_that_hydra_cannot_parse_is_taken_as_typed(value):
    (argument,) = prepare([f"data.root={value}"], TrainConfig)
    assert parsed(argument) == value


def test_a_path_is_taken_as_typed_even_if_hydra_can_parse_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    arguments = prepare(["ckpt=1e3", "predictions=a,b", "catalogue=~/x.csv"], EvaluateConfig)
    assert [parsed(argument) for argument in arguments] == ["1e3", "a,b", "/home/me/x.csv"]
    assert prepare(arguments, EvaluateConfig) == arguments  # as in a second process of a run


def test_a_list_of_paths_is_split_at_its_commas(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    (argument,) = prepare(["ckpt=[a b.ckpt, ~/b=1.ckpt]"], PredictConfig)
    assert parsed(argument) == ["a b.ckpt", "/home/me/b=1.ckpt"]
    assert prepare([argument], PredictConfig) == [argument]
    (tmp_path / "[a,b]").touch()
    (argument,) = prepare(["ckpt=[a,b]"], PredictConfig)  # a file with this name
    assert parsed(argument) == "[a,b]"
    (argument,) = prepare(["ckpt=[c,d]"], EvaluateConfig)  # takes a single path
    assert parsed(argument) == "[c,d]"


@pytest.mark.parametrize(
    ("arguments", "late"),
    [
        (["experiment=a,b", "data.prepare.images=200"], ["data.prepare.images=choice(200)"]),
        (["experiment=glob(*)", "+optimizer.betas=[0.5,0.9]"], ["+optimizer.betas=choice([0.5,0.9])"]),
        (["optimizer=adam,sgd", "optimizer.lr=0.1", "model.dropout=0"], ["optimizer.lr=choice(0.1)"]),
        (["experiment=choice(a,b)", "task_name=x", "seed=1", "paths.log_dir=y", "hydra.sweep.dir=z"], []),
        (["seed=1,2", "data.prepare.images=200"], []),
        (["experiment=a", "data.prepare.images=200"], []),
        (["experiment=a,b", "model=resnet"], []),
        (["experiment=a,b", "data.batch_size=16,32", "~data.x"], []),
        (["experiment=a,b", "model.weights=null", "data.cache_dir="],
         ["model.weights=null,null", "data.cache_dir=choice('')"]),
    ],
)  # fmt: skip
def test_keys_of_a_swept_choice_are_left_to_the_jobs(arguments, late):
    prepared = prepare(["-m", *arguments], TrainConfig)
    assert [argument for argument in prepared[1:] if argument not in arguments] == late
    assert len(prepared) == len(arguments) + 1
    assert prepare(arguments, TrainConfig) == arguments  # a single run


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["seed=1", "seed=1,2"], ["seed=1,2"]),
        (["optimizer.lr=1e-3", "task_name=x", "optimizer.lr=interval(1e-4,1e-3)"],
         ["task_name=x", "optimizer.lr=interval(1e-4,1e-3)"]),
        (["optimizer.lr=interval(1e-4,1e-3)", "optimizer.lr=1e-3"], ["optimizer.lr=1e-3"]),
        (["+optimizer.x=1", "optimizer.x=1,2"], ["+optimizer.x=1,2"]),
        (["~optimizer.x", "~optimizer.y", "seed=1"], ["~optimizer.x", "~optimizer.y", "seed=1"]),
    ],
)  # fmt: skip
def test_the_last_value_of_a_key_counts_in_a_multirun(arguments, kept):
    assert prepare(["-m", *arguments], TrainConfig) == ["-m", *kept]


@pytest.mark.parametrize("folder", ["multirun.yaml", "trials.csv"])
def test_resuming_the_folder_of_a_grid_or_search_is_refused_with_the_remedy(tmp_path, folder):
    (tmp_path / folder).touch()
    with pytest.raises(InputError, match="grid or search, not a run folder; repeat the command with -m to resume it"):
        prepare([f"resume={tmp_path}"], TrainConfig)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=[mura,grazpedwri]"],
         "data=[mura,grazpedwri]: one choice is needed; for several data sets, export each (fractatlas data export), "
         "then use their tables: data=table data.table=[a.csv,b.csv]"),
        (["threshold=0.4"],
         "threshold=0.4: no such choice; the choices are accuracy, fixed, sensitivity, youden; "
         "a value is set with threshold.value=0.4"),
        (["optimizer=7"], "optimizer=7: no such choice; the choices are adam, adamw, sgd"),
        (["-m", "optimizer=7,8"], "optimizer=7,8: no such choice; the choices are adam, adamw, sgd"),
        (["experiment=7"], "experiment=7: no such choice; the choices are baseline_densenet, "),
        (["-m", "seed=1,2", "--cfg", "job"], "-m and --cfg=job exclude each other: keep one of them"),
        (["-c", "foo"], "--cfg=foo: no such choice; the choices are job, hydra, all"),
        (["--resolve"], "--resolve: no effect without --cfg; add --cfg job"),
        (["-m", "hydra/sweeper/sampler=cmaes"],
         "hydra/sweeper/sampler=cmaes: no such choice; the choices are gp, qmc, random, tpe"),
        (["-m", "hydra.sweeper.sampler=gp"],
         "hydra.sweeper.sampler=gp: a group of keys; write hydra/sweeper/sampler=gp"),
        (["-m", "optimizer.lr=interval(1e-3)"], "optimizer.lr=interval(1e-3): no axis; write interval(LOW,HIGH), "),
    ],
)  # fmt: skip
def test_arguments_that_hydra_would_reject_without_a_remedy_are_refused(arguments, message):
    with pytest.raises(InputError) as refused:
        prepare(arguments, TrainConfig)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("value", ["logs/a", "logs/a b (c)", "a,b", "1", "null", "it's"])
def test_a_value_is_quoted_if_the_grammar_would_change_it(value):
    argument = as_override("hydra.sweep.dir", value)
    assert parsed(argument) == value
    assert argument.startswith("hydra.sweep.dir=")


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_resuming_a_folder_that_is_not_a_run_folder_is_refused(tmp_path, plus):
    for folder in (tmp_path, ""):
        with pytest.raises(InputError, match="not a run folder"):
            prepare([f"{plus}resume={folder}"], TrainConfig)


@pytest.mark.parametrize("argument", ["model=resnet", "split.seed=1", "optimizer.lr=0.5", "data.batch_size=8", "-m"])
def test_resuming_with_another_model_or_data_set_is_refused(tmp_path, argument):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").touch()
    with pytest.raises(InputError, match=f"^{argument} cannot change in a resumed run: remove it|remove {argument}"):
        prepare([f"resume={tmp_path}", argument], TrainConfig)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trainer.max_epoch=3"],
            "trainer.max_epoch=3 cannot change in a resumed run; did you mean 'trainer.max_epochs'?",
        ),
        (["hydra.run.dir=logs/other"], "hydra.run.dir=logs/other: a resumed run stays in its folder; remove it"),
        (["data.root=nowhere"], "data.root=nowhere: no such folder; give the folder to which the data were moved"),
        (["resume=logs/b"], "resume=logs/b: resume is given twice; resume one run at a time"),
    ],
)
def test_arguments_that_do_not_fit_a_resumed_run_are_refused_with_a_remedy(tmp_path, arguments, message):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").touch()
    with pytest.raises(InputError, match=re.escape(message)):
        prepare([f"resume={tmp_path}", *arguments], TrainConfig)


def test_resuming_a_checkpoint_is_refused_with_its_run_folder(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(InputError, match=f"not a run folder .*; give resume={tmp_path / 'run'}$"):
        prepare([f"resume={checkpoint}"], TrainConfig)


def test_an_option_of_hydra_can_be_followed_by_its_value():
    assert prepare(["--config-dir", "logs/a b", "experiment=best", "--cfg", "job", "--resolve"], TrainConfig) == [
        "--config-dir=logs/a b", "experiment=best", "--cfg=job", "--resolve"
    ]  # fmt: skip


def test_an_experiment_outside_the_package_is_composed(tmp_path):
    folder = tmp_path / "it's mine, (new)"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel:\n  dropout: 0.25\n")
    for option in ([f"--config-dir={folder}"], ["--config-dir", str(folder)]):
        assert compose_config([*option, "experiment=mine"])["model"]["dropout"] == 0.25
    with pytest.raises(InputError, match="experiment=mine: no such choice; the choices are baseline_densenet"):
        compose_config(["experiment=mine"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("densenet", "densenet: should be key=value"),
        ("model=", "model=: no such choice; the choices are densenet, resnet"),
        ("model.dropout=0.1,0.3", "model.dropout=0.1,0.3: several values need -m"),
        ("split=manifest", "split.path needs a value"),
    ],
)
def test_a_wrong_option_is_refused_with_a_remedy(option, message):
    with pytest.raises(InputError, match=message):
        compose_config([option])
