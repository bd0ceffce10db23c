"""Tables and figures of an experiment: recipes with several seeds, and steps compared with the step before."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from hydra.utils import instantiate
from matplotlib.figure import Figure

from fractatlas.errors import InputError
from fractatlas.evaluation import detection, metrics, paired_comparison
from fractatlas.evaluation.bootstrap import bootstrap_weights, interval
from fractatlas.evaluation.external_predictions import ALLOWED_RULES
from fractatlas.evaluation.localisation import summarise
from fractatlas.evaluation.markdown import (
    METRIC_TITLES,
    OTHER_IMAGES_NOTE,
    format_fraction,
    format_percent,
    mark_other_images,
    to_markdown,
)
from fractatlas.evaluation.operating_point import choose_operating_point
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.io import atomic_path, write_csv, write_text
from fractatlas.reference_report import REFERENCE_ACCURACY
from fractatlas.report.figures import COLOURS, STYLE

SCORES = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "sensitivity", "specificity", "brier")
POINTING = "pointing game (image centre)"
WHERE = {"froc": "boxes found at 1/2 false alarm per image", "ap_30": "AP at IoU 0.3", "ap_50": "AP at IoU 0.5"}
COMPARED = ("accuracy", "auroc", "average_precision", "hit", *WHERE)  # of recipes
# Published AUROC on FracAtlas, on other test images from splits without duplicates: the model cards of FractureLens
# (DenseNet-121, 224 px) and of fracture-detection-model (ConvNeXt-T, 384 px).
PUBLISHED = {"DenseNet-121": 0.912, "ConvNeXt-T": 0.937}
ENSEMBLE = ", ensemble of "
NOTE = (
    "Means over seeds; ± is the standard deviation over seeds. Brackets: 95 % bootstrap intervals over groups of "
    "images. Intervals and p values are for these seeds; they do not include the variation between seeds.\n"
)


def recipe_rows(name: str, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Score a recipe on the validation and test subsets, as the mean over its seeds.

    Args:
        name: of the recipe.
        runs: finished run folders that differ in their seed, each with an evaluation of the test subset in ``test/``.

    Returns:
        A row for ``val`` and one for ``test``: ``recipe, model, split, input, subset, seeds, n, positives,
        majority_rate, reference_accuracy`` (of the reference report on its random split, 0 if there is none),
        ``commit, images`` (a hash of the image ids); each of ``SCORES`` with the 95 % interval of the mean
        (``_low, _high``, over bootstrap samples of groups, the same for all seeds) and the standard deviation over the
        seeds (``_sd``); if there are heatmaps, ``hit`` and ``hit_centre`` of the pointing game, and those of ``WHERE``,
        with intervals. With several seeds, two rows for their ensemble follow: the mean probability, with the threshold
        chosen again on validation.
    """
    config = _config(RunFolder(runs[0]))
    subsets = {"val": [RunFolder(run) for run in runs], "test": [RunFolder(run / "test") for run in runs]}
    tables = {subset: [_table(run, subset) for run in seeds] for subset, seeds in subsets.items()}
    rows = [
        _row(name, subset, config, seeds, tables[subset], [run.threshold for run in seeds])
        | _pointing(subset, seeds)
        | _detection(subset, seeds)
        for subset, seeds in subsets.items()
    ]
    if len(runs) > 1:
        means = {
            subset: several[0].assign(probability=np.mean([table["probability"] for table in several], axis=0))
            for subset, several in tables.items()
        }
        rule = instantiate(config["threshold"], _execution_whitelist_=ALLOWED_RULES)
        threshold = choose_operating_point(means["val"], rule, "")["threshold"]
        for subset, seeds in subsets.items():
            rows.append(_row(f"{name}{ENSEMBLE}{len(runs)}", subset, config, seeds, [means[subset]], [threshold]))
    return rows


def difference_rows(name: str, runs: Sequence[Path], first: Sequence[Path]) -> list[dict[str, Any]]:
    """Compare a recipe with the first recipe of a plan, on the images that both have, as means over their seeds.

    Args:
        name: of the recipe.
        runs: its run folders, as in ``recipe_rows``.
        first: those of the first recipe.

    Returns:
        A row for each subset and each of ``COMPARED`` that both have: ``recipe, subset, score, n`` (images), ``first,
        second, difference, low, high, p`` as from ``paired_comparison.compare``.
    """
    rows = []
    for subset in ("val", "test"):
        pair = [[RunFolder(run if subset == "val" else run / "test") for run in several] for several in (first, runs)]
        ids = [set(_table(run, subset)["image_id"]) for several in pair for run in several]
        common = set.intersection(*ids)
        if not common:
            continue
        one, other = (_resampled(several, subset, common) for several in pair)
        for score in COMPARED:
            if score in one and score in other and (row := paired_comparison.difference(one[score], other[score])):
                rows.append({"recipe": name, "subset": subset, "score": score, "n": len(common)} | row)
    return rows


def step_row(name: str, runs: Sequence[Path], before: Sequence[Path]) -> dict[str, Any]:
    """Score a step on the validation subset, and compare it with the step before.

    Args:
        name: of the step.
        runs: its finished run folders, one for each seed.
        before: the run folders of the last step that was kept; empty for the first step.

    Returns:
        A row as from ``recipe_rows`` for ``val``, with ``auroc_difference`` and ``average_precision_difference`` to
        the step before (each with ``_low, _high, _p``) on ``difference_n`` common images, and ``kept``: whether the
        AUROC is not lower.
    """
    seeds, earlier = [RunFolder(run) for run in runs], [RunFolder(run) for run in before]
    tables, thresholds = [_table(run, "val") for run in seeds], [run.threshold for run in seeds]
    row = _row(name, "val", _config(seeds[0]), seeds, tables, thresholds) | _pointing("val", seeds) | {"kept": True}
    if earlier:
        compared = paired_comparison.compare_seeds(
            [_table(run, "val") for run in earlier], tables, ([run.threshold for run in earlier], thresholds)
        )
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
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" if np.isfinite(value) else ""


def merge(file: Path, names: Sequence[str], rows: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """Return for each of ``names`` its new rows; without new rows, those in the file, if it exists."""
    former = pd.read_csv(file, dtype={"recipe": str, "commit": str}).to_dict("records") if file.is_file() else []
    by_name: dict[str, list] = {name: [] for name in names}
    for row in former:
        by_name.setdefault(row["recipe"].partition(ENSEMBLE)[0], []).append(row)
    return pd.DataFrame([row for name in names for row in rows.get(name, by_name[name])])


def write_predictions(folder: Path, name: str, runs: Sequence[Path]) -> None:
    """Write the predictions of each run, on validation and, if it was scored, on test, to ``<name>_<run>.csv``.

    The columns are those of ``predictions.csv``.
    """
    for run in runs:
        scored = [RunFolder(path).predictions for path in (run, run / "test") if (path / "predictions.csv").is_file()]
        write_csv(folder / f"{name}_{run.name}.csv", pd.concat(scored))


def write_recipes(out: Path, table: pd.DataFrame) -> None:
    """Write ``recipes.csv``, ``recipes.md`` and ``recipes.png``."""
    write_csv(out / "recipes.csv", table)
    write_text(out / "recipes.md", recipes_markdown(table))
    rows = zip(table.itertuples(), _marks(table), strict=True)
    _draw(out / "recipes.png", table, [f"{row.recipe} ({row.subset}){mark}" for row, mark in rows], PUBLISHED)


def write_steps(out: Path, table: pd.DataFrame) -> None:
    """Write ``steps.csv``, ``steps.md`` and ``steps.png``."""
    write_csv(out / "steps.csv", table)
    write_text(out / "steps.md", steps_markdown(table))
    _draw(out / "steps.png", table, list(table["recipe"]), {})


def recipes_markdown(table: pd.DataFrame) -> str:
    """Return the rows of ``recipe_rows`` as Markdown; accuracies in per cent."""
    titles = ["recipe", "split", "input", "seeds", "subset", "n (fractured)", "accuracy",
              "reference report's accuracy", "majority rate", "AUROC", "average precision", "sensitivity",
              "specificity", POINTING, *WHERE.values(), "commit"]  # fmt: skip
    cells = _format(table)
    shown = [title for title in titles if title not in WHERE.values() or (cells[title] != "").any()]
    return to_markdown(cells[shown]) + "\n" + NOTE + _images_note(table)


def write_differences(out: Path, table: pd.DataFrame, first: str) -> None:
    """Write ``differences.csv`` and ``differences.md``: each recipe minus the recipe ``first``."""
    write_csv(out / "differences.csv", table)
    titles = METRIC_TITLES | WHERE | {"hit": "pointing game"}
    rows = [
        {
            "recipe": row.recipe,
            "subset": row.subset,
            "score": titles[row.score],
            "n": row.n,
            first: f"{row.first:.3f}",
            "this recipe": f"{row.second:.3f}",
            "difference": f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
            "p": f"{row.p:.3f}",
        }
        for row in table.itertuples()
    ]
    note = f"Differences to the recipe `{first}` on the same images; shares are fractions. "
    write_text(out / "differences.md", to_markdown(pd.DataFrame(rows)) + "\n" + note + NOTE)


def steps_markdown(table: pd.DataFrame) -> str:
    """Return the rows of ``step_row`` as Markdown."""
    titles = ["step", "input", "seeds", "n (fractured)", "AUROC", "AUROC, difference", "average precision",
              "average precision, difference", "accuracy", POINTING, "kept", "commit"]  # fmt: skip
    intro = "Validation subset. Differences are to the last step before that was kept. "
    return to_markdown(_format(table)[titles]) + "\n" + intro + NOTE + _images_note(table)


def _row(
    name: str,
    subset: str,
    config: dict[str, Any],
    runs: Sequence[RunFolder],
    tables: Sequence[pd.DataFrame],
    thresholds: Sequence[float],
) -> dict[str, Any]:
    for run, table in zip(runs, tables, strict=False):  # an ensemble has one table
        if not table["image_id"].equals(tables[0]["image_id"]):
            raise InputError(f"{run.path}: {subset} has other images than {runs[0].path}; move or delete one of them")
    weights = bootstrap_weights(tables[0]["group"])
    first = metrics.evaluate(tables[0], thresholds[0], weights)
    split = config["split"]["_target_"].rpartition(".")[2].removesuffix("_split")
    reference = REFERENCE_ACCURACY.get(config["task_name"], {}) if split == "random" else {}
    row = {
        "recipe": name,
        "model": runs[0].metrics["model"],
        "split": split,
        "input": _describe_input(config["preprocess"]),
        "subset": subset,
        "seeds": len(runs),
        **{key: first[key] for key in ("n", "positives", "majority_rate")},
        "reference_accuracy": reference.get(subset, 0.0),
        "commit": " ".join(sorted({run.metrics["versions"]["commit"] for run in runs})),
        "images": sha256("\n".join(tables[0]["image_id"]).encode()).hexdigest()[:12],
    }
    means = paired_comparison.seed_means(tables, thresholds, weights)
    each = [metrics.resampled(table, at, weights[:1]) for table, at in zip(tables, thresholds, strict=True)]
    for score in SCORES:
        row |= interval_columns(score, first[score] if len(tables) == 1 else interval(means[score]))
        row[f"{score}_sd"] = np.std([one[score][0] for one in each], ddof=1) if len(each) > 1 else np.nan
    return row


def _pointing(subset: str, runs: Sequence[RunFolder]) -> dict[str, float]:
    """Return ``hit`` and ``hit_centre``, averaged over the seeds for each image."""
    files = [run.path / "localisation.csv" for run in runs]
    if not all(file.is_file() for file in files):
        return {}
    tables = [table[table["split"] == subset].drop(columns="split") for table in map(pd.read_csv, files)]
    located = pd.concat(tables).groupby("image_id", as_index=False).mean()
    means = summarise(located, runs[0].predictions.set_index("image_id")["group"])["all"]
    return interval_columns("hit", means["hit"]) | interval_columns("hit_centre", means["hit_centre"])


def _detection(subset: str, runs: Sequence[RunFolder]) -> dict[str, float]:
    """Return the scores of ``WHERE``, averaged over the seeds, with intervals."""
    table = _table(runs[0], subset)
    means = _where(runs, subset, set(table["image_id"]), bootstrap_weights(table["group"]))
    return {
        key: one
        for name in WHERE
        if name in means
        for key, one in interval_columns(name, interval(means[name])).items()
    }


def _resampled(runs: Sequence[RunFolder], subset: str, common: set[str]) -> dict[str, np.ndarray]:
    """Return the mean over seeds of every score on the images ``common``, for each bootstrap sample of their groups."""
    tables = [table[table["image_id"].isin(common)] for table in (_table(run, subset) for run in runs)]
    tables = [table.reset_index(drop=True) for table in tables]
    weights = bootstrap_weights(tables[0]["group"])
    scores = paired_comparison.seed_means(tables, [run.threshold for run in runs], weights)
    return scores | _where(runs, subset, common, weights)


def _where(runs: Sequence[RunFolder], subset: str, common: set[str], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean over seeds of ``hit`` and of the scores of ``WHERE``; empty if a run has no heatmaps."""
    each: list[dict[str, np.ndarray]] = []
    for run in runs:
        assessed = next((one for one in run.subsets if one.name == subset), None) if run.file("strata.csv") else None
        if assessed is None or not assessed.detection or assessed.localisation.empty:
            return {}
        images = assessed.table[assessed.table["image_id"].isin(common)].sort_values("image_id", ignore_index=True)
        detections = detection.match(images, assessed.candidates, run.boxes)
        kept = images["image_id"].isin(detections.images["image_id"]).to_numpy()
        hits = images["image_id"].map(assessed.localisation.set_index("image_id")["hit"]).to_numpy(np.float64)
        located = np.isfinite(hits)
        with np.errstate(invalid="ignore"):  # 0 / 0 in samples without a box
            share = weights[:, located] @ hits[located] / weights[:, located].sum(axis=1)
        each.append(detection.resampled(detections, weights[:, kept]) | {"hit": share})
    return {name: np.mean([values[name] for values in each], axis=0) for name in each[0]}


def _config(run: RunFolder) -> dict[str, Any]:
    if run.config is None:
        raise InputError(f"{run.path} has no .hydra/config.yaml; move or delete it, then repeat the command")
    return run.config


def _table(run: RunFolder, subset: str) -> pd.DataFrame:
    return run.predictions[run.predictions["split"] == subset].sort_values("image_id", ignore_index=True)


def _describe_input(preprocess: dict[str, Any]) -> str:
    """Return the pixels that the network receives."""
    if "crop" in preprocess:
        return f"{preprocess['crop']} of {preprocess['resize']} px"
    return f"whole image, {preprocess['size']} px"


def _marks(table: pd.DataFrame) -> list[str]:
    """Return a mark for each row whose images differ; rows of earlier versions have counts instead of a hash."""
    if "images" in table and table["images"].notna().all():
        return mark_other_images(list(table["subset"]), list(table["images"]))
    counts = table[["split", "n", "positives"]].itertuples(index=False, name=None)
    return mark_other_images(list(table["subset"]), list(counts))


def _images_note(table: pd.DataFrame) -> str:
    return f"\n{OTHER_IMAGES_NOTE}" if any(_marks(table)) else ""


def _draw(path: Path, table: pd.DataFrame, names: Sequence[str], published: dict[str, float]) -> None:
    """Draw AUROC and average precision of each row with their intervals, and published values."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.1 + 0.27 * len(table)), layout="constrained")
        places = np.arange(len(table))[::-1]
        for axes, score in zip(figure.subplots(1, 2, sharey=True), ("auroc", "average_precision"), strict=True):
            for place, row in zip(places, table.to_dict("records"), strict=True):
                colour = COLOURS[row["subset"]]
                axes.plot([row[f"{score}_low"], row[f"{score}_high"]], [place, place], color=colour)
                axes.plot(row[score], place, "o", color=colour, markersize=5)
            if score == "auroc":
                for name, value in published.items():
                    axes.axvline(value, color="#bc4c00", linestyle=":", linewidth=1, zorder=0)
                    axes.annotate(name, (value, len(table) - 0.4), rotation=30, fontsize=7, color="#bc4c00")
            axes.set(xlabel=METRIC_TITLES[score], ylim=(-0.7, len(table) - 0.3))
            axes.grid(axis="x", color="#eaeef2")
        figure.axes[0].set_yticks(places, names)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130)


def _format(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows as text, under the titles of the Markdown tables."""
    rows = []
    for row, mark in zip(table.to_dict("records"), _marks(table), strict=True):
        cells = {name: row[name] for name in ("recipe", "split", "input", "seeds", "subset", "commit")}
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
        cells |= {
            title: format_score(row, score) if np.isfinite(row.get(score, np.nan)) else ""
            for score, title in WHERE.items()
        }
        cells[POINTING] = f"{hit:.1f} % [{low:.1f}, {high:.1f}] ({centre:.1f} %)" if np.isfinite(hit) else ""
        rows.append(cells)
    return pd.DataFrame(rows)
