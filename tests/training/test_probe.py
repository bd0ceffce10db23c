import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fractatlas.models.backbones import densenet
from fractatlas.training import probe
from tests.conftest import SMALL


def test_pooled_features_are_those_that_the_head_sees():
    torch.manual_seed(0)
    backbone = densenet("densenet_tiny", weights=None, weights_dir="", dropout=0.0, freeze="trunk", stage_decay=1.0,
                        mirror=False, channels_last=True).eval()  # fmt: skip
    images = torch.randn(3, 3, 64, 64)
    features = probe.pooled_features(backbone, images)
    head = backbone.network.get_submodule(backbone.head_name)
    with torch.inference_mode():
        torch.testing.assert_close(head(features["mean"]).squeeze(1), backbone(images))
    assert features["mean and maximum"].shape == (3, 2 * features["mean"].shape[1])
    assert (features["maximum"] >= features["mean"]).all()


def test_no_image_is_scored_by_a_model_that_knows_its_group():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    labels = np.repeat(random.integers(0, 2, 60), 5)
    # Features that tell the group, and nothing of the label beyond it.
    features = np.repeat(random.normal(size=(60, 40)), 5, axis=0).astype(np.float32)
    assert roc_auc_score(labels, probe.cross_fitted(features, labels, groups)) < 0.7
    assert roc_auc_score(labels, probe.cross_fitted(features, labels, np.arange(300))) > 0.8


def test_sizes_are_compared_on_the_same_images(phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = " ".join(option for option in SMALL if not option.startswith("preprocess"))
    small += f" data.root={phantoms}"
    probe.main([f"{small} preprocess.resize=64 preprocess.crop=64", f"{small} preprocess=letterbox preprocess.size=96",
                "--out", "found"])  # fmt: skip
    table = pd.read_csv("found/probe.csv")
    assert list(table["pooling"]) == [*probe.POOLINGS] * 2
    assert table["n"].nunique() == 1
    assert table["auroc_difference"].to_numpy() == pytest.approx((table["auroc"] - table["auroc"].iloc[0]).to_numpy())
    assert len((tmp_path / "found" / "probe.md").read_text().splitlines()) == 2 + len(table)


def test_a_key_that_does_not_exist_is_refused_in_one_line():
    with pytest.raises(SystemExit) as ended:
        probe.main(["modle=densenet"])
    assert "\n" not in str(ended.value)
    assert "modle" in str(ended.value)
