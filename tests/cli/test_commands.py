"""The commands as a user types them: in this process where that is possible, because a new one imports torch first."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fractatlas.cli.main import VERBS
from tests.cli.processes import MODULE, PLAIN, process, refused, script
from tests.conftest import REPOSITORY, SMALL


def test_help_lists_every_verb_and_every_verb_describes_itself(fractatlas, capsys):
    assert fractatlas("--help") == 0
    listed = capsys.readouterr().out
    for verb in VERBS:
        assert f"  {verb} " in listed
        assert fractatlas(verb, "--help") == 0
        assert f"fractatlas {verb}" in capsys.readouterr().out
    assert fractatlas("--version") == 0
    assert capsys.readouterr().out.startswith("fractatlas 0.")
    refused(fractatlas("trian"), "no verb 'trian'; the verbs are train, evaluate")


def test_help_of_train_lists_every_group_and_choice(fractatlas, capsys):
    assert fractatlas("train", "--help") == 0
    printed = capsys.readouterr().out
    for choice in ("densenet, resnet", "adam, adamw, sgd", "auto, cpu, ddp, ddp_cpu, gpu", "baseline_densenet"):
        assert choice in printed


def test_help_and_mistakes_do_not_load_torch(folder):
    program = """
import sys
from fractatlas.cli.main import main
for line in ("--help", *(f"{verb} --help" for verb in sys.argv[1:]), "train trainer.max_epoch=3", "train model=densnet",
             "train +model.droput=1", "predict batch_size=0", "evaluate predictions=nowhere.csv"):
    sys.argv = ["fractatlas", *line.split()]
    try:
        main()
    except SystemExit:
        pass
    heavy = {"torch", "lightning", "matplotlib"} & set(sys.modules)
    assert not heavy, (line, heavy)
"""
    result = process("-c", program, *VERBS, folder=folder)
    assert result.returncode == 0, result.stderr


@pytest.mark.fault("train.py with a mistake in its arguments", "one line, nothing written")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.max_epoch=3"], "unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        (["++trainer.max_epoch=3"], "unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        (["modle=densenet"], "unknown key 'modle'; did you mean 'model'?"),
        (["--wrong"], "--wrong: no such option; --help lists the keys"),
        (["model=densnet"], "model=densnet: no such choice; the choices are densenet, resnet"),
        (["model=null"], "model=null: no such choice; the choices are densenet, resnet"),
        (["optimizer=sgd", "optimizer.betas=[0,0]"], "'optimizer.betas' does not belong to the chosen 'optimizer'"),
        (["data.batch_size=0"], "data.batch_size=0: should be greater than or equal to 1"),
        (["data.batch_size=many"], "data.batch_size=many: should be a valid integer"),
        (["hparams_search=optuna"], "this configuration starts several runs: add -m (or use fractatlas search)"),
        (["resume=nowhere"], "resume=nowhere: not a run folder"),
        ([*SMALL, "data.root=phantoms", "hydra.run.dir=/sys/run"], "/sys/run"),  # where nobody can write, not even root
        ([*SMALL, "data.root=phantoms", "trainer=gpu"], "trainer.accelerator=gpu: no GPU driver on this machine"),
    ],
)
def test_a_mistake_is_reported_in_one_line(fractatlas, arguments, message):
    if "trainer=gpu" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    refused(fractatlas("train", *arguments), message)


@pytest.mark.parametrize("line", [[str(REPOSITORY / "train.py")], [*MODULE, "train"]])
def test_scripts_and_verbs_report_a_mistake_on_stderr_with_status_1(folder, line):
    result = process(*line, "modle=densenet", folder=folder)
    assert result.returncode == 1
    assert result.stderr == "error: unknown key 'modle'; did you mean 'model'?\n"
    assert not result.stdout


def test_missing_data_is_reported_with_a_remedy(fractatlas, folder):
    message = fractatlas("train", "task_name=missing")
    assert isinstance(message, str)
    assert f"{folder}/data/FracAtlas" in message
    assert not list(folder.glob("logs/missing/runs/*/metrics.json"))


@pytest.mark.parametrize("arguments", [["data"], ["data", "upload"], ["plan"], ["table", "--wrong"], ["report"]])
def test_wrong_arguments_are_refused_with_the_command_for_help(fractatlas, arguments):
    refused(fractatlas(*arguments), f"fractatlas {arguments[0]} --help")


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_a_wrong_number_of_jobs_is_refused(fractatlas, jobs):
    refused(fractatlas("plan", "plan.yaml", f"--jobs={jobs}"), f"--jobs: {jobs} should be a number of at least 1")


def test_evaluating_reproduces_the_metrics_of_the_run(fractatlas, run, folder):
    assert fractatlas("evaluate", f"ckpt={run}", "trainer=cpu") == 0
    (report,) = (folder / "logs" / "evaluate" / "runs").glob("*/metrics.json")
    assert json.loads(report.read_text())["test"] == json.loads((run / "metrics.json").read_text())["test"]


def test_a_moved_checkpoint_is_scored_on_all_images_and_on_a_given_split(fractatlas, run, folder):
    moved = folder / "moved.ckpt"
    moved.write_bytes((run / "checkpoints" / "best.ckpt").read_bytes())
    common = (f"ckpt={moved}", "trainer=cpu", "report=false")
    refused(fractatlas("evaluate", "task_name=refused", *common), "score every image (subset=all data_root=DIR)")
    assert fractatlas("evaluate", "task_name=everything", "subset=all", *common) == 0
    assert fractatlas("evaluate", "task_name=given", f"split_file={run}/split.csv", *common) == 0
    (everything,), (given,) = (
        (folder / "logs" / name / "runs").glob("*/metrics.json") for name in ("everything", "given")
    )
    assert json.loads(everything.read_text())["all_images"]["split"] is None
    assert json.loads(given.read_text())["test"] == json.loads((run / "metrics.json").read_text())["test"]


def test_evaluating_ends_with_the_scores_and_the_path_of_the_page(fractatlas, run, folder, capsys):
    for argument in (f"ckpt={run}/checkpoints/best.ckpt", f"predictions={run}/predictions.csv"):
        capsys.readouterr()
        output = folder / "logs" / "page" / argument.partition("=")[0]
        assert fractatlas("evaluate", argument, "task_name=page", f"hydra.run.dir={output}") == 0
        *_, scores, writing, page = capsys.readouterr().out.splitlines()
        test = json.loads((output / "metrics.json").read_text())["test"]
        auroc, accuracy = test["auroc"], test["accuracy"]
        assert f"test: AUROC {auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}], " in scores
        assert f"accuracy {100 * accuracy['value']:.2f} [{100 * accuracy['low']:.1f}, " in scores
        assert f"majority rate {100 * test['majority_rate']:.2f} %" in scores
        assert writing.endswith(" writing the report page")
        assert page.endswith(f" report: {output}/report.html")


def test_training_begins_at_once_and_ends_with_the_path_of_the_page(fractatlas, folder, capsys):
    output = folder / "lines"
    arguments = [*SMALL, "report=true", "data.root=phantoms", "trainer.max_epochs=1", f"hydra.run.dir={output}"]
    assert fractatlas("train", *arguments) == 0
    lines = [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    first, second, precision, reading = lines[:4]
    assert (first, second, reading) == (f"run folder: {output}", "loading PyTorch", "reading the data in phantoms")
    assert precision.startswith(("precision bf16-mixed: a ", "precision 32-true: a "))
    assert lines[-1] == f"report: {output}/report.html"
    scores = [line.partition(" 0")[0] for line in lines if line.startswith(("val: AUROC", "test: AUROC"))]
    assert scores == ["val: AUROC", "test: AUROC"]
    log = (output / "train.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in log] == lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give exactly one of ckpt="),
        (["ckpt=x", "predictions=y"], "give exactly one of ckpt="),
        (["predictions=nowhere.csv"], "nowhere.csv"),
        (["predictions=phantoms/dataset.csv"], "label"),
        (["ckpt=nowhere.ckpt"], "nowhere.ckpt"),
        (["ckpt=phantoms"], "phantoms has no checkpoints/best.ckpt; give the run folder of a training"),
        (["ckpt=phantoms/dataset.csv"], "phantoms/dataset.csv"),
        (["ckpt=x", "subset=tset"], "subset=tset: should be 'train', 'val', 'test' or 'all'"),
    ],
)
def test_evaluating_what_is_not_a_checkpoint_is_refused_in_one_line(fractatlas, arguments, message):
    refused(fractatlas("evaluate", "task_name=refused", *arguments), message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "threshold.value=0.3",
            "threshold.value=0.3: no effect with ckpt=..., the checkpoint stores its threshold; remove it",
        ),
        ("threshold=youden", "threshold=youden: no effect"),
        ("catalogue=phantoms/dataset.csv", "no effect"),
        ("heatmaps=heatmaps.npz", "no effect"),
        ("report=false gradcam=true", "gradcam=true: no effect with report=false, no heatmaps are computed"),
        ("trainer.max_epochs=3", "trainer.max_epochs=3: no effect here, it applies to training only; remove it"),
        ("paths.data_root=phantoms", "data_root=DIR sets the data folder"),
    ],
)
def test_settings_without_effect_on_a_checkpoint_are_refused(fractatlas, override, message):
    refused(fractatlas("evaluate", "task_name=refused", "ckpt=x", *override.split()), message)


@pytest.mark.parametrize("override", ["subset=val", "gradcam=true", "trainer=cpu", "++trainer.devices=2"])
def test_settings_without_effect_on_predictions_are_refused(fractatlas, override):
    message = f"{override}: no effect with predictions=..., "
    refused(fractatlas("evaluate", "task_name=refused", "predictions=x.csv", override), message)


def test_a_file_of_a_split_has_no_effect_on_predictions(fractatlas):
    arguments = ("task_name=refused", "predictions=x.csv", "split_file=y.csv")
    refused(fractatlas("evaluate", *arguments), "no effect with predictions=..., the column split selects the subsets")


@pytest.mark.parametrize("override", ["trainer.max_epochs=3", "trainer.limit_test_batches=1", "paths.weights=x"])
def test_settings_without_effect_on_predict_are_refused(fractatlas, override):
    arguments = ["task_name=refused", "ckpt=x", "input=phantoms", override]
    refused(fractatlas("predict", *arguments), f"{override}: no effect")


def test_a_threshold_is_refused_for_predictions_whose_folder_stores_one(fractatlas, run, folder):
    arguments = ["evaluate", "task_name=thresholds", "report=false", "threshold.value=0.3"]
    message = fractatlas(*arguments, f"predictions={run}/predictions.csv")
    refused(message, f"{run}/metrics.json stores their threshold; remove it")
    (folder / "alone").mkdir()
    (folder / "alone" / "predictions.csv").write_text((run / "predictions.csv").read_text())
    assert fractatlas(*arguments, "predictions=alone/predictions.csv") == 0
    (file,) = (folder / "logs" / "thresholds" / "runs").glob("*/metrics.json")
    assert json.loads(file.read_text())["operating_point"]["threshold"] == 0.3


def test_predictions_of_any_system_are_evaluated_in_the_same_way(fractatlas, run, folder):
    table = pd.read_csv(run / "predictions.csv")[["image_id", "label", "probability"]]
    table.to_csv(folder / "their predictions (1).csv", index=False)
    arguments = ["predictions=their predictions (1).csv", "task_name=theirs", f"catalogue={run}/catalogue.csv",
                 "data_root=phantoms"]  # fmt: skip
    assert fractatlas("evaluate", *arguments) == 0
    (page,) = (folder / "logs" / "theirs" / "runs").glob("*/report.html")
    report = json.loads((page.parent / "metrics.json").read_text())
    assert report["test"]["n"] == len(table)
    assert set(pd.read_csv(page.parent / "strata.csv")["attribute"]) >= {"body part", "view", "box size"}


def test_the_predictions_of_a_run_keep_its_threshold_and_reproduce_its_scores(fractatlas, run, folder):
    assert fractatlas("evaluate", f"predictions={run}/predictions.csv", "task_name=again") == 0
    (again,) = (folder / "logs" / "again" / "runs").glob("*/metrics.json")
    before, after = (json.loads(file.read_text()) for file in (run / "metrics.json", again))
    for subset in ("val", "test"):
        assert after[subset]["auroc"]["value"] == pytest.approx(before[subset]["auroc"]["value"])
        assert after[subset]["sensitivity"] == before[subset]["sensitivity"]
    assert after["operating_point"] == before["operating_point"]


def test_table_prints_finished_runs(fractatlas, run, capsys):
    assert fractatlas("table", "logs/finished", str(run)) == 0  # the same run twice
    printed = capsys.readouterr().out
    report = json.loads((run / "metrics.json").read_text())
    assert f"{100 * report['test']['accuracy']['value']:.2f} [" in printed
    assert printed.count("| finished | densenet_tiny | 42 ") == 2  # val and test
    assert f"{100 * report['test']['majority_rate']:.2f}" in printed
    refused(fractatlas("table", "nowhere"), "nowhere")


def test_compare_prints_what_was_compared(fractatlas, run_folder, folder, capsys):
    for name in ("0", "1", "2"):
        shutil.copytree(run_folder, folder / "sweep" / name)
    file = folder / "sweep" / "2" / "predictions.csv"
    table = pd.read_csv(file)
    table.assign(image_id="other_" + table["image_id"].astype(str)).to_csv(file, index=False)
    assert fractatlas("compare", "sweep", "sweep/0", "sweep/1", "--out", "out") == 0
    count = len(pd.read_csv(folder / "out" / "comparison.csv"))
    assert count > 0
    counts = f"{count} differences computed, 0 with a 95 % interval that excludes 0"
    printed = f"3 runs, 1 of 3 pairs compared, {counts}: out/comparison.html; no image in common: "
    assert capsys.readouterr().out == printed + "0 and 2; 1 and 2\n"


@pytest.mark.integration
def test_two_processes_score_a_checkpoint_as_one_does(run, folder):
    """An odd number of images is not divisible by two: a padded image would be counted twice."""
    arguments = [f"ckpt={run}/checkpoints/best.ckpt", "subset=train"]
    split = pd.read_csv(run / "split.csv")
    assert (split["split"] == "train").sum() % 2 == 1
    reports = []
    for trainer in ("cpu", "ddp_cpu"):
        script("evaluate.py", *arguments, f"task_name=evaluate_{trainer}", f"trainer={trainer}", folder=folder)
        (report,) = (folder / "logs" / f"evaluate_{trainer}" / "runs").glob("*/metrics.json")
        reports.append((report.parent, json.loads(report.read_text())))
    assert reports[1][1]["device"].startswith("2 x cpu")
    assert reports[0][1]["train"]["n"] == reports[1][1]["train"]["n"]
    one, two = (pd.read_csv(folder / "predictions.csv") for folder, _ in reports)
    assert one["image_id"].tolist() == two["image_id"].tolist()
    assert (one["probability"] - two["probability"]).abs().max() < 1e-5
    assert reports[0][1]["train"]["auroc"]["value"] == pytest.approx(reports[1][1]["train"]["auroc"]["value"], abs=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize(
    "line",
    [
        [sys.executable, str(REPOSITORY / "train.py")],
        [sys.executable, *MODULE, "train"],
        [str(Path(sys.executable).with_name("fractatlas")), "train"],
    ],
    ids=["script", "module", "console script"],
)
def test_two_processes_train_together_and_write_one_run(phantoms, tmp_path, line):
    arguments = [*SMALL, f"data.root={phantoms}", "trainer=ddp_cpu", "trainer.max_epochs=1"]
    result = subprocess.run([*line, *arguments], cwd=tmp_path, env=PLAIN, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    report = json.loads((run / "metrics.json").read_text())
    predictions = pd.read_csv(run / "predictions.csv")
    assert report["device"].startswith("2 x cpu")
    assert len(predictions) == report["val"]["n"] + report["test"]["n"]
    assert not predictions["image_id"].duplicated().any()
    assert report["monitor"]["value"] == pytest.approx(report["val"]["auroc"]["value"], abs=1e-6)


@pytest.mark.integration
def test_two_processes_train_a_fracture_map_on_a_fold(phantoms, tmp_path):
    options = ("split=kfold", "split.folds=3", "split.fold=1", "model.mirror=true", "callbacks=averaged", "report=true")
    arguments = [*SMALL, *options, f"data.root={phantoms}", "trainer=ddp_cpu", "trainer.max_epochs=1"]
    script("train.py", *arguments, "map=fpn", "map.channels=8", "monitor=val/hit", folder=tmp_path)
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    report = json.loads((run / "metrics.json").read_text())
    assert report["device"].startswith("2 x cpu")
    assert report["heatmaps"] == "fracture map"
    assert set(report["detection"]) == {"val", "test"}
    assert 0 <= report["monitor"]["value"] <= 1
    predictions = pd.read_csv(run / "predictions.csv")
    with np.load(run / "heatmaps.npz") as file:
        assert sorted(file["image_id"]) == sorted(predictions["image_id"])


@pytest.mark.integration
@pytest.mark.parametrize("choice", ["one_batch", "overfit", "profiler"])
def test_every_debug_run_runs(phantoms, choice, tmp_path):
    script("train.py", *SMALL, f"data.root={phantoms}", f"debug={choice}", "trainer.max_epochs=1", folder=tmp_path)
    assert list(tmp_path.glob("logs/debug/runs/*/metrics.json"))


@pytest.mark.integration
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("family", ["resnet", "densenet"])
def test_the_demo_reaches_its_auroc(family, tmp_path):
    script("train.py", f"experiment=demo_{family}", "trainer=cpu", folder=tmp_path, timeout=1100)
    (file,) = tmp_path.glob("logs/*/runs/*/metrics.json")
    assert json.loads(file.read_text())["test"]["auroc"]["value"] >= 0.9


@pytest.mark.integration
@pytest.mark.fault("two runs started in the same second", "one folder for each run")
def test_two_runs_of_one_second_have_a_folder_each(phantoms, tmp_path):
    line = [sys.executable, str(REPOSITORY / "train.py"), *SMALL, f"data.root={phantoms}", "test=false",
            "trainer.max_epochs=1"]  # fmt: skip
    both = [subprocess.Popen(line, cwd=tmp_path, env=PLAIN, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [running.wait(timeout=300) for running in both] == [0, 0]
    runs = list((tmp_path / "logs" / "train" / "runs").iterdir())
    assert len(runs) == 2
    assert len({(run / "predictions.csv").read_bytes() for run in runs}) == 1
