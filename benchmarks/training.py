"""Compare the speed of training: this package, a bare PyTorch loop, and timm's ``train.py``.

Every system is a process of its own that trains the same network on the same files, with the same batch size and number
of threads. The systems run in turns, so that a drift of the machine's speed affects all of them. The first two steps of
a process are not counted. Of each system, the fastest step and the median step are printed, ratios of the medians, and
on a GPU the share of the time in which a kernel runs. The bare loop has its batches as tensors on the device.

timm's ``train.py`` is not part of its package: ``--timm DIR`` is a checkout of its repository,
https://github.com/huggingface/pytorch-image-models. Without it, the rows of timm are left out.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from fractatlas.build import build, build_classifier, build_data, build_trainer
from fractatlas.config.overrides import compose_config
from fractatlas.data.catalogue import read_catalogue
from fractatlas.data.sources import phantom
from fractatlas.data.sources.fracatlas import FracAtlas
from fractatlas.models.precision import choose_precision
from fractatlas.training.allocator import keep_freed_memory
from fractatlas.training.silence_warnings import quieten

REPOSITORY = Path(__file__).parents[1]
WARM_UP = 2
RATES = re.compile(r"Train: .* Time: ([0-9.]+)s")


class Clock(Callback):
    """Record the time at the end of each step, when the device has finished it."""

    def __init__(self):
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer, classifier, outputs, batch, index) -> None:
        """Record the time."""
        outputs["loss"].item()
        self.ends.append(time.perf_counter())


@contextlib.contextmanager
def gpu_utilisation() -> Iterator[list[int]]:
    """Sample the share of the time in which a kernel runs, in percent, ten times per second; nothing without a GPU."""
    samples: list[int] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.1):
            samples.append(torch.cuda.utilization())

    thread = threading.Thread(target=sample, daemon=True)
    if torch.cuda.is_available():
        thread.start()
    try:
        yield samples
    finally:
        stop.set()


def seconds_per_step(ends: list[float]) -> list[float]:
    """Return the times between steps, without the first steps, which warm up."""
    return [after - before for before, after in itertools.pairwise(ends[WARM_UP - 1 :])]


def train_with_package(options: list[str], precision: str) -> list[float]:
    """Return the seconds of each step of ``train.py``, with cache, callbacks, logger and metrics."""
    config = compose_config([*options, f"trainer.precision={precision}"])
    if not torch.cuda.is_available():
        keep_freed_memory()  # as ``training.fit`` does
    if precision == "auto":
        config["trainer"]["precision"] = choose_precision(config["trainer"]["accelerator"])[0]
    data, clock = build_data(config), Clock()
    data.setup()
    callbacks = [build(part) for part in config["callbacks"].values() if part]
    trainer = build_trainer(config, Path(), callbacks=[*callbacks, clock], logger=build(config["logger"]))
    trainer.fit(build_classifier(config), data)
    return seconds_per_step(clock.ends)


def train_bare(options: list[str], precision: str) -> list[float]:
    """Return the seconds of each step of the shortest loop that trains, from normalised tensors in memory."""
    config = compose_config(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = build_data(config)
    data.setup()
    steps = config["trainer"]["limit_train_batches"]
    loaded = itertools.islice(data.train_dataloader(), steps)
    batches = [data.on_after_batch_transfer(data.transfer_batch_to_device(one, device, 0), 0) for one in loaded]
    network, loss = build(config["model"]).to(device), build(config["loss"])
    optimizer = build(config["optimizer"])(network.parameters())
    ends = []
    for batch in batches:
        images, labels = batch["image"], batch["label"]
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            value = loss(network(images), labels)
        value.backward()
        optimizer.step()
        value.item()
        ends.append(time.perf_counter())
    return seconds_per_step(ends)


def train_with_timm(
    checkout: Path, images: Path, variant: str, side: int, batch_size: int, flags: list[str]
) -> list[float]:
    """Return the seconds of each step that timm's ``train.py`` prints."""
    with tempfile.TemporaryDirectory() as output:
        line = [sys.executable, str(checkout / "train.py"), "--data-dir", str(images), "--model", variant,
                "--num-classes", "2", "--batch-size", str(batch_size), "--img-size", str(side), "--opt", "adam",
                "--lr", "2e-4", "--epochs", "1",
                "--warmup-epochs", "0", "--log-interval", "1", "--output", output,
                "--device", "cuda" if torch.cuda.is_available() else "cpu", *flags]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": f"{checkout}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        result = subprocess.run(line, capture_output=True, text=True, env=environment)
    seconds = [float(number) for number in RATES.findall(result.stdout + result.stderr)]
    if result.returncode or len(seconds) <= WARM_UP:
        raise SystemExit(f"timm's train.py failed with status {result.returncode}: {result.stderr[-500:]}")
    return seconds[WARM_UP:]


def link_images(root: Path, folder: Path, images: int, validation: int) -> None:
    """Link ``images`` in the folders ``train/<class>``, and ``validation`` of them in ``validation/<class>``."""
    catalogue = read_catalogue(FracAtlas(root), None)
    usable = catalogue[catalogue["excluded"] == ""]
    for label, rows in usable.groupby("label"):
        for subset, count in (("train", images // 2), ("validation", validation // 2)):
            target = folder / subset / str(label)
            target.mkdir(parents=True)
            for number, path in zip(range(count), itertools.cycle(rows["path"]), strict=False):
                (target / f"{number}{Path(path).suffix}").symlink_to((root / path).absolute())


def multiplication_peak(dtype: torch.dtype) -> float:
    """Return the largest number of floating-point operations per second of a matrix product, in 10^9."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 2048
    matrix = torch.randn(size, size, device=device).to(dtype)
    rates = []
    for _ in range(6):
        started = time.perf_counter()
        (matrix @ matrix).sum().item()
        rates.append(2 * size**3 / (time.perf_counter() - started) / 1e9)
    return max(rates)


def measure(
    variant: str, side: int, batch_size: int, root: Path, steps: int, turns: int, checkout: Path | None, cache: Path
) -> None:
    """Run every system in turns, and print its rates."""
    native = choose_precision("auto")[0] == "bf16-mixed"
    family = "resnet" if variant.startswith("resnet") else "densenet"
    with tempfile.TemporaryDirectory() as folder:
        link_images(root, Path(folder), (steps + WARM_UP) * batch_size, batch_size)
        package = ["--worker", "package", "--variant", variant, "--family", family, "--root", str(root),
                   "--side", str(side), "--batch-size", str(batch_size)]  # fmt: skip
        bare = ["--worker", "bare", *package[2:]]
        timm = ["--worker", "timm", *package[2:], "--images", folder, "--timm", str(checkout)]
        systems = {"fractatlas train": [*package, "--precision", "auto"],
                   "fractatlas train, trainer.precision=32-true": [*package, "--precision", "32-true"],
                   "bare loop, float32": [*bare, "--precision", "32-true"]}  # fmt: skip
        if native:
            systems["bare loop, bfloat16"] = [*bare, "--precision", "bf16-mixed"]
        if checkout:
            systems["timm train.py"] = timm
            systems["timm train.py --channels-last"] = [*timm, "--flags=--channels-last"]
            if native:
                flags = "--channels-last --amp --amp-dtype bfloat16"
                systems[f"timm train.py {flags}"] = [*timm, f"--flags={flags}"]
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        busy: dict[str, list[int]] = {name: [] for name in systems}
        for _ in range(turns):
            for name, arguments in systems.items():
                line = [sys.executable, __file__, *arguments, "--steps", str(steps), "--cache", str(cache)]
                result = subprocess.run(line, stdout=subprocess.PIPE, text=True)
                if result.returncode:
                    raise SystemExit(f"{name}: failed with status {result.returncode}")
                measured = json.loads(result.stdout.splitlines()[-1])
                seconds[name] += measured["seconds"]
                busy[name] += measured["busy"]
    default = statistics.median(seconds["fractatlas train"])
    print(
        f"\n{variant}, batch {batch_size}, {side} px, {len(seconds['fractatlas train'])} steps of each; images/s of the"
    )
    print(f"{'':52} fastest   median   fractatlas train is faster by")
    for name, times in seconds.items():
        rates = "  ".join(f"{batch_size / value:7.2f}" for value in (min(times), statistics.median(times)))
        kernels = f"   a kernel runs in {statistics.mean(busy[name]):.0f} % of the time" if busy[name] else ""
        print(f"  {name:50} {rates}   {statistics.median(times) / default:6.3f}{kernels}")


def main() -> None:
    """Measure and print, or measure one system and print its seconds per step as JSON (``--worker``)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variants", nargs="+", default=["densenet169", "resnet50"])
    parser.add_argument("--sides", nargs="+", type=int, default=[224], help="of the input, in pixels")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32])
    parser.add_argument("--steps", type=int, default=6, help="measured steps of a process")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--timm", type=Path, help="a checkout of timm's repository")
    for option in ("--worker", "--variant", "--family", "--root", "--images", "--precision", "--flags", "--cache"):
        parser.add_argument(option, default="", help=argparse.SUPPRESS)
    for option in ("--side", "--batch-size"):
        parser.add_argument(option, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        options = [f"data.root={arguments.root}", f"data.cache_dir={arguments.cache}", f"model={arguments.family}",
                   f"model.variant={arguments.variant}", "model.weights=null",
                   f"data.batch_size={arguments.batch_size}", f"preprocess.crop={arguments.side}",
                   f"preprocess.resize={arguments.side * 8 // 7}",
                   f"trainer.limit_train_batches={arguments.steps + WARM_UP}", "trainer.limit_val_batches=1",
                   "trainer.max_epochs=1", "callbacks.last=null"]  # fmt: skip
        if arguments.worker == "timm":
            images, flags = Path(arguments.images), arguments.flags.split()
            with gpu_utilisation() as busy:
                seconds = train_with_timm(
                    arguments.timm, images, arguments.variant, arguments.side, arguments.batch_size, flags
                )
        else:
            quieten()
            train = train_with_package if arguments.worker == "package" else train_bare
            # Paths of options are relative.
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), gpu_utilisation() as busy:
                seconds = train(options, arguments.precision)
        running = math.ceil(sum(seconds) / 0.1)  # samples during the measured steps, which end the process
        print(json.dumps({"seconds": seconds, "busy": busy[-running:]}))
        return

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {choose_precision('auto')[1]}")
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        print(f"  matrix product in {name:10} {multiplication_peak(dtype):8.0f} GFLOP/s")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(os.environ.get("FRACATLAS_ROOT", REPOSITORY / "data" / "FracAtlas")).absolute()
        if not root.is_dir():
            root = Path(folder, "phantoms")
            phantom.generate(root, images=600, seed=0)
        for variant, side, size in itertools.product(arguments.variants, arguments.sides, arguments.batch_sizes):
            measure(variant, side, size, root, arguments.steps, arguments.turns, arguments.timm, Path(folder, "cache"))
    if not arguments.timm:
        print("timm was not measured: give a checkout of its repository with --timm DIR")


if __name__ == "__main__":
    main()
