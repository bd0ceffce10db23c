"""Print mistakes and interruptions in one line, with an exit status."""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import rich
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fractatlas.config.overrides import CONF
from fractatlas.config.schema import TrainConfig
from fractatlas.config.validation import explain
from fractatlas.errors import InputError
from fractatlas.progress_bar import TerminalHandler
from fractatlas.signals import INTERRUPTED, exit_on_stop_signals


class ArgumentParser(argparse.ArgumentParser):
    """Report wrong arguments in one line, and exit with status 1 as after any other mistake."""

    def error(self, message: str) -> NoReturn:
        """Print the message and how to get help."""
        sys.exit(f"error: {message}; {self.prog} --help describes the arguments")


@contextmanager
def one_line_errors(schema_class: type = TrainConfig, interrupted: str = "interrupted") -> Iterator[None]:
    """Print what a user can correct in one line on stderr and exit with status 1.

    Ctrl-C prints ``interrupted`` and exits with status 130. Suggestions of similar keys are those of ``schema_class``.
    """
    try:
        with exit_on_stop_signals():  # raises a stop signal instead of the error that it has caused
            yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error, schema_class, CONF)}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of the output has closed it
    except OSError as error:
        remedy = "free some space" if error.errno == errno.ENOSPC else "correct the path or its permissions"
        sys.exit(f"error: {error.filename}: {error.strerror}; {remedy}" if error.filename else f"error: {error}")
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(INTERRUPTED)


def log_to_terminal() -> None:
    """Log messages with the time, as Hydra's commands do, and show bars, both on stderr."""
    rich.reconfigure(stderr=True)
    line = "%(asctime)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=line, datefmt="%H:%M:%S", handlers=[TerminalHandler()])
