"""One trial: train with its configuration, report every epoch to the study, and store the result there.

A trial on one device runs in the process of the search. A trial on several devices runs in a process of its own,
``python -m fractatlas.search.trial FOLDER``: Lightning repeats the command of its process for each further device; in
the process of the search, it would repeat the command of the search.
"""

import gc
import json
import logging
import math
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import lightning
import optuna
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from optuna.trial import TrialState

from fractatlas.config.schema import TrainConfig
from fractatlas.config.validation import runs_on_one_device, validate
from fractatlas.errors import InputError
from fractatlas.io import write_json
from fractatlas.report.report_page import write_report
from fractatlas.search import report, storage
from fractatlas.signals import STOPPED, check_received
from fractatlas.training.fit import train
from fractatlas.training.resume import LAST

log = logging.getLogger(__name__)
TRIAL = "FRACATLAS_TRIAL"  # environment variable of a trial's own process: the search's configuration and the number
CONFIG, FAILURE = "trial.json", "failure.txt"


class ReportToStudy(Callback):
    """Report ``monitor`` to the study after every epoch, and stop a pruned trial.

    ``trial`` is ``None`` on all processes but the first.
    """

    def __init__(self, trial: optuna.Trial | None, monitor: str):
        self.trial, self.monitor = trial, monitor

    def on_validation_end(self, trainer: lightning.Trainer, classifier: lightning.LightningModule) -> None:
        """Report the epoch; stop on all processes if the pruner stops the trial."""
        epoch = trainer.current_epoch + 1
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        stop = False
        if self.trial:
            self.trial.report(float(trainer.callback_metrics[self.monitor]), epoch)
            if stop := epoch < (trainer.max_epochs or 0) and self.trial.should_prune():
                self.trial.set_user_attr(report.PRUNED, epoch)
                log.info("pruned after epoch %d", epoch)
        if trainer.strategy.broadcast(stop):
            trainer.should_stop = True


def run_trial(search: dict[str, Any], config: DictConfig) -> float | None:
    """Run the trial whose number is the name of its folder; store a failure in the study instead of raising it.

    A trial that has ended is not trained: a cluster can start the job of a lost node again after the trial was
    repeated, or after its result was stored.

    ``search`` is a checked ``SearchConfig``, plain.

    Returns:
        The value of the metric; ``None`` after a failure.
    """
    check_received()  # the launcher starts one trial after the other
    number = int(HydraConfig.get().sweep.subdir)
    trial = storage.load_trial(search, number)
    stored = trial.study.get_trials(deepcopy=False)[number]
    if stored.state.is_finished():
        log.warning("trial %d: not trained, because the study has it as %s", number, stored.state.name.lower())
        return stored.value
    try:
        plain = validate(config, TrainConfig)
        trial.set_user_attr("seed", plain["seed"])
        run = Path(plain["paths"]["output_dir"])
        if plain["callbacks"]["last"] and (run / "checkpoints" / LAST).is_file():
            plain["resume"] = str(run)  # a cluster has ended the job of this trial and started it again
        if runs_on_one_device(plain["trainer"]):
            train(plain, [ReportToStudy(trial, plain["monitor"])])
        else:
            _run_process(search, plain, run, number)
        if plain["report"]:
            write_report(run)
        return _store_result(trial, json.loads((run / "metrics.json").read_text(encoding="utf-8")))
    except Exception as error:
        check_received()
        log.error("trial %d failed: %s", number, reason := _describe(error))
        if not isinstance(error, InputError):
            (Path(HydraConfig.get().runtime.output_dir) / FAILURE).write_text(traceback.format_exc(), "utf-8")
        trial.set_user_attr(storage.REASON, reason)
        trial.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        return None
    except SystemExit as error:
        if error.code == STOPPED:
            raise
        raise KeyboardInterrupt from error  # Lightning turns Ctrl-C into sys.exit
    finally:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _run_process(search: dict[str, Any], config: dict[str, Any], run: Path, number: int) -> None:
    write_json(run / CONFIG, config)
    command = [sys.executable, "-m", "fractatlas.search.trial", str(run)]
    status = subprocess.run(command, env=os.environ | {TRIAL: json.dumps([search, number])}, check=False).returncode
    if status:
        failure = run / FAILURE
        reason = failure.read_text(encoding="utf-8").splitlines()[-1] if failure.is_file() else None
        raise ChildProcessError(reason or f"a process of the trial ended with status {status}")


def _store_result(trial: optuna.Trial, metrics: dict[str, Any]) -> float:
    monitor = metrics["monitor"]
    value: float = monitor["value"]
    if not math.isfinite(value):
        raise InputError(f"{monitor['name']} is {value}: the training diverged; lower optimizer.lr")
    best: dict[str, Any] = next((row for row in metrics["history"] if row["epoch"] == monitor["epoch"]), {})
    for name in (*report.SCORES, report.MAJORITY_RATE):
        trial.set_user_attr(name, best.get(name))
    accuracy = metrics["val"]["accuracy"]
    # Its threshold is that of the rule ``threshold``; the metrics of an epoch have the threshold 0.5.
    if math.isclose(accuracy["value"], best.get(report.ACCURACY, math.nan), abs_tol=1e-6):
        trial.set_user_attr(report.INTERVAL, [accuracy["low"], accuracy["high"]])
    trial.set_user_attr(storage.SECONDS, metrics["timing"]["total_seconds"])
    pruned = report.PRUNED in trial.user_attrs
    state = TrialState.PRUNED if pruned else TrialState.COMPLETE
    stored = trial.study.tell(trial.number, None if pruned else value, state=state, skip_if_finished=True)
    if stored.state == TrialState.FAIL:
        log.warning("trial %d: not used, because another process marked it as interrupted (no heartbeat)", trial.number)
    return value


def _describe(error: Exception) -> str:
    message = " ".join(str(error).split()) or "no message"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in message:
        return f"out of memory: {message}"
    return message if isinstance(error, InputError) else f"{type(error).__name__}: {message}"


def main() -> None:
    """Train the trial in the folder ``sys.argv[1]``; the first process reports to the study."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    run = Path(sys.argv[1])
    config = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0
    trial = storage.load_trial(*json.loads(os.environ[TRIAL])) if first else None
    try:
        train(config, [ReportToStudy(trial, config["monitor"])])
    except Exception as error:
        (run / FAILURE).write_text(f"{traceback.format_exc()}\n{_describe(error)}\n", encoding="utf-8")
        sys.exit(1)


if __name__ == "__main__":
    main()
