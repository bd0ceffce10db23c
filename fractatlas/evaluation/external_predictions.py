"""Score a table of predictions, from this project or from any other system."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.utils import instantiate

from fractatlas.data.sources.fracatlas import read_boxes
from fractatlas.errors import InputError
from fractatlas.evaluation import assessment, metrics, operating_point
from fractatlas.evaluation.localisation import read_heatmaps
from fractatlas.evaluation.predictions_table import read_catalogue_file, read_metrics, read_predictions
from fractatlas.io import atomic_path, write_csv, write_json, write_text

log = logging.getLogger(__name__)
SCORED = ("val", "test")  # scores on training images are not an estimate of performance
ALLOWED_RULES = ("fractatlas.evaluation.operating_point.*",)


def evaluate_predictions(config: dict[str, Any]) -> None:
    """Score a table of predictions, and write a run folder to ``paths.output_dir``.

    The threshold and the temperature are those of ``metrics.json`` beside the table, if there is one. Otherwise they
    are chosen on the rows of the validation subset; without such rows, a fixed threshold is used.

    Args:
        config: a checked ``EvaluateConfig`` with ``predictions``, plain.

    Raises:
        InputError: a file is invalid, or the threshold's rule needs validation rows that the table does not have.
    """
    run, source = Path(config["paths"]["output_dir"]), Path(config["predictions"])
    table = read_predictions(source)
    if not table["split"].isin(SCORED).any():
        raise InputError(f"{source}: no row has val or test in the column split; add such rows or drop the column")
    table = table[table["split"].isin(SCORED)]
    metrics_file = source.parent / "metrics.json"
    record = read_metrics(metrics_file) if metrics_file.is_file() else {}
    catalogue_file = _given_or_beside(config["catalogue"], source, "catalogue.csv")
    catalogue = read_catalogue_file(catalogue_file) if catalogue_file else None
    if catalogue is not None and (unknown := ~table["image_id"].isin(catalogue["image_id"])).any():
        log.warning("%d of %d images are not in %s", unknown.sum(), len(table), catalogue_file)
    heatmaps_file = _given_or_beside(config["heatmaps"], source, "heatmaps.npz")
    heatmaps = read_heatmaps(heatmaps_file) if heatmaps_file else None
    root = _data_root(config["data_root"], record)
    if "operating_point" not in record:
        record["task_name"] = config["task_name"]
        record["operating_point"] = _operating_point(config["threshold"], table, source)
    point = record["operating_point"]
    if "probability_calibrated" not in table:
        calibrated = operating_point.calibrate(table["probability"], point["temperature"])
        table = table.assign(probability_calibrated=calibrated)
    for name in SCORED:
        record.pop(name, None)
        if len(subset := table[table["split"] == name]):
            record[name] = metrics.evaluate(subset, point["threshold"])
    write_csv(run / "predictions.csv", table)
    if catalogue is not None:
        write_csv(run / "catalogue.csv", catalogue)
    if heatmaps_file:
        with atomic_path(run / "heatmaps.npz") as temporary:
            temporary.write_bytes(heatmaps_file.read_bytes())
    _copy_training_config(source.parent, run)
    train = _training_labels(source.parent / "split.csv") if catalogue is not None else None
    boxes = read_boxes(root) if root else {}
    record |= assessment.write(run, assessment.assess(table, point["threshold"], catalogue, train, boxes, heatmaps))
    if root:
        record["data_root"] = str(root)
    write_json(run / "metrics.json", record)
    last = next(name for name in reversed(SCORED) if name in record)
    shown = {name: record[last][name] for name in ("accuracy", "auroc", "average_precision")}
    scores = ", ".join(f"{name} {value['value']:.4f}" for name, value in shown.items() if value)
    log.info("%s: %s, majority rate %.4f; results in %s", last, scores, record[last]["majority_rate"], run)


def _operating_point(rule: dict[str, Any], table: pd.DataFrame, source: Path) -> dict[str, Any]:
    name = rule["_target_"].rpartition(".")[2]
    validation = table[table["split"] == "val"]
    if len(validation):
        choose = instantiate(rule, _execution_whitelist_=ALLOWED_RULES)
        return operating_point.choose_operating_point(validation, choose, name)
    if name != "fixed":
        raise InputError(
            f"threshold={name} is chosen on the validation subset, but {source} has no row with split val; "
            "add such rows or use threshold=fixed"
        )
    return {"rule": "fixed", "threshold": rule["value"], "temperature": 1.0}


def _given_or_beside(given: str | None, source: Path, name: str) -> Path | None:
    if given:
        return Path(given)
    beside = source.parent / name
    return beside if beside.is_file() else None


def _data_root(given: str | None, record: dict[str, Any]) -> Path | None:
    if given and not Path(given).is_dir():
        raise InputError(f"data_root={given}: no such folder; use the folder that contains dataset.csv")
    root = given or record.get("data", {}).get("root")
    return Path(root) if root and (Path(root) / "dataset.csv").is_file() else None


def _training_labels(split: Path) -> pd.DataFrame | None:
    if not split.is_file():
        return None
    rows = pd.read_csv(split, dtype={"image_id": str})
    return rows.loc[rows["split"] == "train", ["image_id", "label"]]


def _copy_training_config(source: Path, run: Path) -> None:
    for name in ("training_config.yaml", ".hydra/config.yaml"):
        if (source / name).is_file():
            write_text(run / "training_config.yaml", (source / name).read_text(encoding="utf-8"))
            return
