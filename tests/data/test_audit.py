import json
import multiprocessing
import random
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from fractatlas.config.overrides import compose_config
from fractatlas.data import audit
from fractatlas.data.catalogue import read_catalogue
from fractatlas.data.integrity import ORIENTATION
from fractatlas.data.sources.annotations import Annotation, write_coco
from fractatlas.data.sources.fracatlas import COCO, VOC, FracAtlas
from fractatlas.data.sources.registry import open_source

EVIL = "IMG0000500<script>alert(1).jpg"


@pytest.fixture(scope="module")
def damaged(phantoms, catalogue, tmp_path_factory):
    """A data folder with one defect of each kind, and the affected images by kind."""
    root = shutil.copytree(phantoms, tmp_path_factory.mktemp("damaged") / "copy")
    usable = catalogue[catalogue["excluded"] == ""]
    # At distances, so that each image has only one defect.
    fractured = usable[usable["label"] == 1].iloc[::7].to_dict("records")
    normal = usable[usable["label"] == 0].iloc[::7].to_dict("records")
    table = pd.read_csv(root / "dataset.csv").set_index("image_id")
    coco = json.loads((root / COCO).read_text())
    where = {}

    where["bytes after the end"] = [normal[0]["image_id"]]
    file = root / normal[0]["path"]
    file.write_bytes(file.read_bytes() + b"rest of another file\xff\xd9")

    where["EXIF rotation"] = [fractured[0]["image_id"]]
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    with Image.open(root / fractured[0]["path"]) as image:  # stored rotated, upright with its EXIF orientation
        image.transpose(Image.Transpose.ROTATE_270).save(root / fractured[0]["path"], exif=exif, quality=95)
    where["upright size in COCO"] = where["EXIF rotation"]

    where["identical files"] = sorted([normal[1]["image_id"], normal[2]["image_id"]])
    shutil.copy(root / normal[1]["path"], root / normal[2]["path"])

    with Image.open(root / normal[3]["path"]) as image:
        image.convert("L").save(root / normal[4]["path"], quality=60)
    where["near-duplicates"] = sorted([*where["identical files"], normal[3]["image_id"], normal[4]["image_id"]])

    with Image.open(root / fractured[1]["path"]) as image:
        image.save(root / normal[5]["path"], quality=80)
    where["opposite labels"] = sorted([fractured[1]["image_id"], normal[5]["image_id"]])
    where["near-duplicates"] = sorted(where["near-duplicates"] + where["opposite labels"])

    with Image.open(root / fractured[8]["path"]) as image:  # a truncated file that was saved again under another number
        band = image.convert("L").resize((fractured[9]["width"], fractured[9]["height"]))
    band.paste(128, (0, band.height * 7 // 10, *band.size))
    (file,) = (root / "images" / "Fractured").glob(fractured[9]["image_id"])
    band.save(file, quality=90)
    where["truncated copy"] = [fractured[9]["image_id"]]
    where["near-duplicates"] = sorted([*where["near-duplicates"], fractured[8]["image_id"], fractured[9]["image_id"]])

    where["labels disagree"] = [fractured[2]["image_id"]]
    table.loc[fractured[2]["image_id"], "fractured"] = 0
    where["fracture count differs"] = sorted(fractured[number]["image_id"] for number in (3, 6))  # 6: box ignored
    table.loc[fractured[3]["image_id"], "fracture_count"] += 2
    where["in both folders"] = [fractured[4]["image_id"]]
    shutil.copy(root / fractured[4]["path"], root / "images" / "Non_fractured")

    where["no image file"] = [normal[6]["image_id"]]
    (root / normal[6]["path"]).unlink()
    where["not in dataset.csv"] = [EVIL]
    Image.effect_noise((200, 300), 80).save(root / "images" / "Non_fractured" / EVIL)
    where["unreadable"] = [normal[8]["image_id"]]
    (root / normal[8]["path"]).write_text("no image")
    where["truncated"] = sorted(catalogue.loc[catalogue["excluded"] == "truncated", "image_id"])

    entries = {image["file_name"]: image for image in coco["images"]}
    where["wrong size in COCO"] = [fractured[5]["image_id"]]
    entries[fractured[5]["image_id"]]["width"] += 100
    where["box outside the image"] = [fractured[6]["image_id"]]
    for annotation in coco["annotations"]:
        if annotation["image_id"] == entries[fractured[6]["image_id"]]["id"]:
            annotation["bbox"][0] += 1000
    coco["images"].append({"id": 10_000, "width": 5, "height": 5, "file_name": "IMG0000900.jpg"})
    where["only in COCO"] = ["IMG0000900.jpg"]
    (root / COCO).write_text(json.dumps(coco))
    table.reset_index().to_csv(root / "dataset.csv", index=False)

    (root / VOC).mkdir()
    row = fractured[7]
    where["wrong size in VOC"] = [row["image_id"]]
    (root / VOC / "a.xml").write_text(
        f"<annotation><filename>{row['image_id']}</filename><size><width>{row['height']}</width>"
        f"<height>{row['width']}</height></size></annotation>"
    )
    return root, where


@pytest.fixture(scope="module")
def findings(damaged):
    root, _ = damaged
    return audit.find_defects(FracAtlas(root), read_catalogue(FracAtlas(root)))


def test_each_kind_of_defect_is_found_in_the_affected_images_only(damaged, findings):
    _, where = damaged
    ids = findings.groupby("kind")["image_id"].agg(lambda ids: sorted(set(ids))).to_dict()
    ids.pop("identical pixels")
    assert ids == where


def test_each_finding_has_a_detail_and_an_action(findings):
    assert findings["action"].all()
    details = findings.drop_duplicates("kind").set_index("kind")["detail"]
    assert details["EXIF rotation"].startswith("orientation 8; 1 of 1 boxes are inside the upright image")
    assert details["bytes after the end"].startswith("22 of ")
    assert details["labels disagree"] == "label 0 in dataset.csv, 1 by folder, 1 boxes: 1 is used"


def test_the_page_and_the_table_are_written(damaged, tmp_path):
    root, where = damaged
    out = tmp_path / "out"
    summary = audit.audit_source(FracAtlas(root), out, tmp_path / "cache")
    assert summary.endswith(f"161 images, 7 excluded; findings: {out}/audit.html and audit.csv")
    assert sorted(file.name for file in out.iterdir()) == ["audit.csv", "audit.html"]
    assert set(pd.read_csv(out / "audit.csv")["kind"]) == {*where, "identical pixels"}
    page = (out / "audit.html").read_text()
    assert "<script>" not in page
    assert "http" not in page  # no network is needed
    assert page.count("data:image/jpeg;base64,") > 20
    audit.audit_source(FracAtlas(root), out, tmp_path / "cache")
    assert (out / "audit.html").read_text() == page


def test_shortcuts_are_shares_of_the_usable_images(catalogue):
    usable = catalogue[catalogue["excluded"] == ""]
    table = audit.shortcuts(catalogue)
    assert (table.groupby("attribute")["n"].sum() == len(usable)).all()
    share = table.set_index(["attribute", "value"]).loc[("colour mode", "L")]
    grey = usable[usable["mode"] == "L"]
    assert (share["n"], share["fractured"]) == (len(grey), grey["label"].mean())


def test_fracatlas_has_the_known_defects(radiographs, real_catalogue):
    findings = audit.find_defects(FracAtlas(radiographs), real_catalogue)
    summary = audit.summarise(real_catalogue, findings).set_index("kind")
    images = summary["images"].to_dict()
    assert (images["truncated"], images["EXIF rotation"]) == (59, 25)
    assert (images["upright size in VOC"], images["upright size in COCO"]) == (22, 1)
    assert summary.at["identical files", "groups"] == "10 groups"
    cut = findings.loc[findings["kind"] == "truncated copy", "image_id"].str[3:10]
    assert sorted(cut) == ["0004067", "0004071", "0004113", "0004150", "0004232"]
    opposite = findings.loc[findings["kind"] == "opposite labels", "image_id"].str[3:10]
    assert sorted(opposite) == ["0002886", "0002998", "0003034", "0004243", "0004280", "0004314", "0004341"]
    agreement = audit.label_agreement(real_catalogue).set_index("pair")["correlation"]
    assert agreement.iloc[0] > 0.75
    assert agreement.iloc[1] < 0.3
    assert abs(agreement.iloc[2]) < 0.1


@pytest.fixture
def table(phantoms, tmp_path):
    """A table of 20 phantoms with one patient in two given subsets, ages, and a noted label."""
    images = FracAtlas(phantoms).rows()
    images = images[images["path"] != ""].groupby("label").head(10)
    images = images[["image_id", "path", "label"]].assign(
        path=[str(phantoms / path) for path in images["path"]],
        patient=[f"p{number // 2}" for number in range(20)],
        split=["train"] * 11 + ["val"] * 9,
        age=[*range(5, 15), *range(100, 110)],
    )
    images.to_csv(tmp_path / "table.csv", index=False)
    boxed = images.loc[images["label"] == 0, "image_id"].iloc[0]
    write_coco(tmp_path / "boxes.json", [Annotation(boxed, [1, 1, 9, 9])], {})
    data = ["data=table", f"data.table={tmp_path}/table.csv", f"data.boxes={tmp_path}/boxes.json"]
    return open_source(compose_config(data)["data"])


def test_a_patient_in_two_given_subsets_and_a_label_without_votes_are_found(table):
    catalogue = read_catalogue(table)
    findings = audit.find_defects(table, catalogue).set_index("kind")
    divided = findings.loc["patient in several given subsets"]
    assert sorted(divided["image_id"]) == sorted(catalogue.loc[catalogue["patient"] == "p5", "image_id"])
    assert set(divided["detail"]) == {"p5: train 1, val 1"}
    assert findings.loc["labels disagree", ["detail", "action"]].tolist() == [
        "label 0, 1 boxes: 0 is used", "label 0 is used"
    ]  # fmt: skip


def test_numbers_of_the_audit_are_in_their_order(table):
    shown = audit.shortcuts(read_catalogue(table))
    ages = [float(value.split()[-1]) for value in shown.loc[shown["attribute"] == "age", "value"]]
    assert len(ages) == 4
    assert ages == sorted(ages)


def test_images_of_one_class_are_a_remark(table, tmp_path):
    images = pd.read_csv(tmp_path / "table.csv")
    images[images["label"] == 0].to_csv(tmp_path / "table.csv", index=False)
    text = audit.audit_source(open_source(table.settings), tmp_path / "out", tmp_path / "cache")
    assert audit.ONE_CLASS in text
    assert audit.ONE_CLASS[1:] in (tmp_path / "out" / "audit.html").read_text()


@pytest.mark.integration
@pytest.mark.fault("audit killed, started again", "the complete audit")
def test_a_killed_audit_is_completed_by_the_next(damaged, tmp_path):
    """Forked, because importing takes longer than the audit."""
    root, _ = damaged
    generator, fork = random.Random(0), multiprocessing.get_context("fork")

    def arguments(number: int | str) -> tuple[FracAtlas, Path, Path]:
        return FracAtlas(root), tmp_path / f"{number}", tmp_path / f"{number}" / "cache"

    started = time.perf_counter()
    audit.audit_source(*arguments("complete"))
    duration = time.perf_counter() - started
    expected = {name: (tmp_path / "complete" / name).read_bytes() for name in ("audit.csv", "audit.html")}
    for number in range(20):
        process = fork.Process(target=audit.audit_source, args=arguments(number))
        process.start()
        time.sleep(generator.random() * duration)
        process.kill()
        process.join(60)
        for name, content in expected.items():
            file = tmp_path / str(number) / name
            assert not file.exists() or file.read_bytes() == content
        audit.audit_source(*arguments(number))
        assert {name: (tmp_path / str(number) / name).read_bytes() for name in expected} == expected
