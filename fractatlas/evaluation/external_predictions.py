"""Score a table of predictions, from this project or from any other system."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.utils import instantiate

from fractatlas.data.leaks import reported_kinds
from fractatlas.data.splits import ALL
from fractatlas.errors import InputError
from fractatlas.evaluation import metrics, operating_point, predictions_table, provenance, subset_assessment
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.io import atomic_path, write_csv, write_json
from fractatlas.progress_bar import waiting
from fractatlas.wording import join_names, plural

log = logging.getLogger(__name__)
SCORED = ("val", "test", ALL)  # scores on training images are not an estimate of performance
ALLOWED_RULES = ("fractatlas.evaluation.operating_point.*",)


def evaluate_predictions(config: dict[str, Any]) -> None:
    """Score a table of predictions, and write a run folder to ``paths.output_dir``.

    The threshold and the temperature are those of ``metrics.json`` in the table's folder, if it exists. Otherwise they
    are chosen on the rows of the validation subset; without such rows, a fixed threshold is used. The threshold of
    candidate boxes is stored or chosen likewise; for given heatmaps it is always chosen.

    Args:
        config: a checked ``EvaluateConfig`` with ``predictions``, plain.

    Raises:
        InputError: a file is invalid, or the threshold's rule needs validation rows that the table does not have.
    """
    out, table_file = Path(config["paths"]["output_dir"]), Path(config["predictions"])
    files = {"predictions.csv": "predictions", "catalogue.csv": "catalogue", "heatmaps.npz": "heatmaps"}
    without_split = "split" not in pd.read_csv(table_file, nrows=0, encoding="utf-8-sig")
    source = RunFolder(table_file.parent, {name: config[key] for name, key in files.items()})
    table, record, catalogue = source.predictions, source.metrics, source.catalogue
    if catalogue is not None:
        if not table["image_id"].isin(catalogue["image_id"]).any():
            examples = f"for example {table['image_id'].iloc[0]}, and there {catalogue['image_id'].iloc[0]}"
            problem = f"no image_id is in {source.file('catalogue.csv')} ({examples})"
            raise InputError(f"{table_file}: {problem}; use the same ids in both files, or remove the catalogue")
        table = predictions_table.add_groups(table, catalogue)
    record.pop("without_split", None)  # of an earlier evaluation
    if without_split:
        record["without_split"] = True
    if "leaks" not in record:
        record["leaks"] = predictions_table.find_leaks(_with_training(table, source), catalogue)
    for kind, line in zip(reported_kinds(record["leaks"]), provenance.relations(record), strict=True):
        divided = record["leaks"].get(kind, {"divided": 0})["divided"]
        log.log(logging.WARNING if divided else logging.INFO, "leak check: %s", line)
    log.info("%s", provenance.resampling(record))
    complete, table = table, table[table["split"].isin(SCORED)]
    others = join_names([repr(name) for name in complete.loc[~complete["split"].isin(SCORED), "split"].unique()])
    if table.empty:
        problem = f"column split: no row is 'val' or 'test' (found {others})"
        raise InputError(f"{table_file}: {problem}; correct the values, or remove the column")
    if omitted := len(complete) - len(table):
        log.info("%s with another split than val and test (%s): not scored", plural(omitted, "row"), others)
    if catalogue is not None and (unknown := ~table["image_id"].isin(catalogue["image_id"])).any():
        file, count = source.file("catalogue.csv"), unknown.sum()
        log.warning("%d of %s not in %s: in no stratum", count, plural(len(table), "image"), file)
    if config["data_root"]:
        if not Path(config["data_root"]).is_dir():
            raise InputError(f"data_root={config['data_root']}: no such folder; use the one that contains dataset.csv")
        record["data_root"] = config["data_root"]
    if "operating_point" not in record:
        record["task_name"] = config["task_name"]
        record["operating_point"] = _operating_point(config["threshold"], table, table_file)
    if "probability_calibrated" not in table:
        temperature = record["operating_point"]["temperature"]
        table = table.assign(probability_calibrated=operating_point.calibrate(table["probability"], temperature))
    with waiting("computing the scores and their 95 % intervals"):
        for name in SCORED:
            record.pop(name, None)
            if len(subset := table[table["split"] == name]):
                record[name] = metrics.evaluate(subset, source.threshold) | {"n_subset": len(subset)}
        train = source.training_labels if catalogue is not None else None
        point = record["operating_point"]
        if config["heatmaps"]:  # not those that the stored threshold was chosen for
            record.pop("heatmaps", None)
            point.pop("box_threshold", None)
        if "box_threshold" not in point:
            point |= subset_assessment.choose_box_threshold(table, catalogue, source.boxes, source.heatmaps)
        assessed = subset_assessment.assess(
            table, source.threshold, catalogue, train, source.boxes, source.heatmaps, point.get("box_threshold")
        )
    record |= subset_assessment.write(out, assessed)
    if source.data_root and "source" not in record.get("data", {}):
        record["data_root"] = str(source.data_root)
    write_csv(out / "predictions.csv", table)
    copies = {name: source.file(name) for name in ("catalogue.csv", "heatmaps.npz")}
    for name, file in (copies | {"training_config.yaml": source.config_file}).items():
        if file:
            with atomic_path(out / name) as temporary:
                shutil.copyfile(file, temporary)
    write_json(out / "metrics.json", record)
    log.info("results in %s", out)
    for name in SCORED:
        if name in record:
            for line in provenance.summarise(name, record, source.config):
                log.info("%s", line)


def _with_training(table: pd.DataFrame, source: RunFolder) -> pd.DataFrame:
    """Add the training images of ``split.csv`` to predictions, for the leak check with a catalogue."""
    training = source.training_labels if source.catalogue is not None else None
    if training is None or (table["split"] == "train").any():
        return table
    training = training[~training["image_id"].isin(table["image_id"])]
    added = training.assign(split="train", group=training["image_id"])
    return pd.concat([table, added], ignore_index=True).fillna({"patient": ""})


def stored_operating_point(predictions: Path) -> Path | None:
    """Return the ``metrics.json`` next to a table of predictions if it stores an operating point."""
    source = RunFolder(predictions.parent, {})
    return source.file("metrics.json") if "operating_point" in source.metrics else None


def _operating_point(rule: dict[str, Any], table: pd.DataFrame, source: Path) -> dict[str, Any]:
    name = rule["_target_"].rpartition(".")[2]
    validation = table[table["split"] == "val"]
    if len(validation):
        choose = instantiate(rule, _execution_whitelist_=ALLOWED_RULES)
        return operating_point.choose_operating_point(validation, choose, name)
    if name != "fixed":
        problem = f"threshold={name} is chosen on the validation subset, but {source} has no row with split val"
        raise InputError(f"{problem}; add such rows or use threshold=fixed")
    return {"rule": "fixed", "threshold": rule["value"], "temperature": 1.0}
