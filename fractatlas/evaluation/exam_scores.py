"""Score exams (the images of one visit) instead of images, where the data give exams."""

from typing import Any

import numpy as np
import pandas as pd

from fractatlas.evaluation.bootstrap import bootstrap_weights, interval, proportion_interval
from fractatlas.evaluation.metrics import auroc_score, decision_metrics, ranking_metrics


def exam_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per exam: ``exam, n`` (images), ``label, probability, group``.

    An exam is fractured if one of its images is. Its probability is the mean over its images, as in Rajpurkar et al.
    (MURA, 2017, arXiv:1712.06957).

    Args:
        table: predictions with ``given_exam``; images with an empty one are omitted.
    """
    exams = table[table["given_exam"].fillna("") != ""].groupby("given_exam", sort=True)
    rows = exams.agg(n=("label", "size"), label=("label", "max"), probability=("probability", "mean"))
    return rows.assign(group=exams["group"].first()).rename_axis("exam").reset_index()


def cohens_kappa(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the agreement of decisions with labels beyond chance (Cohen, Educ. Psychol. Meas. 20:37, 1960).

    Args:
        labels: 0 or 1, (n,).
        predicted: 0 or 1, (n,).
        weights: (b, n): how often each exam counts.

    Returns:
        (b,), NaN if all labels and all decisions are equal.
    """
    total = weights.sum(axis=1)
    observed = weights @ (labels == predicted) / total
    fractured, positive = weights @ labels / total, weights @ predicted / total
    chance = fractured * positive + (1 - fractured) * (1 - positive)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1, (observed - chance) / (1 - chance), np.nan)


def score_exams(table: pd.DataFrame, threshold: float) -> dict[str, Any] | None:
    """Score the exams of a subset.

    Args:
        table: predictions, ``label, probability, group`` and ``given_exam``.
        threshold: the smallest mean probability of an exam that is classified as fractured.

    Returns:
        ``n, positives, images``, and with 95 % intervals over groups ``kappa, sensitivity, specificity, accuracy,
        auroc``, each ``None`` if it is undefined; ``None`` if no exam is given.
    """
    if "given_exam" not in table or (exams := exam_table(table)).empty:
        return None
    labels, weights = exams["label"].to_numpy(), bootstrap_weights(exams["group"])
    decisions = (exams["probability"].to_numpy() >= threshold).astype(int)
    scores: dict[str, Any] = {"n": len(exams), "positives": int(labels.sum()), "images": int(exams["n"].sum())}
    scores["kappa"] = interval(cohens_kappa(labels, decisions, weights))
    values, fractured = decision_metrics(labels, decisions, weights), labels == 1
    for name, of in (("sensitivity", fractured), ("specificity", ~fractured), ("accuracy", fractured | True)):
        groups = exams.loc[of, "group"].nunique()
        scores[name] = interval(values[name], proportion_interval(values[name], int(of.sum()), groups))
    ranking = ranking_metrics(labels, exams["probability"].to_numpy(), weights)["auroc"]
    scores["auroc"] = auroc_score(ranking, exams)
    return scores
