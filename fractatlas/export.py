"""A checkpoint as one ONNX file: ``python -m fractatlas.export ckpt=<run>/checkpoints/best.ckpt [output=FILE]``.

Input: image, float32 (n, 3, size, size), preprocessed. Outputs: logit and probability (of a fracture, the logit's
sigmoid), float32 (n,). The file's metadata_props say the rest: preprocess (JSON: the geometry, then
(value / 255 - mean) / std), model, version, and, where the checkpoint has an operating point, its threshold,
temperature and rule. It is written only if ONNX Runtime gives the checkpoint's own probabilities, to 1e-4.
"""

import csv
import difflib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fractatlas
from fractatlas.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
KEYS = ("ckpt", "output")
IMAGES = 16  # of the run's own, and as many of noise, to compare on


def export(checkpoint: Path, output: Path) -> float:
    """Write a checkpoint's network to ``output``.

    Returns:
        The largest difference between a probability of ONNX Runtime and of PyTorch, over images of the checkpoint's
        run, where they are still there, and noise.

    Raises:
        InputError: the checkpoint is not one of ours, or the two differ; nothing is written.
    """
    from fractatlas.models.onnx import write_onnx
    from fractatlas.models.weights import read_checkpoint
    from fractatlas.training.run import build_classifier, checkpoint_config

    config, content = checkpoint_config(checkpoint), read_checkpoint(checkpoint)
    config["model"] |= {"weights": None, "channels_last": False}  # they come out of the checkpoint; ONNX has one order
    classifier = build_classifier(config)
    try:
        classifier.load_state_dict(content["state_dict"])
    except RuntimeError:
        raise InputError(f"{checkpoint} holds another architecture than its configuration names") from None
    preprocess = dict(config["preprocess"])
    metadata = {
        "preprocess": json.dumps({"geometry": preprocess.pop("_target_").rpartition(".")[2], **preprocess}),
        "model": config["model"]["variant"],
        "version": fractatlas.__version__,
        **{name: str(value) for name, value in (content.get("operating_point") or {}).items()},
    }
    return write_onnx(classifier.backbone, output, _images(checkpoint, config), metadata)


def _images(checkpoint: Path, config: dict[str, Any]) -> "Tensor":
    """Normalised images, float (n, 3, size, size): the first of the run that are still there, and noise."""
    import torch

    from fractatlas.data.inspection import decode
    from fractatlas.training.run import build

    preprocess = build(config["preprocess"])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (IMAGES, 1, preprocess.size, preprocess.size), generator=generator, dtype=torch.uint8)
    found, catalogue = [], checkpoint.absolute().parents[1] / "catalogue.csv"
    if catalogue.is_file():
        with catalogue.open(encoding="utf-8", newline="") as rows:
            usable = [row["path"] for row in csv.DictReader(rows) if not row["excluded"]]
        files = [Path(config["data"]["root"]) / path for path in usable[:IMAGES]]
        found = [preprocess(decode(file.read_bytes())) for file in files if file.is_file()]
    return preprocess.normalise(torch.stack([*found, *noise]))


def parse(arguments: list[str]) -> tuple[Path, Path]:
    """Read ``ckpt=FILE`` and ``output=FILE`` (default: the checkpoint's name with ``.onnx``), both taken literally.

    Raises:
        InputError: another key, none, a checkpoint that is not there, or a place that cannot be written to.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value:
            raise InputError(f"{argument}: should be key=value; there are {', '.join(KEYS)}")
        if key not in KEYS:
            nearest = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are {', '.join(KEYS)}"
            raise InputError(f"unknown key '{key}'; {hint}")
        given[key] = value
    if "ckpt" not in given:
        raise InputError("ckpt needs a value: ckpt=<run>/checkpoints/best.ckpt")
    checkpoint = Path(given["ckpt"])
    output = Path(given.get("output", checkpoint.with_suffix(".onnx")))
    if not checkpoint.is_file():
        raise InputError(f"no file {checkpoint}")
    if output.is_dir():
        raise InputError(f"output={output} is a folder; name a file in it")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):  # told now, not after the work
        raise InputError(f"cannot write to {folder}; name another file: output=FILE")
    return checkpoint, output


def main(arguments: list[str] | None = None) -> None:
    """Export one checkpoint."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__.replace("``", "").strip())
        return
    try:
        checkpoint, output = parse(arguments)
        if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
            raise InputError(f"export needs {', '.join(missing)}: pip install {' '.join(missing)}")
        difference = export(checkpoint, output)
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.strerror or error}: {error.filename or 'no file named'}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing half written")
    size = output.stat().st_size / 1e6
    print(f"{output} ({size:.1f} MB): probabilities as the checkpoint's, to {difference:.1e}")


if __name__ == "__main__":
    main()
