"""What a recording looks at: the user's code and all that it reads, and not the library's own work."""

import os
import subprocess
import sys

import numpy as np
import pytest

import xpcnn
import xpcnn.functional as F
from xpcnn.backend import NumpyBackend, get_backend, is_portable, use_backend

SCALE = 1.0


@pytest.fixture
def backend():
    with use_backend("numpy"):
        if is_portable() or not get_backend().fused:
            pytest.skip("nothing stands in a primitive's place (XPCNN_PORTABLE)")
        yield get_backend()


def convolve():
    weight = np.ones((4, 3, 3, 3), "float32")
    return xpcnn.compile(lambda x: F.conv2d(x, weight)[0])


PROGRAM = """
import sys, types
import numpy as np, xpcnn, xpcnn.functional as F
extra = sys.modules["xpcnn.sklearn"] = types.ModuleType("xpcnn.sklearn")
extra.check = lambda: None  # of another library, as some modules hold them
set_to, setprofile = [], sys.setprofile
sys.setprofile = lambda function: set_to.append(function) or setprofile(function)
weight = np.ones((4, 3, 3, 3), "float32")
function = xpcnn.compile(lambda x: F.conv2d(x, weight)[0])
for _ in range(4):
    function(np.ones((2, 3, 8, 8), "float32"))
print([each is not None for each in set_to])
"""


def test_the_library_s_own_work_is_not_looked_at_call_by_call(backend):
    command = [sys.executable, "-c", PROGRAM]  # a process of its own: other tests put functions into the library
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"XPCNN_BACKEND": "numpy"}
    )
    # The recording, the convolution within, the rest, and no more.
    assert done.stdout.strip() == "[True, False, True, False]"


def test_a_function_of_the_user_s_own_in_the_library_is_guarded(backend, monkeypatch):
    matmul = NumpyBackend.matmul

    def scaled(self, a, b, out=None):
        return np.multiply(matmul(self, a, b, out), SCALE, out=out)

    monkeypatch.setattr(NumpyBackend, "matmul", scaled)
    function, x = convolve(), np.ones((2, 3, 8, 8), "float32")
    for _ in range(4):
        before = function(x).copy()
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    np.testing.assert_array_equal(function(x), 3 * before)


def test_a_kernel_of_the_user_s_own_is_guarded(backend, monkeypatch):
    own = backend.fused["conv2d_forward"]

    def scaled(*given):
        y = own(*given)
        return np.multiply(y, SCALE, out=y) if type(y) is np.ndarray else y * SCALE

    monkeypatch.setitem(backend.fused, "conv2d_forward", scaled)
    function, x = convolve(), np.ones((2, 3, 8, 8), "float32")
    for _ in range(4):
        before = function(x).copy()
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    np.testing.assert_array_equal(function(x), 3 * before)
