"""Measure the requests of several clients of ``fractatlas serve`` beside a bare forward pass, within one run.

The server runs as a process of its own with an untrained network. Each client sends one image at a time, without a
pause. The duration of a request includes the upload, decoding, the network and the answer. The bare forward pass has
one image that is a tensor in memory.
"""

import argparse
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fractatlas.build import build_classifier
from fractatlas.config.overrides import compose_config

BOUNDARY = "fractatlas"


def upload(address: str, image: bytes) -> float:
    """Send one image until it is predicted; return the seconds."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    body = head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    started = time.perf_counter()
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{address}/v1/predict", body, kind)) as answer:
                assert "probability" in json.load(answer)["results"][0]
            return time.perf_counter() - started
        except urllib.error.HTTPError as error:
            if error.code != 429:
                raise
            time.sleep(int(error.headers["Retry-After"]))


def resident_megabytes(number: int) -> float:
    """Return the largest memory of a process so far (Linux)."""
    status = Path(f"/proc/{number}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variant", default="densenet169")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--side", type=int, default=1000, help="pixels of the images")
    arguments = parser.parse_args()
    family = "resnet" if arguments.variant.startswith("resnet") else "densenet"
    config = compose_config(
        ["data=phantom", "model.weights=null", f"model={family}", f"model.variant={arguments.variant}"]
    )
    classifier = build_classifier(config).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (arguments.side, arguments.side), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).resize((arguments.side, arguments.side)).save(content, "JPEG")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "random.ckpt")
        point = {"rule": "fixed", "threshold": 0.5, "temperature": 1.0}
        torch.save({"config": config, "state_dict": classifier.state_dict(), "operating_point": point}, checkpoint)
        side = config["preprocess"].get("crop") or config["preprocess"]["size"]
        image, bare = torch.zeros(1, 3, side, side), []
        with torch.inference_mode():
            for _ in range(20):
                started = time.perf_counter()
                classifier(image)
                bare.append(time.perf_counter() - started)
        line = [sys.executable, "-m", "fractatlas", "serve", f"ckpt={checkpoint}", "port=0"]
        log = Path(folder, "log")
        with log.open("w") as output:
            process = subprocess.Popen(line, stdout=output, stderr=output, cwd=folder, env=dict(os.environ))
        try:
            while not (found := re.search(r"on (http://\S+);", log.read_text())):
                if process.poll() is not None:
                    sys.exit(log.read_text())
                time.sleep(0.1)
            upload(found[1], content.getvalue())
            first = resident_megabytes(process.pid)
            started = time.perf_counter()
            with ThreadPoolExecutor(arguments.clients) as pool:
                seconds = list(pool.map(lambda _: upload(found[1], content.getvalue()), range(arguments.requests)))
            total, peak = time.perf_counter() - started, resident_megabytes(process.pid)
        finally:
            process.terminate()
            process.wait()
    median, p95 = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
    forward = statistics.median(bare)
    print(f"{len(seconds)} requests of {arguments.clients} clients answered in {total:.1f} s, none lost")
    print(f"request: median {1000 * median:.0f} ms, 95th percentile {1000 * p95:.0f} ms")
    print(f"bare forward pass of one image: median {1000 * forward:.0f} ms")
    rate = len(seconds) / total
    print(f"throughput: {rate:.1f} images/s, {rate * forward:.2f} of the bare forward passes in the same time")
    print(f"memory of the server: {first:.0f} MB after the first request, at most {peak:.0f} MB")


if __name__ == "__main__":
    main()
