"""Generate reference pages from the code: directives ``configuration`` and ``command``.

``configuration GROUP`` lists every choice of a configuration group with its keys. Types and ranges come from
``fractatlas/config/schema.py``; defaults and meanings come from ``fractatlas/config/reference.py``, as those of
``--help`` do.
"""

import dataclasses
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MinLen
from sphinx.util.docutils import SphinxDirective

from fractatlas.config import reference, schema
from fractatlas.config.overrides import CONF
from fractatlas.config.reference import GLOBAL, Entry, docstring, read_choice, schema_of

COMMANDS = {"train": schema.TrainConfig, "evaluate": schema.EvaluateConfig, "predict": schema.PredictConfig,
            "serve": schema.ServeConfig}  # fmt: skip


@dataclass
class Row:
    """One key of a configuration as the reference shows it."""

    key: str
    kind: str
    default: str
    meaning: str


def rows(keys: dict[str, Entry], schema_class: type, prefix: str) -> Iterator[Row]:
    """Yield the rows of a choice, nested keys as ``parent.key``."""
    hints = get_type_hints(schema_class, include_extras=True)
    for name, entry in keys.items():
        if name.startswith("_"):
            continue
        key, hint = f"{prefix}{name}", hints.get(name, Any)
        if entry.comment == "group":
            yield Row(key, "choice", f"`{entry.value}`", f"see the configuration group `{name}`")
        elif isinstance(entry.value, dict) and (part := schema_of(entry.value) or _dataclass(hint)):
            yield Row(key, describe(hint), f"`{part.__name__}`", _meaning(key, entry, part))
            yield from rows(entry.value, part, f"{key}.")
        else:
            value = "{}" if isinstance(entry.value, dict) else entry.value
            yield Row(key, describe(hint), f"`{value}`" if value != '""' else "(empty)", _meaning(key, entry, None))


def describe(hint: Any) -> str:
    """Describe a type with its range for readers: ``int, at least 1``."""
    if hint is type(None):
        return "`null`"
    if hint is Any:
        return ""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{_plain(value)}`" for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(filter(None, map(describe, get_args(hint)))))
    if get_origin(hint) is Annotated:
        inner, *limits = get_args(hint)
        if schema.AS_TYPED in limits:
            return "path"
        text = "name (letters, digits, `_`, `.`, `-`)" if hint == schema.Name else describe(inner)
        return ", ".join([text, *filter(None, map(_limit, limits))])
    if get_origin(hint) is list:
        return f"list of {describe(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "mapping"
    if dataclasses.is_dataclass(hint):
        return f"`{hint.__name__}`"
    return {"str": "text", "bool": "`true`, `false`"}.get(hint.__name__, hint.__name__)


def choices(group: str) -> list[Path]:
    """Return the files of a configuration group of ``conf/``."""
    return sorted((CONF / group).glob("*.yaml"))


def groups() -> list[str]:
    """Return every configuration group that has choices, such as ``model`` and ``hydra/sweeper/sampler``."""
    return sorted({file.parent.relative_to(CONF).as_posix() for file in CONF.glob("*/**/*.yaml")})


def group_markdown(group: str) -> str:
    """Return the reference of one configuration group as Markdown."""
    parts = []
    for file in choices(group):
        summary, entries = read_choice(file)
        schema_class, text, extended = schema_of(entries) or _container(group), "", _extended(file)
        prefix = f"{group.replace('/', '.')}."
        if file.read_text(encoding="utf-8").startswith(GLOBAL) or schema_class is None:
            text = f"```yaml\n{_without_comment(file)}\n```\n"
        elif table := list(rows(entries, schema_class, prefix)):
            if extended:
                own = [f"{prefix}{name}." for name in read_choice(file, extend=False)[1]]
                table = [row for row in table if f"{row.key}.".startswith(tuple(own))]
                text = f"The keys of `{group}={extended}`" + (", and:\n\n" if table else ".\n")
            text += _table(table) if table else ""
        summary = summary or ("" if extended else docstring(schema_class))
        title = f"conf/hydra/{file.name}" if group == "hydra" else f"{group}={file.stem}"
        parts.append(f"**`{title}`** {summary}\n\n{text}\n")
    return "\n".join(parts)


def command_rows(command: str) -> list[Row]:
    """Return the keys of ``conf/<command>.yaml`` that belong to no group."""
    _, keys = read_choice(CONF / f"{command}.yaml")
    return [row for row in rows(keys, COMMANDS[command], "") if row.kind != "group"]


def help_text(verb: str) -> str:
    """Return what ``fractatlas VERB --help`` prints; an empty verb gives the help of ``fractatlas``."""
    arguments = [*verb.split(), "--help"]
    found = subprocess.run(
        [sys.executable, "-m", "fractatlas", *arguments], capture_output=True, text=True, check=True,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("FRACATLAS_")}, "COLUMNS": "100"},
    )  # fmt: skip
    return found.stdout.strip()


class Configuration(SphinxDirective):
    """``{configuration} GROUP``, or ``{configuration} train`` for the keys of a command that belong to no group."""

    required_arguments = 1

    def run(self) -> list:
        """Parse the generated Markdown."""
        name = self.arguments[0]
        text = _table(command_rows(name)) if name in COMMANDS else group_markdown(name)
        self.env.note_reread()  # Sphinx does not track changes of conf/ and schema.py
        return self.parse_text_to_nodes(text)


class Command(SphinxDirective):
    """``{command} VERB``: the output of ``fractatlas VERB --help``."""

    required_arguments = 0
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list:
        """Show the help as a literal block."""
        self.env.note_reread()
        return self.parse_text_to_nodes(f"```text\n{help_text(' '.join(self.arguments))}\n```\n")


def setup(app: Any) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("configuration", Configuration)
    app.add_directive("command", Command)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _dataclass(hint: Any) -> type | None:
    return hint if dataclasses.is_dataclass(hint) and isinstance(hint, type) else None


def _extended(file: Path) -> str:
    defaults = yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", [])
    return next((item for item in defaults if isinstance(item, str) and item[0] not in "_/"), "")


def _container(group: str) -> type | None:
    return {"callbacks": schema.Callbacks, "logger": schema.Loggers, "paths": schema.Paths}.get(group)


def _meaning(key: str, entry: Entry, schema_class: type | None) -> str:
    return re.sub(r"([|*<>])", r"\\\1", reference.meaning(key, entry, schema_class))


def _table(table: list[Row]) -> str:
    lines = ["{.keys}", "| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{row.key}` | {row.kind} | {row.default} | {row.meaning} |" for row in table]
    return "\n".join(lines) + "\n"


def _without_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    start = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[start:]).strip()


def _limit(limit: Any) -> str:
    if isinstance(limit, Interval):
        low = f"above {limit.gt}" if limit.gt is not None else f"{limit.ge}"
        high = f"below {limit.lt}" if limit.lt is not None else f"{limit.le}"
        return f"{low} to {high}"
    if isinstance(limit, Len):
        return f"{limit.min_length} of them"
    if isinstance(limit, MinLen):
        return f"at least {limit.min_length} of them"
    words = {Ge: "at least {}", Gt: "above {}", Le: "at most {}", Lt: "below {}"}
    for kind, text in words.items():
        if isinstance(limit, kind):
            return text.format(*dataclasses.astuple(limit))
    return ""


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
