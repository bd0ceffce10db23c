"""Measure the time to read radiographs as JPEG, and as DICOM made from them, in one process with one thread.

``--before CHECKOUT`` also measures another checkout of this package: the two read each file alternately, so that a
drift of the machine's speed affects both.
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

REPOSITORY = Path(__file__).parents[1]
ROUNDS = 7
# Reads files whose paths come on standard input; writes the seconds of each to standard output.
READER = """
import sys, time
from pathlib import Path
from fractatlas.data.images import read_radiograph
for line in sys.stdin:
    started = time.perf_counter()
    read_radiograph(Path(line.strip()))
    print(time.perf_counter() - started, flush=True)
"""


def as_dicom(image: Image.Image, bits: int) -> bytes:
    """Return a radiograph as an uncompressed DICOM file of 8 bits, or of more bits with a window."""
    pixels = np.asarray(image.convert("L"))
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3", "DX"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 if bits == 8 else 16, bits, bits - 1
    if bits > 8:
        pixels = pixels.astype(np.uint16) << (bits - 8)
        dataset.WindowCenter, dataset.WindowWidth = 2 ** (bits - 1), 2**bits
    dataset.add_new(0x7FE00010, "OW", pixels.tobytes())
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("images", type=Path, help="folder of JPEG files")
    parser.add_argument("work", type=Path, help="folder for the DICOM files")
    parser.add_argument("--before", type=Path, help="another checkout")
    options = parser.parse_args()
    files = {"JPEG": sorted(options.images.rglob("*.jpg"))}
    for bits in (8, 12):
        folder = options.work / str(bits)
        folder.mkdir(parents=True, exist_ok=True)
        for file in files["JPEG"]:
            with Image.open(file) as image:
                (folder / f"{file.stem}.dcm").write_bytes(as_dicom(image, bits))
        files[f"DICOM, {bits} bits"] = sorted(folder.glob("*.dcm"))
    checkouts = {"this": REPOSITORY} | ({"before": options.before.absolute()} if options.before else {})
    readers = {}
    for name, checkout in checkouts.items():
        others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path != str(REPOSITORY)]
        paths = os.pathsep.join([str(checkout), *others])
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        # With -c, Python imports from the working directory before PYTHONPATH.
        readers[name] = subprocess.Popen([sys.executable, "-c", READER], cwd=checkout, env=environment,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    print(
        f"{len(files['JPEG'])} radiographs, milliseconds per file, median over files of the fastest of {ROUNDS} rounds"
    )
    for kind, paths in files.items():
        fastest = {name: [float("inf")] * len(paths) for name in readers}
        for turn in range(ROUNDS):
            for number, path in enumerate(paths):
                for name, reader in list(readers.items())[:: 1 if turn % 2 else -1]:
                    assert reader.stdin
                    assert reader.stdout
                    reader.stdin.write(f"{path.absolute()}\n")
                    reader.stdin.flush()
                    fastest[name][number] = min(fastest[name][number], float(reader.stdout.readline()))
        medians = {name: 1000 * statistics.median(seconds) for name, seconds in fastest.items()}
        line = "".join(f"  {name} {value:7.1f} ms" for name, value in medians.items())
        if options.before:
            ratios = [this / before for this, before in zip(fastest["this"], fastest["before"], strict=True)]
            line += f"  ratio {statistics.median(ratios):.3f}"
        print(f"  {kind:15}{line}")
    for reader in readers.values():
        reader.terminate()


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"measured in {time.perf_counter() - started:.0f} s")
