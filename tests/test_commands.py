"""The commands as a user types them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.conftest import REPOSITORY, SMALL

PLAIN = {key: value for key, value in os.environ.items() if not key.startswith("FRACATLAS_")}


def command(script: str, *arguments: str, folder: Path, timeout: int = 300, **more) -> subprocess.CompletedProcess:
    """Run a script of the repository in ``folder``."""
    line = [sys.executable, str(REPOSITORY / script), *arguments]
    return subprocess.run(line, cwd=folder, env=PLAIN, capture_output=True, text=True, timeout=timeout, **more)


def refused(result: subprocess.CompletedProcess, lines: int = 1) -> str:
    """The message of a command that ended as it should on a user's mistake."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    said = [line for line in result.stderr.splitlines() if line]
    assert len(said) == lines, said
    assert said[0].startswith("error: ")
    return result.stderr


@pytest.fixture(scope="module")
def folder(phantoms, tmp_path_factory) -> Path:
    """Where the commands are typed; a path that Hydra's grammar would not take as it is."""
    folder = tmp_path_factory.mktemp("Röntgen (alt)")
    (folder / "phantoms").symlink_to(phantoms)
    return folder


@pytest.fixture(scope="module")
def run(folder) -> Path:
    """The folder of a finished run."""
    arguments = [*SMALL, "task_name=finished", "data.root=phantoms", "split=random", "trainer.max_epochs=2"]
    result = command("train.py", *arguments, folder=folder)
    assert result.returncode == 0, result.stderr
    (run,) = (folder / "logs" / "finished" / "runs").iterdir()
    return run


def test_help_lists_every_group_and_choice(folder):
    result = command("train.py", "--help", folder=folder)
    assert result.returncode == 0
    for choice in ("densenet, resnet", "adam, adamw, sgd", "auto, cpu, ddp, ddp_cpu, gpu", "baseline_densenet"):
        assert choice in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["trainer.max_epoch=3"], ["+model.droput=1"], ["model=densnet"]])
def test_help_and_mistakes_are_answered_without_loading_torch(folder, arguments):
    program = "import runpy, sys\nsys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    program += (
        "except SystemExit: pass\nprint('HEAVY', [m for m in ('torch', 'lightning', 'matplotlib') if m in sys.modules])"
    )
    line = [sys.executable, "-c", program, str(REPOSITORY / "train.py"), *arguments]
    result = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=60)
    assert result.stdout.endswith("HEAVY []\n")


@pytest.mark.fault("train.py with a mistake in its arguments", "one line, nothing written")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trainer.max_epoch=3"], "unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        (["++trainer.max_epoch=3"], "unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        (["modle=densenet"], "unknown key 'modle'; did you mean 'model'?"),
        (["model=densnet"], "model=densnet: no such choice; there are densenet, resnet"),
        (["model=null"], "model=null: name one of the choices"),
        (["optimizer=sgd", "optimizer.betas=[0,0]"], "'optimizer.betas' does not belong to the 'optimizer'"),
        (["data.batch_size=0"], "data.batch_size=0: should be greater than or equal to 1"),
        (["data.batch_size=many"], "data.batch_size=many: should be a valid integer"),
        (["resume=nowhere"], "resume=nowhere: not a run folder"),
        (["hydra.run.dir=/sys/run"], "/sys/run"),  # where nobody can write, root neither
        ([*SMALL, "data.root=phantoms", "trainer=gpu"], "trainer: "),
    ],
)
def test_a_mistake_is_answered_in_one_line(folder, arguments, says):
    if "trainer=gpu" in arguments and torch.cuda.is_available():
        pytest.skip("here is a GPU")
    assert says in refused(command("train.py", *arguments, folder=folder))


def test_missing_data_is_answered_in_two_lines(tmp_path):
    said = refused(command("train.py", folder=tmp_path), lines=2)
    assert f"no FracAtlas in {tmp_path}/data/FracAtlas" in said
    assert not list(tmp_path.glob("logs/*/runs/*/metrics.json"))


def test_evaluating_reproduces_the_runs_metrics(run, folder):
    result = command("evaluate.py", f"ckpt={run}/checkpoints/best.ckpt", "trainer=cpu", folder=folder)
    assert result.returncode == 0, result.stderr
    (report,) = (folder / "logs" / "evaluate" / "runs").glob("*/metrics.json")
    assert json.loads(report.read_text())["test"] == json.loads((run / "metrics.json").read_text())["test"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name what to score: ckpt=<run>/checkpoints/best.ckpt or predictions=FILE"),
        (["ckpt=x", "predictions=y"], "name what to score"),
        (["predictions=nowhere.csv"], "nowhere.csv is not a readable table of predictions"),
        (["predictions=phantoms/dataset.csv"], "lacks the column label, probability"),
        (["ckpt=nowhere.ckpt"], "no file nowhere.ckpt"),
        (["ckpt=phantoms/dataset.csv"], "is not a PyTorch file"),
        (["ckpt=x", "split_part=tset"], "split_part=tset: should be 'train', 'val' or 'test'"),
    ],
)
def test_evaluating_what_is_no_checkpoint_is_answered_in_one_line(folder, arguments, says):
    assert says in refused(command("evaluate.py", *arguments, folder=folder))


def test_predictions_of_any_system_are_put_through_the_same_page(run, folder):
    table = pd.read_csv(run / "predictions.csv")[["image_id", "label", "probability"]]
    table.to_csv(folder / "their predictions (1).csv", index=False)
    arguments = ["predictions=their predictions (1).csv", "task_name=theirs", f"catalogue={run}/catalogue.csv",
                 "data_root=phantoms"]  # fmt: skip
    result = command("evaluate.py", *arguments, folder=folder)
    assert result.returncode == 0, result.stderr
    (page,) = (folder / "logs" / "theirs" / "runs").glob("*/report.html")
    report = json.loads((page.parent / "metrics.json").read_text())
    assert report["test"]["n"] == len(table)
    assert set(pd.read_csv(page.parent / "strata.csv")["attribute"]) >= {"body part", "view", "box size"}


def test_a_runs_own_predictions_keep_its_threshold_and_give_its_scores_again(run, folder):
    result = command("evaluate.py", f"predictions={run}/predictions.csv", "task_name=again", folder=folder)
    assert result.returncode == 0, result.stderr
    (again,) = (folder / "logs" / "again" / "runs").glob("*/metrics.json")
    before, after = (json.loads(file.read_text()) for file in (run / "metrics.json", again))
    for part in ("val", "test"):
        assert after[part]["auroc"]["value"] == pytest.approx(before[part]["auroc"]["value"])
        assert after[part]["sensitivity"] == before[part]["sensitivity"]
    assert after["operating_point"] == before["operating_point"]


def test_finished_runs_are_shown_side_by_side(run, folder):
    line = [sys.executable, "-m", "fractatlas.report.table", "logs/finished", str(run)]
    result = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    report = json.loads((run / "metrics.json").read_text())
    assert result.stdout.count(f"{100 * report['test']['accuracy']['value']:.2f} [") >= 2
    assert f"{100 * report['test']['majority_rate']:.2f}" in result.stdout
    line[-1] = "nowhere"
    assert "no finished run" in refused(subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=60))


@pytest.mark.fault("Ctrl-C, SIGTERM, SIGUSR1 while training", "last.ckpt, status 130 or 75, goes on")
@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(folder, phantoms, tmp_path, number, status):
    arguments = [*SMALL, f"data.root={phantoms}", "trainer.max_epochs=40", "data.num_workers=2", "data.cache=false",
                 "test=false"]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *arguments],
        cwd=tmp_path, env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        said = []
        for line in process.stdout:
            said.append(line)
            if "epoch 2/40 step 3" in line:
                os.killpg(process.pid, number)  # as a terminal does, to the workers, too
    said = "".join(said)
    assert process.returncode == status, said
    assert "Traceback" not in said, said
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    assert f"python train.py resume={run}" in said
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert not (run / "metrics.json").exists()

    before = (run / ".hydra" / "config.yaml").read_bytes()
    result = command("train.py", f"resume={run}", "trainer.max_epochs=3", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "logs" / "train" / "runs").iterdir()) == [run]
    assert (run / ".hydra" / "config.yaml").read_bytes() == before
    assert "epoch 2/3" in result.stdout
    assert "epoch 1/3" not in result.stdout
    assert (run / "metrics.json").is_file()


@pytest.mark.slow
def test_two_processes_score_a_checkpoint_as_one_does(run, folder):
    """An odd number of images does not divide by two: a padded one would be counted twice."""
    arguments = [f"ckpt={run}/checkpoints/best.ckpt", "split_part=train"]
    split = pd.read_csv(run / "split.csv")
    assert (split["split"] == "train").sum() % 2 == 1
    reports = []
    for trainer in ("cpu", "ddp_cpu"):
        task = f"task_name=evaluate_{trainer}"
        result = command("evaluate.py", *arguments, task, f"trainer={trainer}", folder=folder)
        assert result.returncode == 0, result.stderr
        (report,) = (folder / "logs" / f"evaluate_{trainer}" / "runs").glob("*/metrics.json")
        reports.append((report.parent, json.loads(report.read_text())))
    assert reports[1][1]["device"].startswith("2 x cpu")
    assert reports[0][1]["train"]["n"] == reports[1][1]["train"]["n"]
    one, two = (pd.read_csv(folder / "predictions.csv") for folder, _ in reports)
    assert one["image_id"].tolist() == two["image_id"].tolist()
    assert (one["probability"] - two["probability"]).abs().max() < 1e-5
    assert reports[0][1]["train"]["auroc"]["value"] == pytest.approx(reports[1][1]["train"]["auroc"]["value"], abs=1e-6)


@pytest.mark.slow
def test_two_processes_train_together_and_leave_one_run(folder, phantoms, tmp_path):
    arguments = [*SMALL, f"data.root={phantoms}", "trainer=ddp_cpu", "trainer.max_epochs=1"]
    result = command("train.py", *arguments, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    report = json.loads((run / "metrics.json").read_text())
    predictions = pd.read_csv(run / "predictions.csv")
    assert len(predictions) == report["val"]["n"] + report["test"]["n"]
    assert not predictions["image_id"].duplicated().any()
    assert report["monitor"]["value"] == pytest.approx(report["val"]["auroc"]["value"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["one_batch", "overfit", "profiler"])
def test_every_debug_run_runs(folder, choice, tmp_path):
    arguments = [*SMALL, f"data.root={(folder / 'phantoms').resolve()}", f"debug={choice}", "trainer.max_epochs=1"]
    result = command("train.py", *arguments, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.glob("logs/debug/runs/*/metrics.json"))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a whole training, beside whatever else the machine does
@pytest.mark.parametrize("family", ["resnet", "densenet"])
def test_the_demo_learns(family, tmp_path):
    result = command("train.py", f"experiment=demo_{family}", "trainer=cpu", folder=tmp_path, timeout=1100)
    assert result.returncode == 0, result.stderr
    (file,) = tmp_path.glob("logs/*/runs/*/metrics.json")
    assert json.loads(file.read_text())["test"]["auroc"]["value"] >= 0.9


@pytest.mark.slow
@pytest.mark.fault("two runs started in the same second", "a folder each")
def test_two_runs_of_one_second_have_a_folder_each(phantoms, tmp_path):
    line = [sys.executable, str(REPOSITORY / "train.py"), *SMALL, f"data.root={phantoms}", "test=false",
            "trainer.max_epochs=1"]  # fmt: skip
    both = [subprocess.Popen(line, cwd=tmp_path, env=PLAIN, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    runs = list((tmp_path / "logs" / "train" / "runs").iterdir())
    assert len(runs) == 2
    assert len({(run / "predictions.csv").read_bytes() for run in runs}) == 1


@pytest.mark.slow
@pytest.mark.fault("SIGTERM while two processes train, resumed", "bit for bit the outcome of the uninterrupted run")
def test_a_run_on_two_devices_is_stopped_and_goes_on(phantoms, tmp_path):
    arguments = [*SMALL, "trainer=ddp_cpu", f"data.root={phantoms}", "trainer.max_epochs=3", "test=false"]
    through, stopped = tmp_path / "through", tmp_path / "stopped's"
    assert command("train.py", *arguments, f"hydra.run.dir={through}", folder=tmp_path).returncode == 0
    with subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *arguments, f"hydra.run.dir={stopped}"],
        cwd=tmp_path, env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        for line in process.stdout:
            if "epoch 2/3 step 2" in line:
                process.terminate()
    assert process.returncode == 75
    result = command("train.py", f"resume={stopped}", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    reports = [json.loads((run / "metrics.json").read_text()) | {"timing": None} for run in (through, stopped)]
    assert reports[0] == reports[1]
    assert (through / "predictions.csv").read_bytes() == (stopped / "predictions.csv").read_bytes()
