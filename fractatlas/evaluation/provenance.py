"""State how scored images were used before, how many of a subset were scored, and which relations were checked.

Log lines, the report page, the model card and tables show these sentences.
"""

from typing import Any

from fractatlas.data.leaks import TITLES, describe_groups, describe_leaks
from fractatlas.data.splits import ALL
from fractatlas.evaluation.markdown import score_line
from fractatlas.evaluation.operating_point import SEARCH_RANGE, is_at_limit
from fractatlas.wording import plural

TRAINED_ON = "The network was trained on these images: the scores do not show how it performs on other images."

UNSEEN = "None of these images is in the training or validation subset of the network."


def count_images(score: dict[str, Any]) -> str:
    """Return ``24 of 529 images`` for a subset that was scored in part, otherwise ``529 images``.

    Args:
        score: of one subset, from ``metrics.json``.
    """
    scored, total = score["n"], score.get("n_subset", score["n"])
    images = "image" if total == 1 else "images"
    return f"{scored} of {total} {images}" if scored < total else f"{total} {images}"


def count_cell(score: dict[str, Any]) -> str:
    """Return ``529 (93)``, the images and the fractured ones, or ``24 of 529 (5)`` for a subset scored in part."""
    return f"{count_images(score).removesuffix(' images').removesuffix(' image')} ({score['positives']})"


def describe_use(name: str, record: dict[str, Any], config: dict[str, Any] | None) -> str:
    """Return what the images of a subset were used for before they were scored; an empty string for ``test``.

    For a table without the column ``split``, the sentence about ``test`` states this.

    Args:
        name: of the subset.
        record: the contents of ``metrics.json``.
        config: of the training; ``None`` for predictions of another system.
    """
    if name == "train":
        return TRAINED_ON
    if name == ALL:
        return _describe_all(record.get("all_images"))
    if name == "test":
        stated = "The table of predictions has no column split: all rows are taken as test."
        return stated if record.get("without_split") else ""
    chosen = []
    if config and "monitor" in config:
        chosen.append("the epoch")
    point = record["operating_point"]
    if chooses_threshold(point):
        chosen.append("the threshold")
    if "box_threshold" in point:
        chosen.append("the box threshold")
    if point["temperature"] != 1:
        chosen.append("the temperature")
    listed = " and ".join(filter(None, [", ".join(chosen[:-1]), *chosen[-1:]]))
    if not listed:
        return ""
    scores = {
        ("the temperature",): "the calibrated scores",
        ("the box threshold",): "the scores of candidate boxes",
        ("the box threshold", "the temperature"): "the calibrated scores and those of candidate boxes",
    }.get(tuple(chosen), "the scores")
    verb = "was" if len(chosen) == 1 else "were"
    return f"{listed[0].upper()}{listed[1:]} {verb} selected on these images: {scores} are optimistic."


def _describe_all(facts: dict[str, Any] | None) -> str:
    """Return how many of all images the network was trained on, from the entry ``all_images`` of ``metrics.json``."""
    if not facts or facts["train"] is None:
        unknown = "It is not known which of these images the network was trained on."
        return f"{unknown} Scores of training images are too high."
    text = UNSEEN
    if facts["train"] or facts["val"]:
        verb = "is" if facts["train"] == 1 else "are"
        text = f"Of these images, {facts['train']} {verb} in the training subset of the network and {facts['val']} in "
        text += "its validation subset: the scores are optimistic."
    if facts.get("found_by") == "content":
        return text
    return f"{text} Images were compared by name, not by content, because the catalogue.csv of the training is missing."


def use_notices(name: str, record: dict[str, Any], config: dict[str, Any] | None) -> list[str]:
    """Return the sentence of ``describe_use`` if it limits what the scores show; arguments as there."""
    use = describe_use(name, record, config)
    return [] if use in ("", UNSEEN) else [use]


def content_notices(record: dict[str, Any]) -> list[str]:
    """Return a sentence for each subset with images that had another content in the training run."""
    changed = {name: count for name, count in record.get("changed_images", {}).items() if count and name in record}
    return [
        f"{count} of {plural(record[name]['n_subset'], 'image')} of the {name} subset "
        f"{'has' if count == 1 else 'have'} another content than in the data of the training: only the names are equal."
        for name, count in changed.items()
    ]


def finding_notices(record: dict[str, Any]) -> list[str]:
    """Return what label 1 means if it is not a fracture, or if it had another meaning in the training."""
    data, trained = record.get("data", {}), record.get("elsewhere", {}).get("own")
    finding = data.get("finding", "fracture")
    notices = []
    if finding != "fracture":
        notices.append(f'In {data["name"]}, label 1 ("fractured" here) means {finding}, not fracture.')
    if trained and trained["finding"] != finding:
        meanings = (
            f"where label 1 means {trained['finding']}, and is scored on {data['name']}, where it means {finding}"
        )
        notices.append(f"The network was trained on {trained['name']}, {meanings}: low scores can come from this.")
    return notices


def describe_origin(elsewhere: dict[str, Any]) -> str:
    """Return whether the scored data are other data than those of the training.

    Args:
        elsewhere: the entry of ``metrics.json``.
    """
    name, seen = elsewhere["name"], elsewhere["near_duplicates"]
    if elsewhere.get("same_source"):
        text = f"These data are those of the training: {name}."
    elif seen and seen["n"]:
        text = f"These data overlap with those of the training: {name}."
    else:
        text = f"These data are not those of the training: {name}."
    if seen is None:
        unknown = "because there is no catalogue.csv of the training"
        return f"{text} Whether these images nearly equal training images was not checked, {unknown}."
    if not seen["n"]:
        return f"{text} No image nearly equals a training or validation image of the network."
    excluded = "1 image that nearly equals" if seen["n"] == 1 else f"{seen['n']} images that nearly equal"
    verb = "was" if seen["n"] == 1 else "were"
    return f"{text} {excluded} a training or validation image of the network {verb} excluded; catalogue.csv lists them."


def describe_validation(elsewhere: dict[str, Any]) -> str:
    """Return the answer to the question whether the network was validated on external data; argument as above."""
    seen = elsewhere["near_duplicates"]
    if elsewhere.get("same_source"):
        return f"Not done. {describe_origin(elsewhere)}"
    if seen is None or seen["n"]:
        return f"In part. {describe_origin(elsewhere)}"
    return f"Done on {elsewhere['name']}, on which the network was not trained."


RULES = {  # for the threshold
    "fixed": "fixed",
    "default": "the default",
    "highest_accuracy": "the highest accuracy on the validation subset",
    "youden": "the largest sensitivity + specificity on the validation subset",
    "target_sensitivity": "the highest that reaches the wanted sensitivity on the validation subset",
}


def describe_decision(point: dict[str, Any]) -> str:
    """Return how threshold and temperature of an operating point were chosen."""
    rule = RULES.get(point["rule"], point["rule"])
    if folds := point.get("folds"):
        low, high = folds["temperatures"]
        shown = " to ".join(dict.fromkeys(f"{one:.4f}" for one in (folds["thresholds"][0], folds["thresholds"][-1])))
        return (
            "Each image is predicted by the network of its fold, which was trained without its group. It is classified "
            f"as fractured if its calibrated probability is at least the threshold of the fold: {shown} ({rule}). The "
            f"temperatures of the {folds['networks']} networks are {low:.3f} to {high:.3f}, each chosen on the "
            "validation subset of its fold."
        )
    threshold = f"probability is at least {point['threshold']:.4f}"
    text = f"An image is classified as fractured if its {threshold} ({rule})."
    if "box_threshold" in point:
        chosen = "the highest F1 against the boxes of the validation subset"
        text += f" A candidate box counts if its score is at least {point['box_threshold']:.4f} ({chosen})."
    if point["temperature"] == 1:
        return f"{text} No temperature was chosen."
    temperature = f"{point['temperature']:.3f}, which was chosen on the validation subset"
    text = f"{text} Calibrated probabilities divide the logit by the temperature {temperature}."
    return f"{text} This is the limit of {SEARCH_RANGE}." if is_at_limit(point["temperature"]) else text


def chooses_threshold(point: dict[str, Any]) -> bool:
    """Return whether the threshold of an operating point was chosen on the validation subset."""
    return point["rule"] not in ("fixed", "default")


def relations(record: dict[str, Any]) -> list[str]:
    """Return one line for each kind of relation between subsets; empty if the run did not record them."""
    return describe_leaks(record["leaks"]) if "leaks" in record else []


def leak_notices(record: dict[str, Any]) -> list[str]:
    """Return a sentence for each kind of relation that is divided between subsets."""
    found = {kind: leak for kind, leak in record.get("leaks", {}).items() if leak["divided"]}
    return [
        f"{leak['divided']} of {leak['groups']} {TITLES[kind]} {'is' if leak['divided'] == 1 else 'are'} in several "
        "subsets: the scores can be too high."
        for kind, leak in found.items()
    ]


def resampling(record: dict[str, Any]) -> str:
    """Return which groups the intervals resample."""
    if "leaks" not in record:
        return "Intervals resample the groups of the column group of predictions.csv."
    return describe_groups(record["leaks"])


def summarise(name: str, record: dict[str, Any], config: dict[str, Any] | None) -> list[str]:
    """Return the log lines about a subset: what its images were used for, if anything, and its scores with intervals.

    Args:
        name: of the subset.
        record: the contents of ``metrics.json``.
        config: of the training; ``None`` for predictions of another system.
    """
    score, use = record[name], describe_use(name, record, config)
    in_part = f" ({count_images(score)})" if score["n"] < score.get("n_subset", score["n"]) else ""
    return [*([f"{name}: {use}"] if use else []), score_line(f"{name}{in_part}", score)]
