"""A backend with a worker process of its own."""

import pytest

import xpcnn
from xpcnn.backend.numpy import regions, threads, trace
from xpcnn.backend.numpy.workers import WorkerProcesses


@pytest.fixture
def helped(monkeypatch):
    """The NumPy backend with two threads and a helper of its own, which starts at the first replay."""
    backend = xpcnn.get_backend()
    before = xpcnn.get_num_threads()
    monkeypatch.delenv("XPCNN_PROCESSES", raising=False)
    monkeypatch.setattr(threads, "_usable_cores", lambda: 4)
    monkeypatch.setattr(backend, "workers", WorkerProcesses(backend.pool))
    monkeypatch.setattr(regions, "REPLAYS_BEFORE", 1)
    monkeypatch.setattr(regions, "SECONDS_BEFORE", 0.0)
    monkeypatch.setattr(regions, "WORTH_A_PROCESS", 1.0)
    monkeypatch.setattr(regions, "PATIENCE", float("inf"))  # a busy machine must not send it to rest
    monkeypatch.setattr(trace, "WORTH_A_HAND_OVER", 100.0)
    xpcnn.set_num_threads(2)
    yield backend
    backend.workers._fail()
    xpcnn.set_num_threads(before)
