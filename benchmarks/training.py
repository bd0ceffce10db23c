"""Compare the speed of training: this package, a bare PyTorch loop, and timm's ``train.py``.

Every system is a process of its own that trains the same network on the same files, with the same batch size and number
of threads. The systems run in turns, so that a drift of the machine's speed affects all of them. The first two steps of
a process are not counted. Of each system, the fastest step and the median step are printed, and ratios of the medians.

timm's ``train.py`` is not part of its package: ``--timm DIR`` is a checkout of its repository,
https://github.com/huggingface/pytorch-image-models. Without it, the rows of timm are left out.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from fractatlas.build import build, build_classifier, build_data, build_trainer
from fractatlas.config.overrides import compose_config
from fractatlas.data.sources import phantom
from fractatlas.data.sources.fracatlas import read_catalogue
from fractatlas.models.precision import choose_precision
from fractatlas.training.silence_warnings import quieten

REPOSITORY = Path(__file__).parents[1]
BATCH_SIZE, WARM_UP = 32, 2
RATES = re.compile(r"Train: .* Time: ([0-9.]+)s")


class Clock(Callback):
    """Record the time at the end of each step."""

    def __init__(self):
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer, classifier, outputs, batch, index) -> None:
        """Record the time."""
        self.ends.append(time.perf_counter())


def seconds_per_step(ends: list[float]) -> list[float]:
    """Return the times between steps, without the first steps, which warm up."""
    return [after - before for before, after in itertools.pairwise(ends[WARM_UP - 1 :])]


def train_with_package(options: list[str], precision: str) -> list[float]:
    """Return the seconds of each step of ``train.py``, with cache, callbacks, logger and metrics."""
    config = compose_config([*options, f"trainer.precision={precision}"])
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
    batches = [data.on_after_batch_transfer(batch, 0) for batch in itertools.islice(data.train_dataloader(), steps)]
    network, loss = build(config["model"]).to(device), build(config["loss"])
    optimizer = build(config["optimizer"])(network.parameters())
    ends = []
    for batch in batches:
        images, labels = batch["image"].to(device), batch["label"].to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            value = loss(network(images), labels)
        value.backward()
        optimizer.step()
        value.item()
        ends.append(time.perf_counter())
    return seconds_per_step(ends)


def train_with_timm(checkout: Path, images: Path, variant: str, flags: list[str]) -> list[float]:
    """Return the seconds of each step that timm's ``train.py`` prints."""
    with tempfile.TemporaryDirectory() as output:
        line = [sys.executable, str(checkout / "train.py"), "--data-dir", str(images), "--model", variant,
                "--num-classes", "2", "--batch-size", str(BATCH_SIZE), "--opt", "adam", "--lr", "2e-4", "--epochs", "1",
                "--warmup-epochs", "0", "--log-interval", "1", "--output", output,
                "--device", "cuda" if torch.cuda.is_available() else "cpu", *flags]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": f"{checkout}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        result = subprocess.run(line, capture_output=True, text=True, env=environment)
    seconds = [float(number) for number in RATES.findall(result.stdout + result.stderr)]
    if result.returncode or len(seconds) <= WARM_UP:
        raise SystemExit(f"timm's train.py failed with status {result.returncode}: {result.stderr[-500:]}")
    return seconds[WARM_UP:]


def link_images(root: Path, folder: Path, steps: int) -> None:
    """Link the images of ``steps`` batches in the folders ``train/<class>`` and ``validation/<class>``."""
    catalogue = read_catalogue(root, None)
    usable = catalogue[catalogue["excluded"] == ""]
    half = steps * BATCH_SIZE // 2
    for label, rows in usable.groupby("label"):
        for subset, count in (("train", half), ("validation", BATCH_SIZE // 2)):
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


def measure(variant: str, root: Path, steps: int, turns: int, checkout: Path | None, cache: Path) -> None:
    """Run every system in turns, and print its rates."""
    native = choose_precision("auto")[0] == "bf16-mixed"
    family = "resnet" if variant.startswith("resnet") else "densenet"
    with tempfile.TemporaryDirectory() as folder:
        link_images(root, Path(folder), steps + WARM_UP)
        package = ["--worker", "package", "--variant", variant, "--family", family, "--root", str(root)]
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
        for _ in range(turns):
            for name, arguments in systems.items():
                line = [sys.executable, __file__, *arguments, "--steps", str(steps), "--cache", str(cache)]
                result = subprocess.run(line, stdout=subprocess.PIPE, text=True)
                if result.returncode:
                    raise SystemExit(f"{name}: failed with status {result.returncode}")
                seconds[name] += json.loads(result.stdout.splitlines()[-1])
    default = statistics.median(seconds["fractatlas train"])
    print(f"\n{variant}, batch {BATCH_SIZE}, 224 px, {len(seconds['fractatlas train'])} steps of each; images/s of the")
    print(f"{'':52} fastest   median   fractatlas train is faster by")
    for name, times in seconds.items():
        rates = (BATCH_SIZE / value for value in (min(times), statistics.median(times)))
        print(f"  {name:50} {'  '.join(f'{rate:7.2f}' for rate in rates)}   {statistics.median(times) / default:6.3f}")


def main() -> None:
    """Measure and print, or measure one system and print its seconds per step as JSON (``--worker``)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variants", nargs="+", default=["densenet169", "resnet50"])
    parser.add_argument("--steps", type=int, default=6, help="measured steps of a process")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--timm", type=Path, help="a checkout of timm's repository")
    for option in ("--worker", "--variant", "--family", "--root", "--images", "--precision", "--flags", "--cache"):
        parser.add_argument(option, default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        options = [f"data.root={arguments.root}", f"data.cache_dir={arguments.cache}", f"model={arguments.family}",
                   f"model.variant={arguments.variant}", "model.weights=null", f"data.batch_size={BATCH_SIZE}",
                   f"trainer.limit_train_batches={arguments.steps + WARM_UP}", "trainer.limit_val_batches=1",
                   "trainer.max_epochs=1", "callbacks.last=null"]  # fmt: skip
        if arguments.worker == "timm":
            seconds = train_with_timm(
                arguments.timm, Path(arguments.images), arguments.variant, arguments.flags.split()
            )
        else:
            quieten()
            train = train_with_package if arguments.worker == "package" else train_bare
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # paths of options are relative
                seconds = train(options, arguments.precision)
        print(json.dumps(seconds))
        return

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {choose_precision('auto')[1]}")
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        print(f"  matrix product in {name:10} {multiplication_peak(dtype):8.0f} GFLOP/s")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(os.environ.get("FRACATLAS_ROOT", REPOSITORY / "data" / "FracAtlas")).absolute()
        if not root.is_dir():
            root = Path(folder, "phantoms")
            phantom.generate(root, images=600, seed=0)
        for variant in arguments.variants:
            measure(variant, root, arguments.steps, arguments.turns, arguments.timm, Path(folder, "cache"))
    if not arguments.timm:
        print("timm was not measured: give a checkout of its repository with --timm DIR")


if __name__ == "__main__":
    main()
