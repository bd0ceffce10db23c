"""Speed, as ratios within one run: ``make bench`` (ARGS="--help" for its options).

Reading images: the study's pipeline against the cache, one process and one thread each. Training: from the cache
against tensors in memory; our loop against a bare PyTorch loop; how long a launch takes to its first step. What is
compared runs in turns, so that a machine whose speed drifts treats both alike.
"""

import argparse
import itertools
import os
import resource
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
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fractatlas.config import TrainConfig, check
from fractatlas.data.catalogue import read_catalogue
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


class StudysPipeline(Dataset):
    """What a tutorial would write: every image opened, converted, resized, cropped and normalised each time."""

    def __init__(self, files: list[Path]):
        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[index]).convert("RGB"))


def rate(batches, images: int) -> float:
    """Images per second of going through ``batches`` once."""
    started = time.perf_counter()
    for _ in batches:
        pass
    return images / (time.perf_counter() - started)


def reading(data: lightning.LightningDataModule, looking: float, filling: float) -> None:
    """Print how fast images come, and what memory they take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data.split["split"] = "train"  # all of them
    table, count = data.part("train"), len(data.split)
    files = [data.root / path for path in table["path"]]
    naive = DataLoader(StudysPipeline(files[:: max(1, count // 600)]), batch_size=32, shuffle=True)
    loader = data.train_dataloader()
    rates = {"naive": [], "uint8": [], "float": []}
    for _ in range(3):
        rates["naive"].append(rate(naive, len(naive.dataset)))
        rates["uint8"].append(rate(loader, count))
        rates["float"].append(rate((data.on_after_batch_transfer(batch, 0) for batch in loader), count))
    best = {name: statistics.median(values) for name, values in rates.items()}
    peaks = []
    for _ in range(10):
        rate((data.on_after_batch_transfer(batch, 0) for batch in loader), count)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    torch.set_num_threads(threads)

    print(f"\nreading {count} images of {data.root.name}, batch 32, 224 px, one process and one thread")
    print(f"  the study's pipeline             {best['naive']:8.0f} images/s")
    for name, what in (("uint8", "cache, to the uint8 batch  "), ("float", "cache, and normalised      ")):
        print(f"  {what}      {best[name]:8.0f} images/s, {best[name] / best['naive']:.0f} times as fast")
    for what, seconds in (("looking at every image, once", looking), ("filling the cache", filling)):
        share = seconds * best["naive"] / count
        print(f"  {what:30} {seconds:10.1f} s, {share:.2f} of one pass of the study's pipeline")
    print(f"  peak memory after epoch 1 and 10 {peaks[0]:8.0f} and {peaks[-1]:.0f} MiB")


def from_the_cache_or_from_memory(config: dict, data: lightning.LightningDataModule, steps: int) -> float:
    """Median seconds of a step fed from the cache, against one fed from normalised tensors in memory, in turns."""
    network, loss = build(config["model"]), build(config["loss"])
    optimizer = build(config["optimizer"])(network.parameters())
    loader = itertools.chain.from_iterable(data.train_dataloader() for _ in itertools.count())
    normalised = (data.on_after_batch_transfer(batch, 0) for batch in loader)
    whole = next(iter(DataLoader(data.dataset("train"), batch_size=2000, collate_fn=lambda batch: batch)))
    tensors, labels = data.preprocess.normalise(whole["image"]), whole["label"]
    rows = torch.arange(config["data"]["batch_size"])
    seconds = {True: [], False: []}
    for step in range(2 * steps + 4):
        cached = step % 2 == 0
        started = time.perf_counter()
        if cached:
            batch = next(normalised)
        else:
            index = (rows + step * len(rows)) % len(labels)
            batch = {"image": tensors[index], "label": labels[index]}
        optimizer.zero_grad()
        loss(network(batch["image"]), batch["label"]).backward()
        optimizer.step()
        if step >= 4:
            seconds[cached].append(time.perf_counter() - started)
    return statistics.median(seconds[True]) / statistics.median(seconds[False])


def composed(*overrides: str) -> dict:
    """A checked configuration."""
    with initialize_config_dir(str(REPOSITORY / "conf"), job_name="bench"):
        return check(compose("train", list(overrides)), TrainConfig)


def opened(config: dict) -> lightning.LightningDataModule:
    """The data of a configuration, ready."""
    data = build_data(config, split=build(config["split"]))
    data.prepare_data()
    data.setup()
    return data


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
        real = Path(os.environ.get("FRACATLAS_ROOT", REPOSITORY / "data" / "FracAtlas"))
        chosen = ["data=fracatlas", f"data.root={real}"] if real.is_dir() else ["data=phantom"]
        config = composed(*chosen, *here)
        data_root = opened(composed(*chosen, *here, "data.cache=false")).root  # so that all files are in memory
        started = time.perf_counter()
        read_catalogue(data_root, Path(config["data"]["cache_dir"]))
        looked = time.perf_counter()
        data = opened(config)
        reading(data, looked - started, time.perf_counter() - looked)

        small = composed(*chosen, *here, "preprocess.resize=128", "preprocess.crop=128", "model=resnet",
                         "model.variant=resnet18", "model.weights=null")  # fmt: skip
        ratio = from_the_cache_or_from_memory(small, opened(small), 2 * options.steps * options.turns)
        print("\nResNet-18, batch 32, 128 px")
        print(f"  a step from the cache / from tensors in memory   {ratio:.3f}")

        config = composed(*arguments, *limits, *here)
        data = opened(config)
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
    print(f"  our training loop, from cache    {rates['ours']:6.2f} images/s")
    print(f"  bare loop, tensors in memory     {rates['bare']:6.2f} images/s")
    print(f"  ours / bare                      {rates['ours'] / rates['bare']:6.3f}")
    print(f"  launch to first optimiser step   {first:6.1f} s, {first / statistics.mean(bare):.1f} bare steps")


if __name__ == "__main__":
    main()
