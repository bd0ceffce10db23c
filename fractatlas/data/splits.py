"""Assign images to subsets: a split is a table ``image_id, label, group, split``, without excluded images.

A catalogue with ``given_split``, the split of the data set itself, is split by it in ``grouped_split`` and
``random_split``.

``group`` comes from the catalogue and, with a manifest, from its columns of ``groups.GIVEN``; these columns follow
``split``. Only ``grouped_split`` and ``kfold_split`` keep groups in one subset; ``leaks.find_leaks`` counts the divided
groups of any split.
"""

import logging
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd

from fractatlas.data.groups import GIVEN, add_given, read_given
from fractatlas.errors import InputError
from fractatlas.io import read_csv
from fractatlas.wording import plural

log = logging.getLogger(__name__)
SUBSETS = ("train", "val", "test")
ALL = "all"  # every image that is not excluded, to score a network on
SCORED = (*SUBSETS, ALL)
HASHES = ["content", "pixels"]  # columns of a catalogue: hashes of the file, and of the decoded pixels
# Ids per block. In 60 seeds, 5 % more images moved at most 1.7 % of the other images (with 8 ids per block 2.8 %).
BLOCK = 16
DRAW = "data.columns.split=null for a table, data.given_split=false for MURA"


def grouped_split(
    catalogue: pd.DataFrame, *, ratios: Sequence[float], seed: int, previous: str | None = None
) -> pd.DataFrame:
    """Split by group, stratified by label: no group is in two subsets.

    Groups are ordered by a hash of the seed and of the block of ``BLOCK`` neighbouring ids that contains their first
    image, and cut where each subset has its share: of the fractured images for groups with a fracture, of the images
    for the other groups. Images of one block therefore mostly stay together even without a link between them, and a
    few additional images move few others.

    Args:
        catalogue: from ``read_catalogue``.
        ratios: shares of train, val and test; their sum is 1.
        seed: seed of the order.
        previous: path of an earlier ``split.csv``. Its images keep their subset, and new images of a group follow the
            images that it contains; a group that it divides stays divided.

    Returns:
        ``image_id, label, group, split`` in the order of the catalogue.

    Raises:
        InputError: the sum of the ratios is not 1, a subset would lack a class, or ``previous`` cannot be read.
    """
    if has_given_split(catalogue):
        return _given_split(catalogue, ratios, seed, previous)
    return _require_all(_draw(catalogue, "group", SUBSETS, ratios, seed, previous), "group")


def random_split(
    catalogue: pd.DataFrame, *, ratios: Sequence[float], seed: int, previous: str | None = None
) -> pd.DataFrame:
    """Split by image, stratified by label: copies and images of one exam can be in different subsets.

    This is the split of the reference report. The share of each class in each subset is exact to one image. Arguments,
    return value and errors are those of ``grouped_split``.
    """
    if has_given_split(catalogue):
        return _given_split(catalogue, ratios, seed, previous)
    return _require_all(_draw(catalogue, "image_id", SUBSETS, ratios, seed, previous), "image_id")


def kfold_split(catalogue: pd.DataFrame, *, folds: int, fold: int, seed: int) -> pd.DataFrame:
    """Split by group into ``folds`` equal folds: ``fold`` is ``test``, the next one ``val``, the others ``train``.

    A split of the data set itself is not used. Over all values of ``fold``, each image is in ``test`` once.

    Args:
        catalogue: from ``read_catalogue``.
        folds: number of folds, at least 3.
        fold: index of the test fold, from 0.
        seed: seed of the order.

    Raises:
        InputError: ``fold`` does not exist, or a subset would lack a class.
    """
    if fold >= folds:
        raise InputError(f"split.fold={fold} should be less than split.folds={folds}; the first fold is 0")
    names = ["train"] * folds
    names[(fold + 1) % folds], names[fold] = "val", "test"
    return _require_all(_draw(catalogue, "group", names, [1 / folds] * folds, seed, None), "group")


def manifest_split(catalogue: pd.DataFrame, *, path: str) -> pd.DataFrame:
    """Read the split from a CSV file with the columns ``image_id`` and ``split`` (train, val or test).

    Images that the file does not contain are in no subset. Images with the same value in an optional column ``patient``
    or ``group`` belong to one group, in addition to the groups of the catalogue.

    Raises:
        InputError: the file is not a split, or contains an image that the catalogue does not contain.
    """
    listed = read_split(Path(path))
    if unknown := sorted(set(listed["image_id"]) - set(catalogue["image_id"])):
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise InputError(f"{path}: {len(unknown)} images are not in the data folder ({shown}); remove these rows")
    if GIVEN["group"] not in listed:  # a run's split.csv has this column if its groups were given
        listed = listed.assign(**read_given(listed))
    return _listed_split(catalogue, listed, path)


def recorded_split(catalogue: pd.DataFrame, *, path: str) -> pd.DataFrame:
    """Read the split of an earlier run, limited to images that the catalogue contains and does not exclude.

    Raises:
        InputError: the file is not a split, or a subset has no image of a class.
    """
    return _listed_split(catalogue, read_split(Path(path)), path)


def _listed_split(catalogue: pd.DataFrame, listed: pd.DataFrame, path: str) -> pd.DataFrame:
    given = [name for name in GIVEN.values() if name in listed]
    if given:
        catalogue = add_given(catalogue, listed[["image_id", *given]].fillna(""))
    table = _included(catalogue).merge(listed[["image_id", "split"]], on="image_id", validate="one_to_one")
    order = ["image_id", "label", "group", "split"]
    return _require_both_classes(table[order + [name for name in table if name not in order]], path)


def scored_subset(given: str | None, other_data: bool) -> str:
    """Return the subset that an evaluation scores: ``given``, or by default ``test``, and ``ALL`` of other data."""
    return given or (ALL if other_data else "test")


def has_given_split(catalogue: pd.DataFrame) -> bool:
    """Return whether the data set itself assigns images to subsets."""
    return "given_split" in catalogue and bool((catalogue["given_split"] != "").any())


def given_test_images(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Return the test subset that the data set itself gives, or its ``val`` if it gives no ``test``.

    Raises:
        InputError: there is none, or every image of it is excluded.
    """
    given = catalogue["given_split"] if has_given_split(catalogue) else pd.Series("", index=catalogue.index)
    name = next((name for name in ("test", "val") if (given == name).any()), None)
    if name is None:
        raise InputError("subset=test: the data have no column split with test or val; use subset=all")
    table = _included(catalogue[given == name]).assign(split="test")
    if table.empty:
        raise InputError(f"subset=test: none of {(given == name).sum()} images is usable; use another data folder")
    return table


def _given_split(catalogue: pd.DataFrame, ratios: Sequence[float], seed: int, previous: str | None) -> pd.DataFrame:
    """Return the split that the data set gives; what is missing of ``val`` and ``test`` is completed.

    Without ``test``, ``val`` becomes ``test``. Without ``val``, it is drawn from ``train`` by group, with the shares of
    ``ratios``. Images without a value are in no subset.
    """
    if previous:
        problem = f"split.previous={previous}: the data have a split of their own"
        raise InputError(f"{problem}; remove the argument, or ignore that split ({DRAW})")
    table = _included(catalogue)
    table.insert(3, "split", table["image_id"].map(catalogue.set_index("image_id")["given_split"]))
    table = table[table["split"] != ""].reset_index(drop=True)
    counts = table["split"].value_counts()
    if "train" not in counts or len(counts) < 2:
        problem = f"the given split has no image in {'train' if 'train' not in counts else 'val and test'}"
        raise InputError(f"{problem}; correct it, or draw the split ({DRAW})")
    if "test" not in counts:
        table["split"] = table["split"].replace("val", "test")
        log.info("given split: no test; its val (%s) is used as test", plural(int(counts["val"]), "image"))
    if "val" not in counts or "test" not in counts:
        train = table[table["split"] == "train"].drop(columns="split").assign(excluded="")
        share = ratios[1] / (ratios[0] + ratios[1])
        drawn = _draw(train, "group", ("train", "val"), (1 - share, share), seed, None)
        table.loc[table["split"] == "train", "split"] = drawn["split"].to_numpy()
        val = plural(int((drawn["split"] == "val").sum()), "image")
        log.info("given split: no val for training; %s of %d training images are drawn by group", val, len(drawn))
    return _require_both_classes(table, "the given split")


def all_images(catalogue: pd.DataFrame) -> pd.DataFrame:
    """Assign every image that is not excluded to the subset ``ALL``.

    Raises:
        InputError: every image is excluded.
    """
    table = _included(catalogue).assign(split=ALL)
    if table.empty:
        raise InputError(f"subset={ALL}: none of {len(catalogue)} images is usable; use another data folder")
    return table


def count_recorded(images: pd.DataFrame, *, path: str, recorded: pd.DataFrame | None) -> dict[str, int]:
    """Count the images of each subset of an earlier run's split; ``none``: those that it does not contain.

    Args:
        images: ``image_id`` and ``HASHES``.
        path: of the split.
        recorded: ``image_id`` and ``HASHES`` of the earlier run. An image is then found by its content, whatever its
            name; an image in several subsets counts for the first one. With ``None``, images are found by their names.

    Raises:
        InputError: the file is not a split.
    """
    split = read_split(Path(path))
    if recorded is None:
        found = images["image_id"].map(split.set_index("image_id")["split"])
    else:
        found = pd.Series(index=images.index, dtype=object)
        listed = split.merge(recorded, on="image_id")
        for name in reversed(SUBSETS):
            rows = listed[listed["split"] == name]
            found[np.logical_or.reduce([images[key].isin(rows[key]) for key in HASHES])] = name
    found = found.fillna("none")
    return {name: int((found == name).sum()) for name in (*SUBSETS, "none")}


def count_changed(images: pd.DataFrame, recorded: pd.DataFrame) -> int:
    """Count the images whose name is in the table of an earlier run, but with another content.

    Args:
        images: ``image_id`` and ``HASHES``.
        recorded: ``image_id`` and ``HASHES`` of the earlier run.
    """
    both = images[["image_id", *HASHES]].merge(recorded, on="image_id", suffixes=("", "_recorded"))
    return int(np.logical_and.reduce([both[key] != both[f"{key}_recorded"] for key in HASHES]).sum())


def read_hashes(split: Path) -> pd.DataFrame | None:
    """Return ``image_id`` and ``HASHES`` of the ``catalogue.csv`` next to a ``split.csv``; ``None`` if it has none."""
    file = split.parent / "catalogue.csv"
    if not file.is_file():
        return None
    table = read_csv(file, ["image_id"], "use the catalogue.csv of a run", dtype=str, keep_default_na=False)
    if not {*HASHES} <= {*table}:
        return None
    return table.loc[table["pixels"] != "", ["image_id", *HASHES]]  # without unreadable images


def read_seen(split: Path) -> pd.DataFrame | None:
    """Return the images that a network was trained on or selected with, from a run's ``split.csv``.

    Returns:
        ``image_id, split`` (train or val) and ``dhash``; ``None`` without a ``catalogue.csv`` with hashes next to it.
    """
    file = split.parent / "catalogue.csv"
    if not file.is_file():
        return None
    table = read_csv(file, ["image_id"], "use the catalogue.csv of a run", dtype=str, keep_default_na=False)
    if "dhash" not in table:
        return None
    used = read_split(split).query("split != 'test'")[["image_id", "split"]]
    return used.merge(table.loc[table["dhash"] != "", ["image_id", "dhash"]], on="image_id")


def _included(catalogue: pd.DataFrame) -> pd.DataFrame:
    columns = ["image_id", "label", "group", *(name for name in GIVEN.values() if name in catalogue)]
    return catalogue.loc[catalogue["excluded"] == "", columns].reset_index(drop=True)


def _draw(
    catalogue: pd.DataFrame, unit: str, names: Sequence[str], ratios: Sequence[float], seed: int, previous: str | None
) -> pd.DataFrame:
    """Assign each value of the column ``unit`` to one of the subsets ``names``, in the order of a hash."""
    if abs(sum(ratios) - 1) > 1e-6:
        raise InputError(f"split.ratios={list(ratios)}: the sum is {sum(ratios):g}, should be 1")
    table, key = _included(catalogue), _block if unit == "group" else str
    earlier = read_split(Path(previous)).set_index("image_id")["split"] if previous else pd.Series(dtype=object)
    earlier = table["image_id"].map(earlier).astype(object)
    if previous and earlier.isna().all():
        raise InputError(f"split.previous={previous}: no image is in the data folder; use a split.csv of these images")
    units = table.groupby(unit)["label"].agg(images="size", fractured="sum")
    # A new image can join groups of different subsets; the joint group then follows most of its old images.
    units["subset"] = earlier.map(names.index, "ignore").groupby(table[unit]).agg(lambda old: old.mode().get(0, -1))
    for fractured, stratum in units.groupby(units["fractured"] > 0):
        weight = stratum["fractured" if fractured else "images"]
        new = stratum["subset"] < 0
        share = np.diff(np.round(np.cumsum([0, *ratios]) * weight.sum()))
        # Count by image, because an earlier split may divide units.
        old = earlier.notna() & table[unit].isin(stratum.index)
        old_weights = table.loc[old, "label"] if fractured else None
        share -= np.bincount(earlier[old].map(names.index), old_weights, len(names))
        share = np.maximum(share, 0)  # a subset may have more than its share already
        order = sorted(stratum.index[new], key=lambda name: (sha256(f"{seed}/{key(name)}".encode()).digest(), name))
        weights = weight[order].to_numpy()
        cuts = np.cumsum(share) * weights.sum() / max(1, share.sum())
        units.loc[order, "subset"] = np.searchsorted(cuts[:-1], np.cumsum(weights) - weights / 2)
    drawn = table[unit].map(units["subset"]).map(lambda number: names[int(number)])
    table.insert(3, "split", earlier.fillna(drawn).astype("str"))
    return table


def _require_all(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    return _require_both_classes(table, f"{len(table)} images split by {unit}")


def _block(image_id: str) -> str:
    """Return the number of the block of ids (1 for ``IMG0000017.jpg``), or the id itself if it has no number."""
    digits = "".join(character for character in image_id if character.isdigit())
    return str(int(digits) // BLOCK) if digits else image_id


def read_split(path: Path) -> pd.DataFrame:
    """Read a table with the columns ``image_id`` and ``split``.

    Raises:
        InputError: the file is missing or is not a split.
    """
    table = read_csv(path, ["image_id", "split"], "a split has the columns image_id,split", dtype=str)
    if not table["split"].isin(SUBSETS).all():
        row = int(np.argmin(table["split"].isin(SUBSETS)))
        raise InputError(f"{path}, line {row + 2}: split is {table['split'].iloc[row]!r}, should be train, val or test")
    if repeated := table["image_id"][table["image_id"].duplicated()].tolist():
        raise InputError(f"{path}: image_id {repeated[0]} occurs more than once; remove the repeated rows")
    return table


def _require_both_classes(table: pd.DataFrame, source: str) -> pd.DataFrame:
    for subset in SUBSETS:
        if (labels := set(table.loc[table["split"] == subset, "label"])) != {0, 1}:
            missing = "images" if not labels else f"{'non-' if 1 in labels else ''}fractured images"
            raise InputError(f"{source}: {subset} has no {missing}; use more images or another split")
    return table
