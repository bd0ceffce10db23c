"""Open the source that a configuration describes."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fractatlas.config.schema import Loading
from fractatlas.data.sources.folders import Folders
from fractatlas.data.sources.fracatlas import FracAtlas
from fractatlas.data.sources.grazpedwri import GrazPedWri
from fractatlas.data.sources.mura import Mura
from fractatlas.data.sources.phantom import Phantoms
from fractatlas.data.sources.source import Source
from fractatlas.data.sources.table import Table

LOADING_KEYS = [field.name for field in fields(Loading)]
# The classes by the ``_target_`` of ``conf/data``. The first name is that of earlier versions.
CLASSES = {"fractatlas.data.datamodule.RadiographDataModule": FracAtlas} | {
    f"{source.__module__}.{source.__qualname__}": source for source in (Table, Folders, Mura, GrazPedWri)
}


def open_source(data: Mapping[str, Any]) -> Source:
    """Return the source that a plain, checked configuration of ``data`` describes; no file is read."""
    settings = {name: value for name, value in data.items() if name not in LOADING_KEYS}
    arguments = {name: value for name, value in settings.items() if name not in ("_target_", "prepare")}
    if prepare := settings.get("prepare"):
        source: Source = Phantoms(**arguments, images=prepare["images"], seed=prepare["seed"])
    else:
        source = CLASSES[settings["_target_"]](**arguments)
    source.settings = settings
    return source


def stored_finding(data: Mapping[str, Any]) -> str:
    """Return what label 1 means according to a stored configuration of ``data``; no file is read."""
    return str(data.get("finding") or getattr(CLASSES.get(data.get("_target_", "")), "finding", Source.finding))
