"""``fractatlas search``: search hyperparameters with Optuna."""

import sys

from fractatlas.cli import train

HELP = """usage: fractatlas search [KEY=VALUE ...]

Search hyperparameters with Optuna: the same as fractatlas train -m hparams_search=optuna [KEY=VALUE ...].
The same command again resumes the study. Results are in logs/search/<study>/.

  hydra.sweeper.n_trials=15           trials in all
  hydra.sweeper.study_name=NAME       another study
  hydra/sweeper/sampler=tpe           tpe, gp, random, qmc
  hydra/sweeper/pruner=none           none, median, hyperband
  fractatlas train --help             all other keys"""


def main() -> None:
    """Run or resume a search."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP)
        return
    sys.argv[1:] = ["-m", "hparams_search=optuna", *(one for one in sys.argv[1:] if one not in ("-m", "--multirun"))]
    train.main()
