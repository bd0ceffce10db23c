"""Measure time and peak memory of reading a table: catalogue, split and leak check, for growing numbers of rows.

The images are different PNG files of a few hundred bytes, so that most of the time is that of the tables and of the
search for near-duplicates, not of decoding. Every hundredth image is a copy of another with a few changed pixels. Each
size runs in a process of its own, because peak memory never decreases.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fractatlas.config.overrides import compose_config
from fractatlas.data.catalogue import read_catalogue
from fractatlas.data.groups import duplicate_links
from fractatlas.data.leaks import find_leaks
from fractatlas.data.sources.registry import open_source
from fractatlas.data.splits import grouped_split

SIDE = 24  # pixels
PER_FOLDER = 1000


def write_table(folder: Path, rows: int) -> Path:
    """Write ``rows`` images of noise and their table: three images per patient, an attribute, a copy in a hundred."""
    generator = np.random.default_rng(rows)
    paths, pixels = [], np.zeros((SIDE, SIDE), dtype=np.uint8)
    for number in range(rows):
        if number % PER_FOLDER == 0:
            (folder / str(number // PER_FOLDER)).mkdir()
        if number % 100 != 99:
            pixels = generator.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        pixels[0, 0] = number % 251  # a copy differs in a pixel
        paths.append(f"{number // PER_FOLDER}/{number:07}.png")
        Image.fromarray(pixels).save(folder / paths[-1], compress_level=0)
    table = pd.DataFrame({"path": paths, "label": generator.random(rows) < 0.2, "patient": np.arange(rows) // 3})
    table.assign(age=generator.integers(1, 100, rows)).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def measure(table: Path, cache: Path) -> dict[str, float]:
    """Return the seconds of each part, and the peak memory in GiB."""
    seconds = {}

    def finish(name: str, started: float) -> float:
        seconds[name] = time.perf_counter() - started
        return time.perf_counter()

    source = open_source(compose_config(["data=table", f"data.table={table}"])["data"])
    started = time.perf_counter()
    catalogue = read_catalogue(source, cache)
    started = finish("catalogue, first time", started)
    catalogue = read_catalogue(open_source(source.settings), cache)
    started = finish("catalogue, from the cache", started)
    duplicate_links(catalogue["dhash"])
    started = finish("of it near-duplicates", started)
    split = grouped_split(catalogue, ratios=[0.7, 0.15, 0.15], seed=0)
    started = finish("split", started)
    find_leaks(split, catalogue)
    finish("leak check", started)
    return seconds | {"GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main() -> None:
    """Write the tables, measure each in its own process, and print one row per size."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000, 20_000, 200_000], help="sizes of the tables")
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    results = {}
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as name:
            table = write_table(Path(name), rows)
            line = [sys.executable, __file__, "--measure", str(table), f"{name}/cache"]
            done = subprocess.run(line, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            results[f"{rows:,} rows"] = json.loads(done.stdout)
    print(pd.DataFrame(results).round(2).to_string())


if __name__ == "__main__":
    main()
