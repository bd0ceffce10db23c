import copy

import pytest
from omegaconf import OmegaConf

from fractatlas.config.overrides import compose_config
from fractatlas.config.schema import TrainConfig
from fractatlas.config.validation import differing_keys, flatten, validate
from fractatlas.data.sources.folders import Folders
from fractatlas.data.sources.fracatlas import FracAtlas
from fractatlas.data.sources.grazpedwri import GrazPedWri
from fractatlas.data.sources.mura import Mura
from fractatlas.data.sources.phantom import Phantoms
from fractatlas.data.sources.registry import LOADING_KEYS, open_source
from fractatlas.data.sources.table import Table


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["data=fracatlas"], FracAtlas),
        (["data=phantom"], Phantoms),
        (["data=table", "data.table=t.csv"], Table),
        (["data=folders", "data.root=r"], Folders),
        (["data=mura"], Mura),
        (["data=grazpedwri"], GrazPedWri),
    ],
)
def test_every_choice_of_data_opens_its_source_and_its_settings_open_it_again(arguments, kind):
    data = compose_config(arguments)["data"]
    source = open_source(data)
    assert type(source) is kind
    assert {*LOADING_KEYS}.isdisjoint(source.settings)
    again = open_source(source.settings)
    assert (type(again), again.root) == (kind, source.root)


def test_a_configuration_of_an_earlier_version_is_valid_and_equals_a_new_one():
    new = compose_config(["data=phantom", "model.variant=densenet_tiny", "model.weights=null"])
    stored = copy.deepcopy(new)
    del stored["model"]["head"]
    assert validate(OmegaConf.create(stored), TrainConfig) == stored
    assert differing_keys([flatten(stored), flatten(new)]) == []
    assert isinstance(open_source(stored["data"]), Phantoms)


def test_the_keys_of_fracatlas_are_those_of_earlier_versions():
    """Otherwise a stored configuration, such as that of a finished run of a plan, would differ from a new one."""
    data = compose_config(["data=fracatlas", "paths.data_root=/x"])["data"]
    assert data == {
        "_target_": "fractatlas.data.datamodule.RadiographDataModule", "root": "/x", "prepare": None, "cache": True,
        "cache_dir": data["cache_dir"], "keep_contradictions": False, "batch_size": 32, "num_workers": 2,
        "pin_memory": False,
    }  # fmt: skip
