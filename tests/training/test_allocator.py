import subprocess
import sys

import pytest

from fractatlas.training.allocator import keep_freed_memory

PROGRAM = """
import platform, resource, sys
from fractatlas.training.allocator import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
import numpy as np
for _ in range(21):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(4 * 2**20)  # 32 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    """Return the page faults of the last of several allocations of the same size."""
    output = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return int(output.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has these settings")
def test_freed_memory_is_used_again_without_page_faults():
    assert faults("keep") < faults() / 4


def test_other_c_libraries_are_left_unchanged(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
