"""Read the keys of ``conf/`` with their defaults and meanings, for ``--help`` and for the documentation.

The meaning of a key is the comment beside it in ``conf/``. ``meanings.yaml`` in this folder has the meaning of keys
that ``conf/`` does not comment.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from fractatlas.config import schema

GLOBAL = "# @package _global_"


@dataclass
class Entry:
    """One key of a YAML file: its value as written, or the keys below it, and the comment beside it."""

    value: "str | dict[str, Entry]"
    comment: str


def read_choice(file: Path, extend: bool = True) -> tuple[str, dict[str, Entry]]:
    """Read a file of ``conf/``: the comment at its top and its keys, with those of the choices that it extends."""
    text = file.read_text(encoding="utf-8")
    head = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if line != GLOBAL:
            head.append(line.lstrip("# "))
    node: Any = yaml.compose(text)
    keys = _entries(node, text.splitlines()) if node is not None else {}
    inherited: dict[str, Entry] = {}
    defaults = yaml.safe_load(text)["defaults"] if "defaults" in keys else []
    for item in defaults:
        if isinstance(item, str) and item != "_self_" and extend:
            inherited = _merge(inherited, read_choice(_base(file, item))[1])
        elif isinstance(item, dict) and not next(iter(item)).startswith("override"):
            name, choice = next(iter(item.items()))
            inherited[name] = Entry(str(choice), "group")
    keys.pop("defaults", None)
    # Without _self_, the keys of this file come last, as in Hydra.
    first, second = (keys, inherited) if defaults[:1] == ["_self_"] else (inherited, keys)
    return " ".join(head), _merge(first, second)


def _base(file: Path, item: str) -> Path:
    """Return the file that an entry of the defaults list names: ``fracatlas``, or ``/loading@_here_`` of ``conf/``."""
    name = item.partition("@")[0]
    return file.parents[1] / f"{name[1:]}.yaml" if name.startswith("/") else file.parent / f"{name}.yaml"


def schema_of(keys: dict[str, Entry]) -> type | None:
    """Return the dataclass of ``schema.py`` that lists the ``_target_`` of a choice."""
    target = keys.get("_target_")
    for schema_class in schema.parts():
        if target and target.value in get_args(get_type_hints(schema_class).get("_target_", Any)):
            return schema_class
    return None


def meaning(key: str, entry: Entry, schema_class: type | None = None) -> str:
    """Return the meaning of a key; for a part with a schema of its own, the first line of its docstring by default."""
    return entry.comment or _meanings().get(key, "") or docstring(schema_class)


def docstring(schema_class: type | None) -> str:
    """Return the first line of a schema's docstring."""
    if schema_class is None or not schema_class.__doc__:
        return ""
    return schema_class.__doc__.strip().splitlines()[0].replace("``", "`")


@functools.cache
def _meanings() -> dict[str, str]:
    return yaml.safe_load((Path(__file__).parent / "meanings.yaml").read_text(encoding="utf-8"))


def _entries(node: yaml.MappingNode, lines: list[str]) -> dict[str, Entry]:
    found = {}
    for key, value in node.value:
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        end = key.end_mark if nested else value.end_mark
        line = lines[end.line] if end.line < len(lines) else ""
        comment = line[end.column :].partition("# ")[2].strip()
        written = lines[value.start_mark.line][value.start_mark.column : value.end_mark.column]
        if value.start_mark.line != value.end_mark.line:
            written = ""
        found[key.value] = Entry(_entries(value, lines) if nested else written or "null", comment)
    return found


def _merge(first: dict[str, Entry], second: dict[str, Entry]) -> dict[str, Entry]:
    merged = dict(first)
    for name, entry in second.items():
        earlier = merged.get(name)
        if earlier and isinstance(earlier.value, dict) and isinstance(entry.value, dict):
            merged[name] = Entry(_merge(earlier.value, entry.value), entry.comment or earlier.comment)
        else:
            merged[name] = Entry(entry.value, entry.comment or (earlier.comment if earlier else ""))
    return merged
