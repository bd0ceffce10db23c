"""Load pretrained weights into a network, from a file or from torchvision's download."""

import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from fractatlas.data.sources.registry import stored_finding
from fractatlas.data.sources.source import Source
from fractatlas.errors import InputError
from fractatlas.evaluation.run_folder import best_checkpoint
from fractatlas.models.checkpoint import read_checkpoint
from fractatlas.models.weight_files import find_weights
from fractatlas.progress_bar import waiting
from fractatlas.wording import join_names

log = logging.getLogger(__name__)


def load_trunk(
    network: nn.Module, variant: str, stages: Mapping[str, list[str]], weights: str | None, weights_dir: str
) -> dict[str, Any]:
    """Load weights into a torchvision network; the head, and tensors that are not in the file, keep random values.

    Args:
        network: changed in place.
        variant: its name in torchvision.
        stages: the names of the modules of each stage.
        weights: ``imagenet``: the file in ``weights_dir`` whose name starts with the variant's, otherwise torchvision's
            file, which is downloaded into that folder. A path: a state dict with torchvision's keys, complete or not,
            or a checkpoint of this project. ``None``: no weights.
        weights_dir: the folder of ImageNet weights.

    Returns:
        The report: ``file`` (its name), the number of tensors ``loaded`` ``of`` the trunk's, and the ``random`` stages.
        ``load_head`` completes and logs it.

    Raises:
        InputError: the file is missing and cannot be downloaded, or its tensors do not fit the network.
    """
    own = network.state_dict()
    trunk = {key for names in stages.values() for name in names for key in own if key.startswith(f"{name}.")}
    if weights is None:
        return {"file": None, "loaded": 0, "of": len(trunk), "random": [*stages, "head"]}
    file = find_weights(variant, weights, weights_dir) or _download(variant, Path(weights_dir))
    with waiting("loading weights", f" from {file}"):
        content = read_checkpoint(file)
        _require_variant(file, content, variant)
        _log_finding(file, content)
        tensors = {_current_key(key): tensor for key, tensor in _state_dict(file, content).items()}
    fitting = {key: tensor for key, tensor in tensors.items() if key in trunk}
    if not fitting:
        raise InputError(f"{file}: none of {len(tensors)} tensors belongs to a {variant}; use weights of a {variant}")
    for key, tensor in fitting.items():
        if tensor.shape != own[key].shape:
            problem = f"{key} has shape {tuple(tensor.shape)}, should be {tuple(own[key].shape)}"
            raise InputError(f"{file}: {problem}; use weights of a {variant}")
    network.load_state_dict(fitting, strict=False)  # converts half precision to float32
    # Old files lack num_batches_tracked, which is not needed.
    missing = {key for key in trunk - set(fitting) if not key.endswith("num_batches_tracked")}
    random = [stage for stage, names in stages.items() if any(k.startswith(f"{n}.") for k in missing for n in names)]
    random.append("head")
    count = len(fitting) + len(missing)
    return {"file": file.name, "loaded": len(fitting), "of": count, "random": random}


def load_head(backbone: nn.Module, variant: str, head_name: str, weights: str | None, head: str | None) -> None:
    """Load the parts of a checkpoint of this project that ``load_trunk`` does not load, and log what was loaded.

    A fracture map is loaded if both networks have one of the same shape. The head is loaded with ``head="keep"``.

    Args:
        backbone: with ``network``, ``map`` and the report ``loaded_weights`` of ``load_trunk``; changed in place.
        variant: the name of the network in torchvision.
        head_name: the name of the head in ``network``.
        weights: as for ``load_trunk``.
        head: ``keep``, ``new`` or ``None``, which means ``new``.

    Raises:
        InputError: the head is to be kept, and the file does not contain it.
    """
    report: dict[str, Any] = backbone.loaded_weights  # type: ignore[assignment]
    loaded = [f"{report['loaded']} of {report['of']} trunk tensors"]
    if weights not in (None, "imagenet"):
        loaded += _load_parts(backbone, report, head_name, best_checkpoint(Path(str(weights))), head)
    if report["file"]:
        log.info("%s: %s loaded; random: %s", variant, ", ".join(loaded), join_names(report["random"]) or "none")


def _load_parts(backbone: Any, report: dict[str, Any], head_name: str, file: Path, head: str | None) -> list[str]:
    """Load the fracture map and the head, as ``load_head`` does, and return the names of those that were loaded."""
    found: list[str] = []
    parts = {"map": (backbone.map, "backbone.map.")} if getattr(backbone, "map", None) is not None else {}
    if head == "keep":
        parts["head"] = (backbone.network.get_submodule(head_name), f"backbone.network.{head_name}.")
    tensors = read_checkpoint(file).get("state_dict", {}) if parts else {}
    for name, (module, prefix) in parts.items():
        own: dict[str, Tensor] = module.state_dict()
        stored = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        fits = own.keys() == stored.keys() and all(own[key].shape == stored[key].shape for key in own)
        if fits:
            module.load_state_dict(stored)
            report["random"] = [one for one in report["random"] if one != name]
            found.append("fracture map" if name == "map" else "head")
        elif name == "head":
            raise InputError(f"model.head=keep: {file} has no head of this network; use model.head=new")
        else:
            log.info("%s has no fracture map of this shape: the map starts from random weights", file)
    return found


def _require_variant(file: Path, content: dict[str, Any], variant: str) -> None:
    """Require that a checkpoint of this project has the network ``variant``; other files are not checked.

    Raises:
        InputError: it has another network.
    """
    config = content.get("config")
    stored = config.get("model", {}).get("variant") if isinstance(config, dict) else None
    if stored and stored != variant:
        remedy = f"use model.variant={stored}, or weights of a {variant}"
        raise InputError(f"model.weights={file}: a checkpoint of a {stored}, the network is a {variant}; {remedy}")


def _log_finding(file: Path, content: dict[str, Any]) -> None:
    config = content.get("config")
    finding = stored_finding(config.get("data", {}) if isinstance(config, dict) else {})
    if finding != Source.finding:
        log.warning("%s: this network was trained to detect %s, not %s", file, finding, Source.finding)


def _state_dict(file: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    content = content.get("state_dict", content)  # a Lightning checkpoint contains more than the weights
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{file} contains no tensors; use a state dict saved with torch.save")
    return {key.removeprefix("backbone.network."): value for key, value in tensors.items()}


def _current_key(key: str) -> str:
    """Return the current name of a layer: torchvision's DenseNet files still have ``norm.1`` for ``norm1``."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", key)


def _download(variant: str, folder: Path) -> Path:
    try:
        url = get_model_weights(variant).DEFAULT.url
    except ValueError:
        raise InputError(f"there are no ImageNet weights for {variant}; use model.weights=null") from None
    file = folder / url.rpartition("/")[2]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s to %s", url, folder)
        terminal = sys.stderr.isatty()
        torch.hub.load_state_dict_from_url(url, str(folder), progress=terminal, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"cannot download the ImageNet weights of {variant} ({error}); save {url} as {file}, name a file "
            "(model.weights=FILE) or a folder (FRACATLAS_WEIGHTS=DIR), or use random weights (model.weights=null)"
        ) from None
    return file
