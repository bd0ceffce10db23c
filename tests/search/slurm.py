"""Start a SLURM cluster of one node with two CPUs on this machine: munged, slurmctld and slurmd, without systemd."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
SECONDS = 60  # to start a daemon, or to end it
# Short timeouts: a lost node is noticed after about 25 s, and its tasks can start again 6 s later.
SETTINGS = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
NodeName={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=2 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0
ProctrackType=proctrack/linuxproc
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MessageTimeout=10
"""


def missing_programs() -> list[str]:
    """Return the programs that this machine does not have."""
    return [program for program in PROGRAMS if not shutil.which(program, path=_environment("")["PATH"])]


class Cluster:
    """A running cluster; ``environment`` is that of its commands, such as ``squeue``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = folder / "slurm.conf"
        self.environment = _environment(str(self.settings))
        self.daemons: list[psutil.Popen] = []

    def run(self, *line: str) -> str:
        """Run a command of SLURM; return its output."""
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=SECONDS, check=False)
        return done.stdout + done.stderr

    def start(self, *line: str, until: Callable[[], bool]) -> None:
        """Start a daemon that stays in the foreground; wait until it works."""
        log = self.folder / f"{line[0]}.out"
        with log.open("a") as output:
            self.daemons.append(
                psutil.Popen(line, env=self.environment, stdout=output, stderr=output, start_new_session=True)
            )
        deadline = time.monotonic() + SECONDS
        while not until():
            assert self.daemons[-1].poll() is None, log.read_text() + self.log(line[0])
            assert time.monotonic() < deadline, log.read_text() + self.log(line[0])
            time.sleep(0.2)

    def start_node(self) -> None:
        """Start slurmd, and wait until the node accepts jobs."""
        self.start("slurmd", "-D", until=lambda: self.state() in ("idle", "mixed", "allocated"))

    def state(self) -> str:
        """Return the state of the node."""
        return self.run("sinfo", "--noheader", "--format=%T").strip()

    def kill_node(self) -> None:
        """Kill slurmd, and all processes of its jobs, as if the node had lost its power."""
        daemon = next(one for one in self.daemons if one.name() == "slurmd")
        self.daemons.remove(daemon)
        daemon.kill()
        daemon.wait(SECONDS)
        while jobs := self.processes():
            for process in jobs:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(jobs, SECONDS)

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the jobs; first each ``slurmstepd``, which would report the death of the others."""
        steps, others = [], []
        for process in psutil.process_iter():
            try:
                if process.name() == "slurmstepd":
                    if any(one.laddr.startswith(str(self.folder)) for one in process.net_connections("unix")):
                        steps.append(process)
                elif process.environ().get("SLURM_CONF") == str(self.settings) and "SLURM_JOB_ID" in process.environ():
                    others.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                pass
        return steps + others

    def log(self, daemon: str) -> str:
        """Return the end of the log of a daemon."""
        file = self.folder / f"{daemon}.log"
        return "\n".join(file.read_text(errors="replace").splitlines()[-40:]) if file.is_file() else ""

    def stop(self) -> None:
        """End the jobs and the daemons."""
        for daemon in reversed(self.daemons):
            with suppress(psutil.NoSuchProcess):
                daemon.terminate()
        psutil.wait_procs(self.daemons, 5)
        for process in [*self.processes(), *(daemon for daemon in self.daemons if daemon.is_running())]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self.daemons, SECONDS)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a cluster until the block ends. Its user is the user of this process, and its files are temporary."""
    folder = Path(tempfile.mkdtemp())  # pytest's path is too long: a socket's path has at most 107 bytes
    folder.chmod(0o755)  # munged refuses a folder that others cannot enter
    port, node_port = _free_ports(2)
    host, user = socket.gethostname().partition(".")[0], pwd.getpwuid(os.geteuid()).pw_name
    running = Cluster(folder)
    running.settings.write_text(SETTINGS.format(host=host, user=user, folder=folder, port=port, node_port=node_port))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # starts without control groups, too
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    files = {name: folder / f"munge.{name}" for name in ("socket", "pid", "seed")}
    try:
        running.start(
            "munged", "--foreground", f"--key-file={key}", f"--socket={files['socket']}", f"--pid-file={files['pid']}",
            f"--seed-file={files['seed']}", f"--log-file={folder / 'munged.log'}", until=files["socket"].is_socket,
        )  # fmt: skip
        running.start("slurmctld", "-D", until=lambda: "UP" in running.run("scontrol", "ping"))
        running.start_node()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _environment(settings: str) -> dict[str, str]:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])  # of the daemons
    return dict(os.environ) | {"SLURM_CONF": settings, "PATH": path}


def _free_ports(number: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
