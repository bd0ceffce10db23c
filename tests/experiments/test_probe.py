import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fractatlas.errors import InputError
from fractatlas.experiments import probe
from fractatlas.models.backbones import densenet
from tests.conftest import SMALL


def test_pooled_features_are_the_input_of_the_head():
    torch.manual_seed(0)
    backbone = densenet("densenet_tiny", weights=None, weights_dir="", dropout=0.0, freeze="trunk", stage_decay=1.0,
                        mirror=False, channels_last=True, compile=False).eval()  # fmt: skip
    images = torch.randn(3, 3, 64, 64)
    features = probe.pooled_features(backbone, images)
    head = backbone.network.get_submodule(backbone.head_name)
    with torch.inference_mode():
        torch.testing.assert_close(head(features["mean"]).squeeze(1), backbone(images))
    assert features["mean and maximum"].shape == (3, 2 * features["mean"].shape[1])
    assert (features["maximum"] >= features["mean"]).all()


def test_images_are_scored_by_models_fitted_on_other_groups():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    labels = np.repeat(random.integers(0, 2, 60), 5)
    # The features identify the group, and contain nothing else about the label.
    features = np.repeat(random.normal(size=(60, 40)), 5, axis=0).astype(np.float32)
    assert roc_auc_score(labels, probe.cross_fitted(features, labels, groups)) < 0.7
    assert roc_auc_score(labels, probe.cross_fitted(features, labels, np.arange(300))) > 0.8


def test_input_sizes_are_compared_on_the_same_images(phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = " ".join(option for option in SMALL if not option.startswith("preprocess"))
    small += f" data.root={phantoms}"
    options = [f"{small} preprocess.resize=64 preprocess.crop=64", f"{small} preprocess=letterbox preprocess.size=96"]
    text = probe.probe_all(options, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "probe.csv")
    assert list(table["pooling"]) == [*probe.POOLINGS] * 2
    assert table["n"].nunique() == 1
    assert table["auroc_difference"].to_numpy() == pytest.approx((table["auroc"] - table["auroc"].iloc[0]).to_numpy())
    assert (tmp_path / "out" / "probe.md").read_text() == text
    assert len(text.splitlines()) == 2 + len(table)


def test_unknown_key_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="modle") as error:
        probe.probe_all(["modle=densenet"], tmp_path)
    assert "\n" not in str(error.value)
