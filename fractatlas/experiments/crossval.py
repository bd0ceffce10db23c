"""Write the plan of a cross-validation from the arguments of ``fractatlas crossval``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fractatlas.config.overrides import compose_config, joined
from fractatlas.errors import InputError
from fractatlas.experiments.plan import DEFAULTS, check_options, check_plan, read_plan
from fractatlas.io import write_text

PLAN = "crossval.yaml"
OWN = ("folds", "seeds", "out")  # arguments that are not keys of a training
FIXED = ("split=", "split.folds=", "split.fold=", "seed=", "test=", "resume=", "hydra.")


def write_plan(arguments: Sequence[str]) -> Path:
    """Write ``crossval.yaml``, a plan with one recipe and folds, into the output folder.

    Args:
        arguments: ``folds=K``, ``seeds=[N,...]``, ``out=DIR``, and options of ``fractatlas train``. Defaults of the
            first two are ``split.folds`` and ``seed`` of the configuration.

    Returns:
        The path of the plan.

    Raises:
        InputError: an argument is invalid, or the folder contains the cross-validation of other options.
    """
    arguments = list(joined(arguments))
    own = {key: value for key, _, value in (argument.partition("=") for argument in arguments) if key in OWN}
    options = [argument for argument in arguments if argument.partition("=")[0] not in OWN]
    for option in options:
        if option.startswith(FIXED):
            remedy = "use seeds=[N,...]" if option.startswith("seed=") else "remove it"
            raise InputError(f"{option}: crossval sets this key; {remedy}")
        if option.startswith("-") and not option.startswith("--config-dir="):
            raise InputError(f"{option}: no such option; fractatlas crossval --help lists the arguments")
    config_dir = next((one.partition("=")[2] for one in options if one.startswith("--config-dir=")), "")
    config = compose_config([*options, "split=kfold"])
    name = next((one.partition("=")[2] for one in options if one.startswith("experiment=")), config["task_name"])
    content: dict[str, Any] = {
        "seeds": _numbers("seeds", own.get("seeds", str(config["seed"]))),
        "folds": _number("folds", own.get("folds", str(config["split"]["folds"]))),
        **({"config_dir": str(Path(config_dir).absolute())} if config_dir else {}),
        "recipes": {name: [one for one in options if not one.startswith("--config-dir=")]},
    }
    file = Path(own.get("out") or f"logs/crossval/{name}") / PLAN
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    _check(content, file)
    write_text(file, text)
    return file


def _check(content: dict[str, Any], file: Path) -> None:
    """Check a plan before it is written, and that it is the one in the folder, except for its seeds."""
    plan = check_plan(DEFAULTS | content)
    check_options(plan)
    if not file.is_file():
        return
    former = read_plan(file)
    for key in ("folds", "recipes"):
        was, now = getattr(former, key), getattr(plan, key)
        if was != now:
            raise InputError(
                f"{file}: contains another cross-validation ({key}: {was}, not {now}); use another out=DIR"
            )


def _numbers(key: str, text: str) -> list[int]:
    return [_number(key, one) for one in text.strip("[]").split(",")]


def _number(key: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise InputError(f"{key}={text}: should be {'numbers such as [1,2]' if key == 'seeds' else 'a number'}")
    return int(text)
