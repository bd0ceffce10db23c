"""``fractatlas plan``: train, score and tabulate the runs of an experiment."""

from pathlib import Path

from fractatlas.cli.errors import ArgumentParser, log_to_terminal, one_line_errors


def main() -> None:
    """Train, score and tabulate the runs of a plan; the same command again resumes it."""
    parser = ArgumentParser(prog="fractatlas plan", description=main.__doc__)
    parser.add_argument("plan", type=Path, metavar="PLAN", help="a plan in experiments/, or refit.yaml of a search")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="one recipe or step; repeatable")
    parser.add_argument("--out", type=Path, help="folder for the tables (a folder named as the plan, beside it)")
    parser.add_argument("--logs", type=Path, help="folder for the runs (logs/plans/<folder of the plan>/<plan>)")
    options = parser.parse_args()
    log_to_terminal()
    with one_line_errors(interrupted="interrupted; the same command resumes the plan"):
        from fractatlas.experiments.plan import carry_out_file

        out = carry_out_file(options.plan, options.out, options.logs, options.only)
        for file in sorted(out.glob("*.md")):
            print(file.read_text(encoding="utf-8"))
        print(f"Tables and figures: {out}")
