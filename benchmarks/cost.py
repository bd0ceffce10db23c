"""Measure how the time of ``train.py`` grows with the number of images, their size, and the number of epochs.

Each row is a complete run of a DenseNet-121 on phantoms, without the test subset and the report: the seconds from the
start to the end of the training loop, and its peak memory. The cache of decoded images is filled before the first run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
IMAGES, PIXELS, EPOCHS = (400, 800, 1600), (64, 128, 256), (1, 2, 4)
# The rows vary one number at a time around the middle of all three.
ROWS = [*((n, 128, 2) for n in IMAGES), *((800, side, 2) for side in PIXELS), *((800, 128, n) for n in EPOCHS)]


def train(folder: Path, variant: str, images: int, side: int, epochs: int) -> tuple[float, float]:
    """Return the seconds of the training loop, and the peak memory of the process in GiB."""
    run = folder / "runs" / f"{variant}-{images}-{side}-{epochs}"
    line = [sys.executable, str(REPOSITORY / "train.py"), "data=phantom", f"data.prepare.images={images}",
            f"model.variant={variant}", "model.weights=null", f"preprocess.resize={side}", f"preprocess.crop={side}",
            f"trainer.max_epochs={epochs}", "test=false", "report=false", f"hydra.run.dir={run}"]  # fmt: skip
    with subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"train.py failed with status {process.returncode}: {' '.join(line[1:])}")
    timing = json.loads((run / "metrics.json").read_text())["timing"]
    return timing["fit_seconds"], usage.ru_maxrss / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variant", default="densenet121")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for images, side, _ in sorted({(images, side, 1) for images, side, _ in ROWS}):
            train(Path(name), "densenet_tiny", images, side, 1)  # writes phantoms and cache
        measured = {row: train(Path(name), arguments.variant, *row) for row in sorted({*ROWS})}
    print(f"\n{arguments.variant}, batch 32, phantoms, 70 % of them for training")
    print("  images   side  epochs   training s   peak memory GiB")
    for row in ROWS:
        seconds, memory = measured[row]
        print(f"  {row[0]:6d} {row[1]:4d} px {row[2]:7d} {seconds:12.1f} {memory:17.2f}")


if __name__ == "__main__":
    main()
