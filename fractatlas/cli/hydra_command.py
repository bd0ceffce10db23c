"""Run a function as a Hydra command with checked arguments."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from fractatlas.cli.errors import one_line_errors
from fractatlas.config.overrides import CONF, MULTIRUN, prepare
from fractatlas.config.validation import validate


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
