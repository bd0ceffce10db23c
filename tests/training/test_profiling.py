import time

import pytest
from lightning.pytorch.profilers import SimpleProfiler

from fractatlas.training.profiling import simple_table


def test_the_share_of_an_action_is_that_of_the_total_time():
    profiler = SimpleProfiler()
    profiler.start_time = time.monotonic() - 10
    profiler.recorded_durations = {"epoch": [4.0], "step": [1.0, 1.5]}
    heading, *rows = simple_table(profiler).splitlines()
    assert "share, %" in heading
    shares = {row.split()[3]: float(row.split()[2]) for row in rows}
    assert shares == {"epoch": pytest.approx(40, abs=0.5), "step": pytest.approx(25, abs=0.5)}
