"""Measure what ``predict.py`` costs beside the network, as a ratio within one run.

Its loop (read, decode, preprocess, normalise, forward pass, table) is compared with a bare loop of forward passes over
the same images as normalised tensors in memory. The two run alternately. The fastest repetition of each counts, because
other processes of the machine can only slow a repetition down.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from fractatlas.build import build_classifier
from fractatlas.config.overrides import CONF, compose_config
from fractatlas.config.schema import PredictConfig
from fractatlas.config.validation import validate
from fractatlas.data.sources import phantom
from fractatlas.inference.inputs import find_inputs
from fractatlas.inference.model import load_model
from fractatlas.inference.predict import predict, read_ahead
from fractatlas.models.classifier import FractureClassifier


def bare_loop(classifier: FractureClassifier, images: torch.Tensor, batch_size: int) -> float:
    """Return the seconds of the shortest loop that predicts."""
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in images.split(batch_size):
            classifier(batch)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variant", default="densenet169")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=4)
    arguments = parser.parse_args()
    size = arguments.batch_size
    family = "resnet" if arguments.variant.startswith("resnet") else "densenet"
    with tempfile.TemporaryDirectory() as folder:
        run, checkpoint = Path(folder), Path(folder, "random.ckpt")
        trained = compose_config(
            ["data=phantom", "model.weights=null", f"model={family}", f"model.variant={arguments.variant}"]
        )
        content = {"config": trained, "state_dict": build_classifier(trained).state_dict()}
        torch.save(content | {"operating_point": {"rule": "fixed", "threshold": 0.5, "temperature": 1.0}}, checkpoint)
        options = [f"paths.root={run}", f"paths.output_dir={run}", f"ckpt={checkpoint}", f"input={run}/phantoms",
                   f"batch_size={size}", "trainer=cpu"]  # fmt: skip
        with initialize_config_dir(str(CONF), job_name="benchmark"):
            config = validate(compose("predict", options), PredictConfig)
        phantom.generate(run / "phantoms", images=arguments.images, seed=0)
        inputs, model = find_inputs(config["input"]), load_model(checkpoint)
        pixels = [image for _, image in read_ahead(inputs.images, model.preprocess, os.cpu_count() or 1, 8)]
        images = model.preprocess.normalise(torch.stack([one for one in pixels if isinstance(one, torch.Tensor)]))
        bare_loop(model.classifier, images[: 2 * size], size)
        complete, bare = [], []
        for _ in range(arguments.repetitions):
            started = time.perf_counter()
            predict(config, inputs)
            complete.append(time.perf_counter() - started)
            bare.append(bare_loop(model.classifier, images, size))
    ratios = [without / within for within, without in zip(complete, bare, strict=True)]
    print(f"\n{arguments.variant}, {len(images)} images, batch {size}, 224 px, fastest of {arguments.repetitions}")
    print(f"  bare forward loop, tensors in memory   {len(images) / min(bare):6.2f} images/s")
    print(f"  predict.py, from the files             {len(images) / min(complete):6.2f} images/s")
    print(f"  predict.py / bare                      {min(bare) / min(complete):6.3f}")
    print(f"  median ratio of a repetition           {statistics.median(ratios):6.3f}")


if __name__ == "__main__":
    main()
