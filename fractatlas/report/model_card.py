"""Model card and CLAIM checklist of a run, filled in from the files of the run folder."""

from typing import Any

from fractatlas.evaluation.assessment import SubsetAssessment
from fractatlas.evaluation.tables import format_fraction, format_percent
from fractatlas.report.run_folder import RunFolder

AUTHOR = "To be answered by the author of the publication."
UNKNOWN = "Unknown: only predictions are available."
PHANTOMS = "The images are generated phantoms, for tests of the software only."


def model_card(run: RunFolder) -> list[tuple[str, str]]:
    """Return headings and paragraphs of a model card.

    Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
    """
    last, config = run.subsets[-1], run.config
    return [
        ("Model", f"{_network(run)} The output is one logit; its sigmoid is the probability of a fracture." if config
         else _network(run)),
        ("Intended use", "Research on fracture detection in musculoskeletal radiographs, and teaching. This is not a "
         "medical device: it has no regulatory approval and must not be used for decisions about patients."),
        ("Out of scope", "Diagnosis and triage; growth plates of children; body parts and views that are not in the "
         "training data; photographs of films; other scanners and populations, unless tested on them."),
        ("Data", f"{_data(run)} {_split(run)}"),
        ("Decision", _decision(run)),
        ("Performance", _performance(last)),
        ("Weakest stratum", _weakest_stratum(last)),
        ("Localisation", f"{_localisation(last)} A heatmap shows which places raised the score; it does not "
         "explain the decision."),
        ("Baselines without pixels", _shortcuts(last)),
        ("Limitations", _about_data(
            run, "One data set from one country, with the labels of its authors. It has no patient ids: groups are "
            "inferred. No external test, no comparison with readers. Unreadable and truncated files are excluded.")),
        ("Training", _training(config) if config else UNKNOWN),
        ("Versions", _versions(run)),
    ]  # fmt: skip


def claim_checklist(run: RunFolder) -> list[tuple[int, str, str]]:
    """Return number, topic and answer of the 42 items of CLAIM; the topics are paraphrased.

    Mongan, Moy and Kahn, Checklist for Artificial Intelligence in Medical Imaging, Radiology: Artificial Intelligence
    2(2):e200029, 2020.
    """
    config, last = run.config, run.subsets[-1]

    def data(answer: str) -> str:
        return _about_data(run, answer)

    def trained(answer: str) -> str:
        return answer if config else UNKNOWN

    answers = [
        ("Title states the method", f"Deep learning, binary classification of radiographs. {_network(run)}"),
        ("Structured abstract", AUTHOR),
        ("Background and clinical role", AUTHOR),
        ("Objectives", "Classify radiographs as fractured or not fractured, and measure the scores' uncertainty."),
        ("Prospective or retrospective", data("Retrospective, on a public data set.")),
        ("Goal", "Feasibility and comparison of methods; no clinical use."),
        ("Data sources", _data(run)),
        ("Eligibility", trained("All images of the data set except the excluded ones, which catalogue.csv lists with "
                                f"the reason: {_excluded(run)}.")),
        ("Preprocessing", _values(config, "preprocess") if config else UNKNOWN),
        ("Selection of data subsets", trained("None, apart from the exclusions.")),
        ("Data elements", trained("catalogue.csv has label, body part, view, hardware and size of every image.")),
        ("De-identification", data("By the publishers of the data set. It has no patient ids.")),
        ("Missing data", trained("Images that cannot be decoded completely are excluded. Nothing is imputed.")),
        ("Reference standard", data("The published label, if at least two of table, folder and boxes agree on it.")),
        ("Reason for this standard", data("It is the only one published; there is no follow-up or CT.")),
        ("Annotators", data("According to the publishers, two radiologists, checked by an orthopaedic surgeon "
                            "(Abedeen et al., Scientific Data 10:521, 2023).")),
        ("Annotation tools", data("Described by the publishers. Boxes are read from their COCO file.")),
        ("Variability of annotators", data("Not published.")),
        ("Sample size", f"All available images; the intervals show the precision. {_count(last)}"),
        ("Assignment to partitions", _split(run)),
        ("Level of disjointness", _crossings(run)),
        ("Model", _network(run)),
        ("Software", _versions(run)),
        ("Initialisation", _weights(run)),
        ("Training", _training(config) if config else UNKNOWN),
        ("Selection of the final model", _selected_epoch(run)),
        ("Ensembling", trained("None.")),
        ("Metrics", "Accuracy with the majority rate, balanced accuracy, AUROC, average precision, F1, MCC, "
         "sensitivity, specificity, PPV, NPV, sensitivity at 90 % specificity, Brier score, calibration error."),
        ("Uncertainty", "95 % percentile intervals of 2,000 bootstrap samples of groups (of images, if no groups are "
         "known); exact Clopper-Pearson intervals for proportions of 0 and 1."),
        ("Robustness", "strata.csv has every metric by the known attributes: body part, view, hardware, number of "
         "scans, image size, box size."),
        ("Explainability", _localisation(last)),
        ("External validation", trained("None.")),
        ("Flow of images", f"{_data(run)} Excluded: {_excluded(run)}."),
        ("Characteristics of each partition", f"{_sizes(run)} {data('Age and sex are not published.')}".strip()),
        ("Performance on all partitions", " ".join(_performance(subset) for subset in run.subsets)),
        ("Diagnostic accuracy", _performance(last)),
        ("Failure analysis", f"{_weakest_stratum(last)} report.html shows the most confident errors."),
        ("Limitations", data("One public data set, inferred groups, published labels without follow-up, no readers.")),
        ("Implications", f"None for clinical practice. {AUTHOR}"),
        ("Registration", AUTHOR),
        ("Protocol", trained("The configuration of the run (.hydra/config.yaml).")),
        ("Funding", AUTHOR),
    ]  # fmt: skip
    return [(number, topic, answer) for number, (topic, answer) in enumerate(answers, start=1)]


def to_markdown(card: list[tuple[str, str]], claim: list[tuple[int, str, str]]) -> str:
    """Return the model card and the checklist as one Markdown file."""
    sections = "".join(f"## {heading}\n\n{text}\n\n" for heading, text in card)
    rows = "".join(f"| {number} | {topic} | {answer.replace('|', '/')} |\n" for number, topic, answer in claim)
    return f"# Model card\n\n{sections}# CLAIM checklist\n\n| item | topic | answer |\n| --- | --- | --- |\n{rows}"


def _about_data(run: RunFolder, answer: str) -> str:
    """Return an answer that is true for FracAtlas only, or that the images are phantoms."""
    if run.config and run.config["data"].get("prepare"):
        return PHANTOMS
    return answer if run.config else UNKNOWN


def _network(run: RunFolder) -> str:
    if not (name := run.metrics.get("model")):
        return "An unknown system: only its predictions are available."
    weights = run.metrics.get("weights")
    return f"{name}, {'fine-tuned' if weights is None or weights['loaded'] else 'trained from random weights'}."


def _data(run: RunFolder) -> str:
    data = run.metrics.get("data")
    if not data:
        return f"{len(run.predictions)} predictions."
    return f"{data['images']} images, {data['images'] - sum(data['excluded'].values())} used."


def _excluded(run: RunFolder) -> str:
    excluded = run.metrics.get("data", {}).get("excluded", {})
    return ", ".join(f"{count} {reason}" for reason, count in excluded.items()) or "none"


def _sizes(run: RunFolder) -> str:
    split = run.metrics.get("data", {}).get("split", {})
    sizes = "; ".join(f"{name}: {row['n']} images, {row['positives']} fractured" for name, row in split.items())
    return f"{sizes}." if sizes else ""


def _split(run: RunFolder) -> str:
    if not run.config:
        return UNKNOWN
    return f"{_values(run.config, 'split', run.config['split']['_target_'].rpartition('.')[2])} {_sizes(run)}"


def _crossings(run: RunFolder) -> str:
    crossings = run.metrics.get("data", {}).get("crossings")
    if not crossings:
        return UNKNOWN
    if not any(crossings["groups"].values()):
        return "Groups of near-duplicates and images of one exam: every group is in one partition."
    leaks = (f"{name}: {crossings['duplicates'][name]} images have a near-duplicate and {crossings['exams'][name]} an "
             "image of the same exam in another partition" for name in ("val", "test"))  # fmt: skip
    return f"Image; there are leaks. {'; '.join(leaks)}."


def _weights(run: RunFolder) -> str:
    weights = run.metrics.get("weights")
    if not weights:
        return UNKNOWN
    if not weights["loaded"]:
        return "Random."
    return f"{weights['file']}: {weights['loaded']} of {weights['of']} tensors; random: {', '.join(weights['random'])}."


def _selected_epoch(run: RunFolder) -> str:
    monitor = run.metrics.get("monitor")
    return f"Epoch {monitor['epoch']}, selected by {monitor['name']} ({monitor['value']:.4f})." if monitor else UNKNOWN


def _decision(run: RunFolder) -> str:
    point = run.metrics["operating_point"]
    rule = f"An image is classified as fractured if its probability is at least {point['threshold']:.4f}"
    if not run.config:
        return f"{rule}."
    return (
        f"{rule} (rule: {point['rule']}). Calibrated probabilities divide the logit by the temperature "
        f"{point['temperature']:.3f}. Both were chosen on the validation subset."
    )


def _training(config: dict[str, Any]) -> str:
    groups = ("optimizer", "scheduler", "loss", "augment")
    parts = " ".join(_values(config, group, config[group]["_target_"].rpartition(".")[2]) for group in groups)
    epochs, batch_size = config["trainer"]["max_epochs"], config["data"]["batch_size"]
    return f"{epochs} epochs, batch size {batch_size}, seed {config['seed']}. {parts}"


def _versions(run: RunFolder) -> str:
    return ", ".join(f"{name} {value}" for name, value in run.metrics.get("versions", {}).items()) or UNKNOWN


def _values(config: dict[str, Any], group: str, name: str = "") -> str:
    values = ", ".join(f"{key} {value}" for key, value in config[group].items() if not key.startswith("_"))
    return f"{name or group} ({values})." if values else f"{name or group}."


def _count(subset: SubsetAssessment) -> str:
    return f"{subset.name}: {len(subset.table)} images, {int(subset.table['label'].sum())} fractured."


def _performance(subset: SubsetAssessment) -> str:
    rate = max(subset.table["label"].mean(), 1 - subset.table["label"].mean())
    titles = {"accuracy": "accuracy", "auroc": "AUROC", "average_precision": "average precision",
              "sensitivity": "sensitivity", "specificity": "specificity"}  # fmt: skip
    scores = ", ".join(f"{title} {_score(subset.strata.iloc[0], name)}" for name, title in titles.items())
    return f"{_count(subset)} With 95 % intervals: {scores}. Majority rate {format_fraction(rate)}."


def _weakest_stratum(subset: SubsetAssessment) -> str:
    rows = subset.strata[~subset.strata["low_count"]].dropna(subset=["auroc"]).iloc[1:]
    if rows.empty:
        return "No stratum has enough images."
    row = rows.loc[rows["auroc"].idxmin()]
    return (
        f"Lowest AUROC of a stratum with at least 10 images of each class: {row['attribute']} {row['stratum']} "
        f"({row['n']} images, {row['positives']} fractured): {_score(row, 'auroc')}."
    )


def _localisation(subset: SubsetAssessment) -> str:
    summary = subset.localisation_summary
    if not summary or not summary["all"]["n"]:
        return "There are no heatmaps."
    hit, centre, chance = (summary["all"][name] for name in ("hit", "hit_centre", "hit_chance"))
    return (
        f"The hottest point of the Grad-CAM heatmap is in a fracture's box in {format_percent(**hit)} % of "
        f"{summary['all']['n']} fractured images ({subset.name}), the image's centre in "
        f"{format_percent(centre['value'])} %, a random point in {format_percent(chance['value'])} %."
    )


def _shortcuts(subset: SubsetAssessment) -> str:
    if not subset.shortcuts:
        return "Not measured: they need the training subset and the catalogue."
    scores = "; ".join(f"{name}: {format_fraction(**score['auroc'])}" for name, score in subset.shortcuts.items())
    return f"AUROC of gradient boosting on properties of the file and the record ({subset.name}): {scores}."


def _score(row: Any, name: str) -> str:
    return format_fraction(row[name], row[f"{name}_low"], row[f"{name}_high"])
