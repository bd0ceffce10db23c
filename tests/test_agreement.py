"""One checkpoint, four ways to ask it."""

from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch

from fractatlas.data.reading import read_radiograph
from fractatlas.export import export
from fractatlas.training.run import build, train
from tests.test_commands import command


@pytest.mark.parametrize("family", ["densenet", pytest.param("resnet", marks=pytest.mark.slow)])
def test_train_evaluate_predict_and_onnx_agree(configuration, phantoms, tmp_path, family):
    run = tmp_path / "run"
    config = configuration(run, "trainer.max_epochs=1", f"model={family}", f"model.variant={family}_tiny")
    train(config)
    checkpoint = run / "checkpoints" / "best.ckpt"
    trained = pd.read_csv(run / "predictions.csv")
    trained = trained[trained["split"] == "test"].set_index("image_id")["probability"]

    result = command("evaluate.py", f"ckpt={checkpoint}", "trainer=cpu", "report=false", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    (file,) = tmp_path.glob("logs/evaluate/runs/*/predictions.csv")
    evaluated = pd.read_csv(file).set_index("image_id")["probability"]

    result = command("predict.py", f"ckpt={checkpoint}", f"input={phantoms}/images", "trainer=cpu", folder=tmp_path)
    assert result.returncode == 2, result.stderr  # some phantoms are truncated
    (file,) = tmp_path.glob("logs/predict/runs/*/predictions.csv")
    table = pd.read_csv(file)
    paths = table["path"].map(Path)
    predicted = table.set_index(paths.map(lambda path: path.name))["probability"].loc[trained.index]
    paths = paths.set_axis(paths.map(lambda path: path.name)).loc[trained.index]

    export(checkpoint, tmp_path / "model.onnx")
    preprocess = build(config["preprocess"])
    pixels = np.stack([preprocess(read_radiograph(path)).numpy() for path in paths])
    images = preprocess.normalise(torch.from_numpy(pixels)).numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (exported,) = session.run(["probability"], {"image": images})

    for other, tolerance in ((evaluated, 1e-6), (predicted, 1e-6), (pd.Series(exported, trained.index), 1e-4)):
        assert np.abs(other - trained).max() < tolerance
