"""Portable code asks nothing of the array module that CuPy has not; shown on a sample that asks too much."""

from pathlib import Path

import cupy
import pytest

import xpcnn

from .lint import modules, problems

pytestmark = pytest.mark.gpu_static
ROOT = Path(xpcnn.__file__).parent

BAD = """
import numpy as np
from numpy import linalg
import cupy
def f(backend, xp, x, m):
    xp.add(x, x, where=m)
    xp.multiply(x, x, x, x)
    backend.xp.max(x, axis=0, initial=0)
    xp.sum(x, where=m)
    self.backend.xp.clip(x, min=0, max=1)
    xp.zeros((3,), device="gpu")
    with xp.errstate(all="ignore"):
        xp.vecdot(x, x)
    xp.einsum("ij,ij->i", x, x, out=x)
    xp.lib.stride_tricks.sliding_window_view(x, 3)
    xp.add.at(x, m, 1)
    x.sum(axis=0, initial=0)
    x.max(where=m)
    return x.item()
"""
REPORT = """
:2: imports numpy
:3: imports numpy
:4: imports cupy
:6: xp.add(where=) is not in CuPy
:7: xp.multiply takes 3 arguments by position, not 4
:8: xp.max(initial=) is not in CuPy
:9: xp.sum(where=) is not in CuPy
:10: xp.clip(max=) is not in CuPy
:10: xp.clip(min=) is not in CuPy
:11: xp.zeros(device=) is not in CuPy
:12: xp.errstate is not in CuPy
:13: xp.vecdot is not in CuPy
:14: xp.einsum(out=) is not in CuPy
:15: xp.lib.stride_tricks.sliding_window_view synchronises on CuPy
:16: xp.add.at uses atomics
:17: .sum(initial=) is not in CuPy
:18: .max(where=) is not in CuPy
:19: .item() waits for the device
"""
GOOD = """
def f(backend, xp, x):
    xp.add(x, x, out=x)
    xp.subtract(x, x, x)
    backend.xp.sum(x, axis=0, out=x)
    x.astype("float32", copy=False).reshape(-1)
    xp.argmax(x, axis=1)
    xp.lib.stride_tricks.as_strided(x, shape=(1,), strides=(4,))
    xp.einsum("ij->i", x)
    return xp.clip(x, 0, 1)
"""


def test_the_lint_sees_what_cupy_refuses():
    assert sorted(problems(BAD, "", cupy)) == sorted(REPORT.strip().splitlines())
    assert problems(GOOD, "", cupy) == []


def test_portable_code_fits_cupy():
    found = [
        line
        for path, numpy_allowed in modules(ROOT)
        for line in problems(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)), cupy, numpy_allowed)
    ]
    assert not found, "\n".join(found)


def test_only_the_backend_imports_cupy():
    for path in sorted(ROOT.rglob("*.py")):
        if path.parent.parts[-2:] != ("backend", "cupy"):
            imports = [
                line for line in problems(path.read_text(encoding="utf-8"), path.name, cupy, True) if "imports" in line
            ]
            assert not imports
