import base64
import re
import shutil
import subprocess

import pandas as pd
import pytest

from fractatlas.evaluation.metrics import evaluate
from fractatlas.report import page
from fractatlas.report.evidence import gather


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return folder, page.write(folder, gather(run / "predictions.csv"))


def test_the_page_needs_nothing_but_itself(written):
    folder, _ = written
    text = (folder / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[^"'\s>]+""", text)
    assert "http" not in re.sub(r"data:[^\"]+", "", text)
    assert "<script" not in text
    assert len(text) < 10_000_000


def test_the_page_shows_curves_mistakes_and_heatmaps_as_pictures(written):
    text = (written[0] / "report.html").read_text()
    drawn = [base64.b64decode(code).decode() for code in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)]
    assert len(drawn) == 4
    assert all(svg.startswith("<?xml") and svg.rstrip().endswith("</svg>") for svg in drawn)
    assert "missed fracture" in text
    assert "false alarm" in text
    assert text.count("data:image/jpeg;base64,") >= 20


def test_the_headline_is_the_metrics(written, run):
    _, parts = written
    table = pd.read_csv(run / "predictions.csv")
    for part in parts:
        scores, row = evaluate(table[table["split"] == part.name]), part.strata.iloc[0]
        assert row["auroc"] == pytest.approx(scores["auroc"]["value"])
        assert row["auroc_low"] == pytest.approx(scores["auroc"]["low"])


def test_heat_in_a_corner_never_points_at_a_fracture_and_is_told_so(written):
    folder, parts = written
    pointing = parts[-1].pointing["all"]
    assert pointing["n"] > 5
    assert pointing["hit"]["value"] < pointing["hit_centre"]["value"] + 0.05
    located = pd.read_csv(folder / "localisation.csv")
    assert set(located["split"]) == {"val", "test"}


def test_always_no_cannot_be_told_from_the_majority(run, tmp_path):
    evidence = gather(run / "predictions.csv")
    evidence.predictions["probability"] = 0.01
    page.write(tmp_path, evidence)
    text = (tmp_path / "report.html").read_text()
    assert "cannot be told from it" in text


@pytest.mark.fault("hostile ids and paths on the page", "escaped")
def test_a_hostile_name_is_only_text(run, tmp_path):
    evidence = gather(run / "predictions.csv")
    evidence.record["task_name"] = name = "<script>alert(1)</script>"
    page.write(tmp_path, evidence)
    text = (tmp_path / "report.html").read_text()
    assert name not in text
    assert "&lt;script&gt;" in text


def test_predictions_alone_make_a_page_too(run, tmp_path):
    table = pd.read_csv(run / "predictions.csv")[["image_id", "label", "probability"]]
    table.to_csv(tmp_path / "theirs.csv", index=False)
    evidence = gather(tmp_path / "theirs.csv", record={"task_name": "theirs", "operating_point": {
        "rule": "fixed", "threshold": 0.5, "temperature": 1.0}})  # fmt: skip
    parts = page.write(tmp_path, evidence)
    assert [part.name for part in parts] == ["test"]
    assert len(parts[0].table) == len(table)
    assert "No heatmaps" in (tmp_path / "report.html").read_text()


def test_the_checklist_has_an_answer_to_all_42_items(written):
    rows = re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", (written[0] / "model_card.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 43))
    assert all(answer.strip() for _, _, answer in rows)


@pytest.mark.fault("page with hostile ids in Chromium", "nothing runs, nothing is fetched")
def test_a_browser_runs_nothing_of_a_hostile_name(run, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium: apt-get install chromium")
    evidence = gather(run / "predictions.csv")
    hostile = (
        "<img src=x onerror=\"document.title='ran'\">", "<script>document.title='ran'</script>",
        "'\"><svg onload=document.title='ran'>", "javascript:document.title='ran'", "{{ 7 * 7 }}",
    )  # fmt: skip
    names = evidence.catalogue["image_id"].tolist()
    renamed = {name: f"{hostile[row % len(hostile)]}{name}" for row, name in enumerate(names)}
    for table in (evidence.catalogue, evidence.predictions):
        table["image_id"] = table["image_id"].map(renamed)
    evidence.boxes, evidence.heatmaps = {}, None
    evidence.record["task_name"] = hostile[0]
    page.write(tmp_path, evidence)
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}/profile")  # fmt: skip
    line = [browser, *flags, "--virtual-time-budget=2000", "--dump-dom", (tmp_path / "report.html").as_uri()]
    shown = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>ran" not in shown
    assert "&lt;script&gt;" in shown
    assert not re.search(r"<(script|svg|img src=.?x)", shown)
    assert "49" not in re.findall(r"<figcaption>[^<]*<br>([^<]*)", shown)


def test_what_predictions_alone_cannot_tell_is_not_told(run, tmp_path):
    pd.read_csv(run / "predictions.csv")[["image_id", "label", "probability"]].head(1).to_csv(tmp_path / "one.csv")
    record = {"task_name": "theirs", "operating_point": {"rule": "fixed", "threshold": 0.5, "temperature": 1.0}}
    page.write(tmp_path, gather(tmp_path / "one.csv", record))
    text = (tmp_path / "model_card.md").read_text()
    assert "nan" not in re.findall(r"\w+", text)
    assert "undefined" in text
    for told in ("radiologist", "settled on the validation part", "One logit", "public data set", "Ensembling | None"):
        assert told not in text
    assert "settled on the validation part" not in (tmp_path / "report.html").read_text()
