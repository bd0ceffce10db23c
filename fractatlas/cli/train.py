"""``fractatlas train``: fine-tune a network."""

import shlex
import sys
from pathlib import Path
from typing import Any

from fractatlas.cli import hydra_command
from fractatlas.schema import TrainConfig
from fractatlas.signals import exit_on_stop_signals


def main() -> None:
    """Fine-tune a network; with ``-m``, one for each job."""
    hydra_command.run("train", TrainConfig, _train)


def _train(config: dict[str, Any]) -> float:
    from fractatlas.training.fit import train  # after the checks, because torch is slow to import

    run = Path(config["paths"]["output_dir"])
    with exit_on_stop_signals(f"{_typed_command()} {shlex.quote(f'resume={run}')}"):
        best = train(config)
        if config["report"] and (run / "metrics.json").is_file():
            _write_report(run)
        return best


def _typed_command() -> str:
    script = Path(sys.argv[0])
    is_script = script.suffix == ".py" and script.name != "__main__.py"
    return f"python {shlex.quote(str(script))}" if is_script else "fractatlas train"


def _write_report(run: Path) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    from fractatlas.report.html import write_report

    rank_zero_only(write_report)(run)
