"""The backends that the suite runs on, seeds, and hypothesis profiles.

XPCNN_TEST_BACKENDS (default "numpy,fake") names the backends of every test that takes the fixture `backend`;
"cupy" is skipped for want of a device, or fails with XPCNN_REQUIRE_GPU=1. CI=1 makes hypothesis repeat its draws.
"""

import gc
import os
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import xpcnn.random
from xpcnn.backend import get_backend, is_portable, register_backend, use_backend
from xpcnn.errors import BackendError

from .fake_device import FakeBackend, counters

# A suite started in the background of a shell inherits that Ctrl-C is ignored; its tests of Ctrl-C must not.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "xpcnn",
    max_examples=30,
    deadline=None,
    derandomize=os.environ.get("CI", "") not in ("", "0"),
    # `backend` and `rng` are made once for all examples of a test, which is right for both.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("xpcnn")
register_backend(FakeBackend())

BACKENDS = [name.strip() for name in os.environ.get("XPCNN_TEST_BACKENDS", "numpy,fake").split(",") if name.strip()]
GPU_IS_REQUIRED = os.environ.get("XPCNN_REQUIRE_GPU") == "1"


def pytest_collection_finish():
    """Hide thousands of tests from the collector: each capture of a CUDA graph asks for a full run of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Run the test on each backend of XPCNN_TEST_BACKENDS, as the active one."""
    name = request.param
    try:
        with use_backend(name):
            pass
    except BackendError as error:
        if not name.startswith("cupy") or GPU_IS_REQUIRED:
            raise
        pytest.skip(f"no GPU: {error}")
    with use_backend(name) as active:
        counters.reset()
        if name == "numpy" and not is_portable():
            active.plans.clear()  # tests change what operations are cut by
        yield active


@pytest.fixture
def other_backend(backend):
    """Name a backend to move to: from a device to NumPy, from NumPy to a device."""
    return "fake" if backend.name == "numpy" else "numpy"


@pytest.fixture
def rng():
    """Give a NumPy Generator of a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded():
    """Start every test from the same state of the library's generator; leave no other backend active after it."""
    xpcnn.random.manual_seed(0)
    before = get_backend()
    yield
    assert get_backend() is before, "the test left another backend active"
