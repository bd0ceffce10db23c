"""Write ``report.html``, one self-contained page on a run folder, and ``model_card.md``."""

import base64
import io
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image

from fractatlas.evaluation.assessment import SubsetAssessment
from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.evaluation.overlays import draw_radiographs
from fractatlas.evaluation.selection import most_confident_errors, spread_by_probability
from fractatlas.evaluation.tables import format_percent
from fractatlas.io import write_text
from fractatlas.reference import REFERENCE_ACCURACY
from fractatlas.report import figures, model_card
from fractatlas.report.run_folder import RunFolder

METRIC_TITLES = {
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
BAND_RESAMPLES = 500  # bootstrap samples for the bands of the curves


def write_report(folder: Path) -> Path:
    """Write ``model_card.md`` and ``report.html`` into a finished run folder, from the files in it.

    Returns:
        The path of the page.

    Raises:
        InputError: the folder is not a finished run folder, or the run had ``report=false``.
    """
    run = RunFolder(folder)
    card, claim = model_card.model_card(run), model_card.claim_checklist(run)
    write_text(folder / "model_card.md", model_card.to_markdown(card, claim))
    last, metrics = run.subsets[-1], run.metrics
    tables = {one.name: one.table for one in run.subsets if one.table["label"].nunique() == 2}
    weights = {name: bootstrap_weights(table["group"], resamples=BAND_RESAMPLES) for name, table in tables.items()}
    curves = {}
    if tables:
        curves["ROC curves"] = figures.roc(tables, weights)
        curves["Precision-recall curves"] = figures.precision_recall(tables, weights)
    curves[f"Reliability diagram ({last.name})"] = figures.reliability(last.table)
    history, monitor = metrics.get("history"), metrics.get("monitor", {})
    page = render_page(
        "report.html.jinja",
        metrics=metrics,
        subsets=run.subsets,
        last=last,
        titles=METRIC_TITLES,
        reference=REFERENCE_ACCURACY.get(metrics["task_name"], {}),
        summary=_compare_with_majority_rate(last),
        confusion=_confusion_matrix(last.table, run.threshold),
        curves={name: _svg_address(svg) for name, svg in curves.items()},
        history=_svg_address(figures.history(history, monitor["name"], monitor["epoch"])) if history else None,
        forest=_svg_address(figures.forest(last.strata, FOREST)),
        errors=_pictures(run, most_confident_errors(last.table, run.threshold)),
        heatmaps=_pictures(run, spread_by_probability(last.table)) if run.heatmaps is not None else [],
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else None,
        card=card,
        claim=claim,
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def render_page(template: str, **values: Any) -> str:
    """Render a template of this package as HTML that needs no network and no other file.

    The template gets ``heading(title)``, which returns a heading and adds it to the table of contents.
    """
    contents: list[str] = []

    def heading(title: str) -> Markup:
        contents.append(title)
        return Markup('<h2 id="section-{}">{}</h2>').format(len(contents), title)

    environment = Environment(
        loader=PackageLoader("fractatlas.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(contents=contents, heading=heading, **values)


def _compare_with_majority_rate(subset: SubsetAssessment) -> str:
    """Return sentences that compare the accuracy with the majority rate."""
    row, labels = subset.strata.iloc[0], subset.table["label"]
    rate, answer = max(labels.mean(), 1 - labels.mean()), "fractured" if labels.mean() > 0.5 else "not fractured"
    if row["accuracy_low"] > rate:
        result = "The accuracy is significantly higher than the majority rate."
    elif row["accuracy_high"] < rate:
        result = "The accuracy is significantly lower than the majority rate."
    else:
        result = "The interval contains the majority rate: the accuracy is not significantly different from it."
    accuracy = format_percent(row["accuracy"], row["accuracy_low"], row["accuracy_high"])
    text = (
        f"Accuracy on {len(labels)} images ({subset.name}): {accuracy} %, with the 95 % interval in brackets. "
        f"Majority rate, the accuracy of always answering “{answer}”: {format_percent(rate)} %. {result}"
    )
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _confusion_matrix(table: pd.DataFrame, threshold: float) -> dict[str, int]:
    fractured, positive = table["label"] == 1, table["probability"] >= threshold
    return {
        "tp": int((fractured & positive).sum()),
        "fn": int((fractured & ~positive).sum()),
        "fp": int((~fractured & positive).sum()),
        "tn": int((~fractured & ~positive).sum()),
    }


def _pictures(run: RunFolder, table: pd.DataFrame) -> list[dict[str, Any]]:
    if run.data_root is None or "path" not in table:
        return []
    drawn = draw_radiographs(table, run.data_root, run.boxes, run.heatmaps)
    return [item | {"image": _jpeg_address(item["image"])} for item in drawn]


def _svg_address(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _jpeg_address(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
