"""``fractatlas report``, ``compare`` and ``table``: pages and tables of finished runs."""

import logging
import math
from pathlib import Path

from fractatlas.cli.errors import ArgumentParser, one_line_errors
from fractatlas.progress_bar import waiting
from fractatlas.wording import plural

log = logging.getLogger(__name__)
SHOWN_PAIRS = 3  # without an image in common


def report() -> None:
    """Write ``report.html`` and ``model_card.md`` of one or several run folders from the files in them."""
    options = _parser("report", report.__doc__).parse_args()
    with one_line_errors():
        from fractatlas.report.report_page import write_report
        from fractatlas.report.run_table import find_runs

        for run in find_runs(options.runs):
            print(write_report(run))


def compare() -> None:
    """Write paired differences between runs, with intervals and p values, to ``comparison.csv`` and ``.html``."""
    parser = _parser("compare", compare.__doc__)
    parser.add_argument("--out", type=Path, default=Path("logs/comparison"), help="output folder (logs/comparison)")
    options = parser.parse_args()
    with one_line_errors():
        from fractatlas.report.comparison_page import disjoint_pairs, write_comparison

        runs, differences = write_comparison(options.out, options.runs)
        disjoint = disjoint_pairs(runs, differences)
    pairs = math.comb(len(runs), 2)
    differ = int(((differences["low"] > 0) | (differences["high"] < 0)).sum())
    counts = (
        f"{len(runs)} runs, {pairs - len(disjoint)} of {plural(pairs, 'pair')} compared, "
        f"{plural(len(differences), 'difference')} computed, {differ} with a 95 % interval that excludes 0"
    )
    shown = "; ".join(" and ".join(pair) for pair in disjoint[:SHOWN_PAIRS])
    more = f"; {len(disjoint) - SHOWN_PAIRS} more pairs" if len(disjoint) > SHOWN_PAIRS else ""
    print(f"{counts}: {options.out / 'comparison.html'}" + (f"; no image in common: {shown}{more}" if disjoint else ""))


def table() -> None:
    """Print a Markdown table of runs, with the accuracies of the reference report."""
    options = _parser("table", table.__doc__).parse_args()
    with one_line_errors():
        from fractatlas.report.run_table import find_runs, run_table

        folders = find_runs(options.runs)
        print(run_table(folders))
    print("Brackets: 95 % bootstrap intervals. Majority rate: the accuracy of always giving the more frequent answer.")
    for folder in folders:
        print(f"  {folder}")


def write_page(run: Path) -> None:
    """Write the report page of a run, as the last step of another command, and log its path."""
    with waiting("writing the report page"):
        from fractatlas.report.report_page import write_report

        page = write_report(run)
    log.info("report: %s", page)


def _parser(verb: str, description: str | None) -> ArgumentParser:
    parser = ArgumentParser(prog=f"fractatlas {verb}", description=description)
    help_text = "a run folder; logs/<task>: its newest run; the folder of a grid: all of its finished runs"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=help_text)
    return parser
