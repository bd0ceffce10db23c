"""Tables and figures of an experiment: recipes, variants and steps with several seeds, and paired differences."""

import textwrap
from collections.abc import Collection, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fractatlas.errors import InputError
from fractatlas.evaluation import detection, metrics, paired_comparison
from fractatlas.evaluation.bootstrap import bootstrap_weights, interval
from fractatlas.evaluation.localisation import summarise
from fractatlas.evaluation.markdown import (
    METRIC_TITLES,
    OTHER_IMAGES_NOTE,
    format_fraction,
    format_percent,
    mark_other_images,
    to_markdown,
)
from fractatlas.experiments.pooling import Folds, Pooled, ensemble, pool, require_equal_labels
from fractatlas.io import atomic_path, write_csv, write_text
from fractatlas.reference_report import REFERENCE_ACCURACY
from fractatlas.report.figures import COLOURS, STYLE

SUBSETS = ("val", "test")
SCORES = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "sensitivity", "specificity", "brier")
POINTING = "pointing game (image centre)"
WHERE = {"froc": "boxes found at 1/2 false alarm per image", "ap_30": "AP at IoU 0.3", "ap_50": "AP at IoU 0.5"}
COMPARED = ("accuracy", "auroc", "average_precision", "hit", *WHERE)  # of recipes and variants
# Published AUROC on FracAtlas, on other test images from splits without duplicates: the model cards of FractureLens
# (DenseNet-121, 224 px) and of fracture-detection-model (ConvNeXt-T, 384 px).
PUBLISHED = {"DenseNet-121": 0.912, "ConvNeXt-T": 0.937}
ENSEMBLE = ", ensemble of "
NOTE = (
    "Means over seeds; ± is the standard deviation over seeds. Brackets: 95 % bootstrap intervals over groups of "
    "images. Intervals and p values are for these seeds; they do not include the variation between seeds.\n"
)
FOLDS_NOTE = (
    "\nFolds: each image is predicted once for each seed, by the network that was trained without its group. The "
    "scores are those of all images together; probabilities and thresholds are calibrated in each fold.\n"
)


def recipe_rows(name: str, seeds: Sequence[Folds], subsets: Sequence[str] = SUBSETS) -> list[dict[str, Any]]:
    """Score a recipe or variant, as the mean over its seeds.

    Args:
        name: of the recipe or variant.
        seeds: for each seed, the records of its folds, or of its single run, with predictions of ``subsets``. All seeds
            have the same folds, which can be some of those of the plan. Scores of folds are those of all their images
            together, each predicted by the network of its own fold.
        subsets: to score.

    Returns:
        A row for each subset: ``recipe, model, split, input, subset, seeds, folds`` (such as ``2 of 5``; empty without
        folds), ``n, positives, majority_rate, reference_accuracy`` (of the reference report on its random split, 0 if
        there is none), ``commit, images`` (a hash of the image ids); each of ``SCORES`` with the 95 % interval of the
        mean (``_low, _high``, over bootstrap samples of groups, the same for all seeds) and the standard deviation over
        the seeds (``_sd``); if there are heatmaps, ``hit`` and ``hit_centre`` of the pointing game, and those of
        ``WHERE``, with intervals. With several seeds and all ``SUBSETS``, two rows for their ensemble follow: the mean
        calibrated probability, with the threshold chosen again on validation.
    """
    pooled = {subset: [pool(folds, subset) for folds in seeds] for subset in subsets}
    rows = [
        _row(name, subset, seeds, several) | _pointing(several) | _detection(several)
        for subset, several in pooled.items()
    ]
    if len(seeds) > 1 and {*subsets} == {*SUBSETS}:
        ensembles = ensemble(seeds)
        rows += [_row(f"{name}{ENSEMBLE}{len(seeds)}", subset, seeds, [ensembles[subset]]) for subset in SUBSETS]
    return rows


def ensemble_rows(name: str, seeds: Sequence[Folds]) -> list[dict[str, Any]]:
    """Score the ensemble of several recipes: the mean calibrated probability of all their seeds.

    Args:
        name: of the ensemble.
        seeds: of all its recipes, each as for ``recipe_rows``, with the same folds.

    Returns:
        A row for each of ``SUBSETS`` as from ``recipe_rows``, without heatmaps; ``seeds`` counts different seeds.
    """
    joined = {
        "seeds": len({folds[0].facts["seed"] for folds in seeds}),
        "model": "; ".join(dict.fromkeys(folds[0].facts["model"] for folds in seeds)),
        "input": "; ".join(dict.fromkeys(_describe_input(folds[0].settings) for folds in seeds)),
        "reference_accuracy": 0.0,
    }
    pooled = ensemble(seeds)
    return [_row(f"{name}{ENSEMBLE}{len(seeds)}", subset, seeds, [pooled[subset]]) | joined for subset in SUBSETS]


def run_rows(name: str, seeds: Sequence[Folds]) -> list[dict[str, Any]]:
    """Score each run of a recipe or step, and each seed on the images of all its folds.

    Args:
        name: of the recipe or step.
        seeds: as for ``recipe_rows``; a step has no predictions of the test subset.

    Returns:
        A row for each seed, fold and subset: ``recipe, seed, fold`` (missing for all folds together), ``folds`` (how
        many of them there are, such as ``2 of 5``; empty for a single one), ``subset, n, positives, majority_rate,
        threshold, temperature`` (missing for all folds together), each of ``SCORES`` with its interval, ``hit`` and
        those of ``WHERE`` if there are heatmaps, ``commit``.
    """
    rows = []
    for subset in SUBSETS:
        for folds in seeds:
            several = [[record] for record in folds] + ([folds] if len(folds) > 1 else [])
            rows += [_run_row(name, subset, records) for records in several if subset in records[0].tables]
    return rows


def _run_row(name: str, subset: str, records: Folds) -> dict[str, Any]:
    pooled, first = pool(records, subset), records[0]
    weights = bootstrap_weights(pooled.table["group"])
    scores = metrics.evaluate(pooled.table, pooled.threshold, weights)
    row = {"recipe": name, "seed": first.facts["seed"], "fold": first.fold if len(records) == 1 else None}
    row["folds"] = count_folds(records) if len(records) > 1 else ""
    row |= {"subset": subset, **{key: scores[key] for key in ("n", "positives", "majority_rate", "threshold")}}
    row["temperature"] = first.point["temperature"] if len(records) == 1 else None
    for score in SCORES:
        row |= interval_columns(score, scores[score])
    row |= {key: value for key, value in _pointing([pooled]).items() if not key.startswith("hit_centre")}
    return row | _detection([pooled]) | {"commit": _commits([records], subset)}


def is_partial(folds: Any) -> bool:
    """Return whether a result of ``count_folds`` stands for some of several folds."""
    done, _, expected = str(folds).partition(" of ")
    return bool(expected) and done != expected


def difference_rows(
    first: tuple[str, Sequence[Folds]],
    second: tuple[str, Sequence[Folds]],
    subsets: Sequence[str] = SUBSETS,
    averaged: bool = False,
) -> list[dict[str, Any]]:
    """Compare two recipes, or two variants, on the images that both have, as means over their seeds.

    Args:
        first: a name and its records, as in ``recipe_rows``.
        second: likewise.
        subsets: to compare.
        averaged: the second is the ensemble of its seeds, which can be those of several recipes. Its name is then that
            of ``ensemble_rows``.

    Returns:
        A row for each subset and each of ``COMPARED`` that both have: ``first, second`` (the names), ``subset, folds``
        (those that both have, such as ``2 of 5``; empty without folds), ``score, n`` (images), ``first_value,
        second_value, difference`` (second minus first), ``low, high, p`` as from ``paired_comparison.compare``.
    """
    folds = [[record for record in seeds[0] if record.fold in {one.fold for one in other[0]}]
             for (_, seeds), (_, other) in ((first, second), (second, first))]  # fmt: skip
    counts = {count_folds(records) for records in folds if records}
    name = f"{second[0]}{ENSEMBLE}{len(second[1])}" if averaged else second[0]
    rows = []
    for subset in subsets:
        pair = [[pool(records, subset) for records in seeds] for _, seeds in (first, second)]
        if averaged:
            pair[1] = [ensemble(second[1])[subset]]
        require_equal_labels([one.table for several in pair for one in several], [first[0], second[0]])
        common = set.intersection(*(set(one.table["image_id"]) for several in pair for one in several))
        if not common:
            continue
        one, other = (_resampled(tuple(several), frozenset(common)) for several in pair)
        key = {"first": first[0], "second": name, "subset": subset, "folds": ""}
        key["folds"] = counts.copy().pop() if len(counts) == 1 else ""
        for score in COMPARED:
            if score in one and score in other and (row := paired_comparison.difference(one[score], other[score])):
                values = {"first_value": row.pop("first"), "second_value": row.pop("second")}
                rows.append(key | {"score": score, "n": len(common)} | values | row)
    return rows


def count_folds(records: Folds) -> str:
    """Return how many folds the runs of one seed are, such as ``2 of 5``; an empty string without folds."""
    return "" if records[0].fold is None else f"{len(records)} of {records[0].settings['split.folds']}"


def step_row(name: str, seeds: Sequence[Folds], before: Sequence[Folds]) -> dict[str, Any]:
    """Score a step on the validation subset, and compare it with the step before.

    Args:
        name: of the step.
        seeds: for each seed, the records of its folds, or of its single run.
        before: those of the last step that was kept; empty for the first step.

    Returns:
        A row as from ``recipe_rows`` for ``val``, with ``auroc_difference`` and ``average_precision_difference`` to
        the step before (each with ``_low, _high, _p``) on ``difference_n`` common images, and ``kept``: whether the
        AUROC is not lower.
    """
    pooled, earlier = [pool(folds, "val") for folds in seeds], [pool(folds, "val") for folds in before]
    row = _row(name, "val", seeds, pooled) | _pointing(pooled) | {"kept": True}
    if earlier:
        tables, thresholds = ([[one.table for one in several] for several in (earlier, pooled)],
                              [[one.threshold for one in several] for several in (earlier, pooled)])  # fmt: skip
        compared = paired_comparison.compare_seeds(tables[0], tables[1], (thresholds[0], thresholds[1]))
        row |= paired_comparison.difference_columns(compared, ("auroc", "average_precision"))
        row["difference_n"] = int(compared["n"].iloc[0])
        row["kept"] = bool(row["auroc_difference"] >= 0)
    return row


def interval_columns(name: str, score: dict[str, float] | None) -> dict[str, float]:
    """Return a score of ``metrics.evaluate`` as the columns ``<name>, <name>_low, <name>_high``; NaN for ``None``."""
    values = [np.nan if not score or score[end] is None else score[end] for end in ("value", "low", "high")]
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def format_score(row: dict[str, Any], name: str) -> str:
    """Return a score of a row with its interval and, if there is one, its standard deviation."""
    form = format_percent if name == "accuracy" else format_fraction
    return form(*(row.get(f"{name}{end}", np.nan) for end in ("", "_low", "_high", "_sd")))


def format_difference(row: dict[str, Any], name: str) -> str:
    """Return a difference of a row as ``+0.010 [-0.002, +0.021]``; an empty string if there is none."""
    value, low, high = (row.get(f"{name}_difference{end}", np.nan) for end in ("", "_low", "_high"))
    return _signed(value, low, high) if np.isfinite(value) else ""


def _signed(value: float, low: float, high: float) -> str:
    value, low, high = (round(one, 3) + 0.0 for one in (value, low, high))  # no -0.000
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else f"{value:+.3f}"


def merge(file: Path, names: Sequence[str], rows: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """Return for each of ``names`` its new rows; without new rows, those in the file, if it exists."""
    former = pd.read_csv(file, dtype={"recipe": str, "commit": str}).to_dict("records") if file.is_file() else []
    by_name: dict[str, list] = {name: [] for name in names}
    for row in former:
        by_name.setdefault(row["recipe"].partition(ENSEMBLE)[0], []).append(row)
    return pd.DataFrame([row for name in names for row in rows.get(name, by_name[name])])


def write_recipes(
    out: Path, table: pd.DataFrame, note: str = "", name: str = "recipes", published: bool = True
) -> None:
    """Write ``recipes.csv``, ``recipes.md`` and ``recipes.png``, or those of ``variants``.

    Args:
        out: the folder.
        table: from ``recipe_rows``.
        note: a paragraph for the Markdown.
        name: of the files.
        published: draw the AUROC that other authors published for FracAtlas.
    """
    write_csv(out / f"{name}.csv", table)
    write_text(out / f"{name}.md", recipes_markdown(table) + note)
    labels = []
    for row, mark in zip(table.to_dict("records"), _marks(table), strict=True):
        folds = f", {row['folds']} folds" if is_partial(row.get("folds")) else ""
        labels.append(f"{row['recipe']} ({row['subset']}{folds}){mark}")
    _draw(out / f"{name}.png", table, labels, PUBLISHED if published else {})


def write_runs(out: Path, table: pd.DataFrame) -> None:
    """Write ``runs.csv`` and ``runs.md``: the rows of ``run_rows``, without columns that have no value."""
    table = (
        table.drop(columns=["folds"] if (table["folds"] == "").all() else [])
        .dropna(axis=1, how="all")
        .astype({"fold": "Int64"} if table["fold"].notna().any() else {})
    )
    write_csv(out / "runs.csv", table)
    rows = []
    for row in table.to_dict("records"):
        cells = {name: row[name] for name in ("recipe", "seed", "subset")}
        if "fold" in table:
            cells["fold"] = row["folds"] if pd.isna(row["fold"]) else row["fold"]
        cells |= {"n (fractured)": f"{row['n']} ({row['positives']})", "threshold": f"{row['threshold']:.3g}"}
        cells |= {METRIC_TITLES[score]: format_score(row, score) for score in SCORES}
        titles = {"hit": "pointing game"} | WHERE
        cells |= {title: _or_empty(row, score) for score, title in titles.items() if score in table}
        rows.append(cells | {"commit": row["commit"]})
    text = "Brackets: 95 % bootstrap intervals over groups of images."
    if "fold" in table:
        text += (
            " A row such as `2 of 5` has the images of several folds, each predicted by the network of its own fold; "
            "its threshold is the mean of theirs. Thresholds are on the scale of calibrated probabilities."
        )
    write_text(out / "runs.md", f"{to_markdown(pd.DataFrame(rows))}\n{text}\n")


def write_steps(out: Path, table: pd.DataFrame) -> None:
    """Write ``steps.csv``, ``steps.md`` and ``steps.png``."""
    write_csv(out / "steps.csv", table)
    write_text(out / "steps.md", steps_markdown(table))
    _draw(out / "steps.png", table, list(table["recipe"]), {})


def recipes_markdown(table: pd.DataFrame) -> str:
    """Return the rows of ``recipe_rows`` as Markdown; accuracies in per cent."""
    titles = ["recipe", "split", "folds", "input", "seeds", "subset", "n (fractured)", "accuracy",
              "reference report's accuracy", "majority rate", "AUROC", "average precision", "sensitivity",
              "specificity", POINTING, *WHERE.values(), "commit"]  # fmt: skip
    cells = _format(table)
    optional = ("folds", *WHERE.values())
    shown = [title for title in titles if title not in optional or (cells[title] != "").any()]
    folds = FOLDS_NOTE if table["split"].str.endswith(" folds").any() else ""
    return to_markdown(cells[shown]) + "\n" + NOTE + folds + _images_note(table)


def write_differences(out: Path, table: pd.DataFrame, note: str = "") -> None:
    """Write ``differences.csv`` and ``differences.md``.

    Args:
        out: the folder.
        table: from ``difference_rows``.
        note: a paragraph for the Markdown.
    """
    table = table.astype(dict.fromkeys(("low", "high", "p"), float))  # None without an interval
    write_csv(out / "differences.csv", table)
    titles = METRIC_TITLES | WHERE | {"hit": "pointing game"}
    scores = [score for score in COMPARED if (table["score"] == score).any()]
    rows = []
    for (first, second, subset), pair in table.groupby(["first", "second", "subset"], sort=False):
        cells = {"recipe": second, "minus": first, "subset": subset}
        cells |= {"folds": pair["folds"].iloc[0], "n": pair["n"].iloc[0]}
        of_score = pair.set_index("score")
        for score in scores:
            shown = score in of_score.index
            cells[titles[score]] = _signed(*of_score.loc[score, ["difference", "low", "high"]]) if shown else ""
        rows.append(cells)
    cells = pd.DataFrame(rows)
    if (cells["folds"] == "").all():
        cells = cells.drop(columns="folds")
    intro = "Differences on the images that both have; shares are fractions. `differences.csv` has both values and p. "
    write_text(out / "differences.md", f"{to_markdown(cells)}\n{intro}{NOTE}{note}")


def steps_markdown(table: pd.DataFrame) -> str:
    """Return the rows of ``step_row`` as Markdown."""
    titles = ["step", "input", "seeds", "n (fractured)", "AUROC", "AUROC, difference", "average precision",
              "average precision, difference", "accuracy", POINTING, "kept", "commit"]  # fmt: skip
    intro = "Validation subset. Differences are to the last step before that was kept. "
    return to_markdown(_format(table)[titles]) + "\n" + intro + NOTE + _images_note(table)


def _row(name: str, subset: str, seeds: Sequence[Folds], pooled: Sequence[Pooled]) -> dict[str, Any]:
    """Return a row of ``recipe_rows`` without heatmaps; of an ensemble, ``pooled`` has one element."""
    tables, thresholds = [one.table for one in pooled], [one.threshold for one in pooled]
    for table in tables:
        if not table["image_id"].equals(tables[0]["image_id"]):
            raise InputError(f"{name}: the seeds have other {subset} images; train them again")
    weights, settings = bootstrap_weights(tables[0]["group"]), seeds[0][0].settings
    split = settings["split._target_"].rpartition(".")[2].removesuffix("_split")
    reference = REFERENCE_ACCURACY.get(settings["task_name"], {}) if split == "random" else {}
    if folds := settings.get("split.folds"):
        split = f"fold {settings['split.fold']} of {folds}" if seeds[0][0].fold is None else f"{folds} folds"
    row = {
        "recipe": name,
        "model": seeds[0][0].facts["model"],
        "split": split,
        "input": _describe_input(settings),
        "subset": subset,
        "seeds": len(seeds),
        "folds": count_folds(seeds[0]),
        **metrics.count(tables[0]),
        "reference_accuracy": reference.get(subset, 0.0),
        "commit": _commits(seeds, subset),
        "images": sha256("\n".join(tables[0]["image_id"]).encode()).hexdigest()[:12],
    }
    if len(tables) == 1:
        scores = metrics.intervals(tables[0], thresholds[0], weights)
    else:
        scores = {name: interval(of) for name, of in paired_comparison.seed_means(tables, thresholds, weights).items()}
    each = [metrics.resampled(table, at, weights[:1]) for table, at in zip(tables, thresholds, strict=True)]
    for score in SCORES:
        row |= interval_columns(score, scores[score])
        row[f"{score}_sd"] = np.std([one[score][0] for one in each], ddof=1) if len(each) > 1 else np.nan
    return row


def _commits(seeds: Sequence[Folds], subset: str) -> str:
    return " ".join(sorted({record.facts["commits"][subset] for folds in seeds for record in folds}))


def _pointing(pooled: Sequence[Pooled]) -> dict[str, float]:
    """Return ``hit`` and ``hit_centre``, averaged over the seeds for each image."""
    if any(one.boxes.empty for one in pooled):
        return {}
    located = pd.concat([one.located() for one in pooled]).groupby("image_id", as_index=False).mean()
    means = summarise(located, pooled[0].table.set_index("image_id")["group"])["all"]
    return interval_columns("hit", means["hit"]) | interval_columns("hit_centre", means["hit_centre"])


def _detection(pooled: Sequence[Pooled]) -> dict[str, float]:
    """Return the scores of ``WHERE``, averaged over the seeds, with intervals."""
    if (scores := detection_scores(pooled)) is None:
        return {}
    shown = scores | {"froc": scores["froc"]["1/2"]}
    return {key: one for name in WHERE for key, one in interval_columns(name, shown[name]).items()}


def detection_scores(pooled: Sequence[Pooled]) -> dict[str, Any] | None:
    """Return the result of ``detection.mean_score`` over the seeds; ``None`` if a seed has no heatmaps."""
    several = [found for one in pooled if (found := one.all_detections)]
    return detection.mean_score(several) if len(several) == len(pooled) else None


@lru_cache(maxsize=16)  # most pairs of recipes have the same images in common
def _resampled(pooled: tuple[Pooled, ...], common: frozenset[str]) -> dict[str, np.ndarray]:
    """Return the mean over seeds of every score on the images ``common``, for each bootstrap sample of their groups."""
    tables = [one.table[one.table["image_id"].isin(common)].reset_index(drop=True) for one in pooled]
    weights = bootstrap_weights(tables[0]["group"])
    scores = paired_comparison.seed_means(tables, [one.threshold for one in pooled], weights)
    return scores | _where(pooled, common, weights)


def _where(pooled: Sequence[Pooled], common: Collection[str], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean over seeds of ``hit`` and of the scores of ``WHERE``; empty if a seed has no heatmaps."""
    each: list[dict[str, np.ndarray]] = []
    for one in pooled:
        images = one.table[one.table["image_id"].isin(common)].reset_index(drop=True)
        if (detections := one.detections(images)) is None:
            return {}
        kept = images["image_id"].isin(detections.images["image_id"]).to_numpy()
        hits = images["image_id"].map(one.located().set_index("image_id")["hit"]).to_numpy(np.float64)
        located = np.isfinite(hits)
        with np.errstate(invalid="ignore"):  # 0 / 0 in samples without a box
            share = weights[:, located] @ hits[located] / weights[:, located].sum(axis=1)
        each.append(detection.resampled(detections, weights[:, kept]) | {"hit": share})
    return {name: np.mean([values[name] for values in each], axis=0) for name in each[0]}


def _describe_input(settings: dict[str, Any]) -> str:
    """Return the pixels that the network receives."""
    if "preprocess.crop" in settings:
        return f"{settings['preprocess.crop']} of {settings['preprocess.resize']} px"
    return f"whole image, {settings['preprocess.size']} px"


def _or_empty(row: dict[str, Any], score: str) -> str:
    return format_score(row, score) if np.isfinite(row.get(score, np.nan)) else ""


def _marks(table: pd.DataFrame) -> list[str]:
    """Return a mark for each row whose images differ; rows of earlier versions have counts instead of a hash."""
    if "images" in table and table["images"].notna().all():
        return mark_other_images(list(table["subset"]), list(table["images"]))
    counts = table[["split", "n", "positives"]].itertuples(index=False, name=None)
    return mark_other_images(list(table["subset"]), list(counts))


def _images_note(table: pd.DataFrame) -> str:
    return f"\n{OTHER_IMAGES_NOTE}" if any(_marks(table)) else ""


def _draw(path: Path, table: pd.DataFrame, names: Sequence[str], published: dict[str, float]) -> None:
    """Draw AUROC, average precision and FROC of each row with their intervals, and published values of AUROC."""
    shown = ["auroc", "average_precision"]
    if "froc" in table and table["froc"].notna().any():
        shown.append("froc")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 + 3.5 * len(shown), 1.1 + 0.27 * len(table)), layout="constrained")
        places = np.arange(len(table))[::-1]
        for axes, score in zip(figure.subplots(1, len(shown), sharey=True), shown, strict=True):
            for place, row in zip(places, table.to_dict("records"), strict=True):
                colour = COLOURS[row["subset"]]
                axes.plot([row[f"{score}_low"], row[f"{score}_high"]], [place, place], color=colour)
                axes.plot(row[score], place, "o", color=colour, markersize=5)
            if score == "auroc":
                for name, value in published.items():
                    axes.axvline(value, color="#bc4c00", linestyle=":", linewidth=1, zorder=0)
                    axes.annotate(name, (value, len(table) - 0.4), rotation=30, fontsize=7, color="#bc4c00")
            label = textwrap.fill((METRIC_TITLES | WHERE)[score], 28)  # narrower than the axes
            axes.set(xlabel=label, ylim=(-0.7, len(table) - 0.3))
            axes.grid(axis="x", color="#eaeef2")
        figure.axes[0].set_yticks(places, names)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130)


def _format(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows as text, under the titles of the Markdown tables."""
    rows = []
    for row, mark in zip(table.to_dict("records"), _marks(table), strict=True):
        cells = {name: row[name] for name in ("recipe", "split", "input", "seeds", "subset", "commit")}
        cells["folds"] = row["folds"] if isinstance(row.get("folds"), str) else ""  # earlier versions have none
        cells |= {"step": row["recipe"], "kept": "yes" if row.get("kept") else "no"}
        cells["n (fractured)"] = f"{row['n']} ({row['positives']}){mark}"
        cells["majority rate"] = format_percent(row["majority_rate"])
        reference = row["reference_accuracy"]
        cells["reference report's accuracy"] = format_percent(reference) if reference else ""
        cells |= {METRIC_TITLES[score]: format_score(row, score) for score in SCORES}
        for score in ("auroc", "average_precision"):
            text = format_difference(row, score)
            if text and row.get("difference_n", row["n"]) < row["n"]:
                text += f" on {row['difference_n']:.0f} common images"
            cells[f"{METRIC_TITLES[score]}, difference"] = text and f"{text}, p {row[f'{score}_difference_p']:.3f}"
        hit, low, high, centre = (100 * row.get(name, np.nan) for name in ("hit", "hit_low", "hit_high", "hit_centre"))
        cells |= {title: _or_empty(row, score) for score, title in WHERE.items()}
        cells[POINTING] = f"{hit:.1f} % [{low:.1f}, {high:.1f}] ({centre:.1f} %)" if np.isfinite(hit) else ""
        rows.append(cells)
    return pd.DataFrame(rows)
