"""Fresh interpreters: what a test must see before anything else has been imported."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(code, *options, **environment):
    """Run code in a new process with the package importable; return what it printed."""
    done = fails(code, *options, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fails(code, *options, **environment):
    """Run code in a new process and return the process as it ended."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("XPCNN_")}
    path = os.pathsep.join(filter(None, [str(ROOT), inherited.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**inherited, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
