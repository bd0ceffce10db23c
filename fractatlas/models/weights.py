"""Pretrained weights and checkpoints: found, downloaded, checked, and loaded without running what a pickle may hold."""

import io
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from fractatlas.errors import InputError
from fractatlas.files import whole

log = logging.getLogger(__name__)


def load_trunk(
    network: nn.Module, variant: str, stages: Mapping[str, list[str]], weights: str | None, weights_dir: str
) -> dict[str, Any]:
    """Fill a torchvision network's trunk; the head, and whatever the file lacks, stays random.

    Args:
        network: changed in place.
        variant: its name in torchvision.
        stages: the names of the modules of each stage, to report what was filled.
        weights: ``imagenet``: a file of ``weights_dir`` whose name starts with the variant's, otherwise torchvision's
            download into it. A path: a state dict with torchvision's key names, a part of one, or a checkpoint of
            ours. ``None``: nothing.
        weights_dir: where weights lie.

    Returns:
        ``file`` (its name), how many tensors were ``loaded``, ``of`` how many, and what is ``random``.

    Raises:
        InputError: no such file and no network; no weights in the file; wrong shapes, or nothing that fits.
    """
    own = network.state_dict()
    trunk = {key for names in stages.values() for name in names for key in own if key.startswith(f"{name}.")}
    if weights is None:
        return {"file": None, "loaded": 0, "of": len(trunk), "random": [*stages, "head"]}
    file = _imagenet_file(variant, Path(weights_dir)) if weights == "imagenet" else Path(weights)
    found = {_modern(key): tensor for key, tensor in _state_dict(file).items()}
    fitting = {key: tensor for key, tensor in found.items() if key in trunk}
    if not fitting:
        raise InputError(f"{file}: none of its {len(found)} tensors belongs to a {variant}; name its own weights")
    for key, tensor in fitting.items():
        if tensor.shape != own[key].shape:
            raise InputError(
                f"{file}: {key} is {tuple(tensor.shape)}, a {variant} has {tuple(own[key].shape)}: "
                "weights of another architecture"
            )
    network.load_state_dict(fitting, strict=False)  # copies into float32, whatever the file's precision
    # Files from before BatchNorm counted its batches are whole without the count.
    missing = {key for key in trunk - set(fitting) if not key.endswith("num_batches_tracked")}
    at_random = [
        stage for stage, names in stages.items() if any(key.startswith(f"{name}.") for name in names for key in missing)
    ]
    report = {
        "file": file.name,
        "loaded": len(fitting),
        "of": len(fitting) + len(missing),
        "random": [*at_random, "head"],
    }
    loaded = f"{report['loaded']} of {report['of']} trunk tensors from {file}"
    log.info("%s: %s; random: %s", variant, loaded, ", ".join(report["random"]))
    return report


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Load a PyTorch file to the CPU without executing code that it may carry.

    Raises:
        InputError: there is no such file, it is not PyTorch's, or it holds more than plain values and tensors.
    """
    if not file.is_file():
        raise InputError(f"no file {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            why = f"it would run code when loaded ({named[1]})"
        elif file.read_bytes()[:1] == b"\x80":
            why = "it would run code when loaded (a bare pickle)"
        else:
            raise InputError(f"{file} is not a PyTorch file") from None
        raise InputError(f"{file} is refused: {why}; save a plain state dict with torch.save") from None
    except Exception as error:  # a broken file can make the reader fail in any way
        raise InputError(f"{file} is not a PyTorch file, or is broken ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, not a dict of tensors")
    return content


def write_checkpoint(file: Path, content: dict[str, Any]) -> None:
    """Save with PyTorch, whole or not at all.

    Raises:
        OSError: there is no room, or no right to write there.
    """
    # By way of memory: what PyTorch says of a full disk is about positions in a zip file.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with whole(file) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _state_dict(file: Path) -> dict[str, Tensor]:
    content = read_checkpoint(file)
    content = content.get("state_dict", content)  # a Lightning checkpoint holds more than the weights
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{file} holds no tensors by name")
    return {key.removeprefix("backbone.network."): value for key, value in tensors.items()}


def _modern(key: str) -> str:
    """torchvision's own files name DenseNet's layers as they were called in 2017: ``norm.1`` for ``norm1``."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", key)


def _imagenet_file(variant: str, folder: Path) -> Path:
    files = sorted(folder.glob(f"{variant}[-_.]*pth"))
    if len(files) > 1:
        raise InputError(f"{folder} has {', '.join(file.name for file in files)}: name one, model.weights=FILE")
    if files:
        return files[0]
    try:
        url = get_model_weights(variant).DEFAULT.url
    except ValueError:
        raise InputError(f"there are no ImageNet weights for {variant}: use model.weights=null") from None
    file = folder / url.rpartition("/")[2]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.load_state_dict_from_url(url, str(folder), progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"cannot download {variant}'s weights ({error}): put {url} at {file}, "
            "name a file (model.weights=FILE) or folder (FRACATLAS_WEIGHTS=DIR), or start random (model.weights=null)"
        ) from None
    return file
