"""``fractatlas table``: print a Markdown table of runs."""

from pathlib import Path

from fractatlas.cli.errors import ArgumentParser, one_line_errors


def main() -> None:
    """Print a Markdown table of runs, with the accuracies of the reference report."""
    parser = ArgumentParser(prog="fractatlas table", description=main.__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or logs/<task>: its newest run"
    )
    options = parser.parse_args()
    with one_line_errors():
        from fractatlas.report.run_table import newest_run, run_table

        folders = [newest_run(folder) for folder in options.runs]
        print(run_table(folders))
    print("Brackets: 95 % bootstrap intervals. Majority rate: the accuracy of always giving the more frequent answer.")
    for folder in folders:
        print(f"  {folder}")
