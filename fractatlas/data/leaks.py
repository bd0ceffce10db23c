"""Find related images in different subsets, and describe which relations were checked."""

from typing import Any

import pandas as pd

from fractatlas.data.splits import ALL, SCORED, SUBSETS

COLUMNS = {"patients": "patient", "given_exams": "given_exam", "given_groups": "given_group", "exams": "exam",
           "duplicates": "duplicates"}  # fmt: skip
TITLES = {
    "patients": "patients (column patient)",
    "given_exams": "exams (column exam)",
    "given_groups": "groups (column group)",
    "exams": "exams inferred from neighbouring ids",
    "duplicates": "near-duplicates",
}
UNKNOWN = {
    "patients": "there is no column patient",
    "given_exams": "there is no column exam",
    "given_groups": "there is no column group",
    "exams": "there is no column exam, and none are inferred",
    "duplicates": "there is no catalogue with near-duplicates",
}
NOT_LINKED = {
    "patients": "no patient has several images",
    "given_exams": "no exam has several images",
    "given_groups": "no group has several images",
    "exams": "every image is an exam of its own",
    "duplicates": "no image has one",
}
NAMED = ("patients", "given_exams", "given_groups")  # kinds whose values are names in the data; "" is not known
SHOWN = 5  # names of divided groups


def crossings(split: pd.DataFrame, catalogue: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count the images that are linked to an image of another subset.

    Returns:
        For each kind of ``COLUMNS`` whose column the catalogue has, and for ``groups`` (all kinds of links, direct or
        through other images): the number of such images by subset.
    """
    kinds = {kind: column for kind, column in COLUMNS.items() if column in catalogue} | {"groups": "group"}
    table = split[["image_id", "split"]].merge(catalogue[["image_id", *kinds.values()]], on="image_id")
    counts = {}
    for kind, column in kinds.items():
        images = table.loc[_divided(table, column), "split"].value_counts()
        counts[kind] = {subset: int(images.get(subset, 0)) for subset in SUBSETS}
    return counts


def find_leaks(split: pd.DataFrame, catalogue: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Count the groups of related images, and those that are in several subsets.

    Args:
        split: ``image_id, split``.
        catalogue: ``image_id, group`` and any of ``COLUMNS``, which are the relations that are checked.

    Returns:
        For each kind of ``COLUMNS`` that was checked: ``of`` (images of the split), ``known`` (images with a value),
        ``groups`` (number of patients, given exams or given groups; of inferred exams and duplicates, those of several
        images), ``linked`` (images that belong together with another one), ``divided`` (groups in several subsets),
        ``names`` (of at most ``SHOWN`` of these), ``images`` (images of divided groups by subset), and
        ``subsets`` (those of the split).
    """
    counts, found = crossings(split, catalogue), {}
    for kind in [kind for kind in COLUMNS if kind in counts]:
        column = COLUMNS[kind]
        table = split[["image_id", "split"]].merge(catalogue[["image_id", column]], on="image_id")
        named = table[table[column] != ""]
        several = named[named[column].duplicated(keep=False)]
        names = sorted(table.loc[_divided(table, column), column].unique())
        found[kind] = {
            "of": len(split),
            "known": len(named),
            "groups": int((named if kind in NAMED else several)[column].nunique()),
            "linked": len(several),
            "divided": len(names),
            "names": [str(name) for name in names[:SHOWN]],
            "images": counts[kind],
            "subsets": [subset for subset in SCORED if (split["split"] == subset).any()],
        }
    return found


def describe_leak(kind: str, leak: dict[str, Any] | None) -> str:
    """Return one line about one kind of relation, from ``find_leaks``; ``None`` means that it was not checked."""
    title = TITLES[kind]
    if leak is None:
        plain = title.removesuffix(" (column patient)").removesuffix(" inferred from neighbouring ids")
        return f"{plain}: not checked: {UNKNOWN[kind]}"
    subsets, notes = leak["subsets"], []
    if leak["known"] < leak["of"] and kind in NAMED:
        notes.append(f"known for {leak['known']} of {leak['of']} images")
    if "unmatched" in leak:
        notes.append(f"not checked for {leak['unmatched']} of {leak['of']} images, which are not in the catalogue")
    # Which of all images, or of data from elsewhere, are training images is stated separately.
    if "train" not in subsets and subsets != [ALL] and "elsewhere" not in leak:
        notes.append("not checked against the training images, which are not listed")
    if not leak["linked"]:
        found = NOT_LINKED[kind]
    elif subsets == [ALL]:
        found = f"{leak['groups']} in all images"
    elif len(subsets) == 1:
        found = f"{leak['groups']}, all in {subsets[0]}"
    elif not leak["divided"]:
        found = f"0 of {leak['groups']} are in several subsets"
    else:
        more = f", and {leak['divided'] - SHOWN} more" if leak["divided"] > SHOWN else ""
        images = ", ".join(f"{subset} {count}" for subset, count in leak["images"].items() if count)
        verb = "is" if leak["divided"] == 1 else "are"
        found = f"{leak['divided']} of {leak['groups']} {verb} in several subsets ({', '.join(leak['names'])}{more})"
        found += f"; images: {images}"
    return "; ".join([f"{title}: {found}", *notes])


def reported_kinds(leaks: dict[str, dict[str, Any]]) -> list[str]:
    """Return the kinds of relation that are reported, checked or not: given exams and groups only if there are any.

    Given exams replace inferred ones.
    """
    optional = {"given_exams", "given_groups"} | ({"exams"} if "given_exams" in leaks else set())
    return [kind for kind in COLUMNS if kind in leaks or kind not in optional]


def describe_leaks(leaks: dict[str, dict[str, Any]]) -> list[str]:
    """Return one line for each of ``reported_kinds``."""
    return [describe_leak(kind, leaks.get(kind)) for kind in reported_kinds(leaks)]


def describe_groups(leaks: dict[str, dict[str, Any]]) -> str:
    """Return sentences about the groups that intervals resample, from ``find_leaks``."""
    used = [TITLES[kind] for kind in COLUMNS if kind in leaks and leaks[kind]["linked"]]
    patients = leaks.get("patients", {"known": 0, "of": 0})
    if not used and patients["known"] and patients["known"] == patients["of"]:
        return "Intervals resample patients (column patient); each has one image."
    if not used:
        text = "Intervals resample single images, because no related images are known."
        return f"{text} If a patient has several images, the intervals are too narrow."
    listed = " and ".join(filter(None, [", ".join(used[:-1]), used[-1]]))
    text = f"Intervals resample groups of images: {listed}."
    if not patients["known"]:
        return f"{text} Patients are not known: images of several visits of one patient count as independent."
    missing = patients["of"] - patients["known"]
    return text + (f" The patient of {missing} of {patients['of']} images is not known." if missing else "")


def _divided(table: pd.DataFrame, column: str) -> pd.Series:
    """Return whether each image has a value of ``column`` that also occurs in another subset."""
    return (table[column] != "") & (table.groupby(column)["split"].transform("nunique") > 1)
