"""Products in pieces beside whole ones, on one thread: `pytest bench/test_products.py`. Shapes of the table's nets."""

import numpy as np
import pytest

from xpcnn.backend import get_backend, use_backend
from xpcnn.backend.numpy import products

FORWARD = [(16, 150, 1280), (16, 144, 4096), (32, 147, 1600), (36, 36, 32768), (64, 64, 512)]
GRADIENT = [(150, 16, 1280), (144, 16, 4096), (288, 32, 2048), (27, 64, 2048), (64, 64, 512)]

DENSE = [(200, 50, 4096), (4096, 200, 50)]


def normal(backend, *shape):
    array = backend.zeros(shape, np.float32)  # aligned, as the library's own arrays are
    array[...] = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return array


@pytest.fixture(params=["pieces", "whole"])
def backend(request, monkeypatch):
    with use_backend("numpy"):
        backend = get_backend()
        if not backend.blas.multiplies_small:
            pytest.skip("this BLAS has no kernels for small matrices")
        monkeypatch.setattr(backend.blas, "multiplies_small", request.param == "pieces")
        with backend.blas.single():
            yield backend


@pytest.mark.parametrize(("m", "k", "n"), FORWARD)
def test_forward(benchmark, backend, m, k, n):
    benchmark.group = f"({m}, {k}) @ ({k}, {n})"
    a = normal(backend, m, k)
    if backend.blas.multiplies_small:
        a = products.pack_lhs(backend, a)
    b, out = normal(backend, k, n), backend.zeros((m, n), np.float32)
    assert bool(products.column_piece(m, k, n))
    benchmark(backend.matmul, a, b, out=out)


@pytest.mark.parametrize(("m", "k", "n"), DENSE)
def test_dense(benchmark, backend, m, k, n):
    benchmark.group = f"dense: ({m}, {k}) @ ({k}, {n})"
    a = normal(backend, k, m).T if m > n else normal(backend, m, k)  # W^T dY, and dY X^T
    b = normal(backend, k, n) if m > n else normal(backend, n, k).T
    benchmark(backend.matmul, a, b, out=backend.zeros((m, n), np.float32))


@pytest.mark.parametrize(("k", "f", "n"), GRADIENT)
def test_gradient(benchmark, backend, k, f, n):
    benchmark.group = f"({k}, {n}) @ ({f}, {n}).T"
    a, b = normal(backend, 1, 8, k, n), normal(backend, 1, 8, f, n)
    benchmark(products.outer_sum, backend, a, b)
