"""The fixture of the tests on real CuPy arrays; nothing here needs CuPy until a test asks for it."""

import importlib.util

import pytest

# Modules that import CuPy cannot even be read where its wheel is not; their marker leaves all of them out there anyway.
if importlib.util.find_spec("cupy") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def host_cupy(monkeypatch):
    """Register the CuPy backend over host memory; plain copies run on the host."""
    import cupy
    import numpy as np

    import xpcnn.backend as switch

    from .host_cupy import HostCupyBackend, view

    backend = HostCupyBackend()
    monkeypatch.setitem(switch._backends, "cupy", backend)
    monkeypatch.setitem(switch._by_type, cupy.ndarray, backend)

    def assign(self, index, value):
        assert not isinstance(value, np.ndarray | np.generic), "CuPy refuses host values"
        view(self)[index] = view(value) if isinstance(value, cupy.ndarray) else value

    monkeypatch.setattr(cupy.ndarray, "__setitem__", assign)
    monkeypatch.setattr(cupy, "copyto", lambda target, source: assign(target, ..., source))
    return backend
