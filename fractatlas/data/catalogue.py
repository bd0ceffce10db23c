"""Read the catalogue of a source: one row per image, with label, size, hashes, group and reason for exclusion."""

import logging
from pathlib import Path

import pandas as pd

from fractatlas.data.groups import GIVEN, add_groups, find_matches
from fractatlas.data.integrity import FIELDS, inspect_all
from fractatlas.data.sources.source import Source
from fractatlas.errors import InputError

log = logging.getLogger(__name__)
CONTRADICTION = "duplicate with the opposite label"
NO_FILE = "no image file"
SEEN = "near-duplicate of an image that the network was trained on or selected with"
STATISTICS = [name for name in FIELDS if name not in ("error", "reason")]
# Columns that have a meaning in this package; every other column of a catalogue is an attribute of the images.
RESERVED = ("image_id", "path", "label", "boxes", *FIELDS, "duplicates", "exam", "group", *GIVEN.values(),
            "given_split", "source", "excluded", "note")  # fmt: skip


def read_catalogue(source: Source, cache: Path | None = None, keep_contradictions: bool = False) -> pd.DataFrame:
    """Read the tables of a source and inspect each image file.

    Args:
        source: the data set.
        cache: folder that stores image statistics; see ``inspect_all``.
        keep_contradictions: whether near-duplicates with opposite labels are kept.

    Returns:
        Table ordered by ``image_id`` with the columns ``image_id, path`` (relative to ``source.root``), ``label`` (0 or
        1), the attributes of the source, ``boxes`` (their number, without ignored ones), ``STATISTICS`` of ``inspect``,
        ``duplicates``, ``exam`` (if the source infers exams), ``group``, the columns of ``GIVEN``, ``given_split`` and
        ``source`` that the source has, ``excluded`` (the reason, or ``""``) and ``note``.

    Raises:
        InputError: the source does not have its format, or none of its image files exists.
    """
    table = source.rows().reset_index(drop=True)
    attributes = [name for name in table if name not in RESERVED]
    given = [name for name in (*GIVEN.values(), "given_split", "source") if name in table]
    table = table.reindex(columns=list(dict.fromkeys([*table, "excluded", "note"])), fill_value="")
    table = table.join(inspect_all(source.root, table["path"], cache))
    source.ignore_outside(image_sizes(table))
    boxes = source.boxes()
    table["boxes"] = [len(boxes.get(image_id, ())) for image_id in table["image_id"]]
    missing = table["path"] == ""
    empty = (table["bytes"] == 0) & ~missing
    missing |= empty & ~table["path"].where(empty, "").map(lambda path: (source.root / path).is_file())
    if missing.all():
        example = f", such as {source.root / table['path'].iloc[0]}" if len(table) else ""
        raise InputError(f"{source.name}: none of {len(table):,} image files exists{example}; correct data.root")
    own = table["excluded"]
    table["excluded"] = own.where(own != "", table["error"]).where(~missing, NO_FILE)
    unreadable = (table["reason"] != "") & (table["excluded"] == "unreadable")
    table.loc[unreadable, "note"] = (table["note"] + "; " + table["reason"]).str.removeprefix("; ")
    table = add_groups(table)
    if not keep_contradictions:
        table.loc[contradictions(table), "excluded"] = CONTRADICTION
    groups = ["duplicates", *(["exam"] if "exam" in table else []), "group"]
    return table[["image_id", "path", "label", *attributes, "boxes", *STATISTICS, *groups, *given, "excluded", "note"]]


def image_sizes(table: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Return width and height of the images that could be read, by ``image_id``."""
    known = table[table["width"] > 0]
    return dict(zip(known["image_id"], zip(known["width"], known["height"], strict=True), strict=True))


def contradictions(catalogue: pd.DataFrame) -> pd.Series:
    """Return a bool per row: whether the image is usable and has a near-duplicate with the opposite label."""
    usable = catalogue[(catalogue["excluded"] == "") & (catalogue["duplicates"] != "")]
    opposite = usable.groupby("duplicates")["label"].transform("nunique") > 1
    return opposite.reindex(catalogue.index, fill_value=False)


def exclude_seen(catalogue: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Exclude the images that are identical or nearly identical to images that a network was trained with.

    Args:
        catalogue: from ``read_catalogue``.
        seen: ``image_id, split`` and ``dhash`` of these images.

    Returns:
        The catalogue, with ``SEEN`` in ``excluded``, and the name and the subset of the other image in ``note``.
    """
    usable = catalogue.index[(catalogue["excluded"] == "") & (catalogue["dhash"] != "")]
    match = pd.Series(find_matches(catalogue.loc[usable, "dhash"], seen["dhash"]), index=usable)
    match = match[match >= 0]
    others = seen.iloc[match.to_numpy()]
    catalogue = catalogue.copy()
    catalogue.loc[match.index, "excluded"] = SEEN
    catalogue.loc[match.index, "note"] = (others["image_id"] + " of the " + others["split"] + " subset").to_numpy()
    return catalogue
