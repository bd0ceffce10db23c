"""Turn the arguments of a command into overrides that Hydra accepts, and compose configurations from them."""

import os
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fractatlas.config.schema import TrainConfig
from fractatlas.config.validation import (
    explain,
    flatten,
    group_keys,
    known_keys,
    no_choice_message,
    path_keys,
    path_list_keys,
    unknown_key_message,
    validate,
)
from fractatlas.errors import InputError

_PACKAGE = Path(__file__).parents[1]
# In a wheel, the configuration is inside the package; in a checkout, it is next to the package.
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if (folder / "train.yaml").is_file())
MULTIRUN = {"-m", "--multirun"}
# Hydra's options that take a value.
OPTIONS_WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package",
                      "-p", "--experimental-rerun")  # fmt: skip
SHORT_OPTIONS = {"-cd": "--config-dir", "-cp": "--config-path", "-cn": "--config-name", "-c": "--cfg", "-i": "--info",
                 "-r": "--run", "-m": "--multirun", "-sc": "--shell-completion"}  # fmt: skip
OPTION_CHOICES = {"--cfg": ("job", "hydra", "all"),
                  "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")}  # fmt: skip
# Hydra raises a ValueError for more than one of them.
EXCLUSIVE_OPTIONS = ("--run", "--multirun", "--cfg", "--info", "--shell-completion", "--experimental-rerun")
FLAGS = ("--help", "-h", "--hydra-help", "--version", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc",
         "--info", "-i", "--resolve")  # fmt: skip
AXIS_SYNTAX = "interval(LOW,HIGH), tag(log,interval(LOW,HIGH)), range(LOW,HIGH,STEP) or choice(A,B)"
# What a resumed run may change: how long, where and how fast it trains, but not the model, the data or the recipe.
RESUMABLE = ("resume", "trusted_targets", "test", "report", "trainer.max_epochs", "trainer.accelerator",
             "trainer.devices", "data.root", "data.cache", "data.cache_dir", "data.num_workers",
             "data.pin_memory")  # fmt: skip
# Settings that do not make two runs different: where and how fast they train. A longer training has another result.
NOT_COMPARED = ("paths.", "logger.", "callbacks.checkpoint.dirpath", "model.weights_dir",
                *(key for key in RESUMABLE if key != "trainer.max_epochs"))  # fmt: skip


def prepare(arguments: Sequence[str], schema_class: type) -> list[str]:
    """Quote the values that Hydra's grammar rejects, and replace ``resume=RUN`` by the arguments that continue ``RUN``.

    The values of ``path_keys`` are used as they were typed, except in a multirun, where a comma separates values. For
    ``path_list_keys``, ``[a,b]`` is a list, unless a file has this name.

    Raises:
        InputError: an argument is invalid, or the run cannot be resumed with these arguments.
    """
    groups = group_keys(schema_class)
    folder: str | None = None
    arguments = list(joined(arguments))
    _check_options(arguments)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument.startswith("-") and key not in FLAGS + OPTIONS_WITH_VALUE:
            raise InputError(f"{argument}: no such option; --help lists the keys, --hydra-help the options of Hydra")
        if not argument.startswith(("-", "~")) and not equals:
            raise InputError(f"{argument}: should be key=value; --help lists the keys")
        if (CONF / key.replace(".", "/")).is_dir() and key.startswith("hydra.sweeper."):
            raise InputError(f"{argument}: a group of keys; write {key.replace('.', '/')}={value}")
        if key == "data" and value.startswith("["):
            remedy = "export each (fractatlas data export), then use their tables: data=table data.table=[a.csv,b.csv]"
            raise InputError(f"{argument}: one choice is needed; for several data sets, {remedy}")
        if _is_no_choice(key, value, groups):
            if key in group_keys(TrainConfig) - groups:
                raise InputError(unknown_key_message(key, schema_class))
            choices = sorted(file.stem for file in (CONF / key).glob("*.yaml"))
            remedy = f"; a value is set with {key}.value={value}" if f"{key}.value" in known_keys(schema_class) else ""
            raise InputError(no_choice_message(argument, choices) + remedy)
        if key.lstrip("+") == "resume" and value != "null":
            # In quotes if Lightning starts a second process with the output of this function.
            if folder is not None:
                raise InputError(f"{argument}: resume is given twice; resume one run at a time")
            folder = _value(argument) if _in_quotes(value) else value
        if is_multirun(arguments) and re.match(r"(interval|range|tag|choice)\(", value) and not _is_accepted(argument):
            raise InputError(f"{argument}: no axis; write {AXIS_SYNTAX}")
    multirun = is_multirun(arguments)
    paths, lists = (set(), set()) if multirun else (path_keys(schema_class), path_list_keys(schema_class))
    quoted = [_quote(argument, paths, lists) for argument in arguments]
    if multirun:
        quoted = list(_left_to_the_jobs(_last_of_each_key(quoted), schema_class))
    return quoted if folder is None else _resume(folder, quoted)


def is_multirun(arguments: Sequence[str]) -> bool:
    """Return whether arguments start several runs."""
    return bool((MULTIRUN | {"hydra.mode=MULTIRUN"}) & set(arguments))


def as_override(key: str, value: str) -> str:
    """Return ``key=value`` with the value in quotes if Hydra's grammar would change it."""
    try:
        plain = OverridesParser.create().parse_override(f"{key}={value}").value() == value
    except HydraException:
        plain = False
    return f"{key}={value}" if plain else _literal(key, value)


def settings_of(config: DictConfig) -> dict[str, Any]:
    """Return the settings of a composed configuration in which two runs can differ, by dotted key.

    Paths are relative to the working directory; ``NOT_COMPARED`` are omitted.
    """
    relative: Any = OmegaConf.merge(config, {"paths": {"root": ".", "output_dir": "."}})
    plain: Any = OmegaConf.to_container(relative, resolve=True)
    return {key: value for key, value in flatten(plain).items() if not key.startswith(NOT_COMPARED)}


def recorded_settings(run: Path) -> dict[str, Any]:
    """Return ``settings_of`` the configuration with which a run was started in its folder."""
    return settings_of(cast(DictConfig, OmegaConf.load(run / ".hydra" / "config.yaml")))


def compose_config(options: Sequence[str]) -> dict[str, Any]:
    """Compose and check a training configuration from options of ``fractatlas train``, ``--config-dir`` included.

    Returns:
        The configuration as plain values, its paths relative to the working directory.

    Raises:
        InputError: an option is invalid.
    """
    prepared = [*prepare(options, TrainConfig), "paths.root=.", "paths.output_dir=."]
    try:
        config = compose_with_hydra("train", prepared)
        with open_dict(config):
            del config["hydra"]
        return validate(config, TrainConfig)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error, TrainConfig, CONF)) from None


def compose_with_hydra(verb: str, prepared: Sequence[str]) -> DictConfig:
    """Compose what Hydra composes for the prepared arguments of ``fractatlas VERB``, its own node included.

    Flags such as ``--help`` have no effect.

    Raises:
        hydra.errors.HydraException: an argument is invalid.
    """
    options = dict(argument.split("=", 1) for argument in prepared if argument.startswith("--") and "=" in argument)
    overrides = [argument for argument in prepared if not argument.startswith("-")]
    if folder := options.get("--config-dir"):
        if not Path(folder).is_dir():
            raise InputError(f"--config-dir={folder}: no such folder; correct the path")
        overrides.append(f"hydra.searchpath=[{_as_string(f'file://{Path(folder).absolute()}')}]")
    with initialize_config_dir(str(Path(options.get("--config-path", CONF)).absolute()), job_name=verb):
        return compose(options.get("--config-name", verb), overrides, return_hydra_config=True)


def joined(arguments: Sequence[str]) -> Iterator[str]:
    """Yield ``--config-dir DIR`` and ``-cd DIR`` as ``--config-dir=DIR``, and every other argument unchanged."""
    rest = iter(arguments)
    for argument in rest:
        value = next(rest, None) if argument in OPTIONS_WITH_VALUE else None
        option, equals, given = argument.partition("=")
        if option in SHORT_OPTIONS and option in OPTIONS_WITH_VALUE:
            argument = f"{SHORT_OPTIONS[option]}{equals}{given}"
        yield argument if value is None else f"{argument}={value}"


def _check_options(arguments: Sequence[str]) -> None:
    """Refuse options of Hydra that have a wrong value or exclude each other."""
    given: dict[str, str] = {}
    for argument in arguments:
        option, equals, value = argument.partition("=")
        option = SHORT_OPTIONS.get(option, option)
        given.setdefault(option, argument)
        choices = OPTION_CHOICES.get(option, ())
        if choices and value not in choices and (equals or option == "--cfg"):
            raise InputError(f"{argument}: no such choice; the choices are {', '.join(choices)}")
    exclusive = [argument for option, argument in given.items() if option in EXCLUSIVE_OPTIONS]
    if len(exclusive) > 1:
        raise InputError(f"{' and '.join(exclusive)} exclude each other: keep one of them")
    if "--resolve" in given and not given.keys() & {"--cfg", "--help", "-h"}:
        raise InputError("--resolve: no effect without --cfg; add --cfg job")


def _is_no_choice(key: str, value: str, groups: set[str]) -> bool:
    """Return whether a value of a configuration group cannot be the name of a choice, for example a number."""
    if key in groups and value in ("", "null"):
        return True
    if not re.fullmatch(r"[a-z_/]+", key) or not (CONF / key).is_dir():
        return False
    if key.startswith("hydra/sweeper/"):  # Hydra's plugin has further choices, which the schema refuses
        return not (CONF / key / f"{value}.yaml").is_file()
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={value}").value()
    except HydraException:
        return False
    values = parsed.list if isinstance(parsed, ChoiceSweep) else [parsed]
    return any(isinstance(one, int | float) for one in values)


def _is_accepted(argument: str) -> bool:
    """Return whether Hydra's grammar accepts an argument."""
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _last_of_each_key(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a multirun without values that a later argument replaces, as in a single run.

    Hydra and Optuna would otherwise give a single value precedence over several values of the same key.
    """
    last: dict[str, str] = {}
    for number, argument in enumerate(arguments):
        prefix, key, value = re.fullmatch(r"(\+*)([^=]*)(.*)", argument, re.DOTALL).groups()  # type: ignore[union-attr]
        if not value or argument.startswith(("-", "~")):
            last[str(number)] = argument
            continue
        earlier = last.pop(key, "")
        added = earlier[: len(earlier) - len(earlier.lstrip("+"))]
        last[key] = f"{prefix or added}{key}{value}"
    return list(last.values())


def _left_to_the_jobs(arguments: Sequence[str], schema_class: type) -> Iterator[str]:
    """Yield the arguments of a multirun; a key that only some choices of a group have becomes ``key=choice(value)``.

    Hydra composes a configuration without the swept choices before those of the jobs, and applies every single value
    to it. It does not apply values to choose from.
    """
    swept = {one.key_or_group for one in _parsed(arguments) if one.is_sweep_override() and "." not in one.key_or_group}
    if swept - set(known_keys(schema_class)):  # an experiment, which sets keys of all groups
        swept = group_keys(schema_class)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        group, dot, _ = key.lstrip("+").partition(".")
        late = equals and dot and group in swept - {"paths"} and not argument.startswith(("-", "~"))
        if late and not next(_parsed([argument])).is_sweep_override():
            # The grammar has no choice(null).
            yield f"{key}=null,null" if value == "null" else f"{key}=choice({value or repr('')})"
        else:
            yield argument


def _parsed(arguments: Sequence[str]) -> Iterator[Override]:
    """Yield the parsed overrides among the arguments."""
    parser = OverridesParser.create()
    for argument in arguments:
        if "=" in argument and not argument.startswith("-"):
            yield parser.parse_override(argument)


def _resume(folder: str, arguments: list[str]) -> list[str]:
    """Return the arguments with which Hydra composes the configuration that a run folder stores."""
    run = Path(folder).absolute()
    if not folder or not (run / ".hydra" / "config.yaml").is_file():
        if (run / "multirun.yaml").is_file() or (run / "trials.csv").is_file():
            remedy = "repeat the command with -m to resume it, or give the folder of one of its runs"
            raise InputError(f"resume={folder}: the folder of a grid or search, not a run folder; {remedy}")
        remedy = f"give resume={run.parent.parent}" if run.suffix == ".ckpt" else "give the folder of a run below logs/"
        raise InputError(f"resume={folder}: not a run folder (it has no .hydra/config.yaml); {remedy}")
    if is_multirun(arguments):
        raise InputError(f"resume={folder} resumes one run: remove -m")
    keys = {argument: argument.lstrip("+").partition("=")[0] for argument in arguments}
    for argument, key in keys.items():
        # Lightning starts further processes of a run with the output of this function and with Hydra's own keys.
        if key == "data.root" and not Path(_value(argument)).is_dir():
            raise InputError(f"{argument}: no such folder; give the folder to which the data were moved")
        if key == "hydra.run.dir" and Path(_value(argument)).absolute() != run:
            raise InputError(f"{argument}: a resumed run stays in its folder; remove it, or copy the folder {folder}")
        if not key.startswith(("hydra.", "paths.root", "--config-")) and key not in RESUMABLE:
            if guess := get_close_matches(key, RESUMABLE, cutoff=0.85):
                raise InputError(f"{argument} cannot change in a resumed run; did you mean {guess[0]!r}?")
            allowed = ", ".join(RESUMABLE[1:])
            raise InputError(f"{argument} cannot change in a resumed run: remove it; only {allowed} can change")
    hydra = OmegaConf.load(run / ".hydra" / "hydra.yaml").hydra
    formats = OmegaConf.select(hydra, "job_logging.formatters.simple", default={})  # absent if logging is disabled
    return [
        f"--config-path={run / '.hydra'}",
        "--config-name=config",
        "++trusted_targets=[]",  # a run folder may come from somebody else, so its own list does not count
        _literal("resume", str(run)),
        _literal("paths.root", hydra.runtime.cwd),
        _literal("hydra.run.dir", str(run)),
        "hydra.output_subdir=null",
        *(_literal(f"++hydra.job_logging.formatters.simple.{name}", value) for name, value in formats.items()),
        *(argument for argument, key in keys.items() if key != "resume"),
    ]


def _value(argument: str) -> str:
    """Return the value of ``key=value``, without the quotes of Hydra's grammar."""
    return str(OverridesParser.create().parse_override(argument).value())


def _quote(argument: str, paths: set[str], lists: set[str]) -> str:
    """Return ``key=value`` unchanged if Hydra's grammar accepts it, otherwise with the value in quotes."""
    key, equals, value = argument.partition("=")
    if argument.startswith("-") or not equals:
        return argument
    try:
        parsed = OverridesParser.create().parse_override(argument)
    except HydraException:
        parsed = None
    if key.lstrip("+") in paths:
        if key.lstrip("+") in lists and re.fullmatch(r"\[.+\]", value) and not Path(value).exists():
            names = [one.strip() for one in value[1:-1].split(",")]
            names = [one[1:-1] if _in_quotes(one) else _expand_home(one) for one in names]
            return f"{key}=[{','.join(map(_as_string, names))}]"
        # In quotes already if the user quoted it for Hydra, or if Lightning starts a second process.
        if parsed and _in_quotes(value) and not parsed.is_sweep_override():
            return argument
        return _literal(key, _expand_home(value))
    return argument if parsed else _literal(key, value)


def _in_quotes(value: str) -> bool:
    return len(value) > 1 and value[0] in ("'", '"') and value[-1] == value[0]


def _expand_home(value: str) -> str:
    """Replace a leading ``~`` by the home folder, and escape ``${``, which would be an interpolation."""
    home = os.path.expanduser("~") + value[1:] if value == "~" or value.startswith("~/") else value
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", home)


def _literal(key: str, value: str) -> str:
    return f"{key}={_as_string(value)}"


def _as_string(value: str) -> str:
    """Return ``value`` as a quoted string of Hydra's grammar."""
    return QuotedString(value, Quote.single).with_quotes()
