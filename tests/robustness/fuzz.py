"""Read randomly changed image files: ``python -m tests.robustness.fuzz --inputs 100000``.

Real files of each format are cut, extended, overwritten, combined, and given extreme numbers. They are read in
subprocesses that must not crash, hang or use much memory. Each file must give an 8-bit image or ``UnreadableError``.
"""

import argparse
import io
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file

from fractatlas.data.images import UnreadableError, read_radiograph

SECONDS, GIGABYTES = 20, 4  # limits of time per input and of additional memory per process
EXTREMES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff",
            b"\x7f\xff\xff\xff")  # fmt: skip
DICOM = ("CT_small.dcm", "MR_small.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
         "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_small_odd.dcm",
         "examples_palette.dcm", "JPGExtended.dcm", "no_meta.dcm")  # fmt: skip


@dataclass
class Campaign:
    """Results of a campaign."""

    tried: int = 0
    read: int = 0
    refused: Counter = field(default_factory=Counter)
    faults: list[tuple[str, bytes]] = field(default_factory=list)
    peak: float = 0  # additional memory of the largest process in gigabytes


def seeds() -> list[bytes]:
    """Return small files of each format, so that changes often affect headers."""
    y, x = np.mgrid[:48, :40]
    grey = Image.fromarray(((x * 6 + y * y // 60) % 256).astype(np.uint8))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200)
    contents = [Path(get_testdata_file(name, download=False)).read_bytes() for name in DICOM]
    with tempfile.TemporaryDirectory() as folder:
        for number, (image, name, options) in enumerate(
            [
                (grey, "a.jpg", {}), (grey.convert("RGB"), "a.jpg", {"progressive": True}),
                (grey.convert("CMYK"), "a.jpg", {}), (grey, "a.png", {}), (grey.convert("P"), "a.png", {}),
                (deep, "a.png", {}), (grey.convert("RGBA"), "a.png", {}), (deep, "a.tif", {}),
                (grey, "a.tif", {"compression": "tiff_lzw"}), (grey.convert("F"), "a.tif", {}),
                (grey.convert("RGB"), "a.tif", {"compression": "jpeg"}), (grey, "a.bmp", {}), (grey, "a.gif", {}),
                (grey, "a.jp2", {}), (grey, "a.webp", {}), (grey, "a.pgm", {}),
            ]
        ):  # fmt: skip
            file = Path(folder, f"{number}{name}")
            image.save(file, **options)
            contents.append(file.read_bytes())
    return contents


def deep_seeds() -> list[bytes]:
    """Return small files of the kinds that Pillow does not decode."""
    y, x = np.mgrid[:48, :40]
    grey = ((x * 6 + y * y // 60) % 256 * 16).astype(np.uint16)
    colours = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1)
    contents = [imagecodecs.png_encode(grey), imagecodecs.png_encode(colours),
                imagecodecs.jpeg2k_encode(colours, level=0, bitspersample=12),
                b"P6 40 48 65535\n" + colours.astype(">u2").tobytes(),
                b"P3 40 48 4095\n" + " ".join(map(str, colours.reshape(-1))).encode()]  # fmt: skip
    for samples, options in (
        (colours, {}), (colours, {"compression": "lzw"}), (grey.astype(np.int8), {"compression": "zlib"}),
        (grey.astype(np.float64), {"tile": (16, 16)}), (grey.astype(np.uint32), {"bigtiff": True}),
        (grey.astype(np.float32), {"compression": "packbits", "byteorder": ">"}),
        (colours, {"planarconfig": "contig", "predictor": True, "compression": "zlib", "rowsperstrip": 5}),
    ):  # fmt: skip
        file = io.BytesIO()
        photometric = "rgb" if samples.ndim == 3 else "minisblack"
        tifffile.imwrite(file, samples, photometric=photometric, **options)
        contents.append(file.getvalue())
    avif = io.BytesIO()
    Image.fromarray(grey.astype(np.uint8)).save(avif, "AVIF")
    return [*contents, avif.getvalue()]


SEEDS = {"common": seeds, "deep": deep_seeds}


def mutate(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Return ``content`` with one to six changes."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        # Half of the changes affect the header.
        at = chance.randrange(max(1, min(len(changed), 512) if chance.random() < 0.5 else len(changed)))
        match chance.randrange(7):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                changed[at : at + 1] = bytes([changed[at] ^ 1 << chance.randrange(8)]) if changed else b"\0"
            case 2:
                extreme = chance.choice(EXTREMES)
                changed[at : at + len(extreme)] = extreme
            case 3:
                del changed[at : at + chance.choice((1, 4, 64, 10**6))]
            case 4:
                piece = changed[at : at + chance.choice((1, 8, 256))]
                changed[at:at] = piece * chance.choice((1, 2, 50))
            case 5:
                other = chance.choice(others)
                begin = chance.randrange(len(other))
                changed[at : at + 64] = other[begin : begin + 64]
            case 6:
                changed[at : at + 8] = chance.randbytes(8)
    return bytes(changed)


def work(start: int, stop: int, connection, kind: str) -> None:
    """Read mutants ``start`` to ``stop``; send each number before the mutant is read, and the result after."""
    contents = SEEDS[kind]()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C libraries and pydicom print many warnings
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2**30,) * 2)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "mutant")
        for number in range(start, stop):
            connection.send(("trying", number))
            file.write_bytes(mutant(number, contents))
            try:
                image = read_radiograph(file)
                image.load()
                answer = "read" if image.mode == "L" and min(image.size) > 0 else f"fault: a {image.mode} image"
            except UnreadableError as error:
                answer = f"refused: {error}" if str(error) and "\n" not in str(error) else "fault: no reason"
            except BaseException:
                answer = f"fault: {traceback.format_exc()}"
            connection.send((answer, number))
    connection.send(("peak", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**30))


def mutant(number: int, contents: list[bytes]) -> bytes:
    """Return mutant ``number``, always the same."""
    return mutate(contents[number % len(contents)], random.Random(number), contents)


def run(inputs: int, first: int = 0, kind: str = "common") -> Campaign:
    """Read ``inputs`` mutants of the seeds of a kind in a subprocess that is replaced after a crash or a timeout."""
    campaign, contents, number = Campaign(), SEEDS[kind](), first
    context = multiprocessing.get_context("spawn")
    while number < first + inputs:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(number, first + inputs, sender, kind))
        process.start()
        sender.close()
        timeout = 120  # for the start
        try:
            while True:
                if not receiver.poll(timeout):
                    raise TimeoutError
                result, value = receiver.recv()
                if result == "peak":
                    campaign.peak = max(campaign.peak, value)
                    break
                timeout = SECONDS
                if result == "trying":
                    number = value
                    continue
                campaign.tried += 1
                if result == "read":
                    campaign.read += 1
                elif result.startswith("refused"):
                    campaign.refused[result.removeprefix("refused: ")] += 1
                else:
                    campaign.faults.append((result, mutant(number, contents)))
        except (EOFError, TimeoutError) as error:
            process.kill()
            process.join()
            how = "hangs" if isinstance(error, TimeoutError) else signal.Signals(-process.exitcode).name
            campaign.tried += 1
            campaign.faults.append((f"fault: input {number}: {how}", mutant(number, contents)))
        process.join()
        number += 1
    return campaign


def main() -> None:
    """Run a campaign from the command line; inputs with a fault are written to ``--keep``."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", choices=SEEDS, default="common")
    parser.add_argument("--keep", type=Path, default=Path("fuzz"))
    options = parser.parse_args()
    campaign = run(options.inputs, options.first, options.seeds)
    for number, (fault, content) in enumerate(campaign.faults):
        options.keep.mkdir(exist_ok=True)
        (options.keep / f"{number}.bin").write_bytes(content)
        (options.keep / f"{number}.txt").write_text(fault)
    refused = sum(campaign.refused.values())
    print(f"{campaign.tried} tried: {campaign.read} read, {refused} refused, {len(campaign.faults)} faults; "
          f"at most {campaign.peak:.2f} GB more than at the start")  # fmt: skip
    for reason, times in campaign.refused.most_common(25):
        print(f"  {times:6} {reason}")
    for fault, times in Counter(fault.strip().splitlines()[-1] for fault, _ in campaign.faults).items():
        print(f"  FAULT {times:4} {fault}")


if __name__ == "__main__":
    main()
