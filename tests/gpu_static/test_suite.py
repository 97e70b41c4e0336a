"""The suite once more, with every fused primitive of the fake device done by its CUDA kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu_static
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", [name for name in ("functional", "nn", "optim") if (ROOT / "tests" / name).exists()])
def test_suite_with_kernels(folder):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.gpu_static.with_kernels", f"tests/{folder}"]
    environment = {**os.environ, "XPCNN_TEST_BACKENDS": "fake"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
