"""What the tests of recordings run on."""

import pytest


@pytest.fixture
def batches(backend, rng):
    images = [rng.normal(size=(16, 1, 12, 12)).astype("float32") for _ in range(14)]
    return [(backend.asarray(x), backend.asarray(rng.integers(0, 10, 16))) for x in images]


@pytest.fixture
def captures(backend):
    """Give a backend that records, where one does."""
    if not backend.captures:
        pytest.skip(f"{backend.name} records nothing here (XPCNN_COMPILE, XPCNN_PORTABLE)")
    return backend
