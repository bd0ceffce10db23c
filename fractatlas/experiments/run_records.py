"""Keep what the tables of a plan need of each run, in small files that outlive the run folders.

The record of a run is in the folder ``predictions/`` of the plan, in files that start with its recipe, variant or
step, its seed and its fold:

- ``<run>.json``: recipe, seed, fold, commits, operating point, and the settings of the training with their hash;
- ``<run>.csv``: the image-level predictions, in the format of ``predictions.csv``, probabilities with seven digits;
- ``<run>_boxes.csv`` and ``<run>_candidates.csv.gz``, if the heatmaps were scored: ``BOX_COLUMNS`` and
  ``CANDIDATE_COLUMNS``.

``images.csv.gz`` has body part, view and size of all images. Settings do not contain paths of the machine
(``config.overrides.NOT_COMPARED``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.utils import instantiate

from fractatlas.config.overrides import NOT_COMPARED, recorded_settings
from fractatlas.config.validation import differences
from fractatlas.errors import InputError
from fractatlas.evaluation import detection, localisation
from fractatlas.evaluation.candidates import COLUMNS
from fractatlas.evaluation.external_predictions import ALLOWED_RULES
from fractatlas.evaluation.localisation import SHORTER_SIDE
from fractatlas.evaluation.operating_point import choose_operating_point
from fractatlas.evaluation.predictions_table import read_predictions
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.evaluation.strata import FILE_COLUMNS, RECORD_COLUMNS
from fractatlas.io import read_csv, write_csv, write_json

DIGITS = 7  # significant digits of a probability
BOX_DECIMALS = {"size": 2, "score": 6, "hit_chance": 5, "share": 5, "share_chance": 5, "box_size": 4}
LOCALISED = [*localisation.SCORES, "box_size"]  # of an image
# One row for each box of the radiologists: its longest side, the highest score of the candidates whose peak is in it
# (empty without one), and the columns of its image from ``localisation.localise``.
BOX_COLUMNS = ["image_id", "split", "size", "score", *LOCALISED]
# One row for each candidate: whether its peak is in a box, and whether it is matched with a box at each IoU.
CANDIDATE_COLUMNS = ["image_id", "split", "score", "in_box", *detection.IOUS]
IMAGE_COLUMNS = ["image_id", *FILE_COLUMNS, *RECORD_COLUMNS, "hardware"]  # those of ``catalogue.csv`` that are kept
IMAGES = "images.csv.gz"
COPIED = ("heatmaps", "precision", "device", "weights", "monitor", "versions", "leaks")  # from metrics.json
REQUIRED = ("located", "detected", "recipe", "seed", "fold", "model", "commits", "operating_point", "settings")
SET_BY_PLAN = ("seed", "split.fold")  # settings in which the runs of a recipe differ


@dataclass(eq=False)
class RunRecord:
    """The record of a run; equal to itself only, and not to be changed.

    Attributes:
        facts: the contents of ``<run>.json``: ``recipe``, ``seed``, ``fold`` (``None`` without folds), ``model``,
            ``commits`` (by subset), ``operating_point``, ``located`` and ``detected`` (subsets whose heatmaps were
            scored, on all fractured images, and on all images), ``configuration_hash``, ``settings`` (of
            ``config.overrides.settings_of``), ``data`` (``images`` and ``excluded``) and what ``COPIED`` names.
        predictions: of the validation subset and, unless it is a step, of the test subset.
        boxes: ``BOX_COLUMNS`` of these subsets; empty without heatmaps.
        candidates: ``CANDIDATE_COLUMNS``, likewise.
    """

    facts: dict[str, Any]
    predictions: pd.DataFrame
    boxes: pd.DataFrame
    candidates: pd.DataFrame

    @property
    def fold(self) -> int | None:
        """The number of the test fold; ``None`` without folds."""
        return self.facts["fold"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the training by dotted key, without ``NOT_COMPARED``, which grows with the code."""
        return {key: value for key, value in self.facts["settings"].items() if not key.startswith(NOT_COMPARED)}

    @property
    def point(self) -> dict[str, Any]:
        """The operating point."""
        return self.facts["operating_point"]

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The predictions of each subset, sorted by ``image_id``."""
        ordered = self.predictions.sort_values("image_id")
        return {str(name): table.reset_index(drop=True) for name, table in ordered.groupby("split")}


def folder_name(name: str) -> str:
    """Return the folder of the runs of a recipe, variant or step: lower-case letters, digits and underscores."""
    return re.sub(r"\W+", "_", name).strip("_").lower()


def run_name(folder: str, seed: int, fold: int | None) -> str:
    """Return the start of the names of a run's files, such as ``with_map_seed_1_fold_0``."""
    return f"{folder}_{seed_name(seed, fold)}"


def seed_name(seed: int, fold: int | None) -> str:
    """Return the name of a run folder among those of its recipe: ``seed_1``, or ``seed_1_fold_0``."""
    return f"seed_{seed}" + ("" if fold is None else f"_fold_{fold}")


def configuration_hash(settings: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits that are equal for equal settings."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def collect(run: Path, recipe: str, seed: int, fold: int | None) -> RunRecord:
    """Read the record of a finished run from its folder, and from ``test/`` in it, if the test subset was scored.

    Args:
        run: the folder.
        recipe: the name of the recipe or step.
        seed: of the run.
        fold: of the run; ``None`` without folds.

    Raises:
        InputError: the folder is not a finished run with ``.hydra/config.yaml``, or its data folder is missing, whose
            boxes are needed.
    """
    if not (run / ".hydra" / "config.yaml").is_file():
        raise InputError(f"{run} has no .hydra/config.yaml; move or delete it, then repeat the command")
    folders = {"val": RunFolder(run)}
    if (run / "test" / "metrics.json").is_file():
        folders["test"] = RunFolder(run / "test")
    metrics, settings = folders["val"].metrics, recorded_settings(run)
    predictions = []
    for name, folder in folders.items():
        table = folder.predictions[folder.predictions["split"] == name]
        rounded = {column: _round_digits(table[column]) for column in table if column.startswith("probability")}
        predictions.append(table.assign(**rounded))
    located = {name: _located(folder, name) for name, folder in folders.items()}
    facts = {
        "recipe": recipe,
        "seed": seed,
        "fold": fold,
        "model": metrics["model"],
        "commits": {name: folder.metrics["versions"]["commit"] for name, folder in folders.items()},
        "operating_point": metrics["operating_point"],
        "located": [name for name, (boxes, _) in located.items() if len(boxes)],
        "detected": [name for name, (_, candidates) in located.items() if candidates is not None],
        "configuration_hash": configuration_hash(settings),
        **{name: metrics[name] for name in COPIED if name in metrics},
    }
    if "data" in metrics:
        facts["data"] = {name: metrics["data"][name] for name in ("images", "excluded")}
    found = [candidates for _, candidates in located.values() if candidates is not None]
    return RunRecord(
        facts | {"settings": settings},
        pd.concat(predictions, ignore_index=True),
        pd.concat([boxes for boxes, _ in located.values()], ignore_index=True),
        pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=CANDIDATE_COLUMNS),
    )


def _located(run: RunFolder, subset: str) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Return ``BOX_COLUMNS`` and ``CANDIDATE_COLUMNS`` of a subset; the second is ``None`` without candidates."""
    empty = pd.DataFrame(columns=BOX_COLUMNS)
    if not run.file("localisation.csv") or not run.file("strata.csv"):
        return empty, None
    if not run.boxes:
        root = run.metrics.get("data", {}).get("root")
        raise InputError(f"{run.path}: its data folder {root} is missing, but its boxes are needed; restore the folder")
    assessed = next((one for one in run.subsets if one.name == subset), None)
    if assessed is None or assessed.localisation.empty:
        return empty, None
    table, scored = assessed.table, bool(assessed.detection)
    candidates = assessed.candidates if scored else pd.DataFrame(columns=COLUMNS).astype({"score": float})
    detections = detection.match(table, candidates, run.boxes)
    rows = detections.boxes["row"].to_numpy(dtype=int)
    sizes = table.set_index("image_id")[["width", "height"]].astype(float).min(axis=1)
    ids = detections.images["image_id"].to_numpy()[rows]
    boxes = detections.boxes.assign(image_id=ids, split=subset)
    sides = boxes[["right", "bottom"]].to_numpy() - boxes[["left", "top"]].to_numpy()
    boxes["size"] = sides.max(axis=1) * SHORTER_SIDE / sizes[ids].to_numpy()
    boxes["score"] = boxes["score"].where(np.isfinite(boxes["score"]))
    boxes = boxes.merge(assessed.localisation, on="image_id")[BOX_COLUMNS].round(BOX_DECIMALS)
    if not scored:
        return boxes, None
    matched = detection.match_by_iou(detections).assign(split=subset)
    flags = dict.fromkeys(("in_box", *detection.IOUS), int)
    return boxes, matched[CANDIDATE_COLUMNS].astype(flags).reset_index(drop=True)


def _round_digits(values: pd.Series) -> pd.Series:
    return values.map(lambda value: float(f"{value:.{DIGITS}g}"))


def write_record(folder: Path, name: str, record: RunRecord, catalogue: pd.DataFrame | None) -> None:
    """Write a record; its ``.json`` last, so that a record without it is not complete.

    Args:
        folder: ``predictions/`` of the plan.
        name: from ``run_name``.
        record: of the run.
        catalogue: of the run, whose ``IMAGE_COLUMNS`` are added to ``images.csv.gz``; ``None`` adds none.
    """
    if catalogue is not None:
        images = catalogue[[column for column in IMAGE_COLUMNS if column in catalogue]]
        known = read_images(folder)
        both = images if known is None else pd.concat([known, images]).drop_duplicates("image_id", keep="last")
        write_csv(folder / IMAGES, both.sort_values("image_id"))
    write_csv(folder / f"{name}.csv", record.predictions)
    if record.facts["located"]:
        write_csv(folder / f"{name}_boxes.csv", record.boxes)
    if record.facts["detected"]:
        write_csv(folder / f"{name}_candidates.csv.gz", record.candidates)
    write_json(folder / f"{name}.json", record.facts)


def read_images(folder: Path) -> pd.DataFrame | None:
    """Return ``images.csv.gz`` of the folder ``predictions/`` of a plan; ``None`` if there is none."""
    file = folder / IMAGES
    remedy = "delete it, then repeat the command"
    return read_csv(file, ["image_id"], remedy, dtype={"image_id": str}) if file.is_file() else None


def read_record(folder: Path, name: str) -> RunRecord:
    """Read a record that ``write_record`` wrote.

    Raises:
        InputError: a file of it is missing or damaged.
    """
    file = folder / f"{name}.json"
    remedy = f"restore the file, or delete {file} to train the run again"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        located, detected, *_ = (facts[name] for name in REQUIRED)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not the record of a run ({error!r}); {remedy}") from None
    text = {"image_id": str, "split": str}
    boxes, candidates = pd.DataFrame(columns=BOX_COLUMNS), pd.DataFrame(columns=CANDIDATE_COLUMNS)
    if located:
        boxes = read_csv(folder / f"{name}_boxes.csv", BOX_COLUMNS, remedy, dtype=text)
    if detected:
        candidates = read_csv(folder / f"{name}_candidates.csv.gz", CANDIDATE_COLUMNS, remedy, dtype=text)
    return RunRecord(facts, read_predictions(folder / f"{name}.csv"), boxes, candidates)


def choose_threshold(record: RunRecord, rule: Mapping[str, Any]) -> RunRecord:
    """Return a record whose threshold is chosen again, on its validation predictions.

    Args:
        record: of a run.
        rule: the configuration of the rule, as in the group ``threshold``.
    """
    name = rule["_target_"].rpartition(".")[2]
    chosen = choose_operating_point(record.tables["val"], instantiate(rule, _execution_whitelist_=ALLOWED_RULES), name)
    kept = {key: value for key, value in record.settings.items() if not key.startswith("threshold.")}
    settings = kept | {f"threshold.{key}": value for key, value in rule.items()}
    point = record.point | {key: chosen[key] for key in ("rule", "threshold")}
    return replace(record, facts=record.facts | {"settings": settings, "operating_point": point})


def require_equal_settings(records: Sequence[RunRecord], names: Sequence[str]) -> None:
    """Require that the runs of a recipe differ in their seed and fold only.

    Raises:
        InputError: two of them differ in another setting.
    """
    first, *others = ({key: value for key, value in record.settings.items() if key not in SET_BY_PLAN}
                      for record in records)  # fmt: skip
    for name, settings in zip(names[1:], others, strict=True):
        if changes := differences(first, settings):
            raise InputError(
                f"{name} and {names[0]} have other settings: {changes[0]}; delete one of the records to train it again"
            )
