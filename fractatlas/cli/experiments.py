"""``fractatlas plan`` and ``probe``: experiments of several trainings or of frozen features."""

from pathlib import Path

from fractatlas.cli.errors import ArgumentParser, log_to_terminal, one_line_errors


def plan() -> None:
    """Train, score and tabulate the runs of a plan; repeat the command to resume."""
    parser = ArgumentParser(prog="fractatlas plan", description=plan.__doc__)
    parser.add_argument("plan", type=Path, metavar="PLAN", help="a plan in experiments/, or refit.yaml of a search")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="one recipe or step; repeatable")
    parser.add_argument("--out", type=Path, help="folder for the tables (a folder in the plan's folder, with its name)")
    parser.add_argument("--logs", type=Path, help="folder for the runs (logs/plans/<folder of the plan>/<plan>)")
    options = parser.parse_args()
    log_to_terminal()
    with one_line_errors(interrupted="interrupted; repeat the command to resume the plan"):
        from fractatlas.experiments.plan import run_plan

        out = run_plan(options.plan, options.out, options.logs, options.only)
        for file in sorted(out.glob("*.md")):
            print(file.read_text(encoding="utf-8"))
        print(f"Tables and figures: {out}")


def probe() -> None:
    """Score frozen features of each set of options with cross-fitted logistic regression."""
    parser = ArgumentParser(prog="fractatlas probe", description=probe.__doc__)
    help_text = "options of train.py in quotes: 'preprocess=letterbox preprocess.size=320'"
    parser.add_argument("options", nargs="+", metavar="OPTIONS", help=help_text)
    parser.add_argument("--out", type=Path, default=Path("logs/probe"), help="output folder (logs/probe)")
    options = parser.parse_args()
    log_to_terminal()
    with one_line_errors(interrupted="interrupted; probe.csv contains the finished rows"):
        from fractatlas.experiments.probe import FOLDS, probe_all

        print(probe_all(options.options, options.out))
    print(f"Cross-fitted over {FOLDS} folds of groups, training and validation subsets: {options.out / 'probe.csv'}")
