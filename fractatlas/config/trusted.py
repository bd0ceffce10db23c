"""Decide which ``_target_`` values outside the schema may be instantiated.

``trusted_targets`` lists module prefixes, compared by whole components. A target is accepted if it is below a prefix
and if the class or function that it names is also defined below a prefix. The second condition is necessary because
every module has attributes that are defined elsewhere: ``mypackage.os.system`` is below ``mypackage``.
"""

import inspect
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from fractatlas.errors import InputError

SWITCH = "trusted_targets"
INSTANTIATE_KEYS = {"_target_", "_partial_", "_args_"}  # the keys of Hydra's instantiate that a trusted part may have


def is_trusted(target: Any, prefixes: Sequence[str]) -> bool:
    """Return whether a dotted name is one of the module prefixes or below one."""
    return isinstance(target, str) and any(f"{target}.".startswith(f"{prefix}.") for prefix in prefixes)


def check_prefixes(prefixes: Any) -> list[str]:
    """Return module prefixes as a list.

    Raises:
        InputError: a prefix is not a dotted name, or names a module of Python itself.
    """
    if not isinstance(prefixes, list | tuple):
        raise InputError(f"{SWITCH}={prefixes}: should be a list of packages, such as {SWITCH}=[mypackage]")
    for prefix in prefixes:
        if not isinstance(prefix, str) or not all(part.isidentifier() for part in prefix.split(".")):
            raise InputError(f"{SWITCH}=[{prefix}]: should be names of packages, such as {SWITCH}=[mypackage]")
        if prefix.partition(".")[0] in sys.stdlib_module_names:
            raise InputError(f"{SWITCH}=[{prefix}]: is a module of Python; name the package that defines your class")
    return list(prefixes)


def check_part(key: str, part: dict[str, Any], prefixes: Sequence[str], partial: bool) -> None:
    """Check a part of a configuration whose ``_target_`` is trusted, and everything below it; import what it names.

    Args:
        key: where the part is, for messages.
        part: plain.
        prefixes: the trusted module prefixes.
        partial: whether the part builds a function that takes the remaining arguments later.

    Raises:
        InputError: a target is not trusted, cannot be imported, or is defined elsewhere, or the part has a key that
            would change how it is built.
    """
    if (part.get("_partial_") is True) != partial:
        reason = "should be true, because it gets more arguments later" if partial else "should not be true; remove it"
        raise InputError(f"{key}._partial_ {reason}")
    for name, inner in _dicts(key, part):
        for wrong in sorted(one for one in inner if one.startswith("_") and one not in INSTANTIATE_KEYS):
            raise InputError(f"{name}.{wrong}: should not be in a part with {SWITCH}; remove it")
        if "_target_" in inner:
            _check_target(f"{name}._target_", inner["_target_"], prefixes)


def _dicts(key: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield key, value
        for name, inner in value.items():
            yield from _dicts(f"{key}.{name}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _dicts(f"{key}.{number}", inner)


def _check_target(key: str, target: Any, prefixes: Sequence[str]) -> None:
    if not is_trusted(target, prefixes):
        raise InputError(f"{key}={target}: is not in {SWITCH}; add its package if you trust it")
    try:
        found = _locate(target)
    except Exception as error:  # importing a package can raise anything
        problem = f"{key}={target}: cannot be imported ({' '.join(str(error).split())})"
        raise InputError(f"{problem}; install the package or correct the name") from None
    if not inspect.isclass(found) and not inspect.isroutine(found):
        raise InputError(f"{key}={target}: is not a class or a function; name one")
    defined = f"{found.__module__}.{found.__qualname__}"
    if not is_trusted(defined, prefixes):
        raise InputError(
            f"{key}={target}: is defined as {defined}, which is not in {SWITCH}; name a class of your package"
        )


def _locate(target: str) -> Any:
    """Return what Hydra's instantiate finds for a dotted name: an attribute is preferred to a module."""
    parts = target.split(".")
    found: Any = import_module(parts[0])
    for count, part in enumerate(parts[1:], 2):
        try:
            found = getattr(found, part)
        except AttributeError:
            if not isinstance(found, ModuleType):
                raise
            found = import_module(".".join(parts[:count]))
    return found
