"""Measure the speed of reading images and of the start of a training, as ratios within one run.

Reading: the reference report's pipeline and the cache, in one process with one thread; a training step from the cache
and from tensors in memory. Start: ``train.py`` until its first step, and the imports alone. The two sides of a ratio
run alternately, so that a drift of the machine's speed affects both.
"""

import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fractatlas.build import build, build_data
from fractatlas.config.overrides import compose_config
from fractatlas.data.catalogue import read_catalogue
from fractatlas.data.datamodule import RadiographDataModule
from fractatlas.data.sources.fracatlas import FracAtlas

REPOSITORY = Path(__file__).parents[1]


class ReportPipeline(Dataset):
    """The preprocessing of the reference report: each image is opened, resized, cropped and normalised every time."""

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


def measure_start(folder: Path) -> None:
    """Print the seconds from the start of ``train.py`` to its first step, and those of the imports that it needs."""
    imports, first = [], []
    options = ["data=phantom", "data.prepare.images=100", "model.variant=densenet_tiny", "model.weights=null",
               "debug=one_batch", "test=false"]  # fmt: skip
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch, torchvision, lightning"], check=True)
        imports.append(time.perf_counter() - started)
        started = time.perf_counter()
        line = [sys.executable, str(REPOSITORY / "train.py"), *options]
        with subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as train:
            assert train.stdout
            seconds = (time.perf_counter() - started for text in train.stdout if "step 1/1" in text)
            first.append(next(seconds, float("nan")))
            train.communicate()
    print("\nstart, fastest of 3")
    print(f"  import torch, torchvision, lightning             {min(imports):6.1f} s")
    print(f"  train.py on 100 phantoms, until its first step   {min(first):6.1f} s")


def images_per_second(batches: Iterable, images: int) -> float:
    """Iterate over ``batches`` once."""
    started = time.perf_counter()
    for _ in batches:
        pass
    return images / (time.perf_counter() - started)


def measure_reading(data: RadiographDataModule, catalogue_seconds: float, cache_seconds: float) -> None:
    """Print the images per second of both pipelines, and the memory."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data.split["split"] = "train"  # all images
    table, count = data.subset("train"), len(data.split)
    files = [data.root / path for path in table["path"]]
    report = DataLoader(ReportPipeline(files[:: max(1, count // 600)]), batch_size=32, shuffle=True)
    loader = data.train_dataloader()
    rates: dict[str, list[float]] = {"report": [], "uint8": [], "float": []}
    for _ in range(3):
        rates["report"].append(images_per_second(report, len(report.dataset)))
        rates["uint8"].append(images_per_second(loader, count))
        normalised = (data.on_after_batch_transfer(batch, 0) for batch in loader)
        rates["float"].append(images_per_second(normalised, count))
    median = {name: statistics.median(values) for name, values in rates.items()}
    peaks = []
    for _ in range(10):
        images_per_second((data.on_after_batch_transfer(batch, 0) for batch in loader), count)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    torch.set_num_threads(threads)

    print(f"\nreading {count} images of {data.root.name}, batch 32, 224 px, one process and one thread")
    print(f"  pipeline of the reference report {median['report']:8.0f} images/s")
    for name, description in (("uint8", "cache, to the uint8 batch  "), ("float", "cache, and normalised      ")):
        ratio = median[name] / median["report"]
        print(f"  {description}      {median[name]:8.0f} images/s, {ratio:.0f} times as fast")
    for description, seconds in (("reading every image once", catalogue_seconds), ("filling the cache", cache_seconds)):
        ratio = seconds * median["report"] / count
        print(f"  {description:30} {seconds:10.1f} s, {ratio:.2f} of one pass of the report's pipeline")
    print(f"  peak memory after epoch 1 and 10 {peaks[0]:8.0f} and {peaks[-1]:.0f} MiB")


def cache_to_memory_ratio(config: dict, data: RadiographDataModule, steps: int) -> float:
    """Return the median time of a step from the cache, divided by that of a step from normalised tensors in memory."""
    network, loss = build(config["model"]), build(config["loss"])
    optimizer = build(config["optimizer"])(network.parameters())
    loader = itertools.chain.from_iterable(data.train_dataloader() for _ in itertools.count())
    normalised = (data.on_after_batch_transfer(batch, 0) for batch in loader)
    images = next(iter(DataLoader(data.dataset("train"), batch_size=2000, collate_fn=lambda batch: batch)))
    tensors, labels = data.preprocess.normalise(images["image"]), images["label"]
    rows = torch.arange(config["data"]["batch_size"])
    seconds: dict[bool, list[float]] = {True: [], False: []}
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


def open_data(config: dict) -> RadiographDataModule:
    """Return the prepared data module of a configuration."""
    data = build_data(config)
    data.prepare_data()
    data.setup()
    return data


def main() -> None:
    """Measure and print."""
    real = Path(os.environ.get("FRACATLAS_ROOT", REPOSITORY / "data" / "FracAtlas")).absolute()
    source = ["data=fracatlas", f"data.root={real}"] if real.is_dir() else ["data=phantom"]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # all paths of a composed configuration are relative
        run = Path(folder)
        config = compose_config(source)
        # Without the cache first, so that phantoms exist and the files are in the page cache.
        root = open_data(compose_config([*source, "data.cache=false"])).root
        started = time.perf_counter()
        read_catalogue(FracAtlas(root), Path(config["data"]["cache_dir"]))
        catalogue_read = time.perf_counter()
        data = open_data(config)
        measure_reading(data, catalogue_read - started, time.perf_counter() - catalogue_read)

        network = ["model=resnet", "model.variant=resnet18", "model.weights=null"]
        small = compose_config([*source, "preprocess.resize=128", "preprocess.crop=128", *network])
        ratio = cache_to_memory_ratio(small, open_data(small), 48)
        print("\nResNet-18, batch 32, 128 px")
        print(f"  a step from the cache / from tensors in memory   {ratio:.3f}")

        measure_start(run)
        os.chdir(REPOSITORY)


if __name__ == "__main__":
    main()
