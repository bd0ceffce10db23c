"""What a training shows on a terminal, and what it writes to its log file."""

import json
import logging

import pytest

from fractatlas.training.fit import train
from tests.terminal import log_to_memory, screen


@pytest.fixture(scope="module", params=[100, 200])
def shown(request, configuration, tmp_path_factory):
    """The number of columns, the output of a training on a terminal of this size, its log lines, its run folder."""
    run = tmp_path_factory.mktemp("shown")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        with log_to_memory(request.param, logging.FileHandler(run / "log")) as terminal:
            train(configuration(run, "trainer.max_epochs=2", "report=true"))
    return request.param, terminal.getvalue(), (run / "log").read_text().splitlines(), run


def test_the_terminal_shows_each_log_line_on_its_own_line_and_no_dead_bar(shown):
    columns, output, logged, _ = shown
    lines = screen(output, columns)
    assert "━" not in "".join(lines)
    assert "".join(lines) == "".join(line for line in logged if " step " not in line)


def test_steps_are_in_the_log_file_only(shown):
    columns, output, logged, _ = shown
    assert len([line for line in logged if line.startswith("epoch 1/2 step ")]) == 7
    assert " step " not in "\n".join(screen(output, columns))


def test_the_bar_counts_epochs_from_1_and_fits_into_the_terminal(shown):
    columns, output, _, _ = shown
    bars = [line for part in output.split("\r") for line in screen(part, columns) if "━" in line and "left" in line]
    assert any(line.startswith("epoch 1/2 ") for line in bars)
    assert any(line.startswith("epoch 2/2 ") and " 1/7 " in line for line in bars)
    assert not any(line.startswith("epoch 0") for line in bars)
    assert any("loss 0." in line and line.endswith("images/s") for line in bars)
    assert all(len(line) <= columns and "…" not in line for line in bars)


def test_every_epoch_has_a_line_with_losses_and_metrics_that_fits_100_columns(shown):
    *_, logged, run = shown
    history = json.loads((run / "metrics.json").read_text())["history"]
    for row in history:
        (line,) = (line for line in logged if line.startswith(f"epoch {row['epoch']}/2: "))
        assert f"loss {row['train/loss']:.3f}, val loss {row['val/loss']:.3f}" in line
        assert f"AUROC {row['val/auroc']:.3f}" in line
        assert f"accuracy {100 * row['val/accuracy']:.1f} %, majority rate" in line
        assert len(f"12:00:00 {line}") <= 100


def test_the_last_lines_are_the_scores_with_intervals(shown):
    *_, logged, run = shown
    metrics = json.loads((run / "metrics.json").read_text())
    assert [line for line in logged if line.startswith("val: AUROC ")]
    auroc, accuracy = metrics["test"]["auroc"], metrics["test"]["accuracy"]
    assert logged[-1] == (
        f"test: AUROC {auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}], "
        f"accuracy {100 * accuracy['value']:.2f} [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}] %, "
        f"majority rate {100 * metrics['test']['majority_rate']:.2f} %"
    )
    assert any(line.startswith("time (h:min:s): 0:00:") for line in logged)


def test_without_a_bar_the_terminal_shows_the_steps(configuration, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    changes = ("trainer.max_epochs=1", "test=false", "callbacks.progress_bar=null", "trainer.limit_train_batches=2")
    with log_to_memory(100) as terminal:
        train(configuration(tmp_path, *changes))
    assert any(line.startswith("epoch 1/1 step 2/2: loss") for line in screen(terminal.getvalue(), 100))


@pytest.mark.parametrize("monitor", ["val/f1", "val/loss"])
def test_the_line_of_an_epoch_has_the_monitored_metric(configuration, tmp_path, caplog, monitor):
    with caplog.at_level("INFO"):
        train(configuration(tmp_path, "trainer.max_epochs=1", "test=false", f"monitor={monitor}"))
    (line,) = (line for line in caplog.messages if line.startswith("epoch 1/1: "))
    value = json.loads((tmp_path / "metrics.json").read_text())["monitor"]["value"]
    assert {"val/f1": f", f1 {value:.4f}", "val/loss": f", val loss {value:.3f},"}[monitor] in line


def test_an_overfitted_run_ends_with_its_training_loss(configuration, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(configuration(tmp_path, "debug=overfit", "trainer.max_epochs=3"))
    history = json.loads((tmp_path / "metrics.json").read_text())["history"]
    losses = f"{history[0]['train/loss']:.4f} in epoch 1, {history[2]['train/loss']:.4f} in epoch 3"
    assert caplog.messages[-1] == f"training loss of 3 batches, which should approach 0: {losses}"


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_the_profile_is_printed_and_kept(configuration, tmp_path, caplog, profiler):
    with caplog.at_level("INFO"):
        for _ in range(2):  # the report of the second run replaces that of the first
            train(configuration(tmp_path, "debug=profiler", f"trainer.profiler={profiler}"))
    text = (tmp_path / "fit-profile.txt").read_text()
    assert text.count("FIT Profiler Report") == 1
    assert "optimizer_step" in text
    assert [file.name for file in tmp_path.glob("*profile*")] == ["fit-profile.txt"]
    (printed,) = [line for line in caplog.messages if line.startswith("profile: ")][1:]
    path, *table = printed.splitlines()
    assert path == f"profile: {tmp_path / 'fit-profile.txt'}"
    if profiler == "simple":
        assert "run_training_epoch" in printed
        assert all(len(row) <= 100 for row in table)
    else:
        assert not table
