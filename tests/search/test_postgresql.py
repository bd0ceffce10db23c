"""A search on a PostgreSQL server, which is started on a free loopback port as an unprivileged user."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.search.processes import start
from tests.search.test_sweeper import check_study, trials_of


def find_programs() -> Path:
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = servers[-1] if servers else shutil.which("initdb")
    if not initdb:
        pytest.skip("no PostgreSQL server: install Debian's postgresql")
    return Path(initdb).parent


@pytest.fixture
def server():
    """Return the address of a running server, for SQLAlchemy."""
    programs = find_programs()
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    folder = Path(tempfile.mkdtemp())  # pytest's path is too long: a socket's path has at most 107 bytes
    if user:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        line = [str(programs / program), *arguments]
        subprocess.run(line, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120)

    data = str(folder / "data")
    try:
        run("initdb", "-D", data, "-U", "search", "--auth=trust", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql+psycopg://search@127.0.0.1:{port}/postgres"
        run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.fault("four searches on one PostgreSQL study, two killed", "each trial is complete once")
@pytest.mark.integration
def test_killing_two_of_four_workers_loses_no_trial(server, tmp_path, phantoms):
    arguments = [f"hydra.sweeper.storage='{server}'", "hydra.sweeper.heartbeat_timeout=6", "hydra.sweeper.n_trials=20"]
    workers = [start(tmp_path, phantoms, *arguments, fake={"seconds": 1.0}) for _ in range(4)]
    folder = tmp_path / "logs" / "search" / "densenet_tiny_phantom"
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*/metrics.json"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.1)
    for worker in workers[:2]:
        os.kill(worker.pid, signal.SIGKILL)
    for worker in workers:
        worker.join(200)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    trials = trials_of(tmp_path)
    assert (trials["state"] == "complete").sum() == 20
    check_study(tmp_path)
