"""Winograd's way of a convolution: against the loops, in every cut, and where it is told to keep out."""

import numpy as np
import pytest

import xpcnn
from tests.functional.checks import check_op
from tests.functional.strategies import values
from xpcnn import functional as F
from xpcnn.backend import use_backend
from xpcnn.backend.numpy.convolution import winograd
from xpcnn.errors import ConfigError
from xpcnn.functional import reference as R
from xpcnn.windows import windows as make_windows

CONV = (F.conv2d, F.conv2d_backward), (R.conv2d, R.conv2d_backward)


@pytest.fixture
def backend(monkeypatch):
    """NumPy's backend, whose every 3x3 convolution of stride 1 goes this way."""
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "FEWEST_IMAGES", 1)
    with use_backend("numpy") as backend:
        backend.plans.clear()
        yield backend
        backend.plans.clear()


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (3, 3), (10, 6)])
@pytest.mark.parametrize("padding", [0, 1, ((2, 0), (1, 3))])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_agrees_with_the_loops(backend, rng, size, padding, dtype):
    arrays = [values(rng, shape, dtype) for shape in [(2, 3, *size), (4, 3, 3, 3), (4,)]]
    assert winograd.suits(backend, arrays[1], make_windows(size, 3, padding=padding), 1, 2)
    check_op(backend, *CONV, arrays, rng=rng, padding=padding)


@pytest.mark.parametrize("slab_bytes", [1, 4000, 8000, 40_000])
@pytest.mark.parametrize("columns", [1, 14])
def test_it_agrees_in_small_blocks(backend, rng, monkeypatch, slab_bytes, columns):
    monkeypatch.setattr(winograd, "COLUMNS", columns)
    monkeypatch.setattr(backend, "slab_bytes", slab_bytes)
    arrays = [values(rng, (2, 3, 14, 9)), values(rng, (4, 3, 3, 3)), values(rng, (4,))]
    check_op(backend, *CONV, arrays, rng=rng, padding=1)


def test_it_can_be_switched_off(backend, rng, monkeypatch):
    x, weight = values(rng, (2, 3, 6, 6), "float32"), values(rng, (4, 3, 3, 3), "float32")
    for _ in range(10):  # a plan is made, and must not be played once the switch has turned
        with_transforms, _ = F.conv2d(x, weight)
    assert xpcnn.get_winograd()
    xpcnn.set_winograd(False)
    try:
        monkeypatch.setattr(winograd, "forward_tasks", None)
        monkeypatch.setattr(winograd, "gradient_tasks", None)
        assert not xpcnn.get_winograd()
        check_op(backend, *CONV, [x, weight, None], rng=rng)
        assert not np.array_equal(F.conv2d(x, weight)[0], with_transforms)
    finally:
        xpcnn.set_winograd(True)


def test_the_switch_takes_a_bool():
    with pytest.raises(ConfigError, match="enabled: expected True or False, got 1"):
        xpcnn.set_winograd(1)
