"""``report.html``: one self-contained page on a run, or on the predictions of any system."""

import base64
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader

from fractatlas.evaluation.assessment import Part, assess
from fractatlas.evaluation.bootstrap import draws
from fractatlas.files import whole, write_csv
from fractatlas.report import cards, figures, gallery
from fractatlas.report.evidence import Evidence
from fractatlas.report.table import STUDY

HEADLINE = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "mcc": "MCC",
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
    "brier": "Brier score",
    "brier_calibrated": "Brier score, calibrated",
    "calibration_error": "calibration error",
    "calibration_error_calibrated": "calibration error, calibrated",
}
FOREST = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity"}
BANDS = 500  # bootstrap samples behind the bands of the curves


def write(folder: Path, evidence: Evidence) -> list[Part]:
    """Assess, and write ``strata.csv, localisation.csv, model_card.md`` and, last, ``report.html``, each whole.

    ``localisation.csv`` is written only where there are heatmaps and boxes.

    Returns:
        What was found, by part.
    """
    threshold = evidence.record["operating_point"]["threshold"]
    parts = assess(
        evidence.predictions, threshold, evidence.catalogue, evidence.train, evidence.boxes, evidence.heatmaps
    )
    write_csv(folder / "strata.csv", pd.concat([part.strata.assign(split=part.name) for part in parts]))
    located = [part.located.assign(split=part.name) for part in parts if len(part.located)]
    if located:
        write_csv(folder / "localisation.csv", pd.concat(located))
    card, items = cards.model_card(evidence, parts), cards.claim(evidence, parts)
    with whole(folder / "model_card.md") as temporary:
        temporary.write_text(cards.as_markdown(card, items), encoding="utf-8")
    with whole(folder / "report.html") as temporary:
        temporary.write_text(render(evidence, parts, card, items), encoding="utf-8")
    return parts


def summary(parts: list[Part]) -> dict[str, Any]:
    """What ``metrics.json`` keeps of an assessment beside the scores: shortcuts and localisation of each part."""
    return {
        "shortcuts": {part.name: part.shortcuts for part in parts if part.shortcuts},
        "localisation": {part.name: part.pointing for part in parts if part.pointing},
    }


def render(
    evidence: Evidence, parts: list[Part], card: list[tuple[str, str]], items: list[tuple[int, str, str]]
) -> str:
    """The page as HTML; it needs no network and no other file."""
    record, last = evidence.record, parts[-1]
    threshold = record["operating_point"]["threshold"]
    tables = {part.name: part.table for part in parts if part.table["label"].nunique() == 2}
    weights = {name: draws(table["group"], resamples=BANDS) for name, table in tables.items()}
    shown = {}
    if tables:
        shown["ROC curve"] = figures.roc(tables, weights)
        shown["Precision and recall"] = figures.precision_recall(tables, weights)
    shown[f"Calibration ({last.name})"] = figures.reliability(last.table)
    monitor = record.get("monitor", {})
    page = Environment(
        loader=PackageLoader("fractatlas.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.jinja")
    return page.render(
        record=record,
        parts=parts,
        last=last,
        confusion=_confusion(last.table, threshold),
        headline=HEADLINE,
        study=STUDY.get(record["task_name"], {}),
        verdict=_verdict(last),
        figures={name: _svg_address(svg) for name, svg in shown.items()},
        curves=_svg_address(figures.history(record["history"], monitor["name"], monitor["epoch"]))
        if record.get("history")
        else None,
        forest=_svg_address(figures.forest(last.strata, FOREST)),
        few=bool(last.strata["few"].any()),
        mistakes=_pictures(evidence, gallery.mistakes(last.table, threshold)),
        heatmaps=_pictures(evidence, gallery.across(last.table)) if evidence.heatmaps is not None else [],
        config=yaml.safe_dump(evidence.config, sort_keys=False, allow_unicode=True) if evidence.config else None,
        card=card,
        items=items,
    )


def _verdict(part: Part) -> str:
    """The one sentence that accuracy alone would hide."""
    row, labels = part.strata.iloc[0], part.table["label"]
    majority, answer = max(labels.mean(), 1 - labels.mean()), "fractured" if labels.mean() > 0.5 else "not fractured"
    said = f"Always answering “{answer}” would be right in {100 * majority:.1f} % of these {len(labels)} images. "
    accuracy = f"{100 * row['accuracy']:.1f} % [{100 * row['accuracy_low']:.1f}, {100 * row['accuracy_high']:.1f}]"
    if row["accuracy_low"] > majority:
        return said + f"This classifier is right in {accuracy}: more than that."
    if row["accuracy_high"] < majority:
        return said + f"This classifier is right in {accuracy}: less than that."
    return said + f"This classifier is right in {accuracy}, which cannot be told from it."


def _confusion(table: pd.DataFrame, threshold: float) -> dict[str, int]:
    fractured, positive = table["label"] == 1, table["probability"] >= threshold
    return {
        "tp": int((fractured & positive).sum()),
        "fn": int((fractured & ~positive).sum()),
        "fp": int((~fractured & positive).sum()),
        "tn": int((~fractured & ~positive).sum()),
    }


def _pictures(evidence: Evidence, table: pd.DataFrame) -> list[dict[str, Any]]:
    if evidence.root is None or "path" not in table:
        return []
    drawn = gallery.pictures(table, evidence.root, evidence.boxes, evidence.heatmaps)
    return [item | {"image": gallery.data_address(item["image"])} for item in drawn]


def _svg_address(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
