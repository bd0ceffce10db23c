"""``fractatlas report``, ``compare`` and ``table``: pages and tables of finished runs."""

from pathlib import Path

from fractatlas.cli.errors import ArgumentParser, one_line_errors


def report() -> None:
    """Write ``report.html`` and ``model_card.md`` of one or several run folders from the files in them."""
    options = _parser("report", report.__doc__).parse_args()
    with one_line_errors():
        from fractatlas.report.report_page import write_report
        from fractatlas.report.run_table import newest_run

        for run in options.runs:
            print(write_report(newest_run(run)))


def compare() -> None:
    """Write paired differences between runs, with intervals and p values, to ``comparison.csv`` and ``.html``."""
    parser = _parser("compare", compare.__doc__)
    parser.add_argument("--out", type=Path, default=Path("logs/comparison"), help="output folder (logs/comparison)")
    options = parser.parse_args()
    with one_line_errors():
        from fractatlas.report.comparison_page import write_comparison

        runs, differences = write_comparison(options.out, options.runs)
    print(f"{len(runs)} runs, {len(differences)} paired differences: {options.out / 'comparison.html'}")


def table() -> None:
    """Print a Markdown table of runs, with the accuracies of the reference report."""
    options = _parser("table", table.__doc__).parse_args()
    with one_line_errors():
        from fractatlas.report.run_table import newest_run, run_table

        folders = [newest_run(folder) for folder in options.runs]
        print(run_table(folders))
    print("Brackets: 95 % bootstrap intervals. Majority rate: the accuracy of always giving the more frequent answer.")
    for folder in folders:
        print(f"  {folder}")


def _parser(verb: str, description: str | None) -> ArgumentParser:
    parser = ArgumentParser(prog=f"fractatlas {verb}", description=description)
    help_text = "a run folder, or logs/<task>: its newest run"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=help_text)
    return parser
