"""`xpcnn.compile` against the same program as written, bit by bit, whatever happens between the steps."""

import os
import warnings

import numpy as np
import pytest
from hypothesis import Phase, given, settings

import xpcnn
from tests.fake_device.recording import RecordingBackend

from .programs import programs, run, same

PHASES = [Phase.explicit, Phase.reuse, Phase.generate]  # a failing program is short enough to be read
EXAMPLES = 3000 if os.environ.get("XPCNN_TRUST") == "1" else 60


@pytest.fixture
def settings_back():
    threads = xpcnn.get_num_threads()
    yield
    xpcnn.set_num_threads(threads)
    xpcnn.set_winograd(True)


def both(drawn, backend):
    results = []
    for compiled in (True, False):
        xpcnn.set_num_threads(2)
        xpcnn.set_winograd(True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of what runs as written, and of many forwards
            results.append(run(drawn, backend, np.random.default_rng(0), compiled))
    same(*results)


@given(drawn=programs)
@settings(max_examples=EXAMPLES, phases=PHASES)
def test_compiled_is_as_written_on_numpy(drawn, settings_back):
    with xpcnn.use_backend("numpy") as backend:
        both(drawn, backend)


@given(drawn=programs)
@settings(max_examples=max(25, EXAMPLES // 5), phases=PHASES)
def test_compiled_is_as_written_on_a_device(drawn, settings_back, device):
    with xpcnn.use_backend("recording"):
        both(drawn, device)


@given(drawn=programs)
@settings(max_examples=max(25, EXAMPLES // 5), phases=PHASES, deadline=None)
def test_compiled_is_as_written_on_each_backend(drawn, settings_back, backend):
    """On a GPU, too, where there is one: CuPy gives memory that a graph's earlier calls had to its later ones."""
    if backend.captures and backend.name != "numpy":
        try:
            both(drawn, backend)
        finally:
            forget_demands(backend)


def forget_demands(backend):
    """Take the errors of wrong labels, which a device tells at the next look: that would be another test's."""
    while True:
        try:
            return backend.check_demands()
        except xpcnn.errors.DataError:
            continue


@pytest.fixture
def device(monkeypatch):
    from tests.fake_device import FakeBackend

    backend = RecordingBackend()
    backend.name = "recording"
    backend.owns = lambda array: False  # its arrays are the fake device's; `for_array` finds this one
    monkeypatch.setattr(FakeBackend, "for_array", lambda self, array: backend)
    xpcnn.register_backend(backend)
    return backend
