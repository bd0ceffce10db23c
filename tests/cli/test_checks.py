"""What is checked before a run starts, and what a command that is refused leaves behind."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from fractatlas.cli.hydra_command import is_first_process
from fractatlas.models.checkpoint import read_checkpoint
from tests.cli.processes import process, refused
from tests.conftest import SMALL


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


TRAIN = ("train", *SMALL, "data.root=phantoms", "hydra.run.dir=refused/run")
EVALUATE = ("evaluate", "hydra.run.dir=refused/run")
PREDICT = ("predict", "input=phantoms", "hydra.run.dir=refused/run")


@pytest.mark.fault("a value, file or folder that is wrong", "one line, no run folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TRAIN, "split.ratios=[0.5,0.3,0.1]"), "split.ratios=[0.5, 0.3, 0.1]: the sum is 0.9, should be 1"),
        (
            (*TRAIN, "split=kfold", "split.fold=5"),
            "split.fold=5 should be less than split.folds=5; the first fold is 0",
        ),
        ((*TRAIN, "preprocess.crop=65"), "preprocess.crop=65 should be at most preprocess.resize=64"),
        ((*TRAIN, "data.root=phantoms/images"), "no FracAtlas in phantoms/images (dataset.csv is missing)"),
        (
            (*TRAIN, "split=manifest", "split.path=nowhere.csv"),
            "nowhere.csv: No such file or directory; correct the path",
        ),
        ((*TRAIN, "split=manifest", "split.path=phantoms/dataset.csv"), "dataset.csv: column split is missing"),
        ((*TRAIN, "split.previous=nowhere.csv"), "nowhere.csv: No such file or directory"),
        ((*TRAIN, "model.weights=nowhere.pth"), "model.weights=nowhere.pth: no such file; correct the path"),
        ((*TRAIN, "model.weights=imagenet"), "there are no ImageNet weights for densenet_tiny; use model.weights=null"),
        ((*TRAIN, "trainer.accelerator=mps"), "trainer.accelerator=mps: only a Mac has it"),
        ((*TRAIN, "trainer.devices=[3]"), "trainer.devices=[3]: should be a number of processes"),
        ((*TRAIN, "task_name=a b"), "task_name=a b"),
        ((*EVALUATE, "ckpt=nowhere.ckpt"), "ckpt=nowhere.ckpt: no such file; correct the path"),
        ((*EVALUATE, "predictions=nowhere.csv"), "predictions=nowhere.csv: no such file; correct the path"),
        ((*EVALUATE, "predictions=phantoms/dataset.csv", "heatmaps=no.npz"), "heatmaps=no.npz: no such file"),
        (
            (*EVALUATE, "ckpt=phantoms/dataset.csv", "data_root=nowhere"),
            "no FracAtlas in nowhere (dataset.csv is missing)",
        ),
        (
            (*EVALUATE, "ckpt=phantoms/dataset.csv", "trainer.precision=bf16-mixed"),
            "trainer.precision=bf16-mixed: no effect here, scores are computed in float32; remove it",
        ),
        (
            (*EVALUATE, "ckpt=phantoms/dataset.csv", "trainer.limit_val_batches=1"),
            "trainer.limit_val_batches=1: no effect with subset=test, trainer.limit_test_batches applies; remove it",
        ),
        (
            (*EVALUATE, "ckpt=phantoms/dataset.csv", "subset=val", "trainer.limit_test_batches=1"),
            "trainer.limit_test_batches=1: no effect with subset=val, trainer.limit_val_batches applies; remove it",
        ),
        (("train", *SMALL, "data=table", "hydra.run.dir=refused/run"), "data.table needs a value: data.table=..."),
        (
            ("train", *SMALL, "data=table", "data.table=no.csv", "hydra.run.dir=refused/run"),
            "data.table=no.csv: no such file; correct the path",
        ),
        (
            ("train", *SMALL, "data=mura", "hydra.run.dir=refused/run"),
            "(folder train is missing); give the folder MURA",
        ),
        (
            (*TRAIN, "model.head=keep"),
            "model.head=keep: model.weights=null has no head of a fracture; use a run folder",
        ),
        (
            (*EVALUATE, "ckpt=phantoms/dataset.csv", "data=folders", "data.root=nowhere"),
            "data.root=nowhere: no such folder",
        ),
        (
            (*EVALUATE, "ckpt=phantoms/dataset.csv", "data=phantom", "subset=val"),
            "subset=val: the network was not trained on data=...; use subset=all or subset=test",
        ),
        (
            (*EVALUATE, "ckpt=phantoms/dataset.csv", "data=phantom", "data_root=phantoms"),
            "no effect with data=..., data.root=DIR sets the data folder; remove it",
        ),
        (
            (*EVALUATE, "ckpt=phantoms/dataset.csv", "recalibrate=0.5"),
            "recalibrate=0.5: no effect without data=..., the temperature was chosen on images of the same data",
        ),
        (
            (*EVALUATE, "predictions=phantoms/dataset.csv", "data=phantom"),
            "data=phantom: no effect with predictions=..., catalogue=FILE and data_root=DIR describe the images",
        ),
        (("data", "export", "data=table", "data.table=no.csv", "--out", "refused"), "data.table=no.csv: no such file"),
        (
            ("data", "audit", "model=resnet", "--out", "refused"),
            "model=resnet: no key of data; audit takes data=CHOICE",
        ),
        ((*PREDICT, "ckpt=nowhere.ckpt"), "ckpt=nowhere.ckpt: no such file; correct the path"),
        # These are found after Hydra has made the run folder.
        ((*EVALUATE, "predictions=phantoms/dataset.csv"), "columns label, probability are missing"),
        ((*EVALUATE, "ckpt=phantoms/dataset.csv"), "dataset.csv is not a PyTorch file"),
        ((*PREDICT, "ckpt=phantoms/dataset.csv"), "dataset.csv is not a PyTorch file"),
        ((*PREDICT, "ckpt=phantoms/dataset.csv", "input=nowhere"), "input=nowhere: no file or folder matches"),
        ((*TRAIN, "model.weights=phantoms/dataset.csv"), "dataset.csv is not a PyTorch file"),
    ],
)
def test_a_refused_command_reports_one_line_and_leaves_no_run_folder(fractatlas, folder, arguments, message):
    refused(fractatlas(*arguments), message)
    assert not (folder / "refused").exists()


def test_checks_need_no_torch_and_read_no_image(phantoms, tmp_path):
    program = """
import sys
from fractatlas.cli.main import main
import fractatlas.data.images
fractatlas.data.images.read_content = None
for line in (line.split() for line in sys.argv[1:]):
    sys.argv = ["fractatlas", *line]
    try:
        main()
        raise AssertionError(line)
    except SystemExit as end:
        assert str(end.code).startswith("error: "), end.code
    assert not {"torch", "lightning"} & set(sys.modules), line
"""
    train = f"train {' '.join(SMALL)} data.root={phantoms}"
    lines = [f"{train} split.ratios=[0.5,0.3,0.1]", f"{train} preprocess.crop=65", "train data.root=nowhere",
             f"{train} split=manifest split.path=no.csv", f"{train} model.weights=no.pth", f"{train} resume=nowhere",
             f"{train} trainer.accelerator=mps", "evaluate ckpt=nowhere", "predict ckpt=nowhere input=.",
             "predict ckpt=x input=nowhere"]  # fmt: skip
    result = process("-c", program, *lines, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available() or Path("/dev/kfd").exists(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    "arguments", [TRAIN, (*EVALUATE, "ckpt=phantoms/dataset.csv"), (*PREDICT, "ckpt=phantoms/dataset.csv")]
)
def test_a_gpu_that_this_machine_does_not_have_is_refused_before_images_are_read(fractatlas, folder, arguments):
    refused(
        fractatlas(*arguments, "trainer=gpu"), "trainer.accelerator=gpu: no GPU driver on this machine; use trainer=cpu"
    )
    assert not (folder / "refused").exists()


def test_a_refused_command_removes_nothing_that_existed_before(fractatlas, folder):
    run = folder / "mine" / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "notes.txt").write_text("mine")
    (run / "notes.txt").write_text("mine")
    arguments = ("evaluate", "predictions=phantoms/dataset.csv", f"hydra.run.dir={run}")
    refused(fractatlas(*arguments), "columns label, probability are missing")
    assert (run / "notes.txt").read_text() == (run / ".hydra" / "notes.txt").read_text() == "mine"
    assert not (run / "evaluate.log").exists()
    shutil.rmtree(run)
    refused(fractatlas(*arguments), "columns label, probability are missing")
    assert (folder / "mine").is_dir()
    assert not run.exists()


@pytest.mark.fault("a command with the run folder of a finished run", "one line, nothing written")
def test_the_folder_of_a_finished_run_is_refused(fractatlas, run):
    before = tree(run)
    arguments = ("train", *SMALL, "data.root=phantoms", f"hydra.run.dir={run}")
    message = fractatlas(*arguments)
    refused(
        message, f"hydra.run.dir={run}: contains a finished run; use another folder, or train longer (fractatlas train"
    )
    assert f"resume={run}" in message
    assert "trainer.max_epochs=N" in message
    checkpoint = run / "checkpoints" / "best.ckpt"
    refused(fractatlas("evaluate", f"ckpt={checkpoint}", f"hydra.run.dir={run}"), "contains results (")
    refused(fractatlas("predict", f"ckpt={checkpoint}", "input=phantoms", f"hydra.run.dir={run}"), "contains results (")
    assert tree(run) == before


@pytest.mark.fault("a command with the run folder of an unfinished run", "one line with the command that resumes it")
def test_the_folder_of_an_unfinished_run_is_refused_with_the_command_that_resumes_it(fractatlas, run, folder):
    unfinished = folder / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "metrics.json").unlink()
    before = tree(unfinished)
    message = fractatlas("train", *SMALL, "data.root=phantoms", "hydra.run.dir=unfinished")
    refused(message, f"hydra.run.dir={unfinished}: contains an unfinished run; resume it (fractatlas train ")
    assert f"resume={unfinished}" in message
    assert tree(unfinished) == before


def test_a_folder_in_which_a_run_stopped_before_its_first_result_can_be_used_again(fractatlas, folder):
    (folder / "early" / ".hydra").mkdir(parents=True)
    (folder / "early" / ".hydra" / "config.yaml").write_text("{}")
    arguments = (*SMALL, "data.root=phantoms", "hydra.run.dir=early", "trainer.max_epochs=1", "test=false")
    assert fractatlas("train", *arguments) == 0
    assert (folder / "early" / "metrics.json").is_file()


def test_an_evaluation_that_stopped_early_can_be_repeated_in_its_folder_and_a_finished_one_not(fractatlas, run, folder):
    arguments = ("evaluate", f"ckpt={run}/checkpoints/best.ckpt", "trainer=cpu", "report=false", "hydra.run.dir=scored")
    (folder / "scored").mkdir()
    shutil.copy(run / "split.csv", folder / "scored" / "split.csv")
    assert fractatlas(*arguments) == 0
    refused(fractatlas(*arguments), "contains results (metrics.json, predictions.csv, split.csv); use another folder")


def test_what_changes_when_a_run_resumes_is_recorded_and_the_next_resume_starts_from_it(fractatlas, run, folder):
    resumed = folder / "resumed run"
    shutil.copytree(run, resumed)
    assert fractatlas("train", "resume=resumed run", "trainer.max_epochs=3", "data.num_workers=1") == 0
    config = yaml.safe_load((resumed / ".hydra" / "config.yaml").read_text())
    assert (config["trainer"]["max_epochs"], config["data"]["num_workers"]) == (3, 1)
    assert config["callbacks"]["checkpoint"]["monitor"] == "${monitor}"  # other keys stay as they were written
    assert config["resume"] is None
    assert fractatlas("train", "resume=resumed run", "report=true") == 0
    assert (resumed / "report.html").is_file()
    assert len(json.loads((resumed / "metrics.json").read_text())["history"]) == 3
    first, second = yaml.safe_load((resumed / ".hydra" / "resumed.yaml").read_text())
    assert first["changes"]["trainer.max_epochs"] == {"from": 2, "to": 3}
    assert second["changes"] == {"report": {"from": False, "to": True}}
    assert (
        second["step"]
        == read_checkpoint(resumed / "checkpoints" / "last.ckpt")["global_step"]
        == 3 * first["step"] // 2
    )


@pytest.mark.fault("a resume that is refused", "one line, no file of the run changes")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trainer.max_epochs=1",), "the run has 2 finished epochs; use at least this number"),
        (("data.root=phantoms/images", "report=true"), "no FracAtlas in"),
        (("data.root=without", "report=true"), "without/images/Non_fractured: no images"),
        (("trainer.devices=[9]",), "trainer.devices=[9]: should be a number of processes"),
    ],
)
def test_a_resume_that_is_refused_changes_no_file_of_the_run(fractatlas, run, folder, arguments, message):
    (folder / "without" / "images").mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "phantoms" / "dataset.csv", folder / "without" / "dataset.csv")
    before = {name: content for name, content in tree(run).items() if name != "train.log"}
    found = fractatlas("train", f"resume={run}", *arguments)
    assert isinstance(found, str)
    assert message in found
    assert {name: content for name, content in tree(run).items() if name != "train.log"} == before


@pytest.mark.parametrize(
    ("verb", "key"), [("train", "optimizer.lr=0.0002"), ("evaluate", "subset=null"), ("predict", "ckpt=???")]
)
def test_help_has_a_line_with_default_and_meaning_for_every_key(fractatlas, capsys, verb, key):
    assert fractatlas(verb, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith(f"  {key} ") for line in lines)
    assert fractatlas(verb, "--cfg", "job") == 0
    composed = yaml.safe_load(capsys.readouterr().out)
    hidden = {"evaluate": {"trainer.max_epochs"}, "predict": {"trainer.max_epochs", "paths.weights"}}.get(verb, set())
    keys = set(pd.json_normalize(composed).columns) - {
        "callbacks.progress_bar._target_",
        "callbacks.progress_lines._target_",
    }
    keys = {name for name in keys if not name.rpartition(".")[2].startswith("_")} - {"map"}  # a group, null by default
    meanings = {}
    for number, line in enumerate(lines):
        name, equals, _ = line.strip().partition("=")
        if line.startswith("  ") and line[2] != " " and equals:
            meanings[name] = line[46:].strip() or lines[number + 1].strip()
    shown = keys & set(meanings)
    assert hidden.isdisjoint(meanings)
    assert all(name.startswith(("trainer.", "paths.")) for name in keys - shown) if verb != "train" else keys == shown
    assert [name for name in shown if not meanings[name]] == []


def test_help_shows_the_keys_of_the_chosen_choice(fractatlas, capsys):
    assert fractatlas("train", "optimizer=sgd", "--help") == 0
    printed = capsys.readouterr().out
    assert "\noptimizer=sgd  " in printed
    assert "  optimizer.momentum=0.9   " in printed
    assert "optimizer.betas" not in printed
    refused(fractatlas("train", "optimizer=sdg", "--help"), "optimizer=sdg: no such choice")


def test_predict_prints_the_reason_for_an_unreadable_file_and_exits_with_status_2(fractatlas, run, folder, capfd):
    (folder / "broken.jpg").write_text("no image")
    assert fractatlas("predict", f"ckpt={run}/checkpoints/best.ckpt", "input=broken.jpg", "trainer=cpu") == 2
    assert "broken.jpg: not an image" in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_only_the_first_process_of_a_run_checks_its_folder(monkeypatch, name):
    for other in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(other, raising=False)
    assert is_first_process()
    monkeypatch.setenv(name, "0")
    assert is_first_process()
    monkeypatch.setenv(name, "1")
    assert not is_first_process()
