"""Run a function as a Hydra command with checked arguments."""

import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from fractatlas.cli.errors import one_line_errors
from fractatlas.config.overrides import CONF, as_override, is_multirun, prepare
from fractatlas.config.validation import validate
from fractatlas.errors import InputError
from fractatlas.progress_bar import log_above_bars

log = logging.getLogger(__name__)

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

    ``function`` takes the plain configuration. In a multirun, Hydra calls it for each job.
    """
    typed, multirun = list(sys.argv[1:]), is_multirun(sys.argv[1:])

    def job(config: DictConfig) -> Any:
        if multirun:  # the grid records an exception as the reason of the failure
            return function(validate(config, schema_class))
        # Here as well as around Hydra, because Hydra prints a line of its own for an exception that leaves the job.
        with one_line_errors(schema_class):
            log_above_bars()
            return function(validate(config, schema_class))

    logging.raiseExceptions = False  # otherwise a full disk prints a traceback for every log line
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its exceptions instead of printing them
    with one_line_errors(schema_class):
        sys.argv[1:] = prepare(sys.argv[1:], schema_class)
        job.__module__ = function.__module__  # names the job, and with it the log file
        command = hydra.main(config_path=str(CONF), config_name=verb)(job)
        if not multirun:
            command()
            return
        from fractatlas.search.grid import GridStopped, GridSweeper
        from fractatlas.search.sweeper import ResumableSweeper

        for sweeper in (GridSweeper, ResumableSweeper):
            Plugins.instance().register(sweeper)  # Hydra itself finds only plugins in hydra_plugins
        try:
            command()
        except GridStopped as stop:
            if not any(argument.startswith("hydra.sweep.dir=") for argument in typed):
                typed.append(as_override("hydra.sweep.dir", str(stop.folder)))
            log.info("stopped; to resume: %s", command_line(verb, typed))
            raise SystemExit(stop.code) from None


def command_line(verb: str, arguments: Sequence[str]) -> str:
    """Return the command of this process with other arguments, quoted for a shell."""
    script = Path(sys.argv[0])
    is_script = script.suffix == ".py" and script.name != "__main__.py"
    typed = ["python", str(script)] if is_script else ["fractatlas", verb]
    return shlex.join([*typed, *arguments])


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
