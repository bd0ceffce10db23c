"""What travels with a model: a model card, and the answers to a reporting checklist, filled from the run itself."""

from functools import partial
from typing import Any

import numpy as np

from fractatlas.evaluation.assessment import Part
from fractatlas.report.evidence import Evidence

AUTHOR = "For the author of the report."
UNKNOWN = "Not known from the predictions alone."
GENERATED = "Generated phantoms: no patient, no radiologist; good for trying the pipeline only."


def model_card(evidence: Evidence, parts: list[Part]) -> list[tuple[str, str]]:
    """Headings and paragraphs, after Mitchell et al., Model Cards for Model Reporting, FAT* 2019."""
    record, config = evidence.record, evidence.config
    last = parts[-1]
    return [
        ("Model", f"{_network(evidence)} One logit; its sigmoid is the probability." if config else _network(evidence)),
        ("Intended use", "Research on methods that detect fractures in musculoskeletal radiographs, and teaching. "
         "Not a medical device: no regulator has seen it, and no decision about a patient may rest on it."),
        ("Out of scope", "Diagnosis or triage; children's growth plates, body parts and projections that the training "
         "data lack; photographs of films; any scanner or population other than that of the data, until tested there."),
        ("Data", f"{_data(evidence)} {_partition(evidence)}"),
        ("Decision", _decision(evidence)),
        ("Performance", _performance(last)),
        ("Where it fails", _weakest(last)),
        ("Where it looks", _pointing(last) + " A heatmap says what raised the score; it is no reasoning."),
        ("Shortcuts", _shortcuts(last)),
        ("Limits", _of_the_data(
            evidence, "One data set of one country, labels of its authors, no patient ids (groups are inferred), no "
            "external test, no comparison with readers. Unreadable and truncated files are left out.")),
        ("Training", _training(config) if config else UNKNOWN),
        ("Versions", ", ".join(f"{name} {value}" for name, value in record.get("versions", {}).items()) or UNKNOWN),
    ]  # fmt: skip


def claim(evidence: Evidence, parts: list[Part]) -> list[tuple[int, str, str]]:
    """Number, topic and answer of the 42 items of CLAIM.

    Mongan, Moy and Kahn, Checklist for Artificial Intelligence in Medical Imaging, Radiology: Artificial Intelligence
    2(2):e200029, 2020. Topics are put in our words.
    """
    config, last = evidence.config, parts[-1]
    versions = ", ".join(f"{name} {value}" for name, value in evidence.record.get("versions", {}).items())
    data, run = partial(_of_the_data, evidence), partial(_of_a_run, evidence)
    answers = [
        ("Title names the method", f"Deep learning, binary classification of radiographs ({_network(evidence)})"),
        ("Structured abstract", AUTHOR),
        ("Background and clinical role", AUTHOR),
        ("Objectives", "Tell radiographs with a fracture from those without; measure how far that can be believed."),
        ("Prospective or retrospective", data("Retrospective, on a public data set.")),
        ("Goal of the study", "Feasibility and method comparison; no claim of clinical use."),
        ("Data sources", _data(evidence)),
        ("Eligibility", run("All images of the data set, but those that catalogue.csv names as excluded: "
                            + (_excluded(evidence) or "none."))),
        ("Preprocessing", _values(config, "preprocess") if config else UNKNOWN),
        ("Selection of subsets", run("None beyond the exclusions.")),
        ("Data elements", run("catalogue.csv: label, body part, view, hardware, size, boxes, of every image.")),
        ("De-identification", data("By the publishers of the data set; no patient ids are in it.")),
        ("Missing data", run("Images that cannot be decoded whole are excluded, not imputed.")),
        ("Reference standard", data("Label of the data set where at least two of table, folder and box agree.")),
        ("Why this standard", data("It is the only one published; no follow-up or CT is there.")),
        ("Annotators", data("As the publishers say: two radiologists, checked by an orthopaedic surgeon "
         "(Abedeen et al., Scientific Data 10:521, 2023).")),
        ("Annotation tools", data("As the publishers say; boxes are read from their COCO file.")),
        ("Variability of annotators", data("Not published.")),
        ("Sample size", "All images there are; intervals show what that allows. " + _count(last)),
        ("Assignment to partitions", _partition(evidence)),
        ("Level of disjointness", _crossings(evidence)),
        ("Model", _network(evidence)),
        ("Software", versions or UNKNOWN),
        ("Initialisation", _weights(evidence)),
        ("Training", _training(config) if config else UNKNOWN),
        ("Choice of the final model", _choice(evidence)),
        ("Ensembling", run("None.")),
        ("Metrics", "Accuracy beside the majority rate, balanced accuracy, AUROC, average precision, F1, MCC, "
         "sensitivity, specificity, PPV, NPV, sensitivity at 90 % specificity, Brier score, calibration error."),
        ("Uncertainty", "95 % percentile intervals of 2,000 bootstrap samples of groups, of images where no groups are "
         "known; exact ones (Clopper and Pearson) of shares without an exception."),
        ("Robustness", "Every metric by body part, view, hardware, scans, image size and box size: strata.csv."),
        ("Explainability", _pointing(last)),
        ("External validation", run("None.")),
        ("Flow of images", f"{_data(evidence)} Excluded: {_excluded(evidence) or 'none.'}"),
        ("Characteristics of each partition", _sizes(evidence) + data("Age and sex are not published.")),
        ("Performance on all partitions", " ".join(_performance(part) for part in parts)),
        ("Diagnostic accuracy", _performance(last)),
        ("Failure analysis", _weakest(last) + " The most confident mistakes are shown in report.html."),
        ("Limitations", data("One public data set, inferred groups, published labels without follow-up, no readers.")),
        ("Implications", "None for practice. " + AUTHOR),
        ("Registration", AUTHOR),
        ("Protocol", run("The configuration that the run keeps (.hydra/config.yaml).")),
        ("Funding", AUTHOR),
    ]  # fmt: skip
    return [(number, topic, answer) for number, (topic, answer) in enumerate(answers, start=1)]


def as_markdown(card: list[tuple[str, str]], items: list[tuple[int, str, str]]) -> str:
    """Both as one Markdown file."""
    lines = ["# Model card", ""]
    for heading, text in card:
        lines += [f"## {heading}", "", text, ""]
    lines += ["# CLAIM checklist", "", "| item | topic | answer |", "| --- | --- | --- |"]
    lines += [f"| {number} | {topic} | {answer.replace('|', '/')} |" for number, topic, answer in items]
    return "\n".join(lines) + "\n"


def _of_the_data(evidence: Evidence, answer: str) -> str:
    """What is so of FracAtlas, and of nothing else that a network may be trained on or a system be scored on."""
    if evidence.config and evidence.config["data"].get("prepare"):
        return GENERATED
    return _of_a_run(evidence, answer)


def _of_a_run(evidence: Evidence, answer: str) -> str:
    return answer if evidence.config else UNKNOWN


def _network(evidence: Evidence) -> str:
    name = evidence.record.get("model")
    return f"{name}, fine-tuned." if name else "A system that is known by its predictions alone."


def _data(evidence: Evidence) -> str:
    data = evidence.record.get("data")
    if not data:
        return f"{len(evidence.predictions)} predictions."
    excluded = sum(data["excluded"].values())
    return f"FracAtlas layout, {data['images']} images, {data['images'] - excluded} used."


def _excluded(evidence: Evidence) -> str:
    found = evidence.record.get("data", {}).get("excluded", {})
    return ", ".join(f"{count} {reason}" for reason, count in found.items()) + ("." if found else "")


def _sizes(evidence: Evidence) -> str:
    split = evidence.record.get("data", {}).get("split", {})
    sizes = (f"{part}: {row['n']} images, {row['positives']} fractured" for part, row in split.items())
    return "; ".join(sizes) + (". " if split else "")


def _partition(evidence: Evidence) -> str:
    if not evidence.config:
        return UNKNOWN
    kind = evidence.config["split"]["_target_"].rpartition(".")[2]
    return f"{_values(evidence.config, 'split', kind)} {_sizes(evidence)}"


def _crossings(evidence: Evidence) -> str:
    crossings = evidence.record.get("data", {}).get("crossings")
    if not crossings:
        return UNKNOWN
    if not any(crossings["groups"].values()):
        return "Groups of near-duplicates and neighbouring views: none is in two partitions."
    said = (f"{part}: {crossings['duplicates'][part]} with a near-duplicate and {crossings['studies'][part]} with a "
            "neighbour of the same study elsewhere" for part in ("val", "test"))  # fmt: skip
    return "Image; partitions leak. " + "; ".join(said) + "."


def _weights(evidence: Evidence) -> str:
    weights = evidence.record.get("weights")
    if not weights:
        return UNKNOWN
    if not weights["loaded"]:
        return "Random."
    return f"{weights['file']}: {weights['loaded']} of {weights['of']} tensors; random: {', '.join(weights['random'])}."


def _choice(evidence: Evidence) -> str:
    monitor = evidence.record.get("monitor")
    return f"Epoch {monitor['epoch']}, by {monitor['name']} ({monitor['value']:.4f})." if monitor else UNKNOWN


def _decision(evidence: Evidence) -> str:
    point = evidence.record["operating_point"]
    rule = f"Fractured from a probability of {point['threshold']:.4f} on"
    if not evidence.config:
        return f"{rule}."
    return (
        f"{rule} (rule: {point['rule']}), settled on the validation part and frozen; calibrated probabilities divide "
        f"the logit by {point['temperature']:.3f}."
    )


def _training(config: dict[str, Any]) -> str:
    groups = ("optimizer", "scheduler", "loss", "augment")
    said = " ".join(_values(config, group, config[group]["_target_"].rpartition(".")[2]) for group in groups)
    return (
        f"{config['trainer']['max_epochs']} epochs, batch {config['data']['batch_size']}, seed {config['seed']}. {said}"
    )


def _values(config: dict[str, Any], group: str, kind: str = "") -> str:
    values = ", ".join(f"{name} {value}" for name, value in config[group].items() if not name.startswith("_"))
    return " ".join(f"{kind or group} {f'({values})' if values else ''}".split()) + "."


def _count(part: Part) -> str:
    return f"{part.name}: {len(part.table)} images, {int(part.table['label'].sum())} fractured."


def _performance(part: Part) -> str:
    row = part.strata.iloc[0]
    majority = max(part.table["label"].mean(), 1 - part.table["label"].mean())
    shown = ("auroc", "average_precision", "sensitivity", "specificity")
    said = ", ".join(f"{name.replace('_', ' ')} {_score(row, name)}" for name in ("accuracy", *shown))
    return f"{_count(part)} {said}. Always giving the commoner answer would be right in {100 * majority:.1f} %."


def _weakest(part: Part) -> str:
    rows = part.strata[~part.strata["few"]].dropna(subset=["auroc"]).iloc[1:]
    if rows.empty:
        return "Too few images to tell kinds of them apart."
    row = rows.loc[rows["auroc"].idxmin()]
    return (
        f"Lowest AUROC of a kind of image with enough of them: {row['attribute']} {row['stratum']} "
        f"({row['n']} images, {row['positives']} fractured): {_score(row, 'auroc')}."
    )


def _pointing(part: Part) -> str:
    if not part.pointing or not part.pointing["all"]["n"]:
        return "No heatmaps were made."
    found = part.pointing["all"]
    hit, centre, chance = (found[name] for name in ("hit", "hit_centre", "hit_chance"))
    return (
        f"Grad-CAM's hottest point lies in a fracture's box in {100 * hit['value']:.1f} % "
        f"[{100 * hit['low']:.1f}, {100 * hit['high']:.1f}] of {found['n']} fractured images ({part.name}); the "
        f"image's centre in {100 * centre['value']:.1f} %, a random point in {100 * chance['value']:.1f} %."
    )


def _shortcuts(part: Part) -> str:
    if not part.shortcuts:
        return "Not measured: the training part or the catalogue is not there."
    said = "; ".join(
        f"{name}: AUROC {score['auroc']['value']:.3f} [{score['auroc']['low']:.2f}, {score['auroc']['high']:.2f}]"
        for name, score in part.shortcuts.items()
    )
    return f"What gradient boosting tells without a single pixel ({part.name}): {said}."


def _score(row: Any, name: str) -> str:
    if not np.isfinite(row[name]):
        return "undefined"
    return f"{row[name]:.3f} [{row[name + '_low']:.2f}, {row[name + '_high']:.2f}]"
