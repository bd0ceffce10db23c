"""Run a function as a Hydra command with checked arguments."""

import ctypes
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from fractatlas.cli.errors import one_line_errors
from fractatlas.config.overrides import CONF, as_override, compose_with_hydra, is_multirun, prepare
from fractatlas.config.validation import validate
from fractatlas.errors import InputError
from fractatlas.evaluation.run_folder import best_checkpoint, best_checkpoints
from fractatlas.io import run_lock
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
HELP = {"-h", "--help"}
# With these options, Hydra starts one run; every other option prints something or starts several runs.
RUN_OPTIONS = ("--config-dir=", "--config-path=", "--config-name=", "--run", "-r")
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # environment variables: the number of a process of one run


def run(
    verb: str,
    schema_class: type,
    function: Callable[[dict[str, Any]], Any],
    check: Callable[[dict[str, Any]], None] = lambda config: None,
    hidden: Collection[str] = (),
) -> None:
    """Compose ``conf/<verb>.yaml`` with the arguments of ``sys.argv``, check it, and call ``function`` with it.

    One run is checked before Hydra writes anything. A run that is refused later, before it has written a file, leaves
    no run folder behind.

    Args:
        verb: the name of the command.
        schema_class: of its configuration.
        function: takes the plain configuration. In a multirun, Hydra calls it for each job.
        check: takes the plain configuration, and raises ``InputError`` for what can be checked without torch and
            without reading images. It is called before ``function``.
        hidden: keys that ``--help`` does not show.
    """
    typed, multirun = list(sys.argv[1:]), is_multirun(sys.argv[1:])
    existed: set[Path] | None = None

    def job(config: DictConfig) -> Any:
        if multirun:  # the grid records an exception as the reason of the failure
            plain = validate(config, schema_class)
            check(plain)
            return function(plain)
        # Here as well as around Hydra, because Hydra prints a line of its own for an exception that leaves the job.
        with one_line_errors(schema_class), _remove_if_refused(verb, existed):
            log_above_bars()
            plain = validate(config, schema_class)
            check(plain)
            return function(plain)

    logging.raiseExceptions = False  # otherwise a full disk prints a traceback for every log line
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its exceptions instead of printing them
    with one_line_errors(schema_class):
        arguments = prepare(sys.argv[1:], schema_class)
        if HELP & set(arguments):
            from fractatlas.cli.help import help_text

            print(help_text(verb, schema_class, arguments, hidden))
            return
        if not multirun and is_first_process() and (folder := _check_one_run(verb, schema_class, check, arguments)):
            existed = {path for path in (folder, *folder.parents, *_files(folder)) if path.exists()}
            if not any(argument.startswith("hydra.run.dir=") for argument in arguments):
                arguments.append(as_override("hydra.run.dir", str(folder)))  # the folder that was checked
        sys.argv[1:] = arguments
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


def is_first_process() -> bool:
    """Return whether this process is not one of the further processes of a run."""
    return all(os.environ.get(name, "0") in ("", "0") for name in RANKS)


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


def require_files(config: Mapping[str, Any], *keys: str) -> None:
    """Require that the files exist that the keys of a plain configuration name; ``None`` names no file.

    Raises:
        InputError: a file does not exist.
    """
    for key in keys:
        if config[key] is not None and not Path(config[key]).is_file():
            raise InputError(f"{key}={config[key]}: no such file; correct the path")


def require_checkpoint(config: Mapping[str, Any], several: bool = False) -> None:
    """Require that ``ckpt`` of a plain configuration is a checkpoint or a run folder with one.

    Args:
        config: of the command.
        several: whether ``ckpt`` can also be a list, and the folder of a cross-validation.

    Raises:
        InputError: a checkpoint does not exist.
    """
    for given in [config["ckpt"]] if isinstance(config["ckpt"], str) else config["ckpt"]:
        files = best_checkpoints(Path(given)) if several else [best_checkpoint(Path(given))]
        if not all(file.is_file() for file in files):
            raise InputError(f"ckpt={given}: no such file; correct the path")


def require_accelerator(trainer: Mapping[str, Any]) -> None:
    """Require the driver of the accelerator of a plain ``Trainer`` configuration, as far as known without torch.

    Raises:
        InputError: this machine cannot have the accelerator.
    """
    accelerator, remedy = trainer["accelerator"], "use trainer=cpu or trainer=auto"
    if accelerator == "mps" and sys.platform != "darwin":
        raise InputError(f"trainer.accelerator=mps: only a Mac has it; {remedy}")
    if accelerator in ("gpu", "cuda") and sys.platform == "linux" and not Path("/dev/kfd").exists():  # AMD's driver
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise InputError(f"trainer.accelerator={accelerator}: no GPU driver on this machine; {remedy}") from None


def _check_one_run(
    verb: str, schema_class: type, check: Callable[[dict[str, Any]], None], arguments: Sequence[str]
) -> Path | None:
    """Check the run that Hydra would start; return its folder, or ``None`` if Hydra would not start one run."""
    if any(argument.startswith("-") and not argument.startswith(RUN_OPTIONS) for argument in arguments):
        return None
    config = compose_with_hydra(verb, arguments)
    if config.hydra.mode == RunMode.MULTIRUN:
        raise InputError("this configuration starts several runs: add -m (or use fractatlas search)")
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(config)  # for interpolations such as ${hydra:runtime.cwd}
        folder = Path(config.hydra.run.dir).absolute()
        with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(config)
        task = config.copy()
        with read_write(task), open_dict(task):
            del task["hydra"]
        plain = validate(task, schema_class)
        check(plain)
        if not plain.get("resume"):
            _check_run_folder(verb, folder)
    finally:
        HydraConfig.instance().cfg = before
    return folder


def _check_run_folder(verb: str, folder: Path) -> None:
    """Refuse a folder whose results the command would overwrite.

    A folder without results is accepted, so that a command that was stopped early can be repeated.
    """
    if (folder / ".lock").is_file():
        with run_lock(folder):
            pass
    found = {
        name for name in ("metrics.json", "predictions.csv", "split.csv", "checkpoints") if (folder / name).exists()
    }
    trained, is_training = found & {"checkpoints"}, verb == "train"
    if verb == "evaluate" and "split.csv" in found and not found & {"metrics.json", "checkpoints"}:
        return  # an evaluation that was stopped is repeated
    if not found:
        return
    resume = command_line("train", [f"resume={folder}"])
    if is_training and trained and "metrics.json" not in found:
        raise InputError(
            f"hydra.run.dir={folder}: contains an unfinished run; resume it ({resume}), or use another folder"
        )
    if is_training and trained:
        more = f"{resume} trainer.max_epochs=N"
        raise InputError(
            f"hydra.run.dir={folder}: contains a finished run; use another folder, or train longer ({more})"
        )
    raise InputError(f"hydra.run.dir={folder}: contains results ({', '.join(sorted(found))}); use another folder")


@contextmanager
def _remove_if_refused(verb: str, existed: set[Path] | None) -> Iterator[None]:
    """Remove the run folder if the block raises an error of the user before it has written anything there.

    Args:
        verb: the name of the command, and of its log file.
        existed: the run folder, its parents and its content, as far as they existed before; ``None`` removes nothing.
    """
    try:
        yield
    except (InputError, HydraException, OmegaConfBaseException):
        if existed is not None:
            folder = Path(HydraConfig.get().runtime.output_dir)
            new = [path for path in _files(folder) if path not in existed]
            if {path.name for path in new} <= {".hydra", ".lock", f"{verb}.log"}:
                for path in new:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                with suppress(OSError):  # a folder that is not empty
                    for parent in (folder, *folder.parents):
                        if parent in existed:
                            break
                        parent.rmdir()
        raise


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
