import pandas as pd

from fractatlas.evaluation.markdown import score_line
from fractatlas.evaluation.metrics import evaluate


def test_a_score_line_has_intervals_and_the_majority_rate():
    scores = {
        "auroc": {"value": 0.8853, "low": 0.8276, "high": 0.9312},
        "accuracy": {"value": 0.8962, "low": 0.8641, "high": 0.9262},
        "majority_rate": 0.8226,
    }
    expected = "test: AUROC 0.885 [0.828, 0.931], accuracy 89.62 [86.4, 92.6] %, majority rate 82.26 %"
    assert score_line("test", scores) == expected
    assert len(f"12:00:00 {expected}") <= 100


def test_the_auroc_of_one_class_is_undefined():
    rows = pd.DataFrame({"group": [str(number) for number in range(9)], "label": 0, "probability": 0.1})
    line = score_line("val", evaluate(rows, 0.5))
    assert line.startswith("val: AUROC undefined, accuracy 100.00 [")
    assert line.endswith("majority rate 100.00 %")
