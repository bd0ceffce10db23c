import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
from PIL import Image

from fractatlas.data import audit
from fractatlas.data.catalogue import COCO, read_catalogue
from fractatlas.data.inspection import ORIENTATION

EVIL = "IMG0000500<script>alert(1).jpg"


@pytest.fixture(scope="module")
def spoilt(phantoms, catalogue, tmp_path_factory):
    """A data folder with one defect of every kind; where each of them is."""
    root = shutil.copytree(phantoms, tmp_path_factory.mktemp("spoilt") / "copy")
    sound = catalogue[catalogue["excluded"] == ""]
    # Far from each other, so that each has one defect alone.
    hurt = sound[sound["label"] == 1].iloc[::7].to_dict("records")
    well = sound[sound["label"] == 0].iloc[::7].to_dict("records")
    table = pd.read_csv(root / "dataset.csv").set_index("image_id")
    coco = json.loads((root / COCO).read_text())
    where = {}

    where["junk after the end"] = [well[0]["image_id"]]
    file = root / well[0]["path"]
    file.write_bytes(file.read_bytes() + b"rest of another file\xff\xd9")

    where["EXIF rotation"] = [hurt[0]["image_id"]]
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    with Image.open(root / hurt[0]["path"]) as image:  # stored on its side, upright with its EXIF
        image.transpose(Image.Transpose.ROTATE_270).save(root / hurt[0]["path"], exif=exif, quality=95)
    where["size in COCO is the upright one"] = where["EXIF rotation"]

    where["identical files"] = sorted([well[1]["image_id"], well[2]["image_id"]])
    shutil.copy(root / well[1]["path"], root / well[2]["path"])

    with Image.open(root / well[3]["path"]) as image:
        image.convert("L").save(root / well[4]["path"], quality=60)
    where["near-duplicates"] = sorted([*where["identical files"], well[3]["image_id"], well[4]["image_id"]])

    with Image.open(root / hurt[1]["path"]) as image:
        image.save(root / well[5]["path"], quality=80)
    where["opposite labels"] = sorted([hurt[1]["image_id"], well[5]["image_id"]])
    where["near-duplicates"] = sorted(where["near-duplicates"] + where["opposite labels"])

    with Image.open(root / hurt[8]["path"]) as image:  # cut short and saved again, under another number
        band = image.convert("L").resize((hurt[9]["width"], hurt[9]["height"]))
    band.paste(128, (0, band.height * 7 // 10, *band.size))
    (file,) = (root / "images" / "Fractured").glob(hurt[9]["image_id"])
    band.save(file, quality=90)
    where["copy cut short"] = [hurt[9]["image_id"]]
    where["near-duplicates"] = sorted([*where["near-duplicates"], hurt[8]["image_id"], hurt[9]["image_id"]])

    where["labels disagree"] = [hurt[2]["image_id"]]
    table.loc[hurt[2]["image_id"], "fractured"] = 0
    where["fractures miscounted"] = [hurt[3]["image_id"]]
    table.loc[hurt[3]["image_id"], "fracture_count"] += 2
    where["in both folders"] = [hurt[4]["image_id"]]
    shutil.copy(root / hurt[4]["path"], root / "images" / "Non_fractured")

    where["no image file"] = [well[6]["image_id"]]
    (root / well[6]["path"]).unlink()
    where["not in dataset.csv"] = [EVIL]
    Image.effect_noise((200, 300), 80).save(root / "images" / "Non_fractured" / EVIL)
    where["unreadable"] = [well[8]["image_id"]]
    (root / well[8]["path"]).write_text("no image")
    where["truncated"] = sorted(catalogue.loc[catalogue["excluded"] == "truncated", "image_id"])

    entries = {image["file_name"]: image for image in coco["images"]}
    where["wrong size in COCO"] = [hurt[5]["image_id"]]
    entries[hurt[5]["image_id"]]["width"] += 100
    where["box outside the image"] = [hurt[6]["image_id"]]
    for annotation in coco["annotations"]:
        if annotation["image_id"] == entries[hurt[6]["image_id"]]["id"]:
            annotation["bbox"][0] += 1000
    coco["images"].append({"id": 10_000, "width": 5, "height": 5, "file_name": "IMG0000900.jpg"})
    where["only in COCO"] = ["IMG0000900.jpg"]
    (root / COCO).write_text(json.dumps(coco))
    table.reset_index().to_csv(root / "dataset.csv", index=False)

    (root / audit.VOC).mkdir()
    row = hurt[7]
    where["wrong size in VOC"] = [row["image_id"]]
    (root / audit.VOC / "a.xml").write_text(
        f"<annotation><filename>{row['image_id']}</filename><size><width>{row['height']}</width>"
        f"<height>{row['width']}</height></size></annotation>"
    )
    return root, where


@pytest.fixture(scope="module")
def findings(spoilt):
    root, _ = spoilt
    return audit.find(root, read_catalogue(root))


def test_every_kind_of_defect_is_found_where_it_is_and_nowhere_else(spoilt, findings):
    _, where = spoilt
    found = findings.groupby("kind")["image_id"].agg(lambda ids: sorted(set(ids))).to_dict()
    found.pop("identical pixels")
    assert found == where


def test_each_finding_says_what_and_what_was_done(findings):
    assert findings["done"].all()
    details = findings.drop_duplicates("kind").set_index("kind")["detail"]
    assert details["EXIF rotation"].startswith("orientation 8; 1 of 1 boxes lie inside the upright image")
    assert details["junk after the end"].startswith("22 of ")
    assert details["labels disagree"] == "dataset.csv says 0, the folder 1, 1 boxes: taken as 1"


def test_the_page_and_the_table_are_written(spoilt, tmp_path):
    root, where = spoilt
    arguments = ["--root", str(root), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    audit.main(arguments)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["audit.csv", "audit.html"]
    table = pd.read_csv(tmp_path / "out" / "audit.csv")
    assert set(table["kind"]) == {*where, "identical pixels"}
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "<script>" not in page
    assert "http" not in page  # it needs no network
    assert page.count("data:image/jpeg;base64,") > 20
    before = page
    audit.main(arguments)
    assert (tmp_path / "out" / "audit.html").read_text() == before


def test_shortcuts_are_shares_of_the_usable_images(catalogue):
    usable = catalogue[catalogue["excluded"] == ""]
    table = audit.shortcuts(catalogue)
    assert (table.groupby("attribute")["n"].sum() == len(usable)).all()
    share = table.set_index(["attribute", "value"]).loc[("colour mode", "L")]
    grey = usable[usable["mode"] == "L"]
    assert (share["n"], share["fractured"]) == (len(grey), grey["label"].mean())


def test_what_is_no_data_folder_is_answered_in_two_lines(tmp_path):
    line = [sys.executable, "-m", "fractatlas.data.audit", "--root", str(tmp_path / "nowhere")]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: no FracAtlas in {tmp_path}/nowhere")
    assert not list(tmp_path.iterdir())


def test_the_real_set_has_its_known_defects(radiographs, real_catalogue):
    findings = audit.find(radiographs, real_catalogue)
    summary = audit.summarise(real_catalogue, findings).set_index("kind")
    images = summary["images"].to_dict()
    assert (images["truncated"], images["EXIF rotation"]) == (59, 25)
    assert (images["size in VOC is the upright one"], images["size in COCO is the upright one"]) == (22, 1)
    assert summary.at["identical files", "groups"] == "10 groups"
    cut = findings.loc[findings["kind"] == "copy cut short", "image_id"].str[3:10]
    assert sorted(cut) == ["0004067", "0004071", "0004113", "0004150", "0004232"]
    opposite = findings.loc[findings["kind"] == "opposite labels", "image_id"].str[3:10]
    assert sorted(opposite) == ["0002886", "0002998", "0003034", "0004243", "0004280", "0004314", "0004341"]
    agreement = audit.label_agreement(real_catalogue).set_index("pair")["correlation"]
    assert agreement.iloc[0] > 0.75
    assert agreement.iloc[1] < 0.3
    assert abs(agreement.iloc[2]) < 0.1


@pytest.mark.fault("audit killed, started again", "the whole audit")
def test_an_audit_that_is_killed_at_any_moment_is_finished_by_the_next(spoilt, tmp_path):
    """Forked, since importing takes longer than the audit."""
    root, _ = spoilt
    generator, fork = random.Random(0), multiprocessing.get_context("fork")

    def arguments(number: int | str) -> list[str]:
        return ["--root", str(root), "--out", f"{tmp_path}/{number}", "--cache", f"{tmp_path}/{number}/cache"]

    started = time.perf_counter()
    audit.main(arguments("whole"))
    lasts = time.perf_counter() - started
    expected = {name: (tmp_path / "whole" / name).read_bytes() for name in ("audit.csv", "audit.html")}
    for number in range(20):
        process = fork.Process(target=audit.main, args=(arguments(number),))
        process.start()
        time.sleep(generator.random() * lasts)
        process.kill()
        process.join(60)
        for name, content in expected.items():
            file = tmp_path / str(number) / name
            assert not file.exists() or file.read_bytes() == content
        audit.main(arguments(number))
        assert {name: (tmp_path / str(number) / name).read_bytes() for name in expected} == expected
