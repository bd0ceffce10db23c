import pytest
import torch
from sklearn import metrics as sklearn_metrics

from fractatlas.models.classifier import EpochMetrics, Outputs, binary_cross_entropy
from fractatlas.models.schedules import constant, cosine


def test_epoch_metrics_equal_those_of_scikit_learn():
    torch.manual_seed(0)
    labels = (torch.rand(203) < 0.2).float()
    logits = torch.randn(203) + labels
    metrics, loss = EpochMetrics(), binary_cross_entropy(None)
    for rows in torch.randperm(203).split(32):  # the last batch is smaller, so a mean of batch means would be wrong
        batch = {"label": labels[rows], "index": rows}
        metrics.update(batch, Outputs(logits[rows], loss(logits[rows], labels[rows])))
    actual = {name: value.item() for name, value in metrics.compute().items()}
    truth, probability = labels.int().numpy(), logits.sigmoid().numpy()
    decision = probability > 0.5
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(truth, decision),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(truth, decision),
        "auroc": sklearn_metrics.roc_auc_score(truth, probability),
        "average_precision": sklearn_metrics.average_precision_score(truth, probability),
        "f1": sklearn_metrics.f1_score(truth, decision),
        "mcc": sklearn_metrics.matthews_corrcoef(truth, decision),
        "sensitivity": sklearn_metrics.recall_score(truth, decision),
        "specificity": sklearn_metrics.recall_score(truth, decision, pos_label=0),
        "loss": sklearn_metrics.log_loss(truth, probability),
        "majority_rate": max(truth.mean(), 1 - truth.mean()),
    }
    assert actual == pytest.approx(expected, abs=1e-5)
    assert torch.equal(metrics.predictions(), torch.stack([torch.arange(203.0), logits], dim=1))


def test_the_correlation_of_a_constant_answer_is_zero():
    metrics = EpochMetrics()
    batch = {"label": torch.tensor([0.0, 0.0, 1.0]), "index": torch.arange(3)}
    metrics.update(batch, Outputs(torch.tensor([-2.0, -3.0, -1.0]), torch.tensor(0.1)))
    assert metrics.compute()["mcc"] == 0


def test_reset_removes_the_former_epoch():
    metrics = EpochMetrics()
    for labels in ([0.0, 1.0], [1.0, 0.0]):
        batch = {"label": torch.tensor(labels), "index": torch.arange(2)}
        metrics.update(batch, Outputs(torch.tensor([-2.0, 2.0]), torch.tensor(0.1)))
        assert metrics.compute()["accuracy"] == labels[1]
        metrics.reset()


def test_restore_continues_an_epoch_from_its_state():
    uninterrupted, first, second = EpochMetrics(), EpochMetrics(), EpochMetrics()
    for metrics, steps in ((uninterrupted, (0, 1)), (first, (0,)), (second, (1,))):
        if metrics is second:
            second.restore(first.state())
        for step in steps:
            batch = {"label": torch.tensor([0.0, 1.0]), "index": torch.arange(2) + 2 * step}
            metrics.update(batch, Outputs(torch.tensor([0.3 * step, -0.1]), torch.tensor(0.1 + step)))
    assert second.compute() == uninterrupted.compute()
    assert torch.equal(second.predictions(), uninterrupted.predictions())


def test_logits_in_the_unit_interval_are_not_taken_for_probabilities():
    metrics = EpochMetrics()
    batch = {"label": torch.tensor([0.0, 1.0]), "index": torch.arange(2)}
    metrics.update(batch, Outputs(torch.tensor([0.1, 0.4]), torch.tensor(0.1)))
    assert metrics.compute()["specificity"] == 0  # a logit of 0.1 is a probability of 0.52


def test_the_positive_weight_multiplies_the_loss_of_fractured_images():
    logits, labels = torch.tensor([0.3, -0.2]), torch.tensor([1.0, 0.0])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    assert binary_cross_entropy(4.0)(logits, labels) == pytest.approx(((4 * plain[0] + plain[1]) / 2).item())
    assert binary_cross_entropy(None)(logits, labels) == pytest.approx(plain.mean().item())


def learning_rates(schedule, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = schedule(optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_cosine_schedule_increases_then_decreases_to_zero():
    rates = learning_rates(lambda optimizer, steps: cosine(optimizer, steps, warmup=0.2), 100)
    assert max(rates) == rates[20] == pytest.approx(1.0)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[60] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.001


def test_the_constant_schedule_keeps_the_learning_rate():
    assert set(learning_rates(constant, 10)) == {1.0}


def test_hits_and_the_loss_of_the_map_are_averaged_over_images():
    metrics = EpochMetrics(with_map=True)
    logits, loss = torch.zeros(2), torch.tensor(1.0)
    for step, hits in enumerate(([1.0, 0.0], [1.0], [])):
        batch = {"label": torch.tensor([1.0, 0.0]), "index": torch.tensor([2 * step, 2 * step + 1])}
        metrics.update(batch, Outputs(logits, loss, torch.tensor(float(step)), torch.tensor(hits)))
    values = metrics.compute()
    assert values["hit"] == pytest.approx(2 / 3)
    assert values["map_loss"] == pytest.approx(1.0)


def test_without_a_box_there_are_no_hits():
    metrics = EpochMetrics(with_map=True)
    batch = {"label": torch.tensor([1.0, 0.0]), "index": torch.tensor([0, 1])}
    metrics.update(batch, Outputs(torch.zeros(2), torch.tensor(1.0), torch.tensor(0.5), torch.zeros(0)))
    assert "hit" not in metrics.compute()
    assert "hit" not in EpochMetrics().state()
