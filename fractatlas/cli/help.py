"""The text of ``--help`` of the commands with a configuration."""

import textwrap
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fractatlas.config.overrides import CONF, compose_with_hydra
from fractatlas.config.reference import Entry, meaning, read_choice
from fractatlas.config.validation import group_keys

WIDTH, COLUMN = 100, 46  # of a line; where the meanings start
HEADER = """usage: fractatlas {verb} [KEY=VALUE ...] [GROUP=CHOICE ...]
       python {verb}.py takes the same arguments

{summary}

Each line shows KEY=DEFAULT and the meaning of the key. A group starts with the choice that is used,
GROUP=CHOICE, and all its choices. ??? must be given; ${{KEY}} is the value of another key.
"""
HEADER_WITHOUT_RUN = """usage: fractatlas {verb} [KEY=VALUE ...]

{summary}

Each line shows KEY=DEFAULT and the meaning of the key. ??? must be given.
"""
OPTIONS = {
    "hydra.run.dir=DIR": "the run folder",
    "-m KEY=VALUE,VALUE": "run once for each value",
    "--config-dir DIR": "add a folder with your own choices",
    "--cfg job": "print the configuration and stop",
    "--hydra-help": "list the other options of Hydra",
}
OPTIONS_WITHOUT_RUN = ("--config-dir DIR",)


def help_text(
    verb: str, schema_class: type, arguments: Sequence[str], hidden: Collection[str] = (), run_folder: bool = True
) -> str:
    """Return one line or more for each key: its name, its default and its meaning, grouped.

    Args:
        verb: the name of the command.
        schema_class: of its configuration.
        arguments: of the command, prepared; choices among them determine which keys are shown.
        hidden: keys that are not shown.
        run_folder: whether the command is one of Hydra's, which has a run folder and groups.

    Raises:
        hydra.errors.HydraException: an argument is invalid.
    """
    config = compose_with_hydra(verb, arguments)
    chosen: dict[str, str] = dict(config.hydra.runtime.choices)
    plain = _plain(config)
    for key in hidden:
        group, _, name = key.partition(".")
        if name and isinstance(plain.get(group), dict):
            plain[group].pop(name, None)
    summary, entries = read_choice(CONF / f"{verb}.yaml")
    groups = [name for name, entry in entries.items() if entry.comment == "group" and name != "hydra"]
    meanings = _meanings(entries, "")
    own = {key: value for key, value in plain.items() if key not in group_keys(schema_class)}
    header = HEADER if run_folder else HEADER_WITHOUT_RUN
    blocks = [header.format(verb=verb, summary=textwrap.fill(summary, WIDTH)), "\n".join(_rows(own, "", meanings))]
    for group in groups:
        choices = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
        heading = f"{group}={chosen.get(group) or 'null'}"
        known: dict[str, str] = {}
        for choice in (*choices, chosen.get(group)):
            if choice in choices and group in plain:
                known |= _meanings(read_choice(CONF / group / f"{choice}.yaml")[1], f"{group}.")
        rows = _rows(plain[group], f"{group}.", known) if isinstance(plain.get(group), dict) else ()
        blocks.append("\n".join(["", *_wrapped(heading, f"choices: {', '.join(choices)}", 0), *rows]))
    offered = OPTIONS if run_folder else OPTIONS_WITHOUT_RUN
    options = [line for option in offered for line in _wrapped(option, OPTIONS[option], 2)]
    return "\n".join([*blocks, "", "Options:", *options])


def _plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain values; interpolations stay as they are written."""
    plain: Any = OmegaConf.to_container(config, resolve=False, throw_on_missing=False)
    return {key: value for key, value in plain.items() if key != "hydra"}


def _meanings(entries: dict[str, Entry], prefix: str) -> dict[str, str]:
    """Return the meanings of the keys of a choice by dotted key."""
    found = {}
    for name, entry in entries.items():
        if entry.comment != "group":
            found[f"{prefix}{name}"] = meaning(f"{prefix}{name}", entry)
            if isinstance(entry.value, dict):
                found |= _meanings(entry.value, f"{prefix}{name}.")
    return found


def _rows(part: dict[str, Any], prefix: str, meanings: dict[str, str]) -> Iterator[str]:
    for name, value in part.items():
        key = f"{prefix}{name}"
        text = meanings.get(key) or meaning(key, Entry("", ""))
        if name.startswith("_"):
            continue
        if isinstance(value, dict) and value:
            if all(inner.startswith("_") for inner in value):
                yield from _wrapped(key, f"{text}; null: none", 2)
            yield from _rows(value, f"{key}.", meanings)
        else:
            yield from _wrapped(f"{key}={_value(value)}", text, 2)


def _wrapped(left: str, right: str, indent: int) -> list[str]:
    """Return ``left`` and ``right`` in two columns."""
    left = " " * indent + left
    lines = textwrap.wrap(right, WIDTH - COLUMN) or [""]
    if len(left) >= COLUMN:
        return [left, *(" " * COLUMN + line for line in lines)]
    return [f"{left:{COLUMN}}{lines[0]}".rstrip(), *(" " * COLUMN + line for line in lines[1:])]


def _value(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    return str(value) if value != "" else '""'
