"""``fractatlas probe``: score frozen ImageNet features with a linear classifier."""

from pathlib import Path

from fractatlas.cli.errors import ArgumentParser, log_to_terminal, one_line_errors


def main() -> None:
    """Score frozen features of each set of options with cross-fitted logistic regression."""
    parser = ArgumentParser(prog="fractatlas probe", description=main.__doc__)
    parser.add_argument(
        "options", nargs="+", metavar="OPTIONS",
        help="options of train.py in quotes: 'preprocess=letterbox preprocess.size=320'",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("logs/probe"), help="output folder (logs/probe)")
    options = parser.parse_args()
    log_to_terminal()
    with one_line_errors(interrupted="interrupted; probe.csv contains the finished rows"):
        from fractatlas.experiments.probe import FOLDS, probe_all

        print(probe_all(options.options, options.out))
    print(f"Cross-fitted over {FOLDS} folds of groups, training and validation subsets: {options.out / 'probe.csv'}")
