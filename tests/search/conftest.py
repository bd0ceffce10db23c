"""A PostgreSQL server."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


def find_programs() -> Path:
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = servers[-1] if servers else shutil.which("initdb")
    if not initdb:
        pytest.skip("no PostgreSQL server: install Debian's postgresql")
    return Path(initdb).parent


@pytest.fixture
def postgresql():
    """Return the address, for SQLAlchemy, of a PostgreSQL server on a free port; its user has no privileges."""
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
