"""``fractatlas plan``, ``crossval`` and ``probe``: experiments of several trainings or of frozen features."""

import sys
from argparse import ArgumentTypeError
from pathlib import Path

from fractatlas.cli.errors import ArgumentParser, log_to_terminal, one_line_errors

CROSSVAL_HELP = """usage: fractatlas crossval [folds=K] [seeds=[N,...]] [out=DIR] [KEY=VALUE ...]

Cross-validate a training: split the groups of images into folds, train one network for each fold and seed, and predict
each image with the network that was trained without its group. Repeat the command to resume.

  folds=5            number of folds; each is the test subset once, and the next one the validation subset
  seeds=[1,2]        seeds of the trainings (the seed of the configuration); more seeds can be added later
  out=DIR            folder for the plan, runs, tables and pages (logs/crossval/<experiment, or task_name>)
  experiment=NAME    and all other keys of fractatlas train, without -m

DIR/recipes.md has the scores of all images together, DIR/runs.md those of each seed and fold, and DIR/pooled the report
page. predict ckpt=DIR averages all networks."""


def plan() -> None:
    """Train, score and tabulate the runs of a plan; repeat the command to resume."""
    parser = ArgumentParser(prog="fractatlas plan", description=plan.__doc__)
    parser.add_argument("plan", type=Path, metavar="PLAN", help="a plan in experiments/, or refit.yaml of a search")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="one recipe, variant or step; repeatable"
    )
    parser.add_argument("--out", type=Path, help="folder for the tables (a folder in the plan's folder, with its name)")
    parser.add_argument("--logs", type=Path, help="folder for the runs (logs/plans/<folder of the plan>/<plan>)")
    help_text = "train nothing: write the records of finished runs, and all tables and figures from the records"
    parser.add_argument("--tables", action="store_true", help=help_text)
    help_text = "runs at the same time (1); the output of each is then in plan.log in its folder"
    parser.add_argument("--jobs", type=_jobs, default=1, metavar="N", help=help_text)
    options = parser.parse_args()
    log_to_terminal()
    with one_line_errors(interrupted="interrupted; repeat the command to resume the plan"):
        from fractatlas.experiments.plan import run_plan

        out = run_plan(options.plan, options.out, options.logs, options.only, options.tables, options.jobs)
        _print_tables(out)


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text} should be a number of at least 1")
    return int(text)


def crossval() -> None:
    """Cross-validate a training over folds of groups; repeat the command to resume."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(CROSSVAL_HELP)
        return
    log_to_terminal()
    with one_line_errors(interrupted="interrupted; repeat the command to resume"):
        from fractatlas.experiments.crossval import write_plan
        from fractatlas.experiments.plan import run_plan

        plan = write_plan(sys.argv[1:])
        _print_tables(run_plan(plan, plan.parent, plan.parent / "runs"))


def _print_tables(out: Path) -> None:
    for file in sorted(out.glob("*.md")):
        print(file.read_text(encoding="utf-8"))
    for page in sorted(out.glob("pooled/*/report.html")):
        print(f"Report: {page}")
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
