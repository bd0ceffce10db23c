"""Format scores and tables as Markdown."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

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

# Marks a row of a table whose images are not those of the first row with the same subset.
OTHER_IMAGES = " †"
OTHER_IMAGES_NOTE = (
    "† The images differ from those of the first row with this subset: these scores cannot be compared directly. "
    "`fractatlas compare` compares runs on the images that they have in common.\n"
)


def mark_other_images(subsets: Sequence[str], images: Sequence[Hashable]) -> list[str]:
    """Return ``OTHER_IMAGES`` for each row whose images differ from the first row with the same subset, else ``""``.

    Args:
        subsets: the subset of each row.
        images: for each row, a value that identifies its set of images.
    """
    first: dict[str, Hashable] = {}
    pairs = zip(subsets, images, strict=True)
    return ["" if first.setdefault(subset, one) == one else OTHER_IMAGES for subset, one in pairs]


def to_markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown, its cells as they are, with a line end after the last row."""
    cells = table.astype(str).map(lambda cell: cell.replace("|", "\\|"))
    return cells.to_markdown(index=False, disable_numparse=True) + "\n"


def format_fraction(
    value: float | None,
    low: float | None = math.nan,
    high: float | None = math.nan,
    sd: float = math.nan,
    reason: str = "",
) -> str:
    """Return ``0.852 [0.797, 0.904]``, or ``0.852 ± 0.010 [0.797, 0.904]`` with a standard deviation over seeds.

    Args:
        value: the score; ``undefined`` is returned for ``None`` and NaN.
        low: lower end of the 95 % interval; ``None`` adds ``(no interval)``, NaN adds nothing.
        high: upper end.
        sd: standard deviation over seeds; NaN for a single seed.
        reason: why there is no interval; it is not in the text.
    """
    return _format(value, low, high, sd, scale=1, value_digits=3, interval_digits=3)


def format_percent(
    value: float | None,
    low: float | None = math.nan,
    high: float | None = math.nan,
    sd: float = math.nan,
    reason: str = "",
) -> str:
    """Return ``86.36 [83.4, 89.3]`` for the fraction 0.8636; arguments as ``format_fraction``."""
    return _format(value, low, high, sd, scale=100, value_digits=2, interval_digits=1)


def score_line(subset: str, scores: Mapping[str, Any]) -> str:
    """Return one line with the most important scores of a subset, and their 95 % intervals in brackets.

    Args:
        subset: its name.
        scores: what ``metrics.evaluate`` returns for it.
    """
    auroc, accuracy = (scores[name] or {"value": None} for name in ("auroc", "accuracy"))
    rate = f"majority rate {100 * scores['majority_rate']:.2f} %"
    return f"{subset}: AUROC {format_fraction(**auroc)}, accuracy {format_percent(**accuracy)} %, {rate}"


def _format(
    value: float | None,
    low: float | None,
    high: float | None,
    sd: float,
    scale: int,
    value_digits: int,
    interval_digits: int,
) -> str:
    if value is None or not math.isfinite(value):
        return "undefined"
    text = f"{scale * value:.{value_digits}f}"
    if math.isfinite(sd):
        text += f" ± {scale * sd:.{interval_digits}f}"
    if low is None or high is None:
        return f"{text} (no interval)"
    if math.isfinite(low):
        text += f" [{scale * low:.{interval_digits}f}, {scale * high:.{interval_digits}f}]"
    return text
