"""``fractatlas compare``: compare runs on the same images."""

from pathlib import Path

from fractatlas.cli.errors import ArgumentParser, one_line_errors


def main() -> None:
    """Write paired differences between runs, with intervals and p values, to ``comparison.csv`` and ``.html``."""
    parser = ArgumentParser(prog="fractatlas compare", description=main.__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or logs/<task>: its newest run"
    )
    parser.add_argument("--out", type=Path, default=Path("logs/comparison"), help="output folder (logs/comparison)")
    options = parser.parse_args()
    with one_line_errors():
        from fractatlas.report.compare import write_comparison

        runs, differences = write_comparison(options.out, options.runs)
    print(f"{len(runs)} runs, {len(differences)} paired differences: {options.out / 'comparison.html'}")
