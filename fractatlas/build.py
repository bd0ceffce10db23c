"""Build the parts of a run from a checked configuration."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, instantiate

from fractatlas.config.schema import listed_targets
from fractatlas.data.datamodule import RadiographDataModule
from fractatlas.data.sources.registry import LOADING_KEYS, open_source
from fractatlas.errors import InputError
from fractatlas.models.backbones import Backbone
from fractatlas.models.classifier import FractureClassifier


def build(part: dict[str, Any], **arguments: Any) -> Any:
    """Instantiate one part of a checked configuration, with ``arguments`` added to its own."""
    # Safe, because the schema or trusted_targets lists every _target_ that reaches this line. Hydra's own list would
    # need the module that defines a class (torch.optim.adam.Adam) instead of the documented name (torch.optim.Adam).
    make = partial(instantiate, part, _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS)
    if (target := part["_target_"]) in listed_targets():
        return make(**arguments)
    try:
        return make(**arguments)
    except InputError:
        raise
    except Exception as error:  # code of another package can raise anything
        reason = " ".join(str(error).split())
        raise InputError(f"{target}: {type(error).__name__}: {reason}; correct its arguments or its code") from error


def build_data(config: dict[str, Any], split: Any = None, seen: pd.DataFrame | None = None) -> RadiographDataModule:
    """Build the data module of a plain ``TrainConfig``.

    Args:
        config: checked.
        split: replaces its function from a catalogue to a split.
        seen: as for ``RadiographDataModule``.
    """
    return RadiographDataModule(
        open_source(config["data"]),
        **{name: config["data"][name] for name in LOADING_KEYS},
        seen=seen,
        split=split or build(config["split"]),
        preprocess=build(config["preprocess"]),
        augment=build(config["augment"]),
        seed=config["seed"],
        masks=config.get("map") is not None,
    )


def build_classifier(config: dict[str, Any], pretrained: bool = True) -> FractureClassifier:
    """Build the classifier of a plain ``TrainConfig``; ``pretrained=False`` does not load the weights that it names."""
    without = {} if pretrained or "weights" not in config["model"] else {"weights": None}
    parts = {"map": build(config["map"])} if config.get("map") else {}
    backbone = build(config["model"] | without, **parts)
    if not isinstance(backbone, Backbone):
        found = f"{config['model']['_target_']}: returns a {type(backbone).__name__}"
        raise InputError(f"{found}; return a fractatlas.models.backbones.Backbone")
    return FractureClassifier(
        backbone=backbone,
        loss=build(config["loss"]),
        optimizer=build(config["optimizer"]),
        scheduler=build(config["scheduler"]),
        config=config,
    )


def model_name(config: dict[str, Any]) -> str:
    """Return the name of the network: the variant, or the name of a function of another package."""
    return config["model"].get("variant") or config["model"]["_target_"].rpartition(".")[2]


def build_trainer(config: dict[str, Any], run: Path, **arguments: Any) -> lightning.Trainer:
    """Build Lightning's trainer of any plain configuration, with ``arguments`` in addition; it writes below ``run``.

    ``trainer.precision=auto`` means float32 here; ``train`` replaces it by the precision of the hardware.

    Raises:
        InputError: this machine does not have the accelerator or the number of devices.
    """
    settings = config["trainer"]
    if settings["precision"] == "auto":
        settings = settings | {"precision": "32-true"}
    # With deterministic algorithms, torch would write NaN into each new tensor, a tenth of the time of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        # The data module has its own samplers.
        return build(settings, default_root_dir=str(run), use_distributed_sampler=False, **arguments)
    except Exception as error:  # Hydra wraps Lightning's exception, for example for a missing accelerator
        raise trainer_error(error.__cause__ or error) from None


def trainer_error(error: BaseException) -> InputError:
    """Return an error with Lightning's message in one line and a remedy."""
    message = " ".join(str(error).split()).rstrip(".!")
    return InputError(f"trainer: {message}; change trainer.accelerator or trainer.devices, or use trainer=cpu")
