"""Products cut into pieces against NumPy's own, and that the pieces fit OpenBLAS's kernels for small matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpcnn.backend import get_backend, use_backend
from xpcnn.backend.numpy import products

sizes = st.integers(1, 40)
columns = st.sampled_from([1, 48, 96, 640, 1024, 1280, 1792, 3584, 4096])


@pytest.fixture
def backend(monkeypatch):
    with use_backend("numpy"):
        backend = get_backend()
        monkeypatch.setattr(backend.blas, "multiplies_small", True)  # whatever BLAS runs here
        yield backend


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(("m", "k", "n"), [(16, 144, 4096), (16, 150, 1280), (32, 147, 1600), (36, 36, 32768)])
def test_thin_products_are_cut(backend, m, k, n):
    piece = products.column_piece(m, k, n)
    assert piece >= 48
    assert n % piece == 0
    assert m * k * piece <= products.SMALL
    a, b, out = normal(3, m, k), normal(3, k, n), np.zeros((3, m, n), np.float32)
    result = backend.matmul(a, b, out=out)
    assert result is out
    np.testing.assert_allclose(out, np.matmul(a.astype(float), b), rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(backend.matmul(a[0], b[0]), out[0])


@pytest.mark.parametrize(("m", "k", "n"), [(4096, 200, 50), (8192, 100, 33), (208, 1000, 50)])
@pytest.mark.parametrize("order", "CF")
def test_products_of_few_columns_are_cut_into_rows(backend, m, k, n, order):
    piece = products.row_piece(m, k, n)
    assert piece >= products.WIDTH
    assert m % piece == 0
    assert piece * k * n <= products.SMALL
    a, b, out = np.array(normal(3, m, k), order=order), normal(3, k, n), np.zeros((3, m, n), np.float32)
    assert backend.matmul(a, b, out=out) is out
    np.testing.assert_allclose(out, np.matmul(a.astype(float), b), rtol=1e-4, atol=1e-3)
    for left, right, expected in ((a[1], b[1], out[1]), (a, b[1], np.matmul(a, b[1])), (a[1], b, np.matmul(a[1], b))):
        np.testing.assert_allclose(backend.matmul(left, right), expected, rtol=1e-4, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(m=st.integers(1, 9000), k=st.integers(1, 900), n=sizes)
def test_a_row_piece_divides_and_is_small(m, k, n):
    piece = products.row_piece(m, k, n)
    assert piece == 0 or (m % piece == 0 and piece % products.WIDTH == 0 and piece * k * n <= products.SMALL)


@pytest.mark.parametrize(("m", "cut"), [(200, True), (63, False)])
def test_a_transposed_factor_is_turned_where_the_rows_are_many(backend, monkeypatch, m, cut):
    k, n = 50, 4096
    a, b = normal(m, k), normal(n, k).T
    expected = a.astype(float) @ b
    np.testing.assert_allclose(backend.matmul(a, b), expected, rtol=1e-4, atol=1e-3)
    calls, pieces = [], products.column_pieces
    monkeypatch.setattr(products, "column_pieces", lambda *given: calls.append(given[1]) or pieces(*given))
    np.testing.assert_allclose(backend.matmul(a, b, out=np.empty((m, n), "f4")), expected, rtol=1e-4, atol=1e-3)
    assert bool(calls) == cut
    assert all(each.strides[-1] == each.itemsize for each in calls)


@settings(max_examples=60, deadline=None)
@given(m=sizes, k=st.integers(1, 200), n=columns)
def test_a_column_piece_divides_and_is_small(m, k, n):
    piece = products.column_piece(m, k, n)
    assert piece == 0 or (n % piece == 0 and piece % products.WIDTH == 0 and m * k * piece <= products.SMALL)


@settings(max_examples=60, deadline=None)
@given(k=st.integers(1, 300), f=st.integers(1, 130), n=columns)
def test_an_outer_piece_divides_and_is_small(k, f, n):
    piece = products.outer_piece(k, f, n)
    if piece is not None:
        rows, filters, width = piece
        assert (k % rows, f % filters, n % width) == (0, 0, 0)
        assert rows * filters <= products.SMALL_OUTER
        assert rows * filters * width <= products.SMALL


@pytest.mark.parametrize(
    ("k", "f", "n"), [(144, 16, 4096), (144, 16, 1024), (150, 16, 1280), (27, 64, 2048), (25, 6, 3584), (7, 3, 11)]
)
@pytest.mark.parametrize("stack", [(1, 1), (1, 4), (3, 1), (2, 3)])
@pytest.mark.parametrize("given", [False, True])
def test_outer_sums(backend, stack, k, f, n, given):
    a, b = normal(*stack, k, n), normal(*stack, f, n) + 1
    out = backend.empty((stack[0], k, f), "float32") if given else None
    got = products.outer_sum(backend, a, b, out)
    want = np.einsum("grkn,grfn->gkf", a.astype(float), b.astype(float))
    assert got.shape == (stack[0], k, f)
    assert out is None or got is out
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-2)


def test_outer_sums_are_cut(backend, monkeypatch):
    assert products.outer_piece(144, 16, 4096) == (16, 16, 1024)
    calls = []
    monkeypatch.setattr(products, "outer_pieces", lambda *a: calls.append(a) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        products.outer_sum(backend, normal(1, 2, 144, 4096), normal(1, 2, 16, 4096))
    assert len(calls) == 1


def test_other_kernels_and_dtypes_get_whole_products(backend, monkeypatch):
    monkeypatch.setattr(products, "column_pieces", lambda *a: 1 / 0)
    monkeypatch.setattr(products, "outer_pieces", lambda *a: 1 / 0)
    monkeypatch.setattr(products, "row_pieces", lambda *a: 1 / 0)
    a, b = normal(16, 144).astype(float), normal(144, 4096).astype(float)
    backend.matmul(a, b)
    backend.matmul(b.T, normal(144, 50).astype(float))
    products.outer_sum(backend, b[None, None], b[None, None, :16])
    monkeypatch.setattr(backend.blas, "multiplies_small", False)
    backend.matmul(a.astype(np.float32), b.astype(np.float32))
    backend.matmul(b.T.astype(np.float32), normal(144, 50))


@pytest.mark.parametrize(("m", "k", "n"), [(300, 130, 31), (31, 130, 301), (3, 1, 5), (1, 600_000, 2)])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("given", [False, True])
def test_products_cut_into_strips(backend, monkeypatch, m, k, n, threads, given):
    monkeypatch.setattr(backend, "get_num_threads", lambda: threads)
    a, b = normal(m, k), normal(n, k).T
    out = backend.empty((m, n), "float32") if given else None
    got = backend.matmul(a, b, out=out)
    assert out is None or got is out
    np.testing.assert_allclose(got, a.astype(float) @ b.astype(float), rtol=2e-4, atol=2e-2)
