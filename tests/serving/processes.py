"""Start the server as a process of its own."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS = 120  # to start


@dataclass
class Server:
    """A running server: its address, its process, its working directory, its folder of temporary files, and its log."""

    address: str
    process: subprocess.Popen
    folder: Path
    temporary: Path
    log: Path

    def files(self) -> list[str]:
        """Return the files that the server has written."""
        return [str(path) for folder in (self.folder, self.temporary) for path in folder.rglob("*") if path.is_file()]


@contextmanager
def running(checkpoint: Path, folder: Path, *overrides: str) -> Iterator[Server]:
    """Serve a checkpoint on a free port until the block ends."""
    work, temporary, log = folder / "work", folder / "temporary", folder / "server.log"
    for path in (work, temporary):
        path.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FRACATLAS_")}
    environment |= {"TMPDIR": str(temporary), "MPLCONFIGDIR": str(folder / "matplotlib"), "PYTHONUNBUFFERED": "1"}
    line = [sys.executable, "-m", "fractatlas", "serve", f"ckpt={checkpoint}", "port=0", *overrides]
    with log.open("w") as output:
        process = subprocess.Popen(line, cwd=work, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(r"on (http://\S+);", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Server(found[1], process, work, temporary, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
