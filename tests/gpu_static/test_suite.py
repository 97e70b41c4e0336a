"""The suite once more, with every fused primitive of the fake device done by its CUDA kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu_static
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", ["functional", "nn", "optim"])
def test_suite_with_kernels(folder):
    folders = [str(path) for path in [ROOT / "tests" / folder] if path.exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.gpu_static.with_kernels", *folders]
    environment = {**os.environ, "XPCNN_TEST_BACKENDS": "fake"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
