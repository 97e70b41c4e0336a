"""Starting jobs of several ranks and looking at what they leave: output, processes, shared memory."""

import os
import shutil
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEGMENTS = Path("/dev/shm")  # where MPI puts what ranks share
TOKEN = "XPCNN_TEST_JOB"  # in the environment of all processes of a job


def launcher():
    """Return the mpiexec beside this Python, as the mpich wheel puts it there, else the one on the path."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    assert found, "no mpiexec: pip install mpich"
    return found


@dataclass
class Ended:
    """What came of a job."""

    status: int
    out: str
    err: str
    seconds: float

    def said(self):
        """Return the lines in which the library says why."""
        return [line for line in self.err.splitlines() if line.startswith(("xpcnn: ", "xpcnn ")) and "rank" in line]


class Job:
    """A job that runs.

    Parameters
    ----------
    size : int
        Ranks.
    *command : str
        Arguments of Python; several programs are separated by ":", each with "-n COUNT" before it.
    """

    def __init__(self, size, *command, cwd=ROOT, **environment):
        self.token = uuid.uuid4().hex
        self.segments = segments()
        env = {**os.environ, "PYTHONPATH": str(ROOT), TOKEN: self.token, "PYTHONWARNINGS": "ignore", **environment}
        env.pop("XPCNN_NUM_THREADS", None)
        command = [*("-n", str(size)), sys.executable, *map(str, command)] if size else list(command)
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [launcher(), *command], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def end(self, timeout=300):
        """Wait for its end."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            for process in self.processes():
                os.kill(process, 9)
            raise
        return Ended(self.process.returncode, out, err, time.monotonic() - self.began)

    def processes(self):
        """Return the ids of its processes that are left, the launcher's apart."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and f"{TOKEN}={self.token}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return [each for each in found if each != self.process.pid]

    def leaves_nothing(self, seconds=10.0):
        """Say whether no process and no shared memory of it is left, after a moment at most."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not self.processes() and not segments() - self.segments:
                return True
            time.sleep(0.05)
        print("left:", self.processes(), segments() - self.segments)
        return False


def segments():
    """Return the names of the shared memory of MPI jobs."""
    return {path.name for path in SEGMENTS.glob("mpich_*")} if SEGMENTS.is_dir() else set()


def run(size, *command, timeout=300, **options):
    """Run a job to its end, which must leave nothing."""
    job = Job(size, *command, **options)
    ended = job.end(timeout)
    assert job.leaves_nothing()
    return ended
