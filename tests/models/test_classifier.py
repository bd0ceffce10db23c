import pytest
import torch
from sklearn import metrics as reference

from fractatlas.models.classifier import Scores, binary_cross_entropy
from fractatlas.models.schedules import constant, cosine


def test_logged_metrics_are_scikit_learns_over_the_whole_epoch():
    torch.manual_seed(0)
    labels = (torch.rand(203) < 0.2).float()
    logits = torch.randn(203) + labels
    scores, loss = Scores(), binary_cross_entropy(None)
    for rows in torch.randperm(203).split(32):  # the last batch is smaller: a mean of means would be wrong
        batch = {"label": labels[rows], "index": rows}
        scores.update(batch, logits[rows], loss(logits[rows], labels[rows]))
    ours = {name: value.item() for name, value in scores.compute().items()}
    truth, probability = labels.int().numpy(), logits.sigmoid().numpy()
    said = probability > 0.5
    expected = {
        "accuracy": reference.accuracy_score(truth, said),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, said),
        "auroc": reference.roc_auc_score(truth, probability),
        "average_precision": reference.average_precision_score(truth, probability),
        "f1": reference.f1_score(truth, said),
        "mcc": reference.matthews_corrcoef(truth, said),
        "sensitivity": reference.recall_score(truth, said),
        "specificity": reference.recall_score(truth, said, pos_label=0),
        "loss": reference.log_loss(truth, probability),
        "majority_rate": max(truth.mean(), 1 - truth.mean()),
    }
    assert ours == pytest.approx(expected, abs=1e-5)
    assert torch.equal(scores.predictions(), torch.stack([torch.arange(203.0), logits], dim=1))


def test_always_the_same_answer_has_no_correlation():
    scores = Scores()
    batch = {"label": torch.tensor([0.0, 0.0, 1.0]), "index": torch.arange(3)}
    scores.update(batch, torch.tensor([-2.0, -3.0, -1.0]), torch.tensor(0.1))
    assert scores.compute()["mcc"] == 0


def test_a_new_epoch_begins_empty():
    scores = Scores()
    for labels in ([0.0, 1.0], [1.0, 0.0]):
        batch = {"label": torch.tensor(labels), "index": torch.arange(2)}
        scores.update(batch, torch.tensor([-2.0, 2.0]), torch.tensor(0.1))
        assert scores.compute()["accuracy"] == labels[1]
        scores.reset()


def test_confident_logits_in_the_unit_interval_are_not_taken_for_probabilities():
    scores = Scores()
    batch = {"label": torch.tensor([0.0, 1.0]), "index": torch.arange(2)}
    scores.update(batch, torch.tensor([0.1, 0.4]), torch.tensor(0.1))
    assert scores.compute()["specificity"] == 0  # a logit of 0.1 is a probability of 0.52


def test_a_positive_weight_counts_a_fracture_more():
    logits, labels = torch.tensor([0.3, -0.2]), torch.tensor([1.0, 0.0])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    assert binary_cross_entropy(4.0)(logits, labels) == pytest.approx(((4 * plain[0] + plain[1]) / 2).item())
    assert binary_cross_entropy(None)(logits, labels) == pytest.approx(plain.mean().item())


def rates(schedule, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = schedule(optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_the_learning_rate_rises_falls_and_ends_near_zero():
    found = rates(lambda optimizer, steps: cosine(optimizer, steps, warmup=0.2), 100)
    assert max(found) == found[20] == pytest.approx(1.0)
    assert found[:21] == sorted(found[:21])
    assert found[20:] == sorted(found[20:], reverse=True)
    assert found[60] == pytest.approx(0.5)
    assert 0 < found[-1] < 0.001
    assert set(rates(constant, 10)) == {1.0}
