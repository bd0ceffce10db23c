"""Check a composed configuration against the schema, and report each mistake in one line."""

import dataclasses
import difflib
import functools
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter, ValidationError

from fractatlas.config import schema, trusted
from fractatlas.errors import InputError

_adapter = functools.cache(TypeAdapter)
DOTS_NEED_BACKSLASHES = "the dots of the name need backslashes"
AXES = "hydra.sweeper.params."  # in an override, before the name of a searched hyperparameter
# Hydra's messages for such an override, with its name and value, and what is wrong with it.
AXIS_ERRORS = {
    rf"Could not override '{AXES}([^']*\w\.[^']*)'(?s:.*?)=(.*)$": DOTS_NEED_BACKSLASHES,
    rf"Could not override '{AXES}([^']+)'(?s:.*?)=(.*)$": "not in the search space",
    rf"Could not append to config\. An item is already at '{AXES}([^']+)'(?s:.*?)=(.*?)'?$": "already there",
    rf"Sweeping over Hydra's configuration is not supported : '\+*{AXES}([^=]+)=(.*)'$": "needs double quotes",
}
# What has the effect of a key of lightning-hydra-template or of Lightning; a key stands for those below it, too.
OTHER_NAMES = {
    "callbacks.model_checkpoint": "monitor=METRIC selects the best checkpoint",
    "callbacks.model_summary": "trainer.enable_model_summary=true",
    "callbacks.rich_progress_bar": "callbacks.progress_bar=null disables the bar",
    "data.data_dir": "paths.data_root=DIR",
    "data.train_val_test_split": "split.ratios=[0.7,0.15,0.15]",
    "epochs": "trainer.max_epochs=N",
    "extras": "--cfg job prints the configuration, task_name=NAME names the folder of the run",
    "logger.name": "logger.tensorboard.name=NAME",
    "logger.save_dir": "logger.tensorboard.save_dir=DIR",
    "logger.version": "logger.tensorboard.version=NAME",
    "model.lr": "optimizer.lr=RATE",
    "model.net": "model.variant=NAME",
    "model.optimizer": "optimizer=adamw optimizer.lr=RATE",
    "model.scheduler": "scheduler=cosine",
    "optimized_metric": "monitor=METRIC",
    "print_config": "--cfg job prints the configuration",
    "tags": "task_name=NAME names the folder of the run",
    "test_only": "fractatlas evaluate ckpt=RUN scores without training",
    "train": "fractatlas evaluate ckpt=RUN scores without training",
    "trainer.callbacks": "callbacks=default, early_stopping or averaged",
    "trainer.default_root_dir": "hydra.run.dir=DIR",
    "trainer.fast_dev_run": "debug=one_batch runs one batch of each subset",
    "trainer.gpus": "trainer=gpu trainer.devices=N",
    "trainer.logger": "logger=tensorboard, csv, mlflow or wandb",
    "trainer.max_steps": "trainer.max_epochs=N trainer.limit_train_batches=N",
    "trainer.resume_from_checkpoint": "resume=RUN",
    "trainer.val_check_interval": "trainer.check_val_every_n_epoch=N",
    "work_dir": "hydra.run.dir=DIR",
}
# The same for choices of groups.
OTHER_CHOICES = {
    "callbacks=none": "callbacks=default",
    "callbacks=rich_progress_bar": "callbacks=default, with a progress bar on terminals",
    "debug=default": "debug=one_batch",
    "debug=fdr": "debug=one_batch",
    "debug=limit": "trainer.limit_train_batches=SHARE",
    "logger=many_loggers": "logger='[tensorboard,csv]'",
    "trainer=ddp_sim": "trainer=ddp_cpu",
    "trainer=mps": "trainer=auto",
}
# The same for keys whose equivalent depends on the command.
CHECKPOINT_NAMES = {
    "resume": "resume=RUN continues a run, model.weights=RUN starts from its weights",
    "ckpt": "ckpt=RUN",
}
SCHEMA_NAMES = {part.__name__ for part in schema.parts()}


def metric_mode(monitor: str) -> str:
    """Return ``min`` if a smaller value of the metric ``monitor`` is better (a loss), else ``max``."""
    return "min" if str(monitor).endswith("loss") else "max"


def runs_on_one_device(trainer: dict[str, Any]) -> bool:
    """Return whether a plain configuration of ``trainer`` uses one device of one machine."""
    devices = trainer["devices"]
    return trainer["num_nodes"] == 1 and (devices == 1 or (isinstance(devices, list) and len(devices) == 1))


def validate(config: DictConfig, schema_class: type, trusted_targets: Sequence[str] | None = None) -> dict[str, Any]:
    """Check a configuration against its schema.

    Runs after composition, because Hydra's ``+`` and ``++`` add keys even to a structured configuration.

    Args:
        config: composed.
        schema_class: of the command.
        trusted_targets: the module prefixes that replace those of the configuration, because it comes from a file.

    Returns:
        The configuration, its interpolations resolved, as plain dicts, lists and scalars, which a checkpoint can store.

    Raises:
        InputError: a key is unknown or missing, or its value has the wrong type or range: one line for each.
        omegaconf.errors.OmegaConfBaseException: an interpolation cannot be resolved.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if trusted_targets is not None:
        plain[trusted.SWITCH] = list(trusted_targets)
    prefixes = trusted.check_prefixes(plain.get(trusted.SWITCH, []))
    if trusted.SWITCH in get_type_hints(schema_class):
        plain[trusted.SWITCH] = prefixes  # absent from older run folders and checkpoints
    try:
        # Strict, so that "3" is not a number. From JSON, because strict mode accepts dicts only there.
        _adapter(schema_class).validate_json(json.dumps(plain), strict=True, context={trusted.SWITCH: prefixes})
    except ValidationError as error:
        raise InputError("\n".join(_messages(error, schema_class))) from None
    for key, is_partial in extensible_keys(schema_class).items():
        if "_target_" in plain[key] and plain[key]["_target_"] not in schema.listed_targets():
            trusted.check_part(key, plain[key], prefixes, is_partial)
    return plain


def flatten(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a plain configuration by dotted key; a list is one value."""
    return pd.json_normalize(config).to_dict("records")[0]


def differing_keys(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys in which flat configurations differ, sorted; an absent key differs from every value but null."""
    keys = sorted(set().union(*configs))
    return [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return ``key was A, is B`` for each key in which two flat configurations differ, sorted by key."""
    return [f"{key} was {was.get(key, 'absent')}, is {now.get(key, 'absent')}" for key in differing_keys([was, now])]


def known_keys(schema_class: type, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that a configuration of ``schema_class`` can have."""
    for name, hint in get_type_hints(schema_class).items():
        yield prefix + name
        for part in _dataclasses_in(hint):
            yield from known_keys(part, f"{prefix}{name}.")


def group_keys(schema_class: type) -> set[str]:
    """Return the keys whose value is a group of keys (``model``, ``optimizer``)."""
    return {name for name, hint in get_type_hints(schema_class).items() if any(_dataclasses_in(hint))}


@functools.cache
def extensible_keys(schema_class: type) -> dict[str, bool]:
    """Return the groups that may have a trusted target, and whether each builds a function (``_partial_``)."""
    hints = get_type_hints(schema_class, include_extras=True)
    return {
        name: all(issubclass(part, schema.Partial) for part in _dataclasses_in(hint))
        for name, hint in hints.items()
        if schema.EXTENSIBLE in getattr(hint, "__metadata__", ())
    }


def path_keys(schema_class: type) -> set[str]:
    """Return the keys whose value is a path that is used as it was typed."""
    hints = get_type_hints(schema_class, include_extras=True)
    return {
        name
        for name, hint in hints.items()
        if any(schema.AS_TYPED in getattr(one, "__metadata__", ()) for one in (hint, *get_args(hint)))
    }


def path_list_keys(schema_class: type) -> set[str]:
    """Return the keys of ``path_keys`` whose value can also be a list of paths."""
    hints = get_type_hints(schema_class)
    return {key for key in path_keys(schema_class) if any(get_origin(one) is list for one in get_args(hints[key]))}


def explain(error: Exception, schema_class: type, conf: Path) -> str:
    """Rewrite an error of Hydra or OmegaConf in one line that names the remedy.

    Of Hydra's choices, only those of the project's configuration folder ``conf`` are listed.
    """
    text = str(error)
    for pattern, problem in AXIS_ERRORS.items():
        if match := re.match(pattern, text, re.MULTILINE):
            return axis_error(match[1], match[2], problem)
    if match := re.match(r"Could not override '([^']+)'", text):
        return unknown_key_message(match[1].partition("@")[0], schema_class)
    if match := re.search(
        r"Could not find '([^']+)/([^'/]+)'\s+Available options in '[^']+':\s*(.*?)\n(?!\s)", text, re.DOTALL
    ):
        ours = [choice for choice in match[3].split() if (conf / match[1] / f"{choice}.yaml").is_file()]
        return no_choice_message(f"{match[1]}={match[2]}", ours or match[3].split())
    if match := re.search(r"Could not load '([^']+)/([^'/]+)'", text):
        choices = sorted(file.stem for file in (conf / match[1]).glob("*.yaml"))
        return no_choice_message(f"{match[1]}={match[2]}", choices)
    if match := re.match(r"Ambiguous value for argument '([^']+)'", text):
        remedy = "if the comma is part of one value, put the value in quotes"
        return f"{match[1]}: several values need -m (one run for each); {remedy}"
    if text.startswith("Missing mandatory value"):
        key = getattr(error, "full_key", "")
        return f"{key} needs a value: {key}=..."
    return " ".join(text.split("\n")[0].split())


def axis_error(name: str, value: str, problem: str) -> str:
    """Return one line for an override of ``hydra.sweeper.params``, with the argument that works, quoted for a shell."""
    escaped = name.replace("\\", "").replace(".", "\\.")
    value = value.strip("'\"")
    argument = f'++{AXES}{escaped}="{value}"'
    return f"{AXES}{name}: {problem}; write {shlex.quote(argument)}"


def unknown_key_message(key: str, schema_class: type) -> str:
    """Return one line for a ``key`` that the schema does not have, with the most similar key that it has."""
    known = sorted({*known_keys(schema_class), *known_keys(schema.SearchConfig, "hydra.sweeper.")})
    parent, _, leaf = key.rpartition(".")
    if other := _other_name(key, schema_class):
        return f"unknown key '{key}'; here: {other}"
    if key in known and key.startswith("hydra."):
        return f"unknown key '{key}' of a grid; only a search has it: add hparams_search=optuna"
    if key in known:
        return f"'{key}' does not belong to the chosen '{key.partition('.')[0]}'; --help lists its keys"
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    nearest = nearest or [name for name in known if name.rpartition(".")[2] == leaf]
    if nearest:
        return f"unknown key '{key}'; did you mean '{nearest[0]}'?"
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent and "._" not in name]
    remedy = f"the keys here are {', '.join(siblings)}" if siblings else "--help lists the keys"
    return f"unknown key '{key}'; {remedy}"


def no_choice_message(argument: str, choices: Sequence[str]) -> str:
    """Return the message for ``GROUP=CHOICE`` that does not exist."""
    if other := OTHER_CHOICES.get(argument):
        return f"{argument}: no such choice; here: {other}"
    return f"{argument}: no such choice; the choices are {', '.join(choices)}"


def _other_name(key: str, schema_class: type) -> str:
    """Return what has the effect of a key that users of similar projects type, or an empty string."""
    hints = get_type_hints(schema_class)
    if key == "ckpt_path":
        return next((text for name, text in CHECKPOINT_NAMES.items() if name in hints), "")
    if key == "threshold" and schema_class is schema.ServeConfig:
        return "the threshold of the decision is that of the checkpoint"
    if "optimizer" not in hints:  # the table is about training
        return ""
    parents = [key.rsplit(".", count)[0] for count in range(key.count(".") + 1)]
    return next((OTHER_NAMES[name] for name in parents if name in OTHER_NAMES), "")


def _dataclasses_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for inner in get_args(hint):
        yield from _dataclasses_in(inner)


def _messages(error: ValidationError, schema_class: type) -> Iterator[str]:
    """Yield one line per wrong value.

    Errors of all branches of a union become one line, and so do keys that take the same wrong value from one key.
    """
    by_key: dict[str, list[Any]] = {}
    for item in error.errors(include_url=False):
        key = ".".join(str(step) for step in item["loc"] if not _is_branch_name(str(step)))
        by_key.setdefault(key, []).append(item)
    # Without a known target, it is unknown which other keys the part should have.
    unknown = {key.removesuffix("._target_") for key, items in by_key.items() if _is_unknown_target(key, items[0])}
    seen = set()
    for key, items in by_key.items():
        first = items[0]
        kind, value = first["type"], first["input"]
        if _is_unknown_target(key, first):
            part = key.removesuffix("._target_")
            target, allowed = (
                first["ctx"].get("tag", value),
                first["ctx"].get("expected_tags", first["ctx"].get("expected")),
            )
            package, remedy = target.rpartition(".")[0], ""
            if part in extensible_keys(schema_class) and package.partition(".")[0] not in sys.stdlib_module_names:
                remedy = f"; if you trust the package {package}, add {trusted.SWITCH}=[{package}]"
            yield f"{part}._target_={target}: should be one of {allowed}{remedy}"
            continue
        if key.rpartition(".")[0] in unknown:
            continue
        if kind in ("unexpected_keyword_argument", "extra_forbidden"):
            yield unknown_key_message(key, schema_class)
        elif kind in ("missing", "string_too_short"):
            yield f"{key} needs a value: {key}=..."
        elif kind == "value_error":
            yield f"{key}.{first['ctx']['error']}".removeprefix(".")  # the key of the whole configuration is empty
        else:
            shown = value if isinstance(value, str) else json.dumps(value)
            allowed = ", or ".join(dict.fromkeys(item["msg"].removeprefix("Input should be ") for item in items))
            problem = f"{shown}: should be {allowed}" if first["msg"].startswith("Input") else f"{shown}: {allowed}"
            if problem not in seen:
                seen.add(problem)
                yield f"{key}={problem}"


def _is_unknown_target(key: str, item: Any) -> bool:
    literal = item["type"] == "literal_error" and key.endswith("._target_") and isinstance(item["input"], str)
    return literal or item["type"] == "union_tag_invalid"


def _is_branch_name(step: str) -> bool:
    """Return whether pydantic added ``step`` to a location to name the branch of a union that it tried."""
    return step in ("int", "float", "bool", "str") or step in SCHEMA_NAMES or any(mark in step for mark in ".[-(")
