"""Score the features of a frozen network with logistic regression.

One pass of the training and validation subsets through the network, then logistic regression on the pooled features,
cross-fitted: each image is scored by a model that was fitted on the groups of the other folds. It takes minutes where
fine-tuning takes hours, and compares input sizes, crops and poolings. The test subset is not used.
"""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from fractatlas.build import build, build_data
from fractatlas.evaluation import comparison, metrics
from fractatlas.evaluation.tables import format_fraction, to_markdown
from fractatlas.io import write_csv, write_text
from fractatlas.models.backbones import Backbone
from fractatlas.overrides import compose_config
from fractatlas.progress import track

FOLDS = 5
PENALTY = 1e-3  # inverse strength, for standardised features; the same for all, so that no probe is tuned
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.mean(dim=(2, 3)),
    "maximum": lambda maps: maps.amax(dim=(2, 3)),
    "mean and maximum": lambda maps: torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1),
}
SCORES = ("auroc", "average_precision")


def probe_all(options: Sequence[str], out: Path) -> str:
    """Probe each set of options; write ``probe.csv`` and ``probe.md`` after each.

    Args:
        options: for each probe, options of ``fractatlas train`` in one string.
        out: the folder for the tables.

    Returns:
        The table as Markdown.

    Raises:
        InputError: an option is invalid; nothing is computed then.
    """
    configs = {text: compose_config(shlex.split(text)) for text in options}
    out.mkdir(parents=True, exist_ok=True)
    predictions: dict[tuple[str, str], pd.DataFrame] = {}
    text = ""
    for name, config in configs.items():
        predictions |= {(name, pooling): table for pooling, table in probe(config).items()}
        table = tabulate(predictions)
        text = markdown(table)
        write_csv(out / "probe.csv", table)
        write_text(out / "probe.md", text)
    return text


def probe(config: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Score the training and validation subsets with the features of a frozen network.

    Args:
        config: a checked ``TrainConfig``, plain; its data, split, preprocess and model are used.

    Returns:
        For each of ``POOLINGS``: ``image_id, group, label, probability``.
    """
    data = build_data(config)
    data.prepare_data()
    data.setup()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config["seed"])  # for weights=null and stages without pretrained weights
    backbone = build(config["model"]).to(device).eval()
    features: dict[str, list[Tensor]] = {name: [] for name in POOLINGS}
    tables = []
    for subset in ("train", "val"):
        tables.append(data.subset(subset)[["image_id", "group", "label"]])
        batches = data.evaluation_dataloader(subset)
        for batch in track(batches, subset, len(batches)):
            images = data.preprocess.normalise(batch["image"].to(device))
            for name, values in pooled_features(backbone, images).items():
                features[name].append(values.cpu())
    table = pd.concat(tables, ignore_index=True)
    labels, groups = table["label"].to_numpy(), table["group"].to_numpy()
    return {
        name: table.assign(probability=cross_fitted(torch.cat(values).numpy(), labels, groups))
        for name, values in features.items()
    }


@torch.inference_mode()
def pooled_features(backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
    """Compute the last feature maps, and pool them over the image.

    Args:
        backbone: the network.
        images: normalised, float (n, 3, h, w).

    Returns:
        For each of ``POOLINGS``: float32 (n, c).
    """
    last = backbone.network.get_submodule(list(backbone.stages.values())[-1][-1])
    outputs: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        backbone(images)
    finally:
        hook.remove()
    maps = outputs[0].relu().float()
    return {name: pool(maps) for name, pool in POOLINGS.items()}


def cross_fitted(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Predict each image with a model that was fitted on the other folds.

    Args:
        features: float32 (n, c).
        labels: 0 or 1, (n,).
        groups: (n,); a group is in one fold.

    Returns:
        The probability of a fracture, float64 (n,).
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(model, features, labels, groups=groups, cv=folds, method="predict_proba")[:, 1]


def tabulate(predictions: dict[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Score each probe, and compare it with the first one.

    Args:
        predictions: by options and pooling.

    Returns:
        ``options, pooling, n, positives``; ``auroc`` and ``average_precision``, each with ``_low, _high``; the paired
        ``_difference`` of each with ``_low, _high, _p``.
    """
    rows, first = [], next(iter(predictions.values()))
    for (options, pooling), table in predictions.items():
        scores = metrics.evaluate(table)
        row = {"options": options, "pooling": pooling, "n": scores["n"], "positives": scores["positives"]}
        for name in SCORES:
            row |= {name + end: scores[name][key] for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))}
        rows.append(row | comparison.difference_columns(comparison.compare(first, table), SCORES))
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Return the rows of ``tabulate`` as Markdown."""
    rows = [
        {
            "options": f"`{row.options}`",
            "pooling": row.pooling,
            "n (fractured)": f"{row.n} ({row.positives})",
            "AUROC": format_fraction(row.auroc, row.auroc_low, row.auroc_high),
            "AUROC, difference to the first": f"{row.auroc_difference:+.3f} "
            f"[{row.auroc_difference_low:+.3f}, {row.auroc_difference_high:+.3f}]",
            "average precision": format_fraction(
                row.average_precision, row.average_precision_low, row.average_precision_high
            ),
        }
        for row in table.itertuples()
    ]
    return to_markdown(pd.DataFrame(rows))
