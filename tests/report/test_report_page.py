import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fractatlas.errors import InputError
from fractatlas.evaluation import metrics, subset_assessment
from fractatlas.evaluation.predictions_table import read_predictions
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.report.report_page import write_report


@pytest.fixture(scope="module")
def page(run_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(run_folder, folder)
    return write_report(folder)


@pytest.fixture
def changed_run(run_folder, tmp_path) -> Callable[..., Path]:
    """Copy the run folder with another table of predictions and other entries of metrics.json."""

    def change(change_table: Callable[[pd.DataFrame], pd.DataFrame], **entries) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(run_folder, folder)
        change_table(read_predictions(folder / "predictions.csv")).to_csv(folder / "predictions.csv", index=False)
        run = RunFolder(folder)
        subset_assessment.write(folder, subset_assessment.assess(run.predictions, run.threshold, run.catalogue))
        (folder / "metrics.json").write_text(json.dumps(run.metrics | entries))
        return folder

    return change


@pytest.fixture
def external_predictions(run_folder, tmp_path) -> Callable[[int], Path]:
    """Make the run folder of evaluated predictions of another system, of the first images of the table."""

    def make(images: int) -> Path:
        table = pd.read_csv(run_folder / "predictions.csv")[["image_id", "label", "probability"]].head(images)
        table.to_csv(tmp_path / "predictions.csv", index=False)
        predictions = read_predictions(tmp_path / "predictions.csv")
        point = {"rule": "fixed", "threshold": 0.5, "temperature": 1.0}
        record = {"task_name": "theirs", "operating_point": point, "test": metrics.evaluate(predictions)}
        record |= subset_assessment.write(tmp_path, subset_assessment.assess(predictions, 0.5))
        (tmp_path / "metrics.json").write_text(json.dumps(record))
        return tmp_path

    return make


def test_durations_are_shown_as_hours_minutes_and_seconds(changed_run):
    timing = {"total_seconds": 3723.4, "fit_seconds": 3600.0, "starts": 2}
    text = write_report(
        changed_run(lambda table: table, timing=timing, versions={"torch": "2"}, device="cpu")
    ).read_text()
    assert "1:02:03 in total, 1:00:00 of training; the run was started 2 times" in text


def test_the_page_needs_no_network_and_no_other_file(page):
    text = page.read_text()
    assert not re.findall(r"""(?:src|href)=["']?(?!data:|#)[^"'\s>]+""", text)
    assert "http" not in re.sub(r"data:[^\"]+", "", text)
    assert "<script" not in text
    assert len(text) < 10_000_000


def test_the_table_of_contents_links_to_every_section(page):
    text = page.read_text()
    links = dict(re.findall(r'<li><a href="#([\w-]+)">(.+)</a></li>', text))
    assert links == dict(re.findall(r'<h2 id="([\w-]+)">(.+)</h2>', text))
    assert len(links) > 7


def test_the_page_contains_curves_errors_and_heatmaps_as_pictures(page):
    text = page.read_text()
    svgs = [base64.b64decode(code).decode() for code in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)]
    assert len(svgs) == 5
    assert all(svg.startswith("<?xml") and svg.rstrip().endswith("</svg>") for svg in svgs)
    assert "false negative (missed fracture)" in text
    assert "false positive</span>" in text
    assert text.count("data:image/jpeg;base64,") >= 20


def test_the_legend_of_the_roc_curves_has_the_scores_of_metrics_json(page):
    codes = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page.read_text())
    roc = base64.b64decode(codes[0]).decode()
    for subset in ("val", "test"):
        score = RunFolder(page.parent).metrics[subset]["auroc"]
        assert f"{subset}: AUROC {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" in roc


def test_heatmaps_have_a_colour_key(page):
    text = page.read_text()
    assert "<span>maximum of the image</span>" in text
    assert "grey frame" not in text
    assert "zero everywhere" not in text


def test_an_empty_heatmap_and_the_edge_of_a_crop_are_explained(run_folder, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    with np.load(folder / "heatmaps.npz") as file:
        arrays = {"image_id": file["image_id"], "heat": np.zeros_like(file["heat"]),
                  "view": file["view"] * np.float32(0.9)}  # fmt: skip
    np.savez(folder / "heatmaps.npz", **arrays)
    text = write_report(folder).read_text()
    assert text.count("<br>heatmap is zero everywhere") >= 12
    assert "A heatmap is zero everywhere if no place of the radiograph raises the score." in text
    assert "The grey frame is the part of the radiograph that the network receives" in text
    assert "<span>maximum of the image</span>" not in text  # a key without colours


def test_the_first_stratum_has_the_scores_of_metrics_json(page):
    run = RunFolder(page.parent)
    assert [subset.name for subset in run.subsets] == ["val", "test"]
    for subset in run.subsets:
        row, score = subset.strata.iloc[0], run.metrics[subset.name]["auroc"]
        assert row["auroc"] == pytest.approx(score["value"])
        assert row["auroc_low"] == pytest.approx(score["low"])
        assert f"{score['value']:.3f} <span" in page.read_text()


def test_heat_in_a_corner_does_not_hit_the_boxes(page):
    summary = RunFolder(page.parent).subsets[-1].localisation_summary["all"]
    assert summary["n"] > 5
    assert summary["hit"]["value"] < summary["hit_centre"]["value"] + 0.05
    located = pd.read_csv(page.parent / "localisation.csv")
    assert set(located["split"]) == {"val", "test"}


def test_the_detection_scores_of_both_subsets_are_on_the_page_and_in_the_card(page):
    text, run = page.read_text(), RunFolder(page.parent)
    assert "The heatmaps are Grad-CAM: they show which places raised the score" in text
    codes = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)
    froc = next(svg for svg in (base64.b64decode(code).decode() for code in codes) if "false alarms per image" in svg)
    for subset in run.subsets:
        score = subset.detection["froc"]["1"]
        assert f"{subset.name}: {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}] at 1 false" in froc
        for name in ("sensitivity", "alarm_rate"):
            assert f"{100 * subset.detection[name]['value']:.1f} % <span" in text
        assert 0.1 < subset.detection["sensitivity"]["value"] < 1
    assert "<td>AP at IoU 0.5<td" in text
    assert "sensitivity at 1/8 false alarm per image" in text
    card = (page.parent / "model_card.md").read_text()
    assert "AP at IoU 0.5 0." in card
    assert "At the box threshold, 100.00 [" in card
    assert "A candidate box counts if its score is at least 0.5500 (the highest F1 against the boxes" in card
    assert "nan" not in re.findall(r"\w+", re.sub(r"data:[^\"]+", "", text))


def test_the_pointing_game_is_shown_by_box_size_and_body_part(page):
    text = page.read_text()
    summary = RunFolder(page.parent).subsets[-1].localisation_summary
    sizes = [name for name in summary if " px" in name and summary[name]["n"]]
    parts = [name for name in ("hand", "leg", "hip", "shoulder") if summary[name]["n"]]
    assert sizes
    assert parts
    for name in ["all", *(f"largest box {name}" for name in sizes), *parts]:
        assert f'<td>{name}<td class="n">{summary[name.removeprefix("largest box ")]["n"]}<td' in text


def test_candidates_above_the_threshold_are_drawn_with_a_legend(page, run_folder, tmp_path):
    legend = "candidate box with its score, at least 0.550"
    assert legend in page.read_text()
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    record = json.loads((folder / "metrics.json").read_text())
    record["operating_point"]["box_threshold"] = 2.0
    (folder / "metrics.json").write_text(json.dumps(record))
    pictures = [re.findall(r"data:image/jpeg;base64,[^\"]+", one.read_text()) for one in (page, write_report(folder))]
    assert len(pictures[0]) == len(pictures[1])
    same = [one == other for one, other in zip(*pictures, strict=True)]
    assert same.count(True) == 2  # the keys of the colours
    del record["operating_point"]["box_threshold"]
    (folder / "metrics.json").write_text(json.dumps(record))
    assert "candidate box with its score" not in write_report(folder).read_text()


def test_a_fracture_map_is_named_and_drawn_as_it_is(page, run_folder, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    record = json.loads((folder / "metrics.json").read_text()) | {"heatmaps": "fracture map"}
    (folder / "metrics.json").write_text(json.dumps(record))
    text = write_report(folder).read_text()
    assert "The heatmaps are the fracture maps of the network" in text
    assert "<span>1 (probability)</span>" in text
    assert "maximum of the image" not in text
    assert "Grad-CAM" not in text
    assert "The maximum of the fracture map is in" in (folder / "model_card.md").read_text()


def test_the_accuracy_of_constant_predictions_does_not_differ_from_the_majority_rate(changed_run):
    folder = changed_run(lambda table: table.assign(probability=0.01))
    assert "the accuracy is not significantly different from it" in write_report(folder).read_text()


@pytest.mark.fault("hostile ids and paths on the page", "escaped")
def test_html_in_a_name_is_escaped(changed_run):
    name = "<script>alert(1)</script>"
    text = write_report(changed_run(lambda table: table, task_name=name)).read_text()
    assert name not in text
    assert "&lt;script&gt;" in text


def test_a_page_is_made_from_predictions_of_another_system(external_predictions):
    folder = external_predictions(100)
    text = write_report(folder).read_text()
    (subset,) = RunFolder(folder).subsets
    assert subset.name == "test"
    assert len(subset.table) == len(pd.read_csv(folder / "predictions.csv"))
    assert "There are no heatmaps" in text


def test_the_model_card_of_external_predictions_contains_only_what_is_known(external_predictions):
    folder = external_predictions(1)
    page = write_report(folder).read_text()
    text = (folder / "model_card.md").read_text()
    assert "nan" not in re.findall(r"\w+", text)
    assert "undefined" in text
    for claim in ("radiologists", "chosen on the validation subset", "one logit", "public data set"):
        assert claim not in text
    assert "Ensembling | None" not in text
    assert "were chosen" not in page


def test_the_checklist_has_an_answer_to_all_42_items(page):
    card = (page.parent / "model_card.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", card, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 43))
    assert all(answer.strip() for _, _, answer in rows)


def test_an_unfinished_run_and_one_without_strata_are_refused(run_folder, tmp_path):
    with pytest.raises(InputError, match="not finished \\(metrics.json is missing\\)"):
        write_report(tmp_path)
    for name in ("metrics.json", "predictions.csv"):
        shutil.copy(run_folder / name, tmp_path)
    with pytest.raises(InputError, match="no strata.csv: the run had report=false"):
        write_report(tmp_path)


def test_the_report_command_does_not_import_torch(page):
    code = (
        "import sys; from fractatlas.cli.main import main; main('report'); import fractatlas.report.comparison_page\n"
        "import fractatlas.evaluation.external_predictions\n"
        "assert not {'torch', 'lightning', 'torchvision'} & set(sys.modules)"
    )
    line = [sys.executable, "-c", code, str(page.parent)]
    printed = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout
    assert printed.strip() == str(page)


@pytest.mark.integration
@pytest.mark.fault("page with hostile ids in Chromium", "nothing runs, nothing is fetched")
def test_a_browser_runs_no_code_from_names(changed_run):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium: apt-get install chromium")
    hostile = (
        "<img src=x onerror=\"document.title='ran'\">", "<script>document.title='ran'</script>",
        "'\"><svg onload=document.title='ran'>", "javascript:document.title='ran'", "{{ 7 * 7 }}",
    )  # fmt: skip

    def rename(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(image_id=[f"{hostile[int(name[3:10]) % 5]}{name}" for name in table["image_id"]])

    folder = changed_run(rename, task_name=hostile[0])
    rename(pd.read_csv(folder / "catalogue.csv")).to_csv(folder / "catalogue.csv", index=False)
    for name in ("heatmaps.npz", "localisation.csv"):
        (folder / name).unlink(missing_ok=True)
    page = write_report(folder)
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={folder}/profile")  # fmt: skip
    line = [browser, *flags, "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>ran" not in shown
    assert "&lt;script&gt;" in shown
    assert not re.search(r"<(script|svg|img src=.?x)", shown)
    names = re.findall(r"<figcaption>.*?<br>([^<]*)", shown)
    assert names
    assert all("49" not in name.partition("IMG")[0] for name in names)


def test_scores_without_an_interval_have_the_reason_on_the_page(changed_run):
    folder = changed_run(lambda table: table.assign(probability=0.01))
    run = RunFolder(folder)
    scores = {name: metrics.evaluate(table, run.threshold) for name, table in run.predictions.groupby("split")}
    (folder / "metrics.json").write_text(json.dumps(run.metrics | scores))
    text = write_report(folder).read_text()
    assert '0.500 <span class="pale">no interval</span>' in text
    assert "balanced accuracy (val, test): all decisions are equal: the value is 0.5 for any images" in text
    assert "[nan" not in text
    assert "AUROC 0.500 (no interval)" in (folder / "model_card.md").read_text()


def test_boxes_without_area_in_their_image_are_not_shown(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    boxes = RunFolder(folder).boxes
    image_id = next(iter(boxes))
    catalogue = pd.read_csv(folder / "catalogue.csv", keep_default_na=False)
    catalogue.loc[catalogue["image_id"] == image_id, ["width", "height"]] = 1  # all boxes are outside
    catalogue.to_csv(folder / "catalogue.csv", index=False)
    assert RunFolder(folder).boxes.keys() == boxes.keys() - {image_id}
