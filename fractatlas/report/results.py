"""Tables and figures of an experiment: recipes of one or more seeds, and steps against the steps before them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from hydra.utils import instantiate
from matplotlib.figure import Figure

from fractatlas.evaluation import comparison, metrics, operating_point
from fractatlas.evaluation.bootstrap import draws, interval
from fractatlas.evaluation.localisation import summarise
from fractatlas.files import whole, write_csv
from fractatlas.report.assess import ALLOWED
from fractatlas.report.evidence import Evidence, gather
from fractatlas.report.figures import COLOURS, STYLE
from fractatlas.report.table import STUDY

SCORES = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "sensitivity", "specificity", "brier")
# AUROC on FracAtlas that others report, on test images of their own from splits without copies: the model cards of
# FractureLens (DenseNet-121, 224 px) and of fracture-detection-model (ConvNeXt-T, 384 px).
PUBLISHED = {"DenseNet-121": 0.912, "ConvNeXt-T": 0.937}
ENSEMBLE = ", ensemble of "


def recipe(name: str, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """What a recipe scores on validation and on test, as the mean over its seeds.

    Args:
        name: of the recipe.
        runs: finished run folders that differ in their seed, each with ``test/`` of ``evaluate.py``.

    Returns:
        A row for ``val`` and one for ``test``: ``recipe, model, split, input, part, seeds, n, positives,
        majority_rate, study`` (its accuracy on its random split, 0 for none) and ``commit``; each of ``SCORES`` with
        the 95 % interval of the mean (over bootstrap samples of groups, the same for all seeds) and the standard
        deviation over the seeds (``_low, _high, _sd``); ``hit`` and ``hit_centre`` of the pointing game where there are
        heatmaps. Several seeds are followed by their ensemble: the mean probability, with the threshold settled again
        on validation.
    """
    parts = {"val": [gather(run / "predictions.csv") for run in runs]}
    parts["test"] = [gather(run / "test" / "predictions.csv", config=one.config)
                     for run, one in zip(runs, parts["val"], strict=True)]  # fmt: skip
    rows = []
    for part, seeds in parts.items():
        tables = [_table(seed, part) for seed in seeds]
        thresholds = [seed.record["operating_point"]["threshold"] for seed in seeds]
        rows.append(_row(name, part, seeds, tables, thresholds) | _pointing(part, seeds, runs))
    if len(runs) > 1:
        rule = parts["val"][0].config["threshold"]
        validation = _mean([_table(seed, "val") for seed in parts["val"]])
        settled = operating_point.settle(validation, instantiate(rule, _execution_whitelist_=ALLOWED), rule["_target_"])
        for part, seeds in parts.items():
            table = _mean([_table(seed, part) for seed in seeds])
            rows.append(_row(f"{name}{ENSEMBLE}{len(runs)}", part, seeds, [table], [settled["threshold"]]))
    return rows


def step(name: str, runs: Sequence[Path], before: Sequence[Path]) -> dict[str, Any]:
    """What a step changes on validation.

    Args:
        name: of the step.
        runs: its finished run folders, one for each seed.
        before: those of the last step that was kept; none for the first.

    Returns:
        A row as of ``recipe`` for ``val``, with ``auroc_difference`` and ``average_precision_difference`` to the step
        before (each with ``_low, _high, _p``), and ``kept``: whether the AUROC is no lower.
    """
    seeds = [gather(run / "predictions.csv") for run in runs]
    tables = [_table(seed, "val") for seed in seeds]
    thresholds = [seed.record["operating_point"]["threshold"] for seed in seeds]
    row = _row(name, "val", seeds, tables, thresholds) | _pointing("val", seeds, runs) | {"kept": True}
    if before:
        earlier = [gather(run / "predictions.csv") for run in before]
        found = comparison.compare_seeds(
            [_table(seed, "val") for seed in earlier],
            tables,
            ([seed.record["operating_point"]["threshold"] for seed in earlier], thresholds),
        )
        row |= comparison.difference_columns(found, ("auroc", "average_precision"))
        row["kept"] = bool(row["auroc_difference"] >= 0)
    return row


def merged(file: Path, names: Sequence[str], found: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """A table as it is so far: the rows ``found`` now, and for the other names those that the file has already.

    Args:
        file: ``recipes.csv`` or ``steps.csv``; it need not exist.
        names: of all recipes or steps, in order.
        found: rows by name.
    """
    table = pd.DataFrame(columns=["recipe"])
    if file.is_file():
        table = pd.read_csv(file, dtype={"recipe": str, "commit": str})
    of = table["recipe"].str.partition(ENSEMBLE)[0] if len(table) else table["recipe"]
    rows = [found.get(name, table[of == name].to_dict("records")) for name in names]
    return pd.DataFrame([row for several in rows for row in several])


def write_recipes(out: Path, table: pd.DataFrame) -> None:
    """Write ``recipes.csv``, ``recipes.md`` and ``recipes.png``, each whole."""
    _write(out / "recipes.csv", table, recipes_markdown(table))
    _draw(out / "recipes.png", table, [f"{row.recipe} ({row.part})" for row in table.itertuples()], PUBLISHED)


def write_steps(out: Path, table: pd.DataFrame) -> None:
    """Write ``steps.csv``, ``steps.md`` and ``steps.png``, each whole."""
    _write(out / "steps.csv", table, steps_markdown(table))
    _draw(out / "steps.png", table, list(table["recipe"]), {})


def recipes_markdown(table: pd.DataFrame) -> str:
    """The rows of ``recipe`` for reading; accuracies in per cent."""
    lines = [
        {
            "recipe": row["recipe"],
            "split": row["split"],
            "input": row["input"],
            "seeds": row["seeds"],
            "part": row["part"],
            "n (fractured)": f"{row['n']} ({row['positives']})",
            "accuracy": _percent(row, "accuracy"),
            "study's accuracy": f"{100 * row['study']:.2f}" if row["study"] else "",
            "majority rate": f"{100 * row['majority_rate']:.2f}",
            "AUROC": _fraction(row, "auroc"),
            "average precision": _fraction(row, "average_precision"),
            "sensitivity": _fraction(row, "sensitivity"),
            "specificity": _fraction(row, "specificity"),
            "points into a box (the centre)": _pointed(row),
            "commit": row["commit"],
        }
        for row in table.to_dict("records")
    ]
    return _markdown(lines) + "\n" + NOTE


def steps_markdown(table: pd.DataFrame) -> str:
    """The rows of ``step`` for reading."""
    lines = [
        {
            "step": row["recipe"],
            "input": row["input"],
            "seeds": row["seeds"],
            "n (fractured)": f"{row['n']} ({row['positives']})",
            "AUROC": _fraction(row, "auroc"),
            "AUROC, to the step before": _difference(row, "auroc"),
            "average precision": _fraction(row, "average_precision"),
            "the same, to the step before": _difference(row, "average_precision"),
            "accuracy": _percent(row, "accuracy"),
            "points into a box (the centre)": _pointed(row),
            "kept": "yes" if row["kept"] else "no",
            "commit": row["commit"],
        }
        for row in table.to_dict("records")
    ]
    return _markdown(lines) + "\nValidation part. " + NOTE


NOTE = (
    "Means over seeds; in brackets 95 % bootstrap intervals over groups of images, and p values of the same samples, "
    "for these seeds: how far seeds differ is in the ± alone, their standard deviation.\n"
)


def _row(
    name: str, part: str, seeds: Sequence[Evidence], tables: Sequence[pd.DataFrame], thresholds: Sequence[float]
) -> dict[str, Any]:
    weights, first, config = draws(tables[0]["group"]), tables[0], seeds[0].config
    values = comparison.seed_means(tables, thresholds, weights)
    positives = int(first["label"].sum())
    split = config["split"]["_target_"].rpartition(".")[2].removesuffix("_split")
    row = {
        "recipe": name,
        "model": seeds[0].record["model"],
        "split": split,
        "input": _input(config["preprocess"]),
        "part": part,
        "seeds": len(seeds),
        "n": len(first),
        "positives": positives,
        "majority_rate": max(positives, len(first) - positives) / len(first),
        "study": STUDY.get(config["task_name"], {}).get(part, 0.0) if split == "random" else 0.0,
        "commit": " ".join(sorted({seed.record["versions"]["commit"] for seed in seeds})),
    }
    single = metrics.intervals(first, thresholds[0], weights) if len(tables) == 1 else {}
    each = [metrics.resampled(table, at, weights[:1]) for table, at in zip(tables, thresholds, strict=True)]
    for score in SCORES:
        found = single.get(score) or interval(values[score]) or dict.fromkeys(("value", "low", "high"), np.nan)
        row |= {score: found["value"], f"{score}_low": found["low"], f"{score}_high": found["high"]}
        row[f"{score}_sd"] = np.std([one[score][0] for one in each], ddof=1) if len(each) > 1 else np.nan
    return row


def _pointing(part: str, seeds: Sequence[Evidence], runs: Sequence[Path]) -> dict[str, float]:
    """``hit`` and ``hit_centre``, averaged over the seeds image by image."""
    files = [(run / "test" if part == "test" else run) / "localisation.csv" for run in runs]
    if not all(file.is_file() for file in files):
        return {}
    tables = [table[table["split"] == part].drop(columns="split") for table in map(pd.read_csv, files)]
    located = pd.concat(tables).groupby("image_id", as_index=False).mean()
    groups = seeds[0].predictions.set_index("image_id")["group"]
    found = summarise(located, groups)["all"]
    return {f"{name}{end}": found[name][key] for name in ("hit", "hit_centre")
            for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))}  # fmt: skip


def _table(evidence: Evidence, part: str) -> pd.DataFrame:
    table = evidence.predictions
    return table[table["split"] == part].sort_values("image_id", ignore_index=True)


def _mean(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return tables[0].assign(probability=np.mean([table["probability"] for table in tables], axis=0))


def _input(preprocess: dict[str, Any]) -> str:
    """The pixels that the network sees."""
    if "crop" in preprocess:
        return f"{preprocess['crop']} of {preprocess['resize']} px"
    return f"whole image, {preprocess['size']} px"


def _write(csv: Path, table: pd.DataFrame, text: str) -> None:
    write_csv(csv, table)
    with whole(csv.with_suffix(".md")) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _draw(path: Path, table: pd.DataFrame, names: Sequence[str], published: dict[str, float]) -> None:
    """AUROC and average precision of each row with their intervals, beside what others report."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.1 + 0.27 * len(table)), layout="constrained")
        places = np.arange(len(table))[::-1]
        for axes, (score, title) in zip(
            figure.subplots(1, 2, sharey=True), {"auroc": "AUROC", "average_precision": "average precision"}.items(),
            strict=True,
        ):  # fmt: skip
            for place, row in zip(places, table.to_dict("records"), strict=True):
                colour = COLOURS[row["part"]]
                axes.plot([row[f"{score}_low"], row[f"{score}_high"]], [place, place], color=colour)
                axes.plot(row[score], place, "o", color=colour, markersize=5)
            if score == "auroc":
                for name, value in published.items():
                    axes.axvline(value, color="#bc4c00", linestyle=":", linewidth=1, zorder=0)
                    axes.annotate(name, (value, len(table) - 0.4), rotation=30, fontsize=7, color="#bc4c00")
            axes.set(xlabel=title, ylim=(-0.7, len(table) - 0.3))
            axes.grid(axis="x", color="#eaeef2")
        figure.axes[0].set_yticks(places, names)
        with whole(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130)


def _fraction(row: dict[str, Any], score: str) -> str:
    if not np.isfinite(row[score]):
        return "undefined"
    spread = f" ± {row[score + '_sd']:.3f}" if np.isfinite(row[f"{score}_sd"]) else ""
    return f"{row[score]:.3f}{spread} [{row[score + '_low']:.3f}, {row[score + '_high']:.3f}]"


def _percent(row: dict[str, Any], score: str) -> str:
    spread = f" ± {100 * row[score + '_sd']:.1f}" if np.isfinite(row[f"{score}_sd"]) else ""
    return f"{100 * row[score]:.2f}{spread} [{100 * row[score + '_low']:.1f}, {100 * row[score + '_high']:.1f}]"


def _difference(row: dict[str, Any], score: str) -> str:
    name = f"{score}_difference"
    if not np.isfinite(row.get(name, np.nan)):
        return ""
    return f"{row[name]:+.3f} [{row[name + '_low']:+.3f}, {row[name + '_high']:+.3f}], p {row[name + '_p']:.3f}"


def _pointed(row: dict[str, Any]) -> str:
    if not np.isfinite(row.get("hit", np.nan)):
        return ""
    return (
        f"{100 * row['hit']:.1f} % [{100 * row['hit_low']:.1f}, {100 * row['hit_high']:.1f}] "
        f"({100 * row['hit_centre']:.1f} %)"
    )


def _markdown(lines: Sequence[dict[str, Any]]) -> str:
    rows = [lines[0].keys(), ["---"] * len(lines[0]), *(line.values() for line in lines)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows) + "\n"
