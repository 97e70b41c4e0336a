"""A backend with a helper process of its own."""

import pytest

import xpcnn
from xpcnn.backend import numpy_tape, regions, threads
from xpcnn.backend.partner import Partners


@pytest.fixture
def helped(monkeypatch):
    """The NumPy backend with two threads and a helper of its own, which starts at the first replay."""
    backend = xpcnn.get_backend()
    before = xpcnn.get_num_threads()
    monkeypatch.delenv("XPCNN_PROCESSES", raising=False)
    monkeypatch.setattr(threads, "_usable_cores", lambda: 4)
    monkeypatch.setattr(backend, "partners", Partners(backend.pool))
    monkeypatch.setattr(regions, "REPLAYS_BEFORE", 1)
    monkeypatch.setattr(regions, "SECONDS_BEFORE", 0.0)
    monkeypatch.setattr(regions, "WORTH_A_PROCESS", 1.0)
    monkeypatch.setattr(regions, "PATIENCE", float("inf"))  # a busy machine must not send it to rest
    monkeypatch.setattr(numpy_tape, "WORTH_A_HAND_OVER", 100.0)
    xpcnn.set_num_threads(2)
    yield backend
    backend.partners._fail()
    xpcnn.set_num_threads(before)
