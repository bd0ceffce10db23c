"""Several checkpoints, loaded and used as one model."""

import numpy as np
import pandas as pd
import pytest
import torch

from fractatlas import Ensemble, load_model
from fractatlas.errors import InputError
from fractatlas.evaluation.operating_point import calibrate
from tests.inference.conftest import predict_into


@pytest.fixture(scope="module")
def make_checkpoint(checkpoint, tmp_path_factory):
    """Write the checkpoint of the finished run again, changed by a function."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(name: str, change) -> str:
        content = torch.load(checkpoint, weights_only=True)
        change(content)
        torch.save(content, folder / name)
        return str(folder / name)

    return make


@pytest.fixture(scope="module")
def pair(make_checkpoint) -> list[str]:
    """Two checkpoints with other weights and other operating points."""

    def first(content: dict) -> None:
        content["operating_point"] = {"rule": "youden", "threshold": 0.3, "temperature": 0.5, "box_threshold": 0.2}

    def second(content: dict) -> None:
        for name, value in content["state_dict"].items():
            if "classifier" in name:
                value *= -0.5
        content["operating_point"] = {"rule": "youden", "threshold": 0.6, "temperature": 2.0, "box_threshold": 0.4}

    return [make_checkpoint("first.ckpt", first), make_checkpoint("second.ckpt", second)]


def test_calibrated_probabilities_and_heatmaps_are_averaged(pair, readable):
    model = load_model(pair)
    assert isinstance(model, Ensemble)
    one, other = (load_model(file).predict(readable[:5]) for file in pair)
    found = model.predict(readable[:5])
    means = [(a.probability_calibrated + b.probability_calibrated) / 2 for a, b in zip(one, other, strict=True)]
    assert [row.probability for row in found] == pytest.approx(means, abs=1e-12)
    assert [row.probability_calibrated for row in found] == pytest.approx(means, abs=1e-12)
    threshold = np.mean([calibrate(np.array([value]), at)[0] for value, at in ((0.3, 0.5), (0.6, 2.0))])
    assert model.operating_point == {"rule": "mean", "threshold": pytest.approx(threshold), "temperature": 1.0,
                                     "box_threshold": pytest.approx(0.3)}  # fmt: skip
    assert [row.fractured for row in found] == [mean >= threshold for mean in means]
    for a, b, row in zip(one, other, found, strict=True):
        np.testing.assert_allclose(row.heatmap, (a.heatmap / 0.5 + b.heatmap / 2) / 2, atol=1e-4)


@pytest.mark.usefixtures("fracture_map")
def test_fracture_maps_are_averaged_as_they_are(pair, readable):
    expected = load_model(pair[0]).predict(readable[0])
    found = load_model(pair).predict(readable[0])  # both have the same map
    np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-6)
    assert (found.boxes[:, 4] >= 0.3).all()


def test_predict_takes_a_list_of_checkpoints(pair, readable, tmp_path):
    table, _ = predict_into(tmp_path, f"ckpt=[{pair[0]}, {pair[1]}]", f"input={readable[0].parent}")
    found = load_model(pair).predict(table["path"][:16], heatmaps=False)
    assert table["probability"][:16].tolist() == pytest.approx([row.probability for row in found], abs=1e-12)
    assert table["prediction"][:16].tolist() == [int(row.fractured) for row in found]


def test_the_folder_of_a_cross_validation_stands_for_all_its_networks(pair, readable, tmp_path):
    for fold, file in enumerate(pair):
        folder = tmp_path / "runs" / "recipe" / f"seed_1_fold_{fold}" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "best.ckpt").symlink_to(file)
    found, expected = (load_model(given).predict(readable[0], heatmaps=False) for given in (tmp_path, pair))
    assert found.probability == expected.probability
    table, _ = predict_into(tmp_path / "predicted", f"ckpt={tmp_path}", f"input={readable[0]}")
    assert table["probability"].tolist() == pytest.approx([expected.probability], abs=1e-12)


def test_a_list_with_one_checkpoint_is_that_model(pair, readable):
    assert not isinstance(load_model(pair[:1]), Ensemble)
    with pytest.raises(InputError, match="give at least one checkpoint"):
        load_model([])


def test_checkpoints_that_cannot_be_averaged_are_refused(pair, checkpoint, make_checkpoint):
    def other_input(content: dict) -> None:
        content["config"]["preprocess"]["crop"] = 48

    def unfinished(content: dict) -> None:
        del content["operating_point"]

    with pytest.raises(
        InputError, match=r"small.ckpt and .*first.ckpt cannot be averaged: preprocess.crop was 64, is 48;"
    ):
        load_model([pair[0], make_checkpoint("small.ckpt", other_input)])
    with pytest.raises(InputError, match=r"bare.ckpt: training is not finished.* finish it with resume=RUN, or leave"):
        load_model([pair[0], make_checkpoint("bare.ckpt", unfinished)])


def test_columns_of_the_table_are_those_of_one_checkpoint(pair, readable, tmp_path):
    one, _ = predict_into(tmp_path / "one", f"ckpt={pair[0]}", f"input={readable[0]}")
    both, _ = predict_into(tmp_path / "both", f"ckpt=[{','.join(pair)}]", f"input={readable[0]}")
    pd.testing.assert_index_equal(one.columns, both.columns)
