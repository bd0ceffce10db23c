"""Search a data set for all known kinds of defects.

The results are ``audit.csv``, one row per finding, and ``audit.html``, one file with thumbnails.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from fractatlas.data import groups
from fractatlas.data.attributes import strata_of
from fractatlas.data.catalogue import CONTRADICTION, NO_FILE, contradictions, image_sizes, read_catalogue
from fractatlas.data.groups import NEAR, near_duplicates
from fractatlas.data.images import read_content
from fractatlas.data.sources.fracatlas import BODY, GAP, VIEWS, FracAtlas, neighbours
from fractatlas.data.sources.source import Source
from fractatlas.data.splits import SUBSETS, has_given_split
from fractatlas.io import write_csv, write_text
from fractatlas.pages import jpeg_address, render
from fractatlas.progress_bar import track
from fractatlas.wording import plural

Finding = tuple[str, str, str, str]  # image_id, kind, detail, action
# Numbers that other authors published for a complete release of FracAtlas, for comparison.
REPORTED = {
    "truncated": "59",
    "bytes after the end": "20",
    "EXIF rotation": "25",
    "labels disagree": "1",
    "in both folders": "2 (v7)",
    "upright size in COCO": "1, counted as wrong",
    "upright size in VOC": "22, counted as wrong",
    "wrong size in COCO": "",
    "wrong size in VOC": "",
    "identical files": "11 groups",
    "identical pixels": "about 80 groups",
    "near-duplicates": "about 100 pairs",
    "opposite labels": "4 clusters",
    "truncated copy": "",
}
# Kinds that every source can have; those of FracAtlas are listed even if there are none.
GENERAL = ("truncated", "unreadable", "bytes after the end", "EXIF rotation", "identical files", "identical pixels",
           "near-duplicates", "opposite labels", "truncated copy")  # fmt: skip
ONE_CLASS = "all usable images have the same label: a network cannot be trained, and AUROC is undefined"
BETWEEN = "near-duplicates between sources"
# Kinds whose findings form groups, and the catalogue column that identifies the group.
GROUPED = {
    "identical files": "content",
    "identical pixels": "pixels",
    "near-duplicates": "duplicates",
    "opposite labels": "duplicates",
    BETWEEN: "duplicates",
}
# Relations that are checked if the data set gives a split, and their columns.
RELATIONS = {"patient": "patient", "exam": "given_exam", "group": "given_group", "near-duplicates": "duplicates"}
MAX_THUMBNAILS = 12  # images, or groups of images, of one kind


def audit_source(source: Source, out: Path, cache: Path) -> str:
    """Audit a data set and write ``audit.csv`` and ``audit.html``.

    Args:
        source: the data set.
        out: folder for the two files.
        cache: folder that stores image statistics.

    Returns:
        The number of findings by kind, as text.

    Raises:
        InputError: the source does not have its format, or ``cache`` is not writable.
    """
    source.require()
    catalogue = read_catalogue(source, cache)
    findings = find_defects(source, catalogue)
    usable = catalogue[catalogue["excluded"] == ""]
    one_class = ONE_CLASS if usable["label"].nunique() == 1 else ""
    is_fracatlas = isinstance(source, FracAtlas)
    summary = summarise(catalogue, findings, (*REPORTED,) if is_fracatlas else GENERAL)
    galleries, rows = _galleries(catalogue, findings), catalogue.set_index("image_id")
    page = render(
        "audit.html.jinja",
        name=source.name,
        finding=source.finding,
        is_fracatlas=is_fracatlas,
        relations=describe_known(catalogue),
        images=len(catalogue),
        usable=len(usable),
        fractured=int(usable["label"].sum()),
        one_class=one_class,
        summary=summary,
        shortcuts=shortcuts(catalogue),
        aurocs=shortcut_aurocs(catalogue),
        agreement=label_agreement(catalogue) if "exam" in catalogue and is_fracatlas else None,
        galleries=galleries,
        thumbnails=_thumbnails(source.root, rows["path"], galleries),
        labels=rows["label"].to_dict(),
        rule=groups,
        gap=GAP,
    )
    write_csv(out / "audit.csv", findings)
    write_text(out / "audit.html", page)
    counts = f"{plural(len(catalogue), 'image')}, {len(catalogue) - len(usable)} excluded"
    table = summary if is_fracatlas else summary.drop(columns="reported")
    counts += f"; {one_class}" if one_class else ""
    return f"{table.to_string(index=False)}\n{counts}; findings: {out / 'audit.html'} and audit.csv"


def describe_known(catalogue: pd.DataFrame) -> list[str]:
    """Return a sentence for each relation between images that the catalogue has: patients, exams, groups."""
    names = {"patient": "patients", "given_exam": "exams (column exam)", "given_group": "groups (column group)"}
    lines = []
    for column, title in names.items():
        if column in catalogue:
            known = catalogue.loc[catalogue[column] != "", column]
            of = f"{len(known)} of {plural(len(catalogue), 'image')}"
            lines.append(f"{known.nunique():,} {title} are given, for {of}.")
    if not lines:
        inferred = "exams are inferred" if "exam" in catalogue else "only copies are known to belong together"
        lines.append(f"No patients, exams or groups are given: {inferred}.")
    return lines


def find_defects(source: Source, catalogue: pd.DataFrame) -> pd.DataFrame:
    """Find all known kinds of defects.

    Args:
        source: the data set.
        catalogue: its catalogue, from ``read_catalogue``.

    Returns:
        ``image_id, kind, detail, action``, ordered by kind and image; ``action`` is what this package does about it.
    """
    rows = [
        *_file_defects(catalogue),
        *_label_defects(catalogue),
        *_divided_groups(catalogue),
        *_annotation_defects(source, catalogue),
        *_copies(catalogue),
        *_opposite_labels(catalogue),
        *_truncated_copies(source.root, catalogue),
    ]
    table = pd.DataFrame(rows, columns=["image_id", "kind", "detail", "action"])
    return table.sort_values(["kind", "image_id"], kind="stable", ignore_index=True)


def summarise(catalogue: pd.DataFrame, findings: pd.DataFrame, listed: Sequence[str] = (*REPORTED,)) -> pd.DataFrame:
    """Count findings by kind, with the published counts of FracAtlas: ``kind, images, groups, reported``.

    Kinds that are not among ``listed`` have a row only if there is a finding.
    """
    rows = []
    for kind in dict.fromkeys([*listed, *findings["kind"]]):
        ids = findings.loc[findings["kind"] == kind, "image_id"].unique()
        groups = ""
        if kind in GROUPED:
            groups = f"{catalogue.loc[catalogue['image_id'].isin(ids), GROUPED[kind]].nunique()} groups"
            if kind == "near-duplicates":
                groups += f", {len(near_duplicates(catalogue['dhash'][catalogue['dhash'] != '']))} pairs"
        rows.append([kind, len(ids), groups, REPORTED.get(kind, "")])
    return pd.DataFrame(rows, columns=["kind", "images", "groups", "reported"])


def shortcuts(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Return the share of fractured images by attributes that are not anatomy: ``attribute, value, n, fractured``."""
    usable = catalogue[catalogue["excluded"] == ""]
    longer_side = usable[["width", "height"]].max(axis=1)
    attributes: dict[str, Any] = {
        "size": np.where(longer_side > 600, "longer side above 600 px", "longer side up to 600 px"),
        "colour mode": usable["mode"].to_numpy(),
    }
    if {"hardware", "multiscan", *BODY, *VIEWS} <= {*usable}:
        attributes["hardware"] = np.where(usable["hardware"] == 1, "plates, screws", "none")
        attributes["several views in one image"] = np.where(usable["multiscan"] == 1, "yes", "no")
        for name, columns in (("body part", BODY), ("view", [*VIEWS])):
            names = (usable[columns] == 1).dot(usable[columns].columns + " + ").str.removesuffix(" + ")
            attributes[name] = names.replace("", "none").to_numpy()
    else:
        attributes |= strata_of(usable)
    rows = [
        [name, value, len(labels), labels.mean()]
        for name, values in attributes.items()
        for value, labels in usable["label"].groupby(values, observed=True)
    ]
    return pd.DataFrame(rows, columns=["attribute", "value", "n", "fractured"])


def shortcut_aurocs(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Return the AUROC of numbers that are unrelated to anatomy, used as a score for fracture: ``number, auroc``."""
    usable = catalogue[catalogue["excluded"] == ""]
    numbers = {
        "pixels of the image": usable["width"] * usable["height"],
        "bytes of the file": usable["bytes"],
        "bytes per pixel": usable["bytes"] / (usable["width"] * usable["height"]),
        "id": pd.to_numeric(usable["image_id"].str.extract(r"(\d+)", expand=False), errors="coerce").fillna(-1),
    }
    if not usable["image_id"].str.contains(r"\d").all():
        del numbers["id"]
    if usable["label"].nunique() < 2:
        numbers = {}
    rows = [[name, roc_auc_score(usable["label"], values)] for name, values in numbers.items()]
    return pd.DataFrame(rows, columns=["number", "auroc"])


def label_agreement(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Measure how strongly the labels of neighbouring ids correlate, as evidence for the rule for exams.

    Returns:
        ``pair, n, correlation`` for pairs of one body part: neighbours within an exam, neighbours across the start of
        an exam (a frontal view after another view), and images far apart. The correlation is that of the labels minus
        the share of fractures among the 101 surrounding images, because this share differs between ranges of ids.
    """
    usable = catalogue[catalogue["excluded"] == ""].reset_index(drop=True)
    residual = (usable["label"] - usable["label"].rolling(101, center=True, min_periods=1).mean()).to_numpy()
    pairs, starts = neighbours(usable)
    first, step = np.meshgrid(np.arange(len(usable)), np.arange(40, 60), indexing="ij")
    far = np.stack([first, first + step], axis=-1)[first + step < len(usable)]
    body = usable[BODY].to_numpy()
    far = far[(body[far[:, 0]] == body[far[:, 1]]).all(axis=1)]
    rows = []
    for name, chosen in (("neighbours in one exam", pairs[~starts]),
                         ("neighbours in different exams: frontal view after another view", pairs[starts]),
                         ("40 to 59 images apart", far)):  # fmt: skip
        one, other = (residual[chosen[:, side]] for side in (0, 1))
        rows.append([name, len(chosen), np.corrcoef(one, other)[0, 1] if len(chosen) > 1 else float("nan")])
    return pd.DataFrame(rows, columns=["pair", "n", "correlation"])


def _file_defects(catalogue: pd.DataFrame) -> Iterator[Finding]:
    for row in catalogue.itertuples():
        if row.excluded in ("truncated", "unreadable"):
            reason = f"; {row.note}" if row.excluded == "unreadable" and row.note else ""
            yield row.image_id, row.excluded, f"{row.bytes} bytes{reason}", "excluded"
        elif row.excluded not in ("", CONTRADICTION):
            yield row.image_id, row.excluded, "", "excluded"
        if row.junk:
            detail = f"{row.junk} of {row.bytes} bytes are after the end marker"
            yield row.image_id, "bytes after the end", detail, "kept: the image itself is complete"


def _label_defects(catalogue: pd.DataFrame) -> Iterator[Finding]:
    has_votes = "fracture_count" in catalogue
    for row in catalogue[(catalogue["note"] != "") & (catalogue["excluded"] != "unreadable")].itertuples():
        for note in row.note.split("; "):
            if note.startswith("in both"):
                yield row.image_id, "in both folders", note, "one copy is used"
            else:
                action = "majority of table, folder and boxes" if has_votes else f"label {row.label} is used"
                yield row.image_id, "labels disagree", note, action
    if not has_votes:
        return
    wrong = catalogue[(catalogue["fracture_count"] != catalogue["boxes"]) & (catalogue["path"] != "")]
    for row in wrong.itertuples():
        detail = f"{row.fracture_count} fractures in dataset.csv, {row.boxes} boxes in the annotations"
        yield row.image_id, "fracture count differs", detail, "the boxes are used"


def _divided_groups(catalogue: pd.DataFrame) -> Iterator[Finding]:
    """Find patients, exams, groups and near-duplicates that the data set itself assigns to several subsets."""
    if not has_given_split(catalogue):
        return
    known = catalogue[(catalogue["given_split"] != "") & (catalogue["excluded"] == "")]
    for title, column in RELATIONS.items():
        if column not in known:
            continue
        for name, rows in known[known[column] != ""].groupby(column):
            counts = rows["given_split"].value_counts()
            if len(counts) > 1:
                detail = f"{name}: " + ", ".join(f"{subset} {counts[subset]}" for subset in SUBSETS if subset in counts)
                for image_id in rows["image_id"]:
                    yield image_id, f"{title} in several given subsets", detail, "used as given, with a warning"


def _annotation_defects(source: Source, catalogue: pd.DataFrame) -> Iterator[Finding]:
    """Find EXIF rotations, and sizes and boxes that do not match the image."""
    readable = catalogue[catalogue["width"] > 0].set_index("image_id")
    source.ignore_outside(image_sizes(catalogue))
    boxes, outside = source.boxes(), Counter(one.image_id for one in source.ignored)
    suspects = readable[(readable["orientation"] > 1) | readable.index.isin([*boxes, *outside])]
    for row in suspects.itertuples():
        drawn = boxes.get(row.Index, np.zeros((0, 4)))
        inside = _boxes_inside(drawn, row.width, row.height)
        if row.orientation > 1:
            detail = f"orientation {row.orientation}"
            if len(drawn):
                stored = _boxes_inside(drawn, row.height, row.width)
                detail += f"; {inside} of {len(drawn)} boxes are inside the upright image"
                detail += f", {stored} inside the stored image"
            yield row.Index, "EXIF rotation", detail, "applied"
        total = len(drawn) + outside[row.Index]
        if inside < len(drawn):
            yield row.Index, "box outside the image", f"{len(drawn) - inside} of {total} in part", "clipped"
        if outside[row.Index]:
            detail = f"{outside[row.Index]} of {total} without area in the image"
            yield row.Index, "box outside the image", detail, "ignored"
    ids = set(catalogue["image_id"])
    for kind, sizes in source.annotated_sizes().items():
        for image_id, (width, height) in sizes.items():
            if image_id not in ids:
                yield image_id, f"only in {kind}", "neither in dataset.csv nor in a folder", "ignored"
            elif image_id in readable.index:
                image_width, image_height = readable.loc[image_id, ["width", "height"]]
                if (width, height) != (image_width, image_height):
                    detail = f"{width} x {height}, the upright image is {image_width} x {image_height}"
                    yield image_id, f"wrong size in {kind}", detail, "the size is read from the image"
                elif readable.at[image_id, "orientation"] >= 5:
                    detail = f"{width} x {height}, the file stores {height} x {width} and EXIF rotates it"
                    yield image_id, f"upright size in {kind}", detail, "correct, no action"


def _copies(catalogue: pd.DataFrame) -> Iterator[Finding]:
    for kind in ("identical files", "identical pixels", "near-duplicates"):
        column = GROUPED[kind]
        known = catalogue[(catalogue[column] != "") & (catalogue["excluded"] != NO_FILE)]
        for ids in known.groupby(column)["image_id"].agg(list):
            for image_id in ids if len(ids) > 1 else ():
                detail = "with " + " ".join(other for other in ids if other != image_id)
                yield image_id, kind, detail, "in one subset in every grouped split"
    if "source" in catalogue:
        known = catalogue[catalogue["duplicates"] != ""]
        for _, rows in known[known.groupby("duplicates")["source"].transform("nunique") > 1].groupby("duplicates"):
            detail = ", ".join(f"{row.image_id} of {row.source}" for row in rows.itertuples())
            for image_id in rows["image_id"]:
                yield image_id, BETWEEN, detail, "in one subset in every grouped split"


def _opposite_labels(catalogue: pd.DataFrame) -> Iterator[Finding]:
    usable = catalogue.assign(excluded=catalogue["excluded"].replace(CONTRADICTION, ""))
    for _, rows in usable[contradictions(usable)].groupby("duplicates"):
        detail = ", ".join(f"{row.image_id} {'fractured' if row.label else 'not'}" for row in rows.itertuples())
        for image_id in rows["image_id"]:
            yield image_id, "opposite labels", detail, "all excluded (data.keep_contradictions=false)"


def _truncated_copies(root: Path, catalogue: pd.DataFrame) -> Iterator[Finding]:
    """Find copies that match only in the upper part: the one with less contrast below was truncated and saved again."""
    usable = catalogue[catalogue["dhash"] != ""].reset_index(drop=True)
    for pair in near_duplicates(usable["dhash"]):
        one, other = (usable.iloc[position] for position in pair)
        if (int(one["dhash"], 16) ^ int(other["dhash"], 16)).bit_count() <= NEAR:
            continue
        pixels = [np.asarray(read_content((root / row["path"]).read_bytes())) for row in (one, other)]
        contrast = [rows[len(rows) * 19 // 20 :].std() for rows in pixels]  # of the lowest 5 %, in grey levels
        truncated, complete = (one, other) if contrast[0] < contrast[1] else (other, one)
        label = "fractured" if truncated["label"] else "not fractured"
        detail = f"{label}; copy of {complete['image_id']} without its lower part"
        yield truncated["image_id"], "truncated copy", detail, "kept in the group of the complete image"


def _boxes_inside(boxes: np.ndarray, width: int, height: int) -> int:
    """Count the boxes inside the image, with a tolerance of two pixels."""
    return int(((boxes[:, :2] >= -2) & (boxes[:, 2:] <= np.array([width + 2, height + 2]))).all(axis=1).sum())


def _thumbnails(root: Path, paths: pd.Series, galleries: list[dict]) -> dict[str, str]:
    """Return a ``data:`` URL of each image in the galleries, reduced to at most 132 x 132 pixels."""

    def thumbnail(image_id: str) -> str:
        image = read_content((root / paths[image_id]).read_bytes())
        image.thumbnail((132, 132))
        return jpeg_address(image)

    shown = sorted({image_id for gallery in galleries for ids in gallery["rows"] for image_id in ids})
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        addresses = track(pool.map(thumbnail, shown), "making thumbnails", len(shown))
        return dict(zip(shown, addresses, strict=True))


def _galleries(catalogue: pd.DataFrame, findings: pd.DataFrame) -> list[dict]:
    """Select the thumbnails of each kind: ``rows`` of related images."""
    readable, galleries = catalogue[catalogue["width"] > 0], []
    for kind, rows in findings.groupby("kind"):
        if kind in ("identical files", "identical pixels", BETWEEN):
            continue  # near-duplicates contain them
        images = readable[readable["image_id"].isin(rows["image_id"])]
        related = images.groupby("duplicates" if kind in GROUPED else "image_id")["image_id"].agg(list).tolist()
        details = rows.drop_duplicates("image_id").set_index("image_id")["detail"].to_dict()
        galleries.append({"kind": kind, "rows": _sample(related), "of": len(related), "details": details})
    usable = catalogue[catalogue["excluded"] == ""]
    column = "exam" if "exam" in usable else "given_exam"
    if column not in usable:
        return galleries
    usable = usable[usable[column] != ""]
    exams = [ids for ids in usable.groupby(column)["image_id"].agg(list) if len(ids) > 1]
    sizes = pd.Series([len(ids) for ids in exams]).value_counts().sort_index()
    title = "exams: " + ", ".join(f"{count} with {size} images" for size, count in sizes.items())
    return [*galleries, {"kind": title, "rows": _sample(exams), "of": len(exams), "details": {}}]


def _sample(rows: list[list[str]]) -> list[list[str]]:
    """Select at most ``MAX_THUMBNAILS`` rows at equal distances."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(MAX_THUMBNAILS, len(rows))).round().astype(int))
    return [rows[index] for index in chosen]
