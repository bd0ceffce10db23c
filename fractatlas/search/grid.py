"""Hydra's sweeper of a grid: one job for each combination of values, in a folder named after its values.

The folder of a grid holds one folder for each job. ``job.json`` there records the overrides and the state of the job.
The same command in the same folder skips finished jobs, resumes stopped ones and repeats failed ones. Several processes
can run it at the same time.
"""

import gc
import hashlib
import itertools
import json
import logging
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fractatlas.config.overrides import CONF, NOT_COMPARED, as_override, recorded_settings, settings_of
from fractatlas.config.schema import EvaluateConfig, GridConfig, PredictConfig, TrainConfig
from fractatlas.config.trusted import SWITCH
from fractatlas.config.validation import differences, explain, runs_on_one_device, validate
from fractatlas.errors import InputError
from fractatlas.io import try_lock, write_text
from fractatlas.report.sweep_page import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    JOB,
    LOCK,
    RUNNING,
    STATES,
    WAITING,
    read_job,
    write_job,
    write_sweep,
)  # fmt: skip
from fractatlas.signals import INTERRUPTED as CTRL_C
from fractatlas.signals import STOPPED, check_received, exit_on_stop_signals, wait_for

log = logging.getLogger(__name__)
SCHEMAS = {"train": TrainConfig, "evaluate": EvaluateConfig, "predict": PredictConfig}
FAILURE = "failure.txt"
LONGEST_NAME = 120  # characters of a job's folder
SHOWN_REASONS = 5  # different mistakes of invalid jobs
POLL_SECONDS = 1.0


class GridStopped(SystemExit):
    """A stop signal or Ctrl-C has stopped the grid in ``folder``."""

    def __init__(self, status: int, folder: Path):
        super().__init__(status)
        self.folder = folder


@dataclass
class ComposedJob:
    """A checked job of the command.

    Attributes:
        overrides: all ``key=value`` of the job.
        axes: those of the keys that have several values in the command.
        name: of the folder, if ``hydra.sweep.subdir`` sets it.
        settings: the composed configuration, flat.
        identity: a hash; jobs with the same results have the same one.
        outputs: ``test`` and ``report``, if the job writes them.
    """

    overrides: list[str]
    axes: list[str]
    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    identity: str = ""
    outputs: set[str] = field(default_factory=set)


class GridSweeper(BasicSweeper):
    """Run the combinations of values as Hydra's sweeper does, and make the grid resumable.

    Hydra's sweeper names folders by number, starts all jobs again, composes the jobs of a batch without checking their
    values, and ends at the first failed job.
    """

    hydra_context: HydraContext
    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the grid's own configuration, and make the launcher run ``run_job``."""
        validate(config.hydra.sweeper, GridConfig)
        self.hydra_context, self.config = hydra_context, config
        self.folder = Path(config.hydra.sweep.dir)
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=partial(run_job, task_function)
        )

    def sweep(self, arguments: list[str]) -> None:
        """Check all jobs, then run those that are not finished.

        Raises:
            InputError: a job is invalid, its folder has other settings, or jobs have failed.
            GridStopped: a stop signal or Ctrl-C.
        """
        jobs = self._name_jobs(self._compose_jobs(arguments))
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        for name, job in jobs.items():
            with try_lock(self.folder / name / LOCK) as locked:
                if not locked:
                    continue
                record = read_job(self.folder / name)
                if record["state"] in (WAITING, FAILED) or job.outputs - set(record["outputs"]):
                    new = {"state": WAITING, "reason": "", "overrides": job.overrides}
                    new |= {"identity": job.identity, "outputs": sorted(job.outputs)}
                    write_job(self.folder / name, record | new)
        try:
            with exit_on_stop_signals():
                self._run(jobs)
        except (KeyboardInterrupt, SystemExit) as stop:
            self._log_result(jobs)
            raise GridStopped(STOPPED if getattr(stop, "code", None) == STOPPED else CTRL_C, self.folder) from None
        self._log_result(jobs)
        if failed := self._states(jobs).count(FAILED):
            counts = f"{failed} of {len(jobs)} jobs failed"
            raise InputError(f"{counts}: {self.folder / 'sweep.csv'} lists the reasons; repeat the command to retry")

    def _compose_jobs(self, arguments: list[str]) -> list[ComposedJob]:
        """Compose and check every job.

        Raises:
            InputError: jobs are invalid: one line for each different mistake.
        """
        params = [f"{key}={value}" for key, value in (self.params or {}).items()]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = parser.parse_overrides([*params, *arguments])
        # A deletion has no value; Hydra's sweeper would write "~key=null".
        deletions = [override.input_line or "" for override in parsed if override.is_delete()]
        try:
            (combinations,) = self.split_arguments([one for one in parsed if not one.is_delete()], None)
        except HydraException as error:
            raise InputError(f"{error}; use hparams_search=optuna for intervals") from None
        axes = {key for key, values in _values_by_key(combinations).items() if len(values) > 1}
        jobs: list[ComposedJob] = []
        mistakes: dict[str, list[str]] = {}
        for values in dict.fromkeys(map(tuple, combinations)):
            job = ComposedJob([*values, *deletions], [value for value in values if _key(value) in axes])
            try:
                self._compose(job, len(jobs))
            except (InputError, HydraException, OmegaConfBaseException) as error:
                reason = str(error) if isinstance(error, InputError) else explain(error, self._schema, CONF)
                for line in reason.splitlines():
                    mistakes.setdefault(line, []).append(" ".join(job.axes or job.overrides))
            jobs.append(job)
        if mistakes:
            raise InputError("\nerror: ".join(_describe_mistakes(mistakes)))
        return jobs

    @property
    def _schema(self) -> type:
        return SCHEMAS[self.config.hydra.job.config_name]

    def _compose(self, job: ComposedJob, number: int) -> None:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, job.overrides)
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
            config.hydra.runtime.output_dir = str(self.folder)
        HydraConfig.instance().set_config(config)
        arguments: Any = OmegaConf.to_container(self.config.hydra.overrides.hydra)  # not resolved
        typed = any(argument.startswith("hydra.sweep.subdir=") for argument in arguments)
        job.name = str(config.hydra.sweep.subdir) if typed else ""
        with open_dict(config):
            del config["hydra"]
        plain = validate(config, self._schema)
        job.settings = settings_of(config)
        job.outputs = {key for key in ("test", "report") if plain.get(key)}
        # Settings that do not change a result distinguish jobs if they have several values here.
        others = [one for one in job.axes if _key(one).startswith(NOT_COMPARED)]
        others += [one for one in job.overrides if _key(one) == "data.root" and one not in others]
        job.identity = _hash(json.dumps([job.settings, sorted(others)], sort_keys=True))

    def _name_jobs(self, composed: Sequence[ComposedJob]) -> dict[str, ComposedJob]:
        """Return the jobs by the names of their folders: recorded ones keep their folder, others get a new one.

        Raises:
            InputError: a folder was started with the same overrides, but other settings, or two jobs have one folder.
        """
        records = {
            file.parent.relative_to(self.folder).as_posix(): read_job(file.parent)
            for file in self.folder.glob(f"**/{JOB}")
        }
        recorded = {record["identity"]: name for name, record in records.items()}
        jobs: dict[str, ComposedJob] = {}
        for number, job in enumerate(composed):
            names = [job.name] if job.name else [job_name(job.axes) or str(number), job_name(job.overrides)]
            if not job.name:
                names.append(f"{names[0]}-{job.identity}")
            for name in [recorded[job.identity]] if job.identity in recorded else names:
                record = records.get(name)
                started = (self.folder / name / ".hydra" / "config.yaml").is_file()
                if record and record["identity"] != job.identity and started:
                    if set(record["overrides"]) != set(job.overrides) and not job.name:
                        continue  # a job of an earlier command
                    differing = differences(recorded_settings(self.folder / name), job.settings)
                    more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
                    changes = "; ".join(differing[:3]) + more
                    remedy = "delete the folder, or use another hydra.sweep.dir"
                    raise InputError(f"{self.folder / name} was started with other settings: {changes}; {remedy}")
                if name not in jobs:
                    jobs[name] = job
                    break
            else:
                raise InputError(f"hydra.sweep.subdir={names[0]}: two jobs have this folder; remove hydra.sweep.subdir")
        return jobs

    def _run(self, jobs: dict[str, ComposedJob]) -> None:
        """Launch the jobs until each is finished or has failed."""
        states = self._states(jobs)
        log.info("%s; results in %s", _count(states), self.folder)
        waiting = False
        while True:
            check_received()
            write_sweep(self.folder)
            states = self._states(jobs)
            running = [name for name, state in zip(jobs, states, strict=True) if state == RUNNING]
            free = [name for name, state in zip(jobs, states, strict=True) if state in (WAITING, INTERRUPTED)]
            if free:
                number = 0
                for batch in self.split_overrides_to_chunks(cast(Any, free), self.max_batch_size):
                    self._launch(cast(list[str], batch), jobs, number)
                    number += len(batch)
            elif running:
                if not waiting:
                    log.info("waiting for another process, which runs %s", "; ".join(running))
                time.sleep(POLL_SECONDS)
            else:
                return
            waiting = not free

    def _launch(self, batch: list[str], jobs: dict[str, ComposedJob], number: int) -> None:
        """Launch a batch of jobs; record a job whose process the launcher has lost as failed."""
        overrides = [
            [
                *jobs[name].overrides,
                as_override("hydra.sweep.dir", str(self.folder)),
                as_override("hydra.sweep.subdir", name),
            ]
            for name in batch
        ]
        assert self.launcher is not None
        try:
            for job in self.launcher.launch(overrides, initial_job_idx=number):
                _ = job.return_value  # raises the exception of a job that could not be started
        except Exception as error:  # for example, the system has killed the process of a job
            check_received()
            if not self._record_lost(batch, error):
                raise

    def _record_lost(self, batch: Sequence[str], error: Exception) -> int:
        """Record jobs as failed that were started and that no process runs any more; return their number."""
        lost = 0
        for name in batch:
            with try_lock(self.folder / name / LOCK) as locked:
                job = read_job(self.folder / name)
                if locked and job["state"] == RUNNING:
                    lost += 1
                    reason = f"its process ended: {_one_line(error)}"
                    write_job(self.folder / name, job | {"state": FAILED, "reason": reason})
        return lost

    def _states(self, names: Iterable[str]) -> list[str]:
        return [read_job(self.folder / name)["state"] for name in names]

    def _log_result(self, jobs: Iterable[str]) -> None:
        best = write_sweep(self.folder)
        log.info("%s", _count(self._states(jobs)))
        log.info("table: %s%s", self.folder / "sweep.html", f"; best job: {best}" if best else "")


def run_job(function: TaskFunction, config: DictConfig) -> None:
    """Run a job in its folder, or resume it there; record how it ended, and write the grid's tables again.

    Does nothing if the job is finished, or if another process runs it.
    """
    check_received()  # the launcher starts one job after the other
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    with try_lock(folder / LOCK) as locked:
        job = read_job(folder)
        if not locked or job["state"] == FINISHED:
            return
        started = time.monotonic()
        before = job["seconds"] or 0.0
        job |= {"state": INTERRUPTED, "reason": ""}
        write_job(folder, job | {"state": RUNNING})
        write_sweep(Path(hydra.sweep.dir))
        try:
            reason = _call(function, config, folder)
            job |= {"state": FAILED if reason else FINISHED, "reason": reason}
        finally:
            write_job(folder, job | {"seconds": round(before + time.monotonic() - started, 1)})
            _free_memory()
    write_sweep(Path(hydra.sweep.dir))


def job_name(values: Sequence[str]) -> str:
    """Return the name of a job's folder from its ``key=value`` overrides: ``model=resnet,seed=1``."""
    name = re.sub(r"[^\w.=,+-]", "_", ",".join(value.lstrip("+") for value in values))
    return f"{name[: LONGEST_NAME - 9]}-{_hash(name)}" if len(name) > LONGEST_NAME else name


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def _values_by_key(combinations: Iterable[Iterable[str]]) -> dict[str, set[str]]:
    values: dict[str, set[str]] = {}
    for override in itertools.chain(*combinations):
        values.setdefault(_key(override), set()).add(override)
    return values


def _call(function: TaskFunction, config: DictConfig, folder: Path) -> str:
    """Call the job's function, and return why it failed, or an empty text."""
    if "resume" in config and (folder / "split.csv").is_file():  # without it, training has not begun
        with open_dict(config):
            config.resume = str(folder)
    plain: Any = OmegaConf.to_container(config)
    try:
        if "optimizer" in config and not runs_on_one_device(plain["trainer"]):
            reason = _run_process(folder, plain[SWITCH])
        else:
            function(config)
            reason = ""
    except SystemExit as error:
        if isinstance(error.code, str):
            reason = error.code.removeprefix("error: ")
        elif error.code == STOPPED:
            raise
        else:
            raise KeyboardInterrupt from error  # Lightning turns Ctrl-C into sys.exit
    except Exception as error:
        check_received()
        reason = _one_line(error)
        if not isinstance(error, InputError):
            write_text(folder / FAILURE, traceback.format_exc())
    if reason:
        log.error("job %s failed: %s", folder.name, reason)
    return reason


def _run_process(folder: Path, trusted_targets: Sequence[str]) -> str:
    """Train on several devices in a process of its own; return why it failed, or an empty text.

    Lightning repeats the command of its process for each further device; here, it would repeat the grid.
    """
    command = [sys.executable, "-m", "fractatlas", "train", f"resume={folder}"]
    command.append(f"{SWITCH}=[{','.join(trusted_targets)}]")  # a run folder's own list does not count
    with (folder / FAILURE).open("w+", encoding="utf-8") as errors, subprocess.Popen(command, stderr=errors) as child:
        status = wait_for(child)
        errors.seek(0)
        lines = errors.read().strip().splitlines() or [f"the process of the job ended with status {status}"]
    if status == STOPPED:
        raise SystemExit(STOPPED)
    if status == CTRL_C:
        raise KeyboardInterrupt
    return lines[-1].removeprefix("error: ") if status else ""


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split()) or "no message"
    if isinstance(error, InputError):
        return message
    if isinstance(error, MemoryError) or "out of memory" in message or "can't allocate memory" in message:
        return f"out of memory: {message}"
    return f"{type(error).__name__}: {message}"


def _describe_mistakes(mistakes: dict[str, list[str]]) -> Iterator[str]:
    """Yield a line for each mistake, with the first job that has it."""
    for reason, jobs in list(mistakes.items())[:SHOWN_REASONS]:
        others = len(jobs) - 1
        more = f" (and {others} more job{'s' if others > 1 else ''})" if others else ""
        yield f"job {jobs[0]}{more}: {reason}" if jobs[0] else reason
    if len(mistakes) > SHOWN_REASONS:
        yield f"{len(mistakes) - SHOWN_REASONS} more mistakes in other jobs"


def _count(states: Sequence[str]) -> str:
    """Return ``6 jobs: 2 finished, 4 waiting``."""
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    return f"{len(states)} job{'' if len(states) == 1 else 's'}: {counts}"


def _free_memory() -> None:
    """Free the memory of the job before the next one starts in this process."""
    gc.collect()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
