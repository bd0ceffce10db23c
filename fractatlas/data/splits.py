"""Who is where: a split is a table ``image_id, label, group, split`` with one row per image that is not excluded."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fractatlas.errors import InputError

PARTS = ("train", "val", "test")


def random_split(
    catalogue: pd.DataFrame, *, ratios: Sequence[float], seed: int, previous: str | None = None
) -> pd.DataFrame:
    """Split image by image, stratified by label, so that a class is in each part by its ratio to within one image.

    Within a class the images are ordered by a hash of seed and id, and cut: a few images more or less shift the
    cuts a little, and nearly all the others stay where they were.

    Args:
        catalogue: from ``read_catalogue``.
        ratios: of train, val and test; they add up to 1.
        seed: another seed, another order.
        previous: an earlier ``split.csv``. Its images stay where they are; new ones fill what is short.

    Returns:
        ``image_id, label, group, split`` in the catalogue's order; every image is a group of its own.

    Raises:
        InputError: the ratios do not add up to 1, a part would lack a class, or ``previous`` is unreadable.
    """
    if abs(sum(ratios) - 1) > 1e-6:
        raise InputError(f"split.ratios={list(ratios)} add up to {sum(ratios):g}, should be 1")
    table = _included(catalogue)
    earlier = _read(Path(previous)).set_index("image_id")["split"] if previous else pd.Series(dtype=str)
    table["split"] = table["image_id"].map(earlier).astype(object)
    if previous and table["split"].isna().all():
        raise InputError(f"split.previous={previous} shares no image with the data")
    for _, images in table.groupby("label"):
        goal = np.diff(np.round(np.cumsum([0, *ratios]) * len(images))).astype(int)
        new = images[images["split"].isna()]
        kept = np.array([(images["split"] == part).sum() for part in PARTS])
        order = sorted(new.index, key=lambda row: _draw(seed, table.at[row, "image_id"]))
        table.loc[order, "split"] = np.repeat(PARTS, _fill(goal - kept, len(new)))
    table["split"] = table["split"].astype("str")
    return _whole(table, f"{len(table)} images and ratios {list(ratios)}")


def recorded_split(catalogue: pd.DataFrame, *, path: str) -> pd.DataFrame:
    """Read back the split of an earlier run, for the images that the catalogue still has.

    Raises:
        InputError: the file is no split, or shares no image with the catalogue.
    """
    table = _included(catalogue).drop(columns="group")
    recorded = _read(Path(path))[["image_id", "group", "split"]]
    table = table.merge(recorded, on="image_id", how="inner", validate="one_to_one")
    return _whole(table[["image_id", "label", "group", "split"]], path)


def _included(catalogue: pd.DataFrame) -> pd.DataFrame:
    table = catalogue.loc[catalogue["excluded"] == "", ["image_id", "label"]].reset_index(drop=True)
    return table.assign(group=table["image_id"])


def _draw(seed: int, image_id: str) -> bytes:
    return hashlib.sha256(f"{seed}/{image_id}".encode()).digest()


def _fill(short: np.ndarray, count: int) -> np.ndarray:
    """Share ``count`` images out over the parts by what each is ``short`` of, which adds up to ``count``."""
    share = np.maximum(short, 0)
    while share.sum() > count:  # a part has more than its goal already, so the others get less
        share[np.argmax(share)] -= 1
    return share


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable split: {error}") from None
    if missing := {"image_id", "split"} - set(table):
        raise InputError(
            f"{path} lacks the column {', '.join(sorted(missing))}; a split has image_id,label,group,split"
        )
    if not table["split"].isin(PARTS).all():
        wrong = table["split"][~table["split"].isin(PARTS)].iloc[0]
        raise InputError(f"{path} has a split called {wrong!r}; there are {', '.join(PARTS)}")
    if table["image_id"].duplicated().any():
        raise InputError(f"{path} lists {table['image_id'][table['image_id'].duplicated()].iloc[0]} more than once")
    return table if "group" in table else table.assign(group=table["image_id"])


def _whole(table: pd.DataFrame, source: str) -> pd.DataFrame:
    for part in PARTS:
        if (labels := set(table.loc[table["split"] == part, "label"])) != {0, 1}:
            lacks = "images" if not labels else f"an image that is {'not ' if 1 in labels else ''}fractured"
            raise InputError(f"{part} lacks {lacks} ({source}): too few images for this split")
    return table
