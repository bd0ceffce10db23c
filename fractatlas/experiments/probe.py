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
from fractatlas.config.overrides import compose_config
from fractatlas.evaluation import metrics, paired_comparison
from fractatlas.evaluation.markdown import to_markdown
from fractatlas.experiments.result_tables import format_difference, format_score, interval_columns
from fractatlas.io import write_csv, write_text
from fractatlas.models.backbones import Backbone
from fractatlas.progress_bar import track

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
    """Score the training and validation subsets with the features of the frozen network of a plain ``TrainConfig``.

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
    """Pool the last feature maps of normalised images, float (n, 3, h, w): for each of ``POOLINGS`` float32 (n, c)."""
    _, (maps, *_) = backbone.with_features(images)
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
            row |= interval_columns(name, scores[name])
        rows.append(row | paired_comparison.difference_columns(paired_comparison.compare(first, table), SCORES))
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Return the rows of ``tabulate`` as Markdown."""
    rows = [
        {
            "options": f"`{row['options']}`",
            "pooling": row["pooling"],
            "n (fractured)": f"{row['n']} ({row['positives']})",
            "AUROC": format_score(row, "auroc"),
            "AUROC, difference to the first": format_difference(row, "auroc"),
            "average precision": format_score(row, "average_precision"),
        }
        for row in table.to_dict("records")
    ]
    return to_markdown(pd.DataFrame(rows))
