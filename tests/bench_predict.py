"""What ``predict.py`` costs beside the network, as a ratio within one run: ``make bench`` runs it, too.

Its loop (read, decode, preprocess, normalise, forward, table) against a bare forward loop over the same images as
normalised tensors in memory, same network and batch size, in turns; the fastest turn of each counts, since whatever
else the machine does can only slow a turn down.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from fractatlas.config import PredictConfig, TrainConfig, check
from fractatlas.data import phantom
from fractatlas.data.inputs import find_inputs
from fractatlas.models.classifier import FractureClassifier
from fractatlas.prediction import load_classifier, predict, read_ahead
from fractatlas.training.run import build, build_classifier

REPOSITORY = Path(__file__).parents[1]


def composed(name: str, schema: type, *overrides: str) -> dict:
    """A checked configuration."""
    with initialize_config_dir(str(REPOSITORY / "conf"), job_name="bench"):
        return check(compose(name, list(overrides)), schema)


def bare_loop(classifier: FractureClassifier, images: torch.Tensor, batch_size: int) -> float:
    """Seconds of the shortest loop that predicts."""
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in images.split(batch_size):
            classifier(batch)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--variant", default="resnet18")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, checkpoint = Path(folder), Path(folder, "random.ckpt")
        here = [f"paths.root={run}", f"paths.output_dir={run}"]
        model = [
            f"model={'resnet' if options.variant.startswith('resnet') else 'densenet'}",
            f"model.variant={options.variant}",
        ]
        trained = composed("train", TrainConfig, "data=phantom", "model.weights=null", *model, *here)
        torch.save(
            {
                "config": trained,
                "state_dict": build_classifier(trained).state_dict(),
                "operating_point": {"threshold": 0.5, "temperature": 1.0},
            },
            checkpoint,
        )
        config = composed("predict", PredictConfig, f"ckpt={checkpoint}", f"input={run}/phantoms", "trainer=cpu",
                          f"batch_size={options.batch_size}", *here)  # fmt: skip
        phantom.generate(run / "phantoms", images=options.images, seed=0)
        inputs, preprocess = find_inputs(config["input"]), build(trained["preprocess"])
        readable = [
            image for _, image in read_ahead(inputs.images, preprocess, 2, 8) if isinstance(image, torch.Tensor)
        ]
        images, classifier = preprocess.normalise(torch.stack(readable)), load_classifier(trained, checkpoint)
        bare_loop(classifier, images[: 2 * options.batch_size], options.batch_size)
        ours, bare = [], []
        for _ in range(options.turns):
            started = time.perf_counter()
            predict(config, inputs)
            ours.append(time.perf_counter() - started)
            bare.append(bare_loop(classifier, images, options.batch_size))
    turns = [without / within for within, without in zip(ours, bare, strict=True)]
    print(f"\n{options.variant}, {len(images)} images, batch {options.batch_size}, 224 px, fastest of {options.turns}")
    print(f"  bare forward loop, tensors in memory   {len(images) / min(bare):6.2f} images/s")
    print(f"  predict.py's, from the files           {len(images) / min(ours):6.2f} images/s")
    print(f"  ours / bare                            {min(bare) / min(ours):6.3f}")
    print(f"  turn by turn, median                   {statistics.median(turns):6.3f}")


if __name__ == "__main__":
    main()
