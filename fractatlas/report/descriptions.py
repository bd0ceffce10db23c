"""Describe the parts of a configuration and the scores of a run in sentences, for the model card."""

from pathlib import Path
from typing import Any

import pandas as pd

from fractatlas.config.schema import listed_targets
from fractatlas.evaluation import provenance
from fractatlas.wording import plural

MONITORS = {"auroc": "AUROC", "f1": "F1", "mcc": "MCC"}
PRECISIONS = {
    "32-true": "32-bit floats",
    "16-mixed": "mixed precision (16-bit)",
    "bf16-mixed": "mixed precision (bf16)",
}


def network(config: dict[str, Any] | None, metrics: dict[str, Any]) -> str:
    """Return the network and whether it started from pretrained or random weights."""
    if config is None:
        return "An unknown system: only its predictions are available."
    model = config["model"]
    if own := _of_another_package(model):
        return f"{own}."
    if model["weights"] is None:
        start = "trained from random weights"
    else:
        name = "ImageNet weights" if model["weights"] == "imagenet" else f"the weights of {Path(model['weights']).name}"
        start = f"fine-tuned from {name}{' with its head' if model.get('head') == 'keep' else ''}"
        stages = [stage for stage in metrics.get("weights", {}).get("random", []) if stage != "head"]
        start += f"; {', '.join(stages)} started from random weights" if stages else ""
    freeze = {"none": "", "trunk": "; only the head was trained"}.get(
        model["freeze"], f"; the first {model['freeze']} of 5 stages were not trained" if model["freeze"] else ""
    )
    dropout = f"; dropout {model['dropout']:g} before the last layer" if model["dropout"] else ""
    fracture_map = ""
    if options := config.get("map"):
        fracture_map = f"; with a fracture map (cells of {options['stride']} px of the input, {options['loss']} loss)"
    return f"{model['variant']}, {start}{freeze}{dropout}{fracture_map}."


def split(config: dict[str, Any]) -> str:
    """Return how images were assigned to subsets."""
    options = config["split"]
    kind = _target(options)
    if kind == "manifest_split":
        return f"Read from the file {Path(options['path']).name}."
    if kind == "kfold_split":
        fold, folds = options["fold"], options["folds"]
        text = f"Fold {fold} of {folds} (counted from 0) is test, "
        if fold is None:  # pooled over all folds
            text = f"Each of {folds} folds is test for one network, the next fold is val, the others are train"
        elif isinstance(fold, list):  # pooled over these folds
            named = f"{'Folds' if len(fold) > 1 else 'Fold'} {', '.join(map(str, fold))} of {folds} (counted from 0)"
            text = f"{named}: each is test for one network, the next fold is val, the others are train"
        else:
            text += f"fold {(fold + 1) % folds} is val, the others are train"
        return f"{text}; groups of related images stay together; stratified by label; seed {options['seed']}."
    shares = " : ".join(f"{100 * ratio:g}" for ratio in options["ratios"])
    unit = "Groups of related images" if kind == "grouped_split" else "Single images"
    text = f"{unit} are drawn at random, {shares} % (train, val, test), stratified by label; seed {options['seed']}"
    if options["previous"]:
        text += f"; images of an earlier split ({Path(options['previous']).name}) keep their subset"
    return f"{text}."


def preprocessing(config: dict[str, Any]) -> str:
    """Return the geometry and the normalisation of the network's input."""
    options = config["preprocess"]
    if _target(options) == "letterbox":
        padding = "black" if options["fill"] == 0 else f"grey level {options['fill']}"
        text = (
            f"The longer side is resized to {options['size']} px and the shorter one padded with {padding} to a square"
        )
    else:
        crop = f"the central {options['crop']} x {options['crop']} px are used"
        text = f"The shorter side is resized to {options['resize']} px, and {crop}"
    means, sds = (", ".join(f"{value:g}" for value in options[name]) for name in ("mean", "std"))
    return f"{text}. Values from 0 to 1 are normalised with the means {means} and the standard deviations {sds}."


def training(config: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Return epochs, batches, optimizer, schedule, loss and augmentation."""
    trainer, optimizer, loss = config["trainer"], config["optimizer"], config["loss"]
    if epochs := len(metrics.get("history", [])):
        text = _count(epochs, "epoch")
        text += f" of at most {trainer['max_epochs']}" if epochs < trainer["max_epochs"] else ""
    else:
        text = f"At most {_count(trainer['max_epochs'], 'epoch')}"
    text += f", batch size {config['data']['batch_size']}"
    if trainer["accumulate_grad_batches"] > 1:
        text += f", gradients of {trainer['accumulate_grad_batches']} batches accumulated"
    precision = metrics.get("precision", trainer["precision"])  # the one that auto chose
    precision = PRECISIONS.get(precision, f"precision {precision}")
    sentences = [f"{text}, seed {config['seed']}, {precision}"]
    if limit := _limit(trainer):
        sentences.append(f"Each epoch used {limit} of the training subset")
    if own := _of_another_package(optimizer):
        sentences.append(f"The optimizer is {own}")
    else:
        details = f"learning rate {optimizer['lr']:g}, weight decay {optimizer['weight_decay']:g}"
        if "betas" in optimizer:
            details += f", betas {' and '.join(f'{beta:g}' for beta in optimizer['betas'])}"
        else:
            details += f", momentum {optimizer['momentum']:g}{' (Nesterov)' if optimizer['nesterov'] else ''}"
        sentences.append(f"{_target(optimizer)} with {details}")
    if not _of_another_package(config["model"]) and config["model"]["stage_decay"] < 1:
        sentences.append(
            f"Each earlier stage has {config['model']['stage_decay']:g} times the learning rate of the next"
        )
    if own := _of_another_package(config["scheduler"]):
        sentences.append(f"The learning-rate schedule is {own}")
    elif _target(config["scheduler"]) == "cosine":
        warmup = f"increases linearly during {100 * config['scheduler']['warmup']:g} % of the steps, then "
        warmup = warmup if config["scheduler"]["warmup"] else ""
        sentences.append(f"The learning rate {warmup}decreases to zero along a cosine")
    else:
        sentences.append("The learning rate is constant")
    if own := _of_another_package(loss):
        sentences.append(f"The loss is {own}")
    else:
        weight = "" if loss["pos_weight"] is None else f" with weight {loss['pos_weight']:g} for fractured images"
        sentences.append(f"The loss is binary cross-entropy{weight}")
    sentences.append(augmentation(config))
    return ". ".join(sentences) + "."


def augmentation(config: dict[str, Any]) -> str:
    """Return how training images were changed at random."""
    options = config["augment"]
    if own := _of_another_package(options):
        return f"Training images are augmented by {own}"
    if _target(options) == "Identity":
        return "Training images are not augmented"
    parts = [
        f"flipped horizontally with probability {options['flip']:g}",
        f"rotated by up to {options['degrees']:g} degrees",
        *([f"enlarged or reduced by a factor of up to {1 + scale:g}"] if (scale := options.get("scale")) else []),
        f"changed in brightness by up to {100 * options['brightness']:g} %",
        f"changed in contrast by up to {100 * options['contrast']:g} %",
    ]
    return f"Training images are randomly {', '.join(parts[:-1])} and {parts[-1]}"


def ensembling(config: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Return what is averaged for a prediction: networks, images, weights, or nothing."""
    networks, parts = "One network.", []
    if folds := metrics["operating_point"].get("folds"):
        finished = config["split"]["fold"] or range(config["split"]["folds"])  # a list if not all are
        networks = f"{plural(folds['networks'], 'network')}, {len(finished)} for each seed, one for each fold."
        if folds["networks"] > len(finished):
            parts.append("The calibrated probabilities of the networks of one fold are averaged over the seeds")
    if config["model"].get("mirror"):
        parts.append("The logits of the image and of its mirror image are averaged (test-time augmentation)")
    if average := config["callbacks"].get("average"):
        decay = f"decay {average['decay']:g} per step"
        parts.append(f"The weights are an exponential moving average over the training ({decay})")
    return f"{networks} " + (". ".join(parts) + "." if parts else "Nothing is averaged.")


def initialisation(config: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Return where the first weights came from."""
    weights = metrics.get("weights")
    named = (weights or {}).get("file") if _of_another_package(config["model"]) else config["model"]["weights"]
    if named is None:
        return "Random."
    if not weights:
        source = "ImageNet weights" if named == "imagenet" else f"The weights of {Path(named).name}"
        head = "kept" if config["model"].get("head") == "keep" else "random"
        return f"{source}; the head is {head}."
    random = ", ".join(weights["random"]) or "none"
    return f"{weights['file']}: {weights['loaded']} of {weights['of']} tensors; random: {random}."


def selection(config: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Return by which validation metric the epoch was selected."""
    name = config["monitor"].removeprefix("val/")
    by = f"the best validation {MONITORS.get(name, name.replace('_', ' '))}"
    if monitor := metrics.get("monitor"):
        return f"Epoch {monitor['epoch']}, the one with {by} ({monitor['value']:.4f})."
    return f"The epoch with {by}."


def exclusions(metrics: dict[str, Any]) -> str:
    """Return the number of excluded images for each reason."""
    excluded = metrics.get("data", {}).get("excluded", {})
    return ", ".join(f"{count} {reason}" for reason, count in excluded.items()) or "no image"


def validation(metrics: dict[str, Any]) -> str:
    """Return whether the network was validated on external data."""
    return provenance.describe_validation(metrics["elsewhere"])


def weakest_stratum(strata: pd.DataFrame) -> pd.Series | None:
    """Return the row of the stratum with the lowest AUROC that has enough images of both classes, if there is one."""
    rows = strata[~strata["low_count"]].dropna(subset=["auroc"]).iloc[1:]
    return None if rows.empty else rows.loc[rows["auroc"].idxmin()]


def _limit(trainer: dict[str, Any]) -> str:
    limit = trainer["overfit_batches"] or trainer["limit_train_batches"]
    if isinstance(limit, float):
        return "" if limit == 1 else f"{100 * limit:g} % of the batches"
    return _count(limit, "batch", "batches")


def _count(count: int, singular: str, plural: str = "") -> str:
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def _of_another_package(part: dict[str, Any]) -> str:
    """Return the target of a part and its keys if the target is not one of this package; otherwise an empty text."""
    if part["_target_"] in listed_targets():
        return ""
    keys = ", ".join(f"{name} {value}" for name, value in part.items() if not name.startswith("_"))
    return f"{part['_target_']} ({keys})" if keys else part["_target_"]


def _target(part: dict[str, Any]) -> str:
    return part["_target_"].rpartition(".")[2]
