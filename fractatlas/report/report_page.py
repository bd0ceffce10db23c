"""Write ``report.html``, one self-contained page on a run folder, and ``model_card.md``."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from sklearn.metrics import confusion_matrix

from fractatlas.data.splits import ALL
from fractatlas.evaluation import provenance
from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.evaluation.detection import FALSE_ALARMS
from fractatlas.evaluation.localisation import FRACTURE_MAP
from fractatlas.evaluation.markdown import METRIC_TITLES, format_fraction, format_percent
from fractatlas.evaluation.metrics import classify
from fractatlas.evaluation.operating_point import SEARCH_RANGE
from fractatlas.evaluation.overlays import BOX_COLOUR, CANDIDATE_COLOUR, colour_key, draw_radiographs, full_heat
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.evaluation.shown_images import most_confident_errors, spread_by_probability
from fractatlas.io import write_text
from fractatlas.pages import jpeg_address, render, svg_address
from fractatlas.reference_report import REFERENCE_ACCURACY
from fractatlas.report import descriptions, figures
from fractatlas.wording import format_duration

FOREST = ("auroc", "sensitivity", "specificity")  # metrics of the figure of the strata
BAND_RESAMPLES = 500  # bootstrap samples for the bands of the curves


def write_report(folder: Path) -> Path:
    """Write ``model_card.md`` and ``report.html`` into a finished run folder, from the files in it.

    Returns:
        The path of the page.

    Raises:
        InputError: the folder is not a finished run folder, or the run had ``report=false``.
    """
    run = RunFolder(folder)
    card = model_card(run)
    write_text(folder / "model_card.md", card)
    last, metrics = run.subsets[-1], run.metrics
    tables = {one.name: one.table for one in run.subsets if one.table["label"].nunique() == 2}
    weights = {name: bootstrap_weights(table["group"], resamples=BAND_RESAMPLES) for name, table in tables.items()}
    curves = {}
    if tables:
        auroc, precision = ({name: metrics[name][key] for name in tables} for key in ("auroc", "average_precision"))
        curves["ROC curves"] = figures.roc(tables, weights, auroc)
        curves["Precision-recall curves"] = figures.precision_recall(tables, weights, precision)
    curves[f"Reliability diagram ({last.name})"] = figures.reliability(last.table)
    history, monitor = metrics.get("history"), metrics.get("monitor", {})
    page = render(
        "report.html.jinja",
        metrics=metrics,
        phantoms=run.has_phantoms,
        subsets=run.subsets,
        last=last,
        titles=METRIC_TITLES,
        reference=REFERENCE_ACCURACY.get(metrics["task_name"], {}),
        format_percent=format_percent,
        duration=format_duration,
        confusion=confusion_matrix(last.table["label"], classify(last.table, run.threshold), labels=[0, 1]),
        curves={name: svg_address(svg) for name, svg in curves.items()},
        history=svg_address(figures.history(history, monitor["name"], monitor["epoch"])) if history else None,
        forest=svg_address(figures.forest(last.strata, {name: METRIC_TITLES[name] for name in FOREST})),
        froc=svg_address(figures.froc(detections)) if (detections := _detections(run)) else None,
        false_alarms=[*FALSE_ALARMS],
        colours={"box": BOX_COLOUR, "candidate": CANDIDATE_COLOUR},
        errors=_pictures(run, most_confident_errors(last.table, run.threshold)),
        colour_key=jpeg_address(colour_key(240, 12)),
        full_heat=full_heat(metrics["operating_point"].get("box_threshold")),
        heatmaps=_pictures(run, spread_by_probability(last.table)) if run.heatmaps is not None else [],
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else None,
        card=re.findall(r"^## (.+)\n\n(.+)$", card, re.MULTILINE),
        claim=re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", card, re.MULTILINE),
        missing_intervals=_missing_intervals(run),
        elsewhere=metrics.get("elsewhere"),
        search_range=SEARCH_RANGE,
        exams=metrics.get("exams", {}),
        **_provenance(run),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def model_card(run: RunFolder) -> str:
    """Return a model card and the CLAIM checklist as Markdown, filled in from the files of a run folder."""
    last = run.subsets[-1]
    # A "|" would end a cell of the checklist.
    metrics, config, known = (
        json.loads(json.dumps(content).replace("|", "/")) for content in (run.metrics, run.config, _provenance(run))
    )
    data = metrics.get("data", {"images": 0, "excluded": {}, "split": {}})
    in_split = sum(subset["n"] for subset in data["split"].values())
    return render(
        "model_card.md.jinja",
        metrics=metrics,
        config=config,
        config_file=run.config_file and run.config_file.relative_to(run.path),
        images=len(run.predictions),
        in_split=in_split,
        every_image=metrics.get("all_images") if last.name == ALL else None,
        has_phantoms=run.has_phantoms,
        is_fracatlas=data.get("name", "FracAtlas") == "FracAtlas",
        attributes=[name for name in last.strata["attribute"].unique() if name != "all"],
        shows_errors=run.data_root is not None
        and "path" in last.table
        and len(most_confident_errors(last.table, run.threshold)) > 0,
        unassigned=data["images"] - sum(data["excluded"].values()) - in_split,
        subsets=run.subsets,
        last=last,
        weakest=descriptions.weakest_stratum(last.strata),
        titles=METRIC_TITLES,
        fraction=format_fraction,
        percent=format_percent,
        words=descriptions,
        **known,
    )


def _detections(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Return the detection scores of each subset that has them."""
    return {one.name: one.detection for one in run.subsets if one.detection}


def _provenance(run: RunFolder) -> dict[str, Any]:
    """Return what the page and the card state about the scored images.

    ``uses`` and ``counts`` by subset; ``partial`` has a sentence for each subset that was scored in part; ``notices``
    has the sentences before the scores; ``origin`` states whether the data are those of the training; ``relations``,
    ``resampling`` and ``decision`` as from ``provenance``.
    """
    metrics, names = run.metrics, [one.name for one in run.subsets]
    uses = {name: provenance.describe_use(name, metrics, run.config) for name in names}
    counts = {name: provenance.count_images(metrics[name]) for name in names}
    partial = [f"Only {count} of the {name} subset were scored." for name, count in counts.items() if " of " in count]
    return {
        "uses": uses,
        "counts": counts,
        "partial": partial,
        "notices": [
            *provenance.use_notices(names[-1], metrics, run.config),
            *partial,
            *provenance.finding_notices(metrics),
            *provenance.content_notices(metrics),
            *provenance.leak_notices(metrics),
        ],
        "relations": provenance.relations(metrics),
        "resampling": provenance.resampling(metrics),
        "origin": provenance.describe_origin(metrics["elsewhere"]) if "elsewhere" in metrics else "",
        "decision": provenance.describe_decision(metrics["operating_point"]),
    }


def _missing_intervals(run: RunFolder) -> list[str]:
    """Return ``metrics (subsets): reason`` for the scores of complete subsets that have no interval."""
    subsets: dict[tuple[str, str], list[str]] = {}  # by title and reason
    for one in run.subsets:
        for name, title in METRIC_TITLES.items():
            if reason := (run.metrics[one.name].get(name) or {}).get("reason"):
                subsets.setdefault((title, reason), []).append(one.name)
    titles: dict[tuple[str, str], list[str]] = {}  # by subsets and reason
    for (title, reason), names in subsets.items():
        titles.setdefault((", ".join(names), reason), []).append(title)
    return [f"{'; '.join(listed)} ({names}): {reason}" for (names, reason), listed in titles.items()]


def _pictures(run: RunFolder, table: pd.DataFrame) -> list[dict[str, Any]]:
    if run.data_root is None or "path" not in table:
        return []
    threshold = run.metrics["operating_point"].get("box_threshold")
    candidates = pd.concat([one.candidates for one in run.subsets])
    shown = candidates[candidates["score"] >= (math.inf if threshold is None else threshold)]
    full = full_heat(threshold) if run.metrics.get("heatmaps") == FRACTURE_MAP else None
    drawn = draw_radiographs(table, run.data_root, run.boxes, run.heatmaps, shown, full)
    return [item | {"image": jpeg_address(item["image"])} for item in drawn]
