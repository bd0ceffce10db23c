"""Who is where: a split is a table ``image_id, label, group, split`` with one row per image that is not excluded.

``group`` is the catalogue's: images that one patient or one exposure may link. Only ``grouped_split`` and
``kfold_split`` keep groups whole; ``crossings`` tells how many any split tears apart.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fractatlas.errors import InputError

PARTS = ("train", "val", "test")
BLOCK = 16  # ids; among 60 seeds, 5 % more images moved 1.7 % of the others at most, at 8 ids 2.8 %


def grouped_split(
    catalogue: pd.DataFrame, *, ratios: Sequence[float], seed: int, previous: str | None = None
) -> pd.DataFrame:
    """Split group by group, stratified by label: no group is in two parts.

    Groups are ordered by a hash of seed and the block of ``BLOCK`` neighbouring ids that they begin in, and cut where
    each part has its share: of the fractured images among the groups that have one, of images among the others. So
    what the groups did not link mostly stays together too, and a few images more or less move few of the others.

    Args:
        catalogue: from ``read_catalogue``.
        ratios: of train, val and test; they add up to 1.
        seed: another seed, another order.
        previous: an earlier ``split.csv``. Its images stay where they are, and draw new ones of their group along; a
            group that it tears stays torn.

    Returns:
        ``image_id, label, group, split`` in the catalogue's order.

    Raises:
        InputError: the ratios do not add up to 1, a part would lack a class, or ``previous`` is unreadable.
    """
    _check(ratios)
    return _draw(catalogue, "group", PARTS, ratios, lambda name: f"{seed}/{_block(name)}", previous)


def random_split(
    catalogue: pd.DataFrame, *, ratios: Sequence[float], seed: int, previous: str | None = None
) -> pd.DataFrame:
    """Split image by image, stratified by label, as the study did: copies and neighbours fall on both sides.

    A class is in each part by its ratio to within one image. Arguments, result and errors are ``grouped_split``'s.
    """
    _check(ratios)
    return _draw(catalogue, "image_id", PARTS, ratios, lambda name: f"{seed}/{name}", previous)


def kfold_split(catalogue: pd.DataFrame, *, folds: int, fold: int, seed: int) -> pd.DataFrame:
    """Split group by group into ``folds`` equal parts: ``fold`` is the test part, the next one validates.

    Over all ``fold`` from 0 to ``folds - 1`` every image is tested once.

    Args:
        catalogue: from ``read_catalogue``.
        folds: how many; at least 3.
        fold: the one that tests.
        seed: another seed, other folds.

    Raises:
        InputError: there is no such fold, or a part would lack a class.
    """
    if fold >= folds:
        raise InputError(f"split.fold={fold} should be less than split.folds={folds}: the first fold is 0")
    names = ["train"] * folds
    names[(fold + 1) % folds], names[fold] = "val", "test"
    return _draw(catalogue, "group", names, [1 / folds] * folds, lambda name: f"{seed}/{_block(name)}")


def manifest_split(catalogue: pd.DataFrame, *, path: str) -> pd.DataFrame:
    """Take the split from a CSV file with the columns ``image_id`` and ``split`` (train, val or test).

    Images that it does not list are in no part.

    Raises:
        InputError: the file is no split, or lists an image that the data lack.
    """
    listed = _read(Path(path))
    if unknown := sorted(set(listed["image_id"]) - set(catalogue["image_id"])):
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise InputError(f"{path} lists {len(unknown)} images that the data lack ({shown})")
    return recorded_split(catalogue, path=path)


def recorded_split(catalogue: pd.DataFrame, *, path: str) -> pd.DataFrame:
    """Read back the split of an earlier run, for the images that the catalogue still has.

    Raises:
        InputError: the file is no split, or shares no image with the catalogue.
    """
    recorded = _read(Path(path))[["image_id", "split"]]
    table = _included(catalogue).merge(recorded, on="image_id", how="inner", validate="one_to_one")
    return _whole(table, path)


def crossings(split: pd.DataFrame, catalogue: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count the images of a part that another part gives away.

    Returns:
        For ``duplicates`` (near-duplicates), ``studies`` (neighbours of one study) and ``groups`` (either, or linked
        through others): for each part, how many of its images have one elsewhere.
    """
    table = split[["image_id", "split"]].merge(catalogue[["image_id", "duplicates", "study", "group"]], on="image_id")
    found = {}
    for name, column in (("duplicates", "duplicates"), ("studies", "study"), ("groups", "group")):
        linked = table[table[column] != ""]
        torn = linked.groupby(column)["split"].transform("nunique") > 1
        counts = linked.loc[torn, "split"].value_counts()
        found[name] = {part: int(counts.get(part, 0)) for part in PARTS}
    return found


def _check(ratios: Sequence[float]) -> None:
    if abs(sum(ratios) - 1) > 1e-6:
        raise InputError(f"split.ratios={list(ratios)} add up to {sum(ratios):g}, should be 1")


def _included(catalogue: pd.DataFrame) -> pd.DataFrame:
    return catalogue.loc[catalogue["excluded"] == "", ["image_id", "label", "group"]].reset_index(drop=True)


def _draw(
    catalogue: pd.DataFrame,
    unit: str,
    parts: Sequence[str],
    ratios: Sequence[float],
    key: Callable[[str], str],
    previous: str | None = None,
) -> pd.DataFrame:
    """Give each value of the column ``unit`` one of ``parts``, in the order of the hash of its ``key``."""
    table = _included(catalogue)
    earlier = _read(Path(previous)).set_index("image_id")["split"] if previous else pd.Series(dtype=object)
    earlier = table["image_id"].map(earlier).astype(object)
    if previous and earlier.isna().all():
        raise InputError(f"split.previous={previous} shares no image with the data")
    units = table.groupby(unit)["label"].agg(images="size", fractured="sum")
    # Where new images join groups that lay apart, they go with most of the old ones.
    units["part"] = earlier.map(parts.index, "ignore").groupby(table[unit]).agg(lambda old: old.mode().get(0, -1))
    for fractured, stratum in units.groupby(units["fractured"] > 0):
        weight = stratum["fractured" if fractured else "images"]
        kept = stratum["part"] >= 0
        share = np.diff(np.round(np.cumsum([0, *ratios]) * weight.sum()))
        old = earlier.notna() & table[unit].isin(stratum.index)  # by image, since an earlier split may tear units
        share -= np.bincount(earlier[old].map(parts.index), table.loc[old, "label"] if fractured else None, len(parts))
        share = np.maximum(share, 0)  # a part may have more than its share already
        new = sorted(stratum.index[~kept], key=lambda name: (_hash(key(name)), name))
        weights = weight[new].to_numpy()
        cuts = np.cumsum(share) * weights.sum() / max(1, share.sum())
        units.loc[new, "part"] = np.searchsorted(cuts[:-1], np.cumsum(weights) - weights / 2)
    drawn = table[unit].map(units["part"]).map(lambda part: parts[int(part)])
    return _whole(table.assign(split=earlier.fillna(drawn).astype("str")), f"{len(table)} images, {unit}s")


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _block(image_id: str) -> str:
    """``IMG0000017.jpg`` to 2, the third block of ids; a name without a number is a block of its own."""
    digits = "".join(character for character in image_id if character.isdigit())
    return str(int(digits) // BLOCK) if digits else image_id


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable split: {error}") from None
    if missing := {"image_id", "split"} - set(table):
        raise InputError(f"{path} lacks the column {', '.join(sorted(missing))}; a split has image_id,split")
    if not table["split"].isin(PARTS).all():
        wrong = table["split"][~table["split"].isin(PARTS)].iloc[0]
        raise InputError(f"{path} has a split called {wrong!r}; there are {', '.join(PARTS)}")
    if table["image_id"].duplicated().any():
        raise InputError(f"{path} lists {table['image_id'][table['image_id'].duplicated()].iloc[0]} more than once")
    return table


def _whole(table: pd.DataFrame, source: str) -> pd.DataFrame:
    for part in PARTS:
        if (labels := set(table.loc[table["split"] == part, "label"])) != {0, 1}:
            lacks = "images" if not labels else f"an image that is {'not ' if 1 in labels else ''}fractured"
            raise InputError(f"{part} lacks {lacks} ({source}): too few images for this split")
    return table
