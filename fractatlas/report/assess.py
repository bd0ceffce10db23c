"""The page on a table of predictions, whoever made it: ``python evaluate.py predictions=FILE``."""

import logging
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from fractatlas.errors import InputError
from fractatlas.evaluation import metrics, operating_point
from fractatlas.files import write_csv, write_json
from fractatlas.report import page
from fractatlas.report.evidence import gather

log = logging.getLogger(__name__)
PARTS = ("val", "test")  # rows of the training part say nothing
ALLOWED = ("fractatlas.evaluation.operating_point.*",)


def evaluate_predictions(config: dict[str, Any]) -> None:
    """Score a table of predictions, and what lies beside it.

    Threshold and temperature are those of ``metrics.json`` beside the predictions, if there is one; otherwise they are
    settled on the rows of the part ``val``; without such rows a fixed threshold is taken as it is.

    Args:
        config: a checked ``EvaluateConfig`` with ``predictions``, plain.

    Raises:
        InputError: a file is not what it should be, or the threshold's rule needs a validation part.
    """
    run, source = Path(config["paths"]["output_dir"]), Path(config["predictions"])
    evidence = gather(source, catalogue=_path(config["catalogue"]), root=_path(config["data_root"]),
                      heatmaps=_path(config["heatmaps"]))  # fmt: skip
    table, record = evidence.predictions, evidence.record
    if not table["split"].isin(PARTS).any():
        raise InputError(f"{source} has no row whose split is val or test")
    table = table[table["split"].isin(PARTS)]
    if evidence.catalogue is not None:
        unknown = ~table["image_id"].isin(evidence.catalogue["image_id"])
        if unknown.any():
            log.warning("%d of %d images are not in the catalogue", unknown.sum(), len(table))
    if "operating_point" not in record:
        record |= {"task_name": config["task_name"], "operating_point": _settle(config["threshold"], table, source)}
    point = record["operating_point"]
    if "probability_calibrated" not in table:
        table = table.assign(
            probability_calibrated=operating_point.calibrate(table["probability"], point["temperature"])
        )
    evidence.predictions = table
    for name in PARTS:
        record.pop(name, None)
        if len(part := table[table["split"] == name]):
            record[name] = metrics.evaluate(part, point["threshold"])
    write_csv(run / "predictions.csv", table)
    record |= page.summary(page.write(run, evidence))
    write_json(run / "metrics.json", record)
    last = next(name for name in reversed(PARTS) if name in record)
    shown = {name: record[last][name] for name in ("accuracy", "auroc", "average_precision")}
    scores = ", ".join(f"{name} {value['value']:.4f}" for name, value in shown.items() if value)
    log.info("%s: %s, majority rate %.4f; %s", last, scores, record[last]["majority_rate"], run / "report.html")


def _settle(rule: dict[str, Any], table: Any, source: Path) -> dict[str, Any]:
    name = rule["_target_"].rpartition(".")[2]
    validation = table[table["split"] == "val"]
    if len(validation):
        return operating_point.settle(validation, instantiate(rule, _execution_whitelist_=ALLOWED), name)
    if name != "fixed":
        raise InputError(f"threshold: {name} is settled on validation, and {source} has no row whose split is val")
    return {"rule": "fixed", "threshold": rule["value"], "temperature": 1.0}


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None
