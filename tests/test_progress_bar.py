import logging
import sys
from collections.abc import Iterator

import pytest
import rich

from fractatlas.progress_bar import (
    SHOWN_BY_BAR,
    bars_are_shown,
    log_above_bars,
    make_bar,
    track,
    waiting,
)
from tests.terminal import Terminal, log_to_memory, screen

log = logging.getLogger("fractatlas.test")


@pytest.fixture
def terminal(monkeypatch) -> Iterator[Terminal]:
    """The stream of rich's console: a terminal of 100 columns."""
    monkeypatch.setenv("TERM", "xterm-256color")
    with log_to_memory(100) as terminal:
        yield terminal


def test_log_lines_are_printed_above_the_bar_and_the_bar_disappears(terminal):
    for number in track(range(20), "reading files", 20):
        log.info("line %d", number)
    lines = screen(terminal.getvalue(), 100)
    assert lines == [f"line {number}" for number in range(20)]
    assert "reading files" in terminal.getvalue()


def test_a_bar_that_is_not_finished_disappears_with_the_error(terminal):
    def read(number: int) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(track(map(read, range(20)), "reading files", 20))
    log.info("after")
    assert screen(terminal.getvalue(), 100) == ["after"]


@pytest.mark.parametrize("columns", [100, 200])
def test_a_bar_fits_into_the_terminal(terminal, columns):
    rich.reconfigure(file=terminal, width=columns, height=40)
    with make_bar() as bar:
        bar.add_task("scoring test", total=1234, completed=567)
    shown = [line for line in screen(terminal.getvalue().replace("\x1b[2K", ""), columns) if "scoring test" in line]
    assert shown
    assert all("567/1234" in line and line.endswith("left") and len(line) <= columns for line in shown)


def test_a_long_line_is_not_broken(terminal):
    path = "/data/" + "x" * 150 + "/report.html"
    for _ in track(range(2), "reading files", 2):
        log.info("report: %s", path)
    assert path in terminal.getvalue()


def test_markup_in_a_path_is_printed_as_it_is(terminal):
    log.info("report: /data/[red]/:smile:/page.html")
    assert screen(terminal.getvalue(), 100) == ["report: /data/[red]/:smile:/page.html"]


def test_what_a_bar_shows_is_not_logged_to_the_terminal(terminal, caplog):
    log.info("step 1/28", extra={SHOWN_BY_BAR: True})
    log.info("step 2/28", extra={SHOWN_BY_BAR: False})
    assert screen(terminal.getvalue(), 100) == ["step 2/28"]
    assert caplog.messages == ["step 1/28", "step 2/28"]


@pytest.mark.parametrize("force", ["", "1"])
def test_a_file_receives_all_lines_and_no_bar(terminal, monkeypatch, capsys, force):
    monkeypatch.setenv("FORCE_COLOR", force)
    rich.reconfigure()
    with waiting("waiting for another process", " that writes to /data"):
        log.info("step", extra={SHOWN_BY_BAR: True})
    assert list(track(range(3), "reading files", 3)) == [0, 1, 2]
    rich.reconfigure()
    assert capsys.readouterr().out == "waiting for another process that writes to /data\nstep\n"


def test_waiting_shows_the_time(terminal):
    with waiting("waiting for another process", " that writes to /data"):
        pass
    assert "0:00:00" in terminal.getvalue()
    assert screen(terminal.getvalue(), 100) == ["waiting for another process that writes to /data"]


@pytest.mark.parametrize(("name", "value"), [("LOCAL_RANK", "1"), ("TERM", "dumb")])
def test_further_processes_and_simple_terminals_show_no_bar(terminal, monkeypatch, name, value):
    assert bars_are_shown()
    monkeypatch.setenv(name, value)
    assert not bars_are_shown()


def test_the_console_of_an_earlier_command_is_replaced(terminal, capsys):
    rich.reconfigure(stderr=True)
    log_above_bars()
    log.info("line")
    assert capsys.readouterr().out == "line\n"


def test_the_handler_of_hydra_is_replaced(terminal, monkeypatch, tmp_path):
    root = logging.getLogger()
    former = [logging.StreamHandler(sys.stdout), logging.FileHandler(tmp_path / "train.log")]
    former[0].setFormatter(logging.Formatter("hydra %(message)s"))
    monkeypatch.setattr(root, "handlers", [*former])
    log_above_bars()
    log_above_bars()
    log.info("line")
    assert screen(terminal.getvalue(), 100) == ["hydra line"]
    assert (tmp_path / "train.log").read_text() == "line\n"
    assert former[1] in root.handlers
