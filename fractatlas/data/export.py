"""Write any source as a table and COCO boxes, in the form that ``data=table`` reads."""

import os
from pathlib import Path

import pandas as pd

from fractatlas.data.attributes import LABEL_COLUMNS
from fractatlas.data.catalogue import NO_FILE, RESERVED, image_sizes
from fractatlas.data.groups import GIVEN
from fractatlas.data.integrity import inspect_all
from fractatlas.data.sources.annotations import Annotation, has_area, write_coco
from fractatlas.data.sources.source import Source
from fractatlas.errors import InputError
from fractatlas.io import write_csv
from fractatlas.wording import plural

COLUMNS = ("image_id", "path", "label", "patient", "exam", "group", "split", "source")


def export_table(source: Source, out: Path) -> str:
    """Write ``table.csv`` and, if the source has boxes, ``boxes.json``.

    Paths in the table are relative to ``out``; the images are not copied. Inferred exams become the column ``exam``.
    Images that the source excludes, such as a file without a label, are left out, and boxes without area in their
    image. Files that cannot be read stay in the table, because reading the table finds them again.

    Args:
        source: the data set.
        out: the folder of the files; existing ones are not replaced.

    Returns:
        The number of images, the paths of the files and, if label 1 is no fracture, the key that states it, as text.

    Raises:
        InputError: the source does not have its format, or the folder contains one of the files.
    """
    files = [out / "table.csv", out / "boxes.json"]
    if existing := [str(file) for file in files if file.exists()]:
        raise InputError(f"{existing[0]} exists; use another folder, or delete it")
    rows = source.rows()
    excluded = rows["excluded"] if "excluded" in rows else pd.Series("", index=rows.index)
    kept = rows[(excluded == "") & (rows["path"] != "")]
    if kept.empty:
        raise InputError(f"{source.name}: none of {len(rows)} images can be used ({NO_FILE}); correct data.root")
    write_csv(files[0], _table(kept, source.root, out))
    written = [str(files[0])]
    notes = []
    if annotations := _of(source.annotations(), set(kept["image_id"])):
        boxed = kept.loc[kept["image_id"].isin({one.image_id for one in annotations}), ["image_id", "path"]]
        boxed = boxed.reset_index(drop=True)
        sizes = image_sizes(boxed.join(inspect_all(source.root, boxed["path"], purpose="read their sizes")))
        inside = [one for one in annotations if one.image_id not in sizes or has_area(one, sizes[one.image_id])]
        write_coco(files[1], inside, sizes)
        written.append(str(files[1]))
        if ignored := len(annotations) - len(inside):
            notes.append(f"; {plural(ignored, 'box', 'boxes')} without area in the image left out")
    if source.finding != Source.finding:
        notes.append(f"; label 1 means {source.finding}: read the table with data.finding={source.finding}")
    left_out = f", {len(rows) - len(kept)} left out" if len(kept) < len(rows) else ""
    return f"{plural(len(kept), 'image')}{left_out}: {' and '.join(written)}{''.join(notes)}"


def _table(rows: pd.DataFrame, root: Path, out: Path) -> pd.DataFrame:
    table = rows.rename(columns={"given_split": "split"} | {new: old for old, new in GIVEN.items()})
    moved = os.path.relpath(root.absolute(), out.absolute())
    table = table.assign(path=[(Path(moved) / path).as_posix() for path in rows["path"]])
    attributes = [name for name in rows if name not in (*RESERVED, *LABEL_COLUMNS)]
    return table[[*(name for name in COLUMNS if name in table), *attributes]]


def _of(annotations: list[Annotation], ids: set[str]) -> list[Annotation]:
    return [one for one in annotations if one.image_id in ids]
