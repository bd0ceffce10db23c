"""Show where a training or a scoring spends its time, with Lightning's profilers."""

import re
import time
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.profilers import PassThroughProfiler, Profiler, SimpleProfiler

ROWS, WIDTH = 12, 60  # of the printed table: actions, and characters of a name


def keep_profile(trainer: Trainer, run: Path) -> None:
    """Make the profiler of a trainer write its complete report into a run folder, in place of an earlier one.

    Lightning writes the file ``<stage>-profile.txt`` at the end of the next stage: ``fit``, ``validate`` or ``test``.
    """
    profiler = _profiler(trainer)
    if isinstance(profiler, PassThroughProfiler):
        return
    if trainer.is_global_zero:
        for file in run.glob("*-profile*.txt"):
            file.unlink()  # Lightning would append to it
    profiler.dirpath, profiler.filename = run, "profile"


def summarise_profile(trainer: Trainer) -> str:
    """Return what the profiler measured in the last stage, and stop writing its reports.

    Returns:
        The path of the complete report; after ``profiler=simple``, also a table of the longest actions, at most 100
        characters wide. Empty without a profiler.
    """
    profiler = _profiler(trainer)
    if isinstance(profiler, PassThroughProfiler) or not profiler.dirpath:
        return ""
    files = sorted(Path(profiler.dirpath).glob("*-profile*.txt"))
    profiler.filename = None
    text = f"profile: {files[0] if files else profiler.dirpath}"
    return f"{text}\n{simple_table(profiler)}" if isinstance(profiler, SimpleProfiler) else text


def simple_table(profiler: SimpleProfiler) -> str:
    """Return a table of the actions with the longest total time; shares are of the time since it was built."""
    durations = sorted(profiler.recorded_durations.items(), key=lambda item: -sum(item[1]))
    total = time.monotonic() - profiler.start_time
    lines = [f"{'calls':>8}{'total, s':>10}{'share, %':>10}  action (it can contain others) of {total:.2f} s"]
    for action, seconds in durations[:ROWS]:
        name = re.sub(r"\{.*?\}", "", action)  # the state keys of callbacks are long
        name = name if len(name) <= WIDTH else f"{name[: WIDTH - 1]}…"
        lines.append(f"{len(seconds):8}{sum(seconds):10.2f}{100 * sum(seconds) / total:10.1f}  {name}")
    if len(durations) > ROWS:
        lines.append(f"{'':30}and {len(durations) - ROWS} more")
    return "\n".join(lines)


def _profiler(trainer: Trainer) -> Profiler:
    return trainer.profiler  # type: ignore[attr-defined]
