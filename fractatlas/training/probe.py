"""What a frozen trunk tells of fractures: ``python -m fractatlas.training.probe OPTIONS [OPTIONS ...]``.

One pass of the training and validation parts through the trunk, then logistic regression on its pooled features,
cross-fitted: every image is scored by a model that was fitted on the groups of the four other fifths. Costs minutes
where fine-tuning costs hours, and says which input size, crop and pooling are worth it. The test part is not read.
"""

import argparse
import logging
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

from fractatlas.cli import composed, one_line_errors
from fractatlas.config import TrainConfig
from fractatlas.evaluation import comparison, metrics
from fractatlas.files import whole, write_csv
from fractatlas.models.backbones import Backbone
from fractatlas.progress import track
from fractatlas.training.run import build, build_data

FOLDS = 5
PENALTY = 1e-3  # inverse strength, of standardised features; the same for all, so that none is tuned more than another
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.mean(dim=(2, 3)),
    "maximum": lambda maps: maps.amax(dim=(2, 3)),
    "mean and maximum": lambda maps: torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1),
}


@torch.inference_mode()
def pooled_features(backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
    """Map normalised images, float (n, 3, h, w), to the last feature maps, pooled in each way: float32 (n, c)."""
    last = backbone.network.get_submodule(list(backbone.stages.values())[-1][-1])
    caught: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, inputs, output: caught.append(output))
    try:
        backbone(images)
    finally:
        hook.remove()
    maps = caught[0].relu().float()
    return {name: pool(maps) for name, pool in POOLINGS.items()}


def cross_fitted(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The probability of a fracture for each row, from a model fitted on other groups: float64 (n,).

    Args:
        features: float32 (n, c).
        labels: 0 or 1, (n,).
        groups: (n,); a group is in one fold.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(model, features, labels, groups=groups, cv=folds, method="predict_proba")[:, 1]


def probe(config: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Score the training and validation parts by the features of a frozen trunk.

    Args:
        config: a checked ``TrainConfig``, plain; its data, split, preprocess and model count.

    Returns:
        For each of ``POOLINGS``: ``image_id, group, label, probability``.
    """
    data = build_data(config, split=build(config["split"]))
    data.prepare_data()
    data.setup()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = build(config["model"]).to(device).eval()
    features: dict[str, list[Tensor]] = {name: [] for name in POOLINGS}
    tables = []
    for part in ("train", "val"):
        tables.append(data.part(part)[["image_id", "group", "label"]])
        batches = data.evaluation_dataloader(part)
        for batch in track(batches, part, len(batches)):
            images = data.preprocess.normalise(batch["image"].to(device))
            for name, values in pooled_features(backbone, images).items():
                features[name].append(values.cpu())
    table = pd.concat(tables, ignore_index=True)
    labels, groups = table["label"].to_numpy(), table["group"].to_numpy()
    return {
        name: table.assign(probability=cross_fitted(torch.cat(values).numpy(), labels, groups))
        for name, values in features.items()
    }


def tabulate(found: dict[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """AUROC and average precision of each probe, and how they differ from the first one's.

    Args:
        found: predictions by options and pooling.

    Returns:
        ``options, pooling, n, positives``, ``auroc, average_precision`` with ``_low, _high``, and the paired
        ``_difference`` with ``_low, _high, _p``.
    """
    rows, (first, *_) = [], found.values()
    for (options, pooling), table in found.items():
        scores = metrics.evaluate(table)
        row = {"options": options, "pooling": pooling, "n": scores["n"], "positives": scores["positives"]}
        for name in ("auroc", "average_precision"):
            row |= {name + end: scores[name][key] for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))}
        rows.append(
            row | comparison.difference_columns(comparison.compare(first, table), ("auroc", "average_precision"))
        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """The rows of ``tabulate`` for reading."""
    lines = [["options", "pooling", "n (fractured)", "AUROC", "against the first", "average precision"], ["---"] * 6]
    for row in table.itertuples():
        lines.append(
            [
                f"`{row.options}`",
                row.pooling,
                f"{row.n} ({row.positives})",
                f"{row.auroc:.3f} [{row.auroc_low:.3f}, {row.auroc_high:.3f}]",
                f"{row.auroc_difference:+.3f} [{row.auroc_difference_low:+.3f}, {row.auroc_difference_high:+.3f}]",
                f"{row.average_precision:.3f} [{row.average_precision_low:.3f}, {row.average_precision_high:.3f}]",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Probe each set of options, and write ``probe.csv`` and ``probe.md``."""
    parser = argparse.ArgumentParser(prog="python -m fractatlas.training.probe", description=__doc__.partition(":")[0])
    parser.add_argument(
        "options", nargs="+", metavar="OPTIONS", help="of train.py: 'preprocess=letterbox preprocess.size=320'"
    )
    parser.add_argument("--out", type=Path, default=Path("logs/probe"), help="where to write (logs/probe)")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    found: dict[tuple[str, str], pd.DataFrame] = {}
    with one_line_errors(TrainConfig, "interrupted; probe.csv holds what was finished"):
        configs = {options: composed(shlex.split(options)) for options in asked.options}
        asked.out.mkdir(parents=True, exist_ok=True)
        for options, config in configs.items():
            found |= {(options, pooling): table for pooling, table in probe(config).items()}
            table = tabulate(found)
            write_csv(asked.out / "probe.csv", table)
            with whole(asked.out / "probe.md") as temporary:
                temporary.write_text(markdown(table), encoding="utf-8")
    print(markdown(table))
    print(f"Cross-fitted over {FOLDS} folds of groups, training and validation parts: {asked.out / 'probe.csv'}")


if __name__ == "__main__":
    main()
