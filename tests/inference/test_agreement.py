"""Training, evaluate, predict and ONNX Runtime agree on one checkpoint."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fractatlas import load_model
from fractatlas.data.images import read_radiograph
from fractatlas.training.fit import train
from tests.inference.conftest import evaluate_into, predict_into

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize("family", ["densenet", pytest.param("resnet", marks=pytest.mark.integration)])
def test_train_evaluate_predict_and_onnx_agree(configuration, phantoms, tmp_path, family):
    from fractatlas.inference.onnx import export_onnx

    run = tmp_path / "run"
    train(configuration(run, "trainer.max_epochs=1", f"model={family}", f"model.variant={family}_tiny"))
    checkpoint = run / "checkpoints" / "best.ckpt"
    trained = pd.read_csv(run / "predictions.csv")
    trained = trained[trained["split"] == "test"].set_index("image_id")["probability"]

    evaluated = evaluate_into(tmp_path / "evaluate", f"ckpt={checkpoint}").set_index("image_id")["probability"]

    table, unreadable = predict_into(tmp_path / "predict", f"ckpt={checkpoint}", f"input={phantoms}/images")
    assert unreadable > 0  # some phantoms are truncated
    table = table.set_index(table["path"].map(lambda path: Path(path).name)).loc[trained.index]

    export_onnx(checkpoint, tmp_path / "new" / "model.onnx")
    preprocess = load_model(checkpoint).preprocess
    pixels = [preprocess(read_radiograph(Path(path))) for path in table["path"]]
    session = onnxruntime.InferenceSession(tmp_path / "new" / "model.onnx", providers=["CPUExecutionProvider"])
    (exported,) = session.run(["probability"], {"image": preprocess.normalise(torch.stack(pixels)).numpy()})

    for other, tolerance in (
        (evaluated, 1e-6),
        (table["probability"], 1e-6),
        (pd.Series(exported, trained.index), 1e-4),
    ):
        assert np.abs(other - trained).max() < tolerance
