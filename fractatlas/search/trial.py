"""One trial: train under its configuration, report every epoch, and tell the study how it ended.

A trial on one device runs in the sweep's own process, which has loaded everything already. One on several devices gets
a process of its own, ``python -m fractatlas.search.trial FOLDER``, which Lightning starts again for every further
device: started from the sweep, it would start the sweep again. A device that fails then takes the trial down, not the
sweep.
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
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from optuna.trial import TrialState

from fractatlas.config import TrainConfig, check
from fractatlas.errors import InputError
from fractatlas.files import write_json
from fractatlas.search import storage
from fractatlas.training.run import train

log = logging.getLogger(__name__)
JOIN = "FRACATLAS_TRIAL"
CONFIG, FAILURE = "trial.json", "failure.txt"
PRUNED = "pruned after epoch"


class ReportToStudy(Callback):
    """Report ``monitor`` to the study after every epoch, and stop a trial that the pruner gives up.

    Args:
        trial: on the first process; the others, without one, stop when it does.
        monitor: the metric's name.
    """

    def __init__(self, trial: optuna.Trial | None, monitor: str):
        self.trial, self.monitor = trial, monitor

    def on_validation_end(self, trainer: lightning.Trainer, classifier: lightning.LightningModule) -> None:
        """Report, and agree with all processes on whether to stop."""
        epoch = trainer.current_epoch + 1
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        stop = False
        if self.trial:
            self.trial.report(float(trainer.callback_metrics[self.monitor]), epoch)
            if stop := epoch < trainer.max_epochs and self.trial.should_prune():
                self.trial.set_user_attr(PRUNED, epoch)
                log.info("pruned after epoch %d", epoch)
        if trainer.strategy.broadcast(stop):
            trainer.should_stop = True


class RunTrial:
    """What the launcher calls for every trial; it can be sent to another process.

    Args:
        url: the study's storage.
        study_name: the study.
        lease: seconds.
        pruner: its configuration.
    """

    def __init__(self, url: str, study_name: str, lease: int, pruner: dict[str, Any]):
        self.url, self.study_name, self.lease, self.pruner = url, study_name, lease, pruner

    def __call__(self, config: DictConfig) -> float | None:
        """Run the trial whose number is the name of its folder; failures are told, not raised."""
        number = int(HydraConfig.get().sweep.subdir)
        trial = self._trial(number)
        try:
            plain = check(config, TrainConfig)
            trial.set_user_attr("seed", plain["seed"])
            run = Path(plain["paths"]["output_dir"])
            if _on_one_device(plain["trainer"]):
                train(plain, [ReportToStudy(trial, plain["monitor"])])
            else:
                self._run_apart(plain, run, number)
            return self._finish(trial, json.loads((run / "metrics.json").read_text(encoding="utf-8")))
        except Exception as error:
            log.error("trial %d failed: %s", number, reason := _reason(error))
            if not isinstance(error, InputError):
                log.debug("", exc_info=True)
                (Path(HydraConfig.get().runtime.output_dir) / FAILURE).write_text(traceback.format_exc(), "utf-8")
            trial.set_user_attr(storage.REASON, reason)
            trial.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        except SystemExit as error:
            # Lightning answers Ctrl-C with sys.exit.
            raise KeyboardInterrupt from error
        finally:
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        return None

    def _trial(self, number: int) -> optuna.Trial:
        study = optuna.load_study(
            study_name=self.study_name,
            storage=storage.open_storage(self.url, self.lease),
            sampler=optuna.samplers.RandomSampler(),  # the point is drawn already
            pruner=instantiate(self.pruner, _execution_whitelist_=("optuna.pruners.*",)),
        )
        return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)

    def _finish(self, trial: optuna.Trial, metrics: dict[str, Any]) -> float:
        value, epoch = metrics["monitor"]["value"], metrics["monitor"]["epoch"]
        if not math.isfinite(value):
            raise InputError(f"{metrics['monitor']['name']} is {value}")
        best = next((row for row in metrics["history"] if row["epoch"] == epoch), {})
        for name in ("train/accuracy", "train/loss", "val/accuracy", "val/auroc"):
            trial.set_user_attr(name, best.get(name))
        trial.set_user_attr("seconds", metrics["timing"]["total_seconds"])
        pruned = PRUNED in trial.user_attrs
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        told = trial.study.tell(trial.number, None if pruned else value, state=state, skip_if_finished=True)
        if told.state == TrialState.FAIL:
            log.warning("trial %d gave no sign of life for too long: another process took it for dead", trial.number)
        return value

    def _run_apart(self, config: dict[str, Any], run: Path, number: int) -> None:
        write_json(run / CONFIG, config)
        environment = os.environ | {JOIN: json.dumps([self.url, self.study_name, self.lease, self.pruner, number])}
        line = [sys.executable, "-m", __spec__.name, str(run)]
        ended = subprocess.run(line, env=environment, check=False).returncode
        if ended:
            failure = run / FAILURE
            said = failure.read_text(encoding="utf-8").splitlines()[-1] if failure.is_file() else None
            raise ChildProcessError(said or f"a process of the trial ended with status {ended}")


def _on_one_device(trainer: dict[str, Any]) -> bool:
    devices = trainer["devices"]
    return trainer["num_nodes"] == 1 and (devices == 1 or (isinstance(devices, list) and len(devices) == 1))


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split()) or "no message"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said:
        return f"out of memory: {said}"
    return said if isinstance(error, InputError) else f"{type(error).__name__}: {said}"


def main() -> None:
    """Train the trial of a folder; the first process reports to the study."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    run = Path(sys.argv[1])
    config = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    trial = None
    if int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0:
        url, study_name, lease, pruner, number = json.loads(os.environ[JOIN])
        trial = RunTrial(url, study_name, lease, pruner)._trial(number)
    try:
        train(config, [ReportToStudy(trial, config["monitor"])])
    except Exception as error:
        failure = f"{traceback.format_exc()}\n{_reason(error)}\n"
        (run / FAILURE).write_text(failure, encoding="utf-8")
        sys.exit(1)


if __name__ == "__main__":
    main()
