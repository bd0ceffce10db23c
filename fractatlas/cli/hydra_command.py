"""Run a function as a Hydra command with checked arguments."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from fractatlas.cli.errors import one_line_errors
from fractatlas.config.overrides import CONF, MULTIRUN, prepare
from fractatlas.config.validation import validate
from fractatlas.errors import InputError

# Keys of ``trainer`` that only a training uses, and those that only Lightning's loops use, which ``predict`` does not.
TRAINING_KEYS = dict.fromkeys(
    [f"trainer.{name}" for name in (
        "max_epochs", "min_epochs", "accumulate_grad_batches", "gradient_clip_val", "limit_train_batches",
        "check_val_every_n_epoch", "log_every_n_steps", "num_sanity_val_steps", "sync_batchnorm",
        "enable_model_summary")],
    "here, it applies to training only",
)  # fmt: skip
LOOP_KEYS = dict.fromkeys(
    [f"trainer.{name}" for name in (
        "limit_val_batches", "limit_test_batches", "overfit_batches", "detect_anomaly", "profiler")],
    "here, it applies to training and scoring only",
)  # fmt: skip


def run(verb: str, schema_class: type, function: Callable[[dict[str, Any]], Any]) -> None:
    """Compose ``conf/<verb>.yaml`` with the arguments of ``sys.argv``, check it, and call ``function`` with it.

    ``function`` takes the plain configuration. In a multirun, Hydra calls it for each job and passes its return value
    to the sweeper.
    """

    def job(config: DictConfig) -> Any:
        # Here as well as around Hydra, because Hydra prints a line of its own for an exception that leaves the job.
        with one_line_errors(schema_class):
            return function(validate(config, schema_class))

    logging.raiseExceptions = False  # otherwise a full disk prints a traceback for every log line
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its exceptions instead of printing them
    with one_line_errors(schema_class):
        sys.argv[1:] = prepare(sys.argv[1:], schema_class)
        if MULTIRUN & set(sys.argv):
            from fractatlas.search.sweeper import ResumableSweeper

            Plugins.instance().register(ResumableSweeper)  # Hydra itself finds only plugins in hydra_plugins
        job.__module__ = function.__module__  # names the job, and with it the log file
        hydra.main(config_path=str(CONF), config_name=verb)(job)()


def refuse_overrides(reasons: Mapping[str, str]) -> None:
    """Refuse arguments of the current command that would have no effect.

    Args:
        reasons: for each such key or group of keys, where and why it has no effect.

    Raises:
        InputError: an argument sets one of the keys.
    """
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0]
        for name, reason in reasons.items():
            if key == name or key.startswith(f"{name}."):
                raise InputError(f"{override}: no effect {reason}; remove it")
