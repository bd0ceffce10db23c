"""Write the tables and figures of a plan from the records of its finished runs."""

import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fractatlas.evaluation.provenance import RULES
from fractatlas.experiments import control_tables, result_tables, results_figure, strata_tables, where_tables
from fractatlas.experiments.pooled_folder import write_pooled
from fractatlas.experiments.pooling import Folds
from fractatlas.experiments.run_records import folder_name
from fractatlas.wording import plural

ALL_PAIRS = 5  # the largest number of recipes that are all compared with each other
Recorded = Mapping[str, Sequence[Folds]]  # for each name and seed, the records of the finished folds


class PlanTables:
    """Write the tables of a plan, repeatedly; what has not changed is scored once.

    Args:
        out: the folder for tables and figures.
        recipes: the names of the recipes.
        variants: of the variants.
        steps: of the steps.
        folds: number of folds; ``None`` without folds.
        ensembles: the recipes of each ensemble.

    Attributes:
        kept: for each step in the table, whether it is kept.
    """

    def __init__(
        self,
        out: Path,
        recipes: Collection[str],
        variants: Collection[str],
        steps: Collection[str],
        folds: int | None,
        ensembles: Mapping[str, Sequence[str]],
    ):
        self.out, self.recipes, self.variants, self.steps, self.folds = out, recipes, variants, steps, folds
        self.ensembles = ensembles
        self.kept: dict[str, bool] = {}
        self._results: dict[Hashable, tuple[Hashable, Any]] = {}

    def write(self, recorded: Recorded, images: pd.DataFrame | None) -> bool:
        """Write all tables and figures.

        A recipe or variant is scored on the seeds whose folds are all finished. Without such a seed, it is scored on
        the finished folds of the first seed that has any. A step is scored when all its runs are finished, and an
        ensemble when each of its recipes has a seed whose folds are all finished.

        Args:
            recorded: for each recipe, variant and step.
            images: from ``run_records.read_images``.

        Returns:
            Whether a run is finished.

        Raises:
            InputError: the seeds of a recipe, variant or step have other images than each other.
        """
        used = {name: chosen for name, seeds in recorded.items() if (chosen := self._used(seeds))}
        self._write_steps(recorded)
        notes = ""
        for file, names, subsets, ensembles in (
            ("variants", self.variants, result_tables.SUBSETS[:1], ()),
            ("recipes", self.recipes, result_tables.SUBSETS, self.ensembles),
        ):
            rows = {
                name: self._once((file, name), [used[name]], result_tables.recipe_rows, name, used[name], subsets)
                for name in names
                if name in used
            }
            if rows:
                rules = {RULES.get(used[name][0][0].point["rule"], "") for name in rows} - {RULES["fixed"]}
                published = file == "recipes" and all(is_fracatlas(used[name][0][0].settings) for name in rows)
                rows |= {
                    name: self._once(("ensemble", name), [seeds], result_tables.ensemble_rows, name, seeds)
                    for name, seeds in self._ensembles_of(used).items()
                    if name in ensembles
                }
                table = result_tables.merge(self.out / f"{file}.csv", [*names, *ensembles], rows)
                note = unfinished({name: recorded[name] for name in names}, self.folds, set(table["recipe"]) - {*rows})
                if waiting := [name for name in ensembles if name not in rows]:
                    note += f"\nNot scored, because a recipe is not finished: {', '.join(waiting)}.\n"
                notes += note
                note += "".join(f"\nDecision threshold: {rule}.\n" for rule in sorted(filter(None, rules)))
                result_tables.write_recipes(self.out, table, note, file, published)
        located: dict[str, where_tables.Located] = {
            name: self._once(
                ("where", name), [used[name]], where_tables.score_located, name, used[name], subsets, images
            )
            for names, subsets in ((self.variants, result_tables.SUBSETS[:1]), (self.recipes, result_tables.SUBSETS))
            for name in names
            if name in used
        }
        if any(one.rows for one in located.values()):
            where_tables.write_located(self.out, [*located.values()], notes)
            # The results of recipes contain their FROC curves.
            drawn = self.recipes if self._draws_results else ()
            where_tables.write_froc(self.out, [one for name, one in located.items() if name not in drawn])
        if self._draws_results:
            bands = len(self.recipes) <= where_tables.MOST_BANDS
            curves = {
                name: self._once(("curves", name), [used[name]], results_figure.score_curves, name, used[name], bands)
                for name in self.recipes
                if name in used
            }
            results_figure.write_results(self.out, curves, located, bands, notes)
        else:
            for name in results_figure.FILES:
                (self.out / name).unlink(missing_ok=True)  # of fewer recipes
        if self.folds:
            self._write_tables_of_folds({name: used[name] for name in self.recipes if name in used}, images, notes)
        self._write_joint_tables(recorded, used, notes)
        return bool(used)

    @property
    def _draws_results(self) -> bool:
        """Whether the plan has ``results.png``."""
        return 0 < len(self.recipes) <= results_figure.MOST_RECIPES

    def _used(self, seeds: Sequence[Folds]) -> list[Folds]:
        complete = [folds for folds in seeds if len(folds) == (self.folds or 1)]
        return complete or [folds for folds in seeds if folds][:1]

    def _complete(self, used: Recorded) -> dict[str, Sequence[Folds]]:
        """Return those that are scored on all folds."""
        return {name: seeds for name, seeds in used.items() if len(seeds[0]) == (self.folds or 1)}

    def _ensembles_of(self, used: Recorded) -> dict[str, list[Folds]]:
        """Return the seeds of all recipes of each ensemble whose recipes are all scored on all folds."""
        complete = self._complete(used)
        return {
            name: [folds for recipe in recipes for folds in complete[recipe]]
            for name, recipes in self.ensembles.items()
            if all(recipe in complete for recipe in recipes)
        }

    def _write_steps(self, recorded: Recorded) -> None:
        """Write the table of the steps up to the first that is not finished."""
        before: Sequence[Folds] = []
        rows: dict[str, list[dict[str, Any]]] = {}
        for name in self.steps:
            seeds = recorded[name]
            if any(len(folds) < (self.folds or 1) for folds in seeds):
                break
            row = self._once(("step", name), [seeds, before], result_tables.step_row, name, seeds, before)
            self.kept[name], rows[name] = row["kept"], [row]
            if row["kept"]:
                before = seeds
        if rows:
            result_tables.write_steps(self.out, result_tables.merge(self.out / "steps.csv", list(self.steps), rows))

    def _write_tables_of_folds(self, used: Recorded, images: pd.DataFrame | None, note: str) -> None:
        """Write the strata of recipes with folds, the controls without pixels, and the folders of pooled predictions.

        Controls have the folds of the first seed of the first recipe with all folds.
        """
        rows = [
            row
            for name, seeds in used.items()
            for row in self._once(("strata", name), [seeds], strata_tables.score_strata, name, seeds, images)
        ]
        if rows:
            strata_tables.write_strata(self.out, rows, note)
        complete = self._complete(used)
        for first, (folds, *_) in [*complete.items()][:1]:
            controls = self._once(("controls", first), [[folds]], control_tables.fit_controls, folds, images)
            if controls.rows:
                compared = [
                    row
                    for name, seeds in complete.items()
                    for row in self._once(
                        ("controls", first, name), [[folds], seeds],
                        control_tables.compare_with_controls, name, seeds, controls.tables,
                    )
                ]  # fmt: skip
                control_tables.write_controls(self.out, [*controls.rows, *compared], note)
        for name, seeds in used.items():
            folder = self.out / "pooled" / folder_name(name)
            self._once(("pooled", name), [seeds], write_pooled, folder, name, seeds, images)

    def _write_joint_tables(self, recorded: Recorded, used: Recorded, note: str) -> None:
        """Write the scores of each run, and the differences of recipes and variants."""
        rows = [
            row
            for name, seeds in recorded.items()
            for row in self._once(("runs", name), [seeds], result_tables.run_rows, name, [one for one in seeds if one])
        ]
        if rows:
            result_tables.write_runs(self.out, pd.DataFrame(rows))
        first, *others = self.variants or [""]
        pairs: list[tuple[str, str, Sequence[str]]] = [
            *((first, name, result_tables.SUBSETS[:1]) for name in others),
            *((*pair, result_tables.SUBSETS) for pair in self._compared_recipes()),
        ]
        rows = [
            row
            for one, other, subsets in pairs
            if one in used and other in used
            for row in self._once(
                ("difference", one, other), [used[one], used[other]],
                result_tables.difference_rows, (one, used[one]), (other, used[other]), subsets,
            )
        ]  # fmt: skip
        rows += [
            row
            for name, seeds in self._ensembles_of(used).items()
            for recipe in self.ensembles[name]
            for row in self._once(
                ("difference", recipe, name), [used[recipe], seeds],
                result_tables.difference_rows, (recipe, used[recipe]), (name, seeds), result_tables.SUBSETS, True,
            )
        ]  # fmt: skip
        if rows:
            result_tables.write_differences(self.out, pd.DataFrame(rows), note)

    def _compared_recipes(self) -> list[tuple[str, str]]:
        """Return all pairs of recipes; of more than ``ALL_PAIRS``, the first with each other one."""
        if len(self.recipes) <= ALL_PAIRS:
            return [*itertools.combinations(self.recipes, 2)]
        first, *others = self.recipes
        return [(first, name) for name in others]

    def _once(
        self, key: Hashable, records: Iterable[Sequence[Folds]], compute: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Return ``compute(*arguments)``; if the records are those of the last call with this key, its result."""
        runs = [[(record.facts["seed"], record.fold) for folds in seeds for record in folds] for seeds in records]
        state = tuple(map(tuple, runs))
        if self._results.get(key, (None, None))[0] != state:
            self._results[key] = (state, compute(*arguments))
        return self._results[key][1]


def is_fracatlas(settings: Mapping[str, Any]) -> bool:
    """Return whether the settings of a training have the data set FracAtlas, which is not generated."""
    return settings.get("data._target_", "").endswith(".RadiographDataModule") and "data.prepare" in settings


def unfinished(recorded: Recorded, folds: int | None, omitted: Collection[str] = ()) -> str:
    """Return a sentence with the recipes, variants or steps that are not finished; an empty string if all are.

    Args:
        recorded: their records.
        folds: number of folds; ``None`` without folds.
        omitted: names that are not in the sentence.
    """
    parts = []
    for name, seeds in recorded.items():
        done, expected = sum(map(len, seeds)), len(seeds) * (folds or 1)
        if done < expected and name not in omitted:
            parts.append(f"{name}: {done} of {plural(expected, 'run')}")
    return f"\nNot finished: {'; '.join(parts)}. Scores are those of finished runs.\n" if parts else ""
