"""``fractatlas train`` and ``search``: fine-tune a network, or search hyperparameters."""

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from fractatlas.cli import hydra_command
from fractatlas.cli.runs import write_page
from fractatlas.config.schema import TrainConfig
from fractatlas.errors import InputError
from fractatlas.progress_bar import waiting
from fractatlas.signals import exit_on_stop_signals
from fractatlas.training.silence_warnings import quieten

log = logging.getLogger(__name__)
TRACKERS = {"mlflow": "mlflow-skinny", "wandb": "wandb"}  # module: package
SEARCH_HELP = """usage: fractatlas search [KEY=VALUE ...]

Search hyperparameters with Optuna: the same as fractatlas train -m hparams_search=optuna [KEY=VALUE ...].
Repeat the command to resume the study. Results are in logs/search/<study>/.

  hydra.sweeper.n_trials=15           trials in all
  hydra.sweeper.study_name=NAME       another study
  hydra/sweeper/sampler=tpe           tpe, gp, random, qmc
  hydra/sweeper/pruner=none           none, median, hyperband
  fractatlas train --help             all other keys"""


def train() -> None:
    """Fine-tune a network; with ``-m``, train one network for each job."""
    hydra_command.run("train", TrainConfig, _train, _check)


def search() -> None:
    """Run or resume a search."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(SEARCH_HELP)
        return
    sys.argv[1:] = ["-m", "hparams_search=optuna", *(one for one in sys.argv[1:] if one not in ("-m", "--multirun"))]
    train()


def _check(config: dict[str, Any]) -> None:
    """Check the data folder, the packages of the trackers, the table of the split and the file of the weights."""
    from fractatlas.data.sources.registry import open_source
    from fractatlas.data.splits import read_split
    from fractatlas.models.weight_files import find_weights

    data, model, resume = config["data"], config["model"], config["resume"]
    open_source(data).require()
    hydra_command.require_accelerator(config["trainer"])
    for module, package in TRACKERS.items():
        if config["logger"].get(module) and importlib.util.find_spec(module) is None:
            raise InputError(f"logger={module} needs {package}: pip install {package}")
    table = config["split"].get("path") or config["split"].get("previous")
    if table and not (resume and (Path(resume) / "split.csv").is_file()):  # a resumed run uses its own split
        read_split(Path(table))
    if {"weights", "weights_dir", "variant"} <= model.keys():
        find_weights(model["variant"], model["weights"], model["weights_dir"])


def _train(config: dict[str, Any]) -> float:
    quieten()
    run = Path(config["paths"]["output_dir"])
    log.info("run folder: %s", run)
    with waiting("loading PyTorch"):  # after the checks, because it is slow to import
        from lightning.pytorch.utilities import rank_zero_only

        from fractatlas.training import fit

    multirun = HydraConfig.get().mode == RunMode.MULTIRUN  # the grid prints how to resume all of its jobs
    resume = [f"resume={run}"]
    if config["trusted_targets"]:
        resume.append(f"trusted_targets=[{','.join(config['trusted_targets'])}]")
    with exit_on_stop_signals("" if multirun else hydra_command.command_line("train", resume)):
        best = fit.train(config)
        if config["report"] and (run / "metrics.json").is_file():
            rank_zero_only(write_page)(run)
        return best
