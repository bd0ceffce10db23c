"""Speed, as ratios within one run: ``make bench`` (ARGS="--help" for its options).

Our training loop against a bare PyTorch loop over tensors in memory, with the same network, batch size and threads,
in turns so that a machine whose speed drifts treats both alike; and how long a launch takes to its first step.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback

from fractatlas.config import TrainConfig, check
from fractatlas.training.run import build, build_classifier, build_data, build_trainer

REPOSITORY = Path(__file__).parents[1]


class Clock(Callback):
    """When each step ended."""

    def __init__(self):
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer, classifier, outputs, batch, index) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def seconds_per_step(ends: list[float]) -> list[float]:
    """Between steps, without the first two: they warm up."""
    return [after - before for before, after in itertools.pairwise(ends[1:])]


def our_loop(config: dict, data: lightning.LightningDataModule, run: Path) -> list[float]:
    """Seconds of each step of a run as ``train.py`` makes it, callbacks, logger and metrics included."""
    clock = Clock()
    callbacks = [build(part) for part in config["callbacks"].values() if part]
    trainer = build_trainer(config, run, callbacks=[*callbacks, clock], logger=build(config["logger"]))
    trainer.fit(build_classifier(config), data)
    return seconds_per_step(clock.ends)


def bare_loop(config: dict, batches: list[dict[str, torch.Tensor]]) -> list[float]:
    """Seconds of each step of the shortest loop that trains: forward, backward, step."""
    network, loss = build(config["model"]), build(config["loss"])
    optimizer = build(config["optimizer"])(network.parameters())
    ends = []
    for batch in batches:
        optimizer.zero_grad()
        loss(network(batch["image"]), batch["label"]).backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return seconds_per_step(ends)


def to_first_step(config_arguments: list[str], folder: Path) -> float:
    """Seconds from typing the command to the end of the first optimiser step."""
    line = [sys.executable, str(REPOSITORY / "train.py"), *config_arguments, "debug=one_batch", "test=false"]
    started = time.perf_counter()
    with subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        found = next((time.perf_counter() - started for text in process.stdout if "step 1/1" in text), float("nan"))
        process.communicate()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--model", default="resnet", choices=["resnet", "densenet"])
    parser.add_argument("--variant", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="measured steps of a turn")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        arguments = ["data=phantom", "data.prepare.images=600", f"model={options.model}", "model.weights=null",
                     f"model.variant={options.variant}", f"data.batch_size={options.batch_size}"]  # fmt: skip
        limits = [f"trainer.limit_train_batches={options.steps + 2}", "trainer.limit_val_batches=1",
                  "trainer.max_epochs=1"]  # fmt: skip
        here = [f"paths.root={run}", f"paths.output_dir={run}"]
        with initialize_config_dir(str(REPOSITORY / "conf"), job_name="bench"):
            config = check(compose("train", [*arguments, *limits, *here]), TrainConfig)
        data = build_data(config, split=build(config["split"]))
        data.prepare_data()
        data.setup()
        loader = iter(data.train_dataloader())
        batches = [data.on_after_batch_transfer(next(loader), 0) for _ in range(options.steps + 2)]

        ours, bare = [], []
        for _ in range(options.turns):
            ours += our_loop(config, data, run)
            bare += bare_loop(config, batches)
        rates = {
            name: options.batch_size / statistics.median(steps) for name, steps in (("ours", ours), ("bare", bare))
        }
        first = to_first_step([*arguments, *here[:1]], run)

    print(f"\n{options.variant}, batch {options.batch_size}, 224 px, {torch.get_num_threads()} threads, ", end="")
    print(f"{len(ours)} steps each")
    print(f"  our training loop, from files    {rates['ours']:6.2f} images/s")
    print(f"  bare loop, tensors in memory     {rates['bare']:6.2f} images/s")
    print(f"  ours / bare                      {rates['ours'] / rates['bare']:6.3f}")
    print(f"  launch to first optimiser step   {first:6.1f} s, {first / statistics.mean(bare):.1f} bare steps")


if __name__ == "__main__":
    main()
