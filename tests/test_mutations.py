"""What watches over the reading of damaged files, itself: a hang is found, a pause is none."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mutations import no_hang

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="alarms are POSIX")
ROOT = Path(__file__).parents[1]
WAITS = """
import sys
from tests.mutations import no_hang

with no_hang(1.0):
    print("in", flush=True)
    sys.stdin.readline()
"""


def spin():
    while True:
        pass


@pytest.mark.parametrize("hang", [spin, lambda: time.sleep(60)], ids=["busy", "asleep"])
def test_a_hang_is_found(hang):
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(AssertionError, match=r"no end after 0\.1 seconds"), no_hang(0.1):
        hang()
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_pause_is_no_hang():
    """A laptop that sleeps, a terminal's Ctrl-Z: the time is nobody's fault."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "in\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(process.pid, signal.SIGCONT)
        process.communicate("\n")
    assert process.returncode == 0
