"""What a person sees on a terminal: real commands on a pseudo-terminal."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.cli.processes import MODULE, PLAIN
from tests.conftest import SMALL
from tests.terminal import screen

TIME = re.compile(r"\d\d:\d\d:\d\d ")


def on_terminal(*arguments: str, folder: Path, columns: int, stop: str = "") -> tuple[int, str]:
    """Run a verb on a terminal; press Ctrl-C when it prints ``stop``. Return its exit status and its output."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in PLAIN.items() if name not in ("COLUMNS", "LINES")}
    running = subprocess.Popen(
        [sys.executable, *MODULE, *arguments], cwd=folder, env=environment | {"TERM": "xterm-256color"},
        stdin=child, stdout=child, stderr=child, start_new_session=True,
    )  # fmt: skip
    os.close(child)
    output, stopped = b"", False
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # Linux reports the end of the last process in this way
            break
        if not part:
            break
        output += part
        if stop and not stopped and stop.encode() in output:
            stopped = True
            os.killpg(running.pid, signal.SIGINT)
    os.close(parent)
    return running.wait(timeout=60), output.decode()


@pytest.mark.integration
@pytest.mark.parametrize("columns", [100, 200])
def test_a_stopped_and_resumed_training_on_a_terminal(phantoms, tmp_path, columns):
    run = tmp_path / "run"
    arguments = [*(option for option in SMALL if "report" not in option), f"data.root={phantoms}"]
    status, output = on_terminal(
        "train", *arguments, "trainer.max_epochs=40", f"hydra.run.dir={run}", folder=tmp_path, columns=columns,
        stop="epoch 3/40",
    )  # fmt: skip
    assert status == 130, output
    lines = screen(output, columns)
    assert "━" not in "".join(lines)
    text = TIME.sub("", "".join(lines))  # a long path continues on the next line
    assert re.match(rf"run folder: {re.escape(str(run))}loading PyTorchprecision .+reading the data in ", text)
    (stopped,) = (line for line in lines if "stopped before epoch" in line)
    assert text.endswith(f"resume={run}")

    status, output = on_terminal("train", f"resume={run}", "trainer.max_epochs=4", folder=tmp_path, columns=columns)
    assert status == 0, output
    lines = [TIME.sub("", line) for line in screen(output, columns)]
    assert "━" not in "".join(lines)
    assert stopped.partition("stopped before ")[2] in "".join(line for line in lines if line.startswith("resuming at "))
    assert "".join(lines).endswith(f"report: {run}/report.html")
    assert not any(" step " in line for line in lines if line.startswith("epoch"))
    assert "epoch 4/4 step 7/7" in (run / "train.log").read_text()
    assert json.loads((run / "metrics.json").read_text())["timing"]["starts"] == 2

    status, output = on_terminal(
        "evaluate", f"ckpt={run}/checkpoints/best.ckpt", f"hydra.run.dir={tmp_path}/again", folder=tmp_path,
        columns=columns,
    )  # fmt: skip
    assert status == 0, output
    lines = [TIME.sub("", line) for line in screen(output, columns)]
    assert "scoring test" in output
    assert "━" not in "".join(lines)
    assert "".join(lines).endswith(f"report: {tmp_path}/again/report.html")


@pytest.mark.integration
def test_of_several_processes_the_first_writes_the_lines(phantoms, tmp_path):
    arguments = [*SMALL, f"data.root={phantoms}", "trainer=ddp_cpu", "trainer.max_epochs=1"]
    status, output = on_terminal("train", *arguments, folder=tmp_path, columns=200)
    assert status == 0, output
    lines = [TIME.sub("", line) for line in screen(output, 200)]
    for start in (
        "run folder: ",
        "loading PyTorch",
        "reading the data in",
        "epoch 1/1: ",
        "test: AUROC ",
        "results in",
    ):
        assert len([line for line in lines if line.startswith(start)]) == 1, start
    assert "━" not in "".join(lines)
