import re

import pytest

from fractatlas.config.overrides import compose_config, prepare
from fractatlas.config.schema import TrainConfig
from fractatlas.config.trusted import is_trusted
from fractatlas.config.validation import extensible_keys
from fractatlas.errors import InputError

TORCH = "trusted_targets=[torch.optim,torch.nn]"


def test_prefixes_are_compared_by_whole_components():
    assert is_trusted("mypackage.losses.Focal", ["mypackage"])
    assert is_trusted("mypackage.losses.Focal", ["mypackage.losses"])
    assert is_trusted("mypackage.losses.Focal", ["other", "mypackage.losses.Focal"])
    for target in ("mypackage2.Focal", "mypackage_losses.Focal", "my.package", "os.system", "", None, ["mypackage.x"]):
        assert not is_trusted(target, ["mypackage"])
    assert not is_trusted("mypackage.Focal", [])


def test_the_groups_that_accept_trusted_classes():
    assert extensible_keys(TrainConfig) == {
        "augment": False, "model": False, "loss": False, "optimizer": True, "scheduler": True, "logger": False
    }  # fmt: skip


def test_a_class_of_a_trusted_package_is_accepted_and_a_listed_class_is_still_checked():
    config = compose_config([TORCH, "optimizer._target_=torch.optim.RMSprop", "+optimizer.alpha=0.9"])
    assert config["optimizer"]["alpha"] == 0.9
    with pytest.raises(InputError, match="optimizer.lr=-1: should be greater than 0"):
        compose_config([TORCH, "optimizer.lr=-1"])


@pytest.mark.fault("_target_ that reaches code outside of the trusted packages", "refused in one line, not executed")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["loss._target_=builtins.eval"], "loss._target_=builtins.eval: should be one of"),
        (["trusted_targets=[torch]", "loss._target_=torch.os.system"], "is defined as posix.system"),
        (["trusted_targets=[torch]", "loss._target_=torch.nn.functional.torch.sys.exit"], "is defined as sys.exit"),
        (["trusted_targets=[torch]", "loss._target_=torch.builtins.exec"], "is defined as builtins.exec"),
        (["trusted_targets=[torch]", "loss._target_=torch.nn.Module.__class__"], "is defined as builtins.type"),
        (["trusted_targets=[torch]", "loss._target_=torch.nn.Module.__subclasses__"], "is not"),
        (["trusted_targets=[torch]", "loss._target_=torch.nn.functional"], "is not a class or a function"),
        (["trusted_targets=[torch.optim]", "loss._target_=torch.nn.BCELoss"], "torch.nn.BCELoss: should be one of"),
        (["trusted_targets=[tor]", "loss._target_=torch.nn.BCELoss"], "torch.nn.BCELoss: should be one of"),
        ([TORCH, "loss._target_=torch.nn.BCELoss", "+loss.x={_target_: os.system}"], "loss.x._target_=os.system: is"),
        ([TORCH, "loss._target_=torch.nn.BCELoss", "+loss.x=[{_target_: os.system}]"], "loss.x.0._target_=os.system"),
        ([TORCH, "loss._target_=torch.nn.BCELoss", "+loss._convert_=all"], "loss._convert_: should not be in a part"),
        ([TORCH, "loss._target_=torch.nn.Nowhere"], "cannot be imported (No module named 'torch.nn.Nowhere')"),
        ([TORCH, "loss._target_=torch.nn.BCELoss", "+loss._partial_=true"], "loss._partial_ should not be true"),
        ([TORCH, "optimizer._target_=torch.optim.RMSprop", "optimizer._partial_=false"], "_partial_ should be true"),
        ([TORCH, "threshold._target_=torch.nn.BCELoss"], "threshold._target_=torch.nn.BCELoss: should be one of"),
        ([TORCH, "trainer._target_=torch.nn.BCELoss"], "torch.nn.BCELoss: should be one of 'lightning.Trainer'"),
        (["trusted_targets=[os]"], "trusted_targets=[os]: is a module of Python"),
        (["trusted_targets=['']"], "should be names of packages"),
        (["trusted_targets=['*']"], "should be names of packages"),
        (["trusted_targets=mypackage"], "trusted_targets=mypackage: should be a list of packages"),
    ],
)  # fmt: skip
def test_a_target_outside_of_the_trusted_packages_is_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        compose_config(options)
    assert "\n" not in str(raised.value)


def test_the_list_that_a_run_folder_stores_does_not_count(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("trusted_targets: [mypackage]")
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {cwd: /}}")
    prepared = prepare([f"resume={tmp_path}"], TrainConfig)
    assert "++trusted_targets=[]" in prepared
    prepared = prepare([f"resume={tmp_path}", "trusted_targets=[mine]"], TrainConfig)
    assert prepared.index("trusted_targets=[mine]") > prepared.index("++trusted_targets=[]")
