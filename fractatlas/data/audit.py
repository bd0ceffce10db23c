"""The data set as it really is: every known kind of defect, searched for: ``python -m fractatlas.data.audit``.

Writes ``audit.csv``, one row per finding, and ``audit.html``, one page with thumbnails that needs no network.
"""

import argparse
import base64
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from sklearn.metrics import roc_auc_score

from fractatlas.data.catalogue import COCO, CONTRADICTION, VIEWS, contradictions, read_boxes, read_catalogue
from fractatlas.data.groups import BODY, GAP, NEAR, UPPER_NEAR, UPPER_ROWS, near_duplicates, neighbours
from fractatlas.data.inspection import decode
from fractatlas.errors import InputError
from fractatlas.files import whole, write_csv
from fractatlas.progress import track

VOC = Path("Annotations/PASCAL VOC")
# What others counted in a whole release, to hold ours against.
REPORTED = {
    "truncated": "59",
    "junk after the end": "20",
    "EXIF rotation": "25",
    "labels disagree": "1",
    "in both folders": "2 (v7)",
    "size in COCO is the upright one": "1, as wrong",
    "size in VOC is the upright one": "22, as wrong",
    "wrong size in COCO": "",
    "wrong size in VOC": "",
    "identical files": "11 groups",
    "identical pixels": "about 80 groups",
    "near-duplicates": "about 100 pairs",
    "opposite labels": "4 clusters",
    "copy cut short": "",
}
SHOWN = 12  # thumbnails, or groups of them, of one kind


def find(root: Path, catalogue: pd.DataFrame) -> pd.DataFrame:
    """List every finding.

    Args:
        root: the data folder.
        catalogue: of it, from ``read_catalogue``.

    Returns:
        ``image_id, kind, detail, done``, ordered by kind and image; ``done`` is what this code does about it.
    """
    rows = [
        *_files(catalogue),
        *_labels(catalogue),
        *_annotations(root, catalogue),
        *_copies(catalogue, "identical files", "content"),
        *_copies(catalogue, "identical pixels", "pixels"),
        *_copies(catalogue, "near-duplicates", "duplicates"),
        *_opposite(catalogue),
        *_cut_short(root, catalogue),
    ]
    table = pd.DataFrame(rows, columns=["image_id", "kind", "detail", "done"])
    return table.sort_values(["kind", "image_id"], kind="stable", ignore_index=True)


def summarise(catalogue: pd.DataFrame, findings: pd.DataFrame) -> pd.DataFrame:
    """Count findings by kind beside what others reported: ``kind, images, groups, reported``."""
    columns = {"identical files": "content", "identical pixels": "pixels", "near-duplicates": "duplicates",
               "opposite labels": "duplicates"}  # fmt: skip
    rows = []
    for kind in dict.fromkeys([*REPORTED, *findings["kind"]]):
        ids = findings.loc[findings["kind"] == kind, "image_id"].unique()
        groups = ""
        if kind in columns:
            count = catalogue.loc[catalogue["image_id"].isin(ids), columns[kind]].nunique()
            groups = f"{count} groups"
            if kind == "near-duplicates":
                groups += f", {len(near_duplicates(catalogue['dhash'][catalogue['dhash'] != '']))} pairs"
        rows.append([kind, len(ids), groups, REPORTED.get(kind, "")])
    return pd.DataFrame(rows, columns=["kind", "images", "groups", "reported"])


def shortcuts(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Show how the label hangs together with what is not anatomy: ``attribute, value, n, fractured`` (share)."""
    usable = catalogue[catalogue["excluded"] == ""]
    longer = usable[["width", "height"]].max(axis=1)
    attributes = {
        "size": np.where(longer > 600, "longer side above 600 px", "smaller"),
        "hardware": np.where(usable["hardware"] == 1, "plates, screws", "none"),
        "several views in one image": np.where(usable["multiscan"] == 1, "yes", "no"),
        "colour mode": usable["mode"].to_numpy(),
        "body part": _flags(usable[BODY]),
        "view": _flags(usable[list(VIEWS)]),
    }
    rows = []
    for name, values in attributes.items():
        for value, labels in usable["label"].groupby(values):
            rows.append([name, value, len(labels), labels.mean()])
    return pd.DataFrame(rows, columns=["attribute", "value", "n", "fractured"])


def _flags(table: pd.DataFrame) -> np.ndarray:
    """The names of the columns that are set in each row, as one text."""
    return np.array([" + ".join(table.columns[row == 1]) or "none" for row in table.to_numpy()])


def shortcut_aurocs(catalogue: pd.DataFrame) -> pd.DataFrame:
    """AUROC of telling fractured images by one number that no radiologist would look at: ``number, auroc``."""
    usable = catalogue[catalogue["excluded"] == ""]
    numbers = {
        "pixels of the image": usable["width"] * usable["height"],
        "bytes of the file": usable["bytes"],
        "bytes per pixel": usable["bytes"] / (usable["width"] * usable["height"]),
        "id": pd.to_numeric(usable["image_id"].str.extract(r"(\d+)", expand=False), errors="coerce").fillna(-1),
    }
    rows = [[name, roc_auc_score(usable["label"], values)] for name, values in numbers.items()]
    return pd.DataFrame(rows, columns=["number", "auroc"])


def label_agreement(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Show what the rule for studies rests on: how far the labels of neighbouring ids of one body part agree.

    Returns:
        ``pair, n, correlation`` for neighbours without and with a frontal view after another view, and for images far
        apart: of the labels, less the share of fractures among the 101 images around, since whole ranges of ids have
        many or few.
    """
    usable = catalogue[catalogue["excluded"] == ""].reset_index(drop=True)
    departure = (usable["label"] - usable["label"].rolling(101, center=True, min_periods=1).mean()).to_numpy()
    pairs = neighbours(usable)
    starts = (usable["frontal"].to_numpy()[pairs[:, 1]] == 1) & (usable["frontal"].to_numpy()[pairs[:, 0]] == 0)
    steps = np.arange(40, 60)
    first = np.repeat(np.arange(len(usable)), len(steps))
    far = np.stack([first, first + np.tile(steps, len(usable))], axis=1)
    far = far[far[:, 1] < len(usable)]
    body = usable[BODY].to_numpy()
    far = far[(body[far[:, 0]] == body[far[:, 1]]).all(axis=1)]
    rows = []
    for name, chosen in (("neighbours, taken as one study", pairs[~starts]),
                         ("neighbours, frontal after another view: a new study", pairs[starts]),
                         ("40 to 59 images apart", far)):  # fmt: skip
        one, other = (departure[chosen[:, side]] for side in (0, 1))
        rows.append([name, len(chosen), np.corrcoef(one, other)[0, 1] if len(chosen) > 1 else float("nan")])
    return pd.DataFrame(rows, columns=["pair", "n", "correlation"])


def _files(catalogue: pd.DataFrame) -> Iterator[tuple]:
    for row in catalogue.itertuples():
        if row.excluded in ("truncated", "unreadable"):
            yield row.image_id, row.excluded, f"{row.bytes} bytes", "excluded"
        elif row.excluded not in ("", CONTRADICTION):
            yield row.image_id, row.excluded, "", "excluded"
        if row.junk:
            detail = f"{row.junk} of {row.bytes} bytes come after the end marker"
            yield row.image_id, "junk after the end", detail, "kept: the image before it is whole"


def _labels(catalogue: pd.DataFrame) -> Iterator[tuple]:
    for row in catalogue[catalogue["note"] != ""].itertuples():
        for note in row.note.split("; "):
            kind = "in both folders" if note.startswith("in both") else "labels disagree"
            done = "two of table, folder and boxes win" if kind == "labels disagree" else "one copy kept"
            yield row.image_id, kind, note, done
    wrong = catalogue[(catalogue["fracture_count"] != catalogue["boxes"]) & (catalogue["path"] != "")]
    for row in wrong.itertuples():
        detail = f"dataset.csv counts {row.fracture_count}, the annotations hold {row.boxes} boxes"
        yield row.image_id, "fractures miscounted", detail, "the boxes are used"


def _annotations(root: Path, catalogue: pd.DataFrame) -> Iterator[tuple]:
    """EXIF rotation, sizes and boxes that do not fit."""
    readable = catalogue[catalogue["width"] > 0].set_index("image_id")
    boxes = read_boxes(root)
    for row in readable.itertuples():
        found = boxes.get(row.Index, np.zeros((0, 4)))
        upright = _inside(found, row.width, row.height)
        if row.orientation > 1:
            detail = f"orientation {row.orientation}"
            if len(found):
                lying = _inside(found, row.height, row.width)
                detail += (
                    f"; {upright} of {len(found)} boxes lie inside the upright image, {lying} inside the stored one"
                )
            yield row.Index, "EXIF rotation", detail, "applied"
        if upright < len(found):
            yield row.Index, "box outside the image", f"{len(found) - upright} of {len(found)}", "clipped"
    for kind, sizes in (("COCO", _coco_sizes(root)), ("VOC", _voc_sizes(root))):
        for image_id, (width, height) in sizes.items():
            if image_id not in catalogue["image_id"].values:
                yield image_id, f"only in {kind}", "neither in dataset.csv nor in a folder", "left out"
            elif image_id in readable.index:
                width_here, height_here = readable.loc[image_id, ["width", "height"]]
                sideways = readable.at[image_id, "orientation"] >= 5
                if (width, height) != (width_here, height_here):
                    detail = f"{width} x {height}, the upright image has {width_here} x {height_here}"
                    yield image_id, f"wrong size in {kind}", detail, "sizes are read from the image"
                elif sideways:
                    detail = f"{width} x {height}, the file stores {height} x {width} and EXIF turns it"
                    yield image_id, f"size in {kind} is the upright one", detail, "right as it is"


def _copies(catalogue: pd.DataFrame, kind: str, column: str) -> Iterator[tuple]:
    known = catalogue[(catalogue[column] != "") & (catalogue["path"] != "")]
    for ids in known.groupby(column)["image_id"].agg(list):
        for image_id in ids if len(ids) > 1 else ():
            yield (
                image_id,
                kind,
                "with " + " ".join(other for other in ids if other != image_id),
                "kept together in every grouped split",
            )


def _opposite(catalogue: pd.DataFrame) -> Iterator[tuple]:
    usable = catalogue.assign(excluded=catalogue["excluded"].replace(CONTRADICTION, ""))
    for _, rows in usable[contradictions(usable)].groupby("duplicates"):
        detail = ", ".join(f"{row.image_id} {'fractured' if row.label else 'not'}" for row in rows.itertuples())
        for image_id in rows["image_id"]:
            yield image_id, "opposite labels", detail, "excluded, all of them (data.keep_contradictions=false)"


def _cut_short(root: Path, catalogue: pd.DataFrame) -> Iterator[tuple]:
    """Copies that agree in their upper part alone: of the two, the flatter one below was cut and saved again."""
    usable = catalogue[catalogue["dhash"] != ""].reset_index(drop=True)
    for pair in near_duplicates(usable["dhash"]):
        one, other = (usable.iloc[position] for position in pair)
        if (int(one["dhash"], 16) ^ int(other["dhash"], 16)).bit_count() <= NEAR:
            continue
        spread = [_spread_below(root / row["path"]) for row in (one, other)]
        cut, whole_one = (one, other) if spread[0] < spread[1] else (other, one)
        label = "fractured" if cut["label"] else "not fractured"
        detail = f"{label}; of {whole_one['image_id']}, whose lower part it lacks"
        yield cut["image_id"], "copy cut short", detail, "kept, in one group with the whole one"


def _spread_below(file: Path) -> float:
    """Standard deviation of the lowest twentieth of an image, in grey levels."""
    pixels = np.asarray(decode(file.read_bytes()))
    return float(pixels[len(pixels) * 19 // 20 :].std())


def _inside(boxes: np.ndarray, width: int, height: int) -> int:
    """How many boxes lie inside, to within two pixels."""
    return int(((boxes[:, :2] >= -2) & (boxes[:, 2:] <= np.array([width + 2, height + 2]))).all(axis=1).sum())


def _coco_sizes(root: Path) -> dict[str, tuple[int, int]]:
    if not (root / COCO).is_file():
        return {}
    images = json.loads((root / COCO).read_text(encoding="utf-8"))["images"]
    return {image["file_name"]: (int(image.get("width", 0)), int(image.get("height", 0))) for image in images}


def _voc_sizes(root: Path) -> dict[str, tuple[int, int]]:
    sizes = {}
    for file in sorted((root / VOC).glob("*.xml")):
        try:
            tree = ElementTree.parse(file)
            name = tree.findtext("filename") or file.stem
            sizes[name] = (int(tree.findtext("size/width") or 0), int(tree.findtext("size/height") or 0))
        except (ElementTree.ParseError, ValueError) as error:
            raise InputError(f"{file} is not PASCAL VOC XML: {error}") from None
    return sizes


def _thumbnail(root: Path, path: str) -> str:
    """A ``data:`` address of at most 132 x 132 pixels."""
    image = decode((root / path).read_bytes())
    image.thumbnail((132, 132))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _galleries(catalogue: pd.DataFrame, findings: pd.DataFrame) -> list[dict]:
    """What to show of each kind: rows of images that belong together."""
    whole_images = catalogue[catalogue["width"] > 0].set_index("image_id")
    galleries = []
    for kind, found in findings.groupby("kind"):
        ids = [image_id for image_id in found["image_id"].unique() if image_id in whole_images.index]
        if kind in ("near-duplicates", "opposite labels"):
            clusters = whole_images.loc[ids].groupby("duplicates").groups.values()
            rows = [list(cluster) for cluster in clusters]
        elif kind in ("identical files", "identical pixels"):
            continue  # they are among the near-duplicates
        else:
            rows = [[image_id] for image_id in ids]
        details = found.drop_duplicates("image_id").set_index("image_id")["detail"]
        galleries.append({"kind": kind, "rows": _some(rows), "of": len(rows), "details": details.to_dict()})
    usable = catalogue[(catalogue["excluded"] == "")]
    studies = [ids for ids in usable.groupby("study")["image_id"].agg(list) if len(ids) > 1]
    sizes = pd.Series([len(ids) for ids in studies]).value_counts().sort_index()
    title = "studies: " + ", ".join(f"{count} of {size} images" for size, count in sizes.items())
    galleries.append({"kind": title, "rows": _some(studies), "of": len(studies), "details": {}})
    return galleries


def _some(rows: list[list[str]]) -> list[list[str]]:
    """At most ``SHOWN``, evenly from the beginning to the end."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int))
    return [rows[index] for index in chosen]


def write_page(path: Path, root: Path, catalogue: pd.DataFrame, findings: pd.DataFrame) -> None:
    """Write ``audit.html``."""
    galleries = _galleries(catalogue, findings)
    rows = catalogue.set_index("image_id")
    shown = sorted({image_id for gallery in galleries for ids in gallery["rows"] for image_id in ids})
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pictures = pool.map(lambda image_id: _thumbnail(root, rows.at[image_id, "path"]), shown)
        thumbnails = dict(zip(shown, track(pictures, "drawing", len(shown)), strict=True))
    page = Environment(loader=PackageLoader("fractatlas.data", ""), autoescape=True).get_template("audit.html.jinja")
    usable = rows[rows["excluded"] == ""]
    with whole(path) as temporary:
        text = page.render(
            images=len(rows),
            usable=len(usable),
            fractured=int(usable["label"].sum()),
            majority=max(usable["label"].mean(), 1 - usable["label"].mean()),
            summary=summarise(catalogue, findings).to_dict("records"),
            shortcuts=shortcuts(catalogue).to_dict("records"),
            aurocs=shortcut_aurocs(catalogue).to_dict("records"),
            agreement=label_agreement(catalogue).to_dict("records"),
            galleries=galleries,
            thumbnails=thumbnails,
            labels=rows["label"].to_dict(),
            rule={"near": NEAR, "upper_rows": UPPER_ROWS, "upper_near": UPPER_NEAR, "gap": GAP},
        )
        temporary.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Audit a data folder."""
    parser = argparse.ArgumentParser(prog="python -m fractatlas.data.audit", description=__doc__.partition(":")[0])
    default = Path(os.environ.get("FRACATLAS_ROOT", "data/FracAtlas"))
    parser.add_argument("--root", type=Path, default=default, help="the data folder (FRACATLAS_ROOT, data/FracAtlas)")
    parser.add_argument("--out", type=Path, default=Path("data/audit"), help="for audit.csv and audit.html")
    parser.add_argument("--cache", type=Path, default=Path("data/cache"), help="remembers what was found in the images")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        catalogue = read_catalogue(options.root, options.cache)
        findings = find(options.root, catalogue)
        write_csv(options.out / "audit.csv", findings)
        write_page(options.out / "audit.html", options.root, catalogue, findings)
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.strerror or error}: {error.filename or 'no file named'}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing half written")
    print(summarise(catalogue, findings).to_string(index=False))
    excluded = int((catalogue["excluded"] != "").sum())
    print(f"{len(catalogue)} images, {excluded} excluded; all findings in {options.out / 'audit.html'} and audit.csv")


if __name__ == "__main__":
    main()
