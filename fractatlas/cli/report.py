"""``fractatlas report``: write the report page and the model card of a run folder again."""

from pathlib import Path

from fractatlas.cli.errors import ArgumentParser, one_line_errors


def main() -> None:
    """Write ``report.html`` and ``model_card.md`` of one or several run folders from the files in them."""
    parser = ArgumentParser(prog="fractatlas report", description=main.__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or logs/<task>: its newest run"
    )
    options = parser.parse_args()
    with one_line_errors():
        from fractatlas.report.html import write_report
        from fractatlas.report.run_table import newest_run

        for run in options.runs:
            print(write_report(newest_run(run)))
