"""What a command line needs around Hydra: values taken literally, mistakes answered in one line."""

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fractatlas.config import TrainConfig, check, parts, typed_paths, unknown_key
from fractatlas.errors import InputError
from fractatlas.search.sweeper import StudySweeper
from fractatlas.signals import INTERRUPTED


@contextmanager
def command_line(schema: type) -> Iterator[None]:
    """Run an entry point: prepare ``sys.argv`` for Hydra, and answer a user's mistake in one line.

    Args:
        schema: the configuration's dataclass, for the names that a misspelt key may have meant.
    """
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback at every line
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions on instead of printing and exiting
    Plugins.instance().register(StudySweeper)  # Hydra finds by itself only what lies in hydra_plugins
    with one_line_errors(schema):
        sys.argv[1:] = prepare(sys.argv[1:], schema)
        yield


@contextmanager
def one_line_errors(
    schema: type, interrupted: str = "interrupted: nothing half written, nothing to resume"
) -> Iterator[None]:
    """Turn what a user can mend into one line on stderr and exit status 1, Ctrl-C into ``interrupted`` and 130.

    Wrapped around the job as well as around Hydra, because Hydra adds a line of its own to an exception that
    leaves the job.
    """
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {_explain(error, schema)}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read has enough
    except OSError as error:
        sys.exit(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(INTERRUPTED)


CONF = Path(__file__).parents[1] / "conf"
# Hydra's own flags that are followed by a value.
VALUED = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p",
          "--experimental-rerun")  # fmt: skip
# What may change when a run is gone on with: how long, where and how fast, never what is learnt from what.
RESUMABLE = ("resume", "test", "report", "trainer.max_epochs", "trainer.accelerator", "trainer.devices", "data.root",
             "data.cache", "data.cache_dir", "data.num_workers", "data.pin_memory")  # fmt: skip


def prepare(arguments: Sequence[str], schema: type) -> list[str]:
    """Quote what Hydra's grammar would refuse, and send ``resume=<run folder>`` back into that folder.

    The values of ``typed_paths`` are paths whatever they look like, unless a multirun sweeps over them.

    Raises:
        InputError: an argument cannot be meant, or the run folder cannot be resumed, or not with these arguments.
    """
    folder, groups = None, parts(schema)
    arguments = list(_joined(arguments))
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not argument.startswith(("-", "~")) and not equals:
            raise InputError(f"{argument}: should be key=value; --help lists the keys")
        if key in groups and value in ("", "null"):
            raise InputError(f"{argument}: name one of the choices that --help lists")
        if key.lstrip("+") == "resume" and value != "null":
            # In quotes where Lightning starts a second process with what this function gave the first.
            folder = OverridesParser.create().parse_override(argument).value() if _in_quotes(value) else value
    paths = set() if {"-m", "--multirun"} & set(arguments) else typed_paths(schema)
    quoted = [_quote(argument, paths) for argument in arguments]
    return quoted if folder is None else _resume(folder, quoted)


def composed(options: Sequence[str]) -> dict[str, Any]:
    """The checked configuration of ``train.py`` with these options, plain; its folders are those of here.

    Raises:
        InputError: an option cannot be meant.
    """
    try:
        with initialize_config_dir(str(CONF)):
            overrides = [*prepare(options, TrainConfig), "paths.root=.", "paths.output_dir=."]
            return check(compose("train", overrides), TrainConfig)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_explain(error, TrainConfig)) from None


def _joined(arguments: Sequence[str]) -> Iterator[str]:
    """Give ``--config-dir DIR`` as ``--config-dir=DIR``, and all else as it is."""
    waiting = ""
    for argument in arguments:
        if waiting:
            yield f"{waiting}={argument}"
            waiting = ""
        elif argument in VALUED:
            waiting = argument
        else:
            yield argument
    if waiting:
        yield waiting


def _resume(folder: str, arguments: list[str]) -> list[str]:
    run = Path(folder).absolute()
    if not folder or not (run / ".hydra" / "config.yaml").is_file():
        raise InputError(f"resume={folder}: not a run folder (no .hydra/config.yaml in it)")
    if {"-m", "--multirun"} & set(arguments):
        raise InputError(f"resume={folder} is one run: take out -m")
    kept = []
    for argument in arguments:
        key = argument.lstrip("+").partition("=")[0]
        # Lightning starts the other processes of a run with what this returned, and keys of Hydra's own.
        if key.startswith(("hydra.", "paths.root", "--config-")):
            kept.append(argument)
        elif key not in RESUMABLE:
            raise InputError(
                f"resume={folder} goes on with the run's own configuration: take out {argument}; "
                f"{', '.join(RESUMABLE[1:])} may be given"
            )
        elif key != "resume":
            kept.append(argument)
    hydra = OmegaConf.load(run / ".hydra" / "hydra.yaml").hydra
    lines = OmegaConf.select(hydra, "job_logging.formatters.simple", default={})  # there are none without logs
    return [
        f"--config-path={run / '.hydra'}",
        "--config-name=config",
        _literal("resume", str(run)),
        _literal("paths.root", hydra.runtime.cwd),
        _literal("hydra.run.dir", str(run)),
        "hydra.output_subdir=null",
        *(_literal(f"++hydra.job_logging.formatters.simple.{name}", value) for name, value in lines.items()),
        *kept,
    ]


def _quote(argument: str, paths: set[str]) -> str:
    """``key=value`` as it is where Hydra's grammar reads it, otherwise with the value in quotes."""
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not equals:
        return argument
    try:
        parsed = OverridesParser.create().parse_override(argument)
    except HydraException:
        parsed = None
    if key.lstrip("+") in paths:
        # In quotes already: for Hydra by the user's hand, or by ours, where Lightning starts a second process.
        if parsed and _in_quotes(value) and not parsed.is_sweep_override():
            return argument
        return _literal(key, _path(value))
    return argument if parsed else _literal(key, value)


def _in_quotes(value: str) -> bool:
    return len(value) > 1 and value[0] in ("'", '"') and value[-1] == value[0]


def _path(value: str) -> str:
    """The home folder for a leading ``~``, and no interpolation where a name happens to hold ``${``."""
    home = os.path.expanduser("~") + value[1:] if value == "~" or value.startswith("~/") else value
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", home)


def _literal(key: str, value: str) -> str:
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + match[2].replace("'", r"\'"), value)
    return f"{key}='{escaped}'"


def _explain(error: Exception, schema: type) -> str:
    """Hydra's several lines as one."""
    text = str(error)
    if match := re.match(r"Could not override '([^']+)'", text):
        return unknown_key(match[1].partition("@")[0], schema)
    if match := re.search(
        r"Could not find '([^']+)/([^'/]+)'\s+Available options in '[^']+':\s*(.*?)\n(?!\s)", text, re.DOTALL
    ):
        ours = [choice for choice in match[3].split() if (CONF / match[1] / f"{choice}.yaml").is_file()]
        return f"{match[1]}={match[2]}: no such choice; there are {', '.join(ours or match[3].split())}"
    if match := re.match(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: one value, or -m for a run with each; in quotes where the comma belongs to it"
    if text.startswith("Missing mandatory value"):
        return f"{error.full_key} needs a value: {error.full_key}=..."
    return " ".join(text.split("\n")[0].split())
