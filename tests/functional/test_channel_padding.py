import numpy as np
import pytest

from tests.functional.strategies import lay_out, values
from xpcnn import functional as F
from xpcnn import nn
from xpcnn.errors import DTypeError, ShapeError
from xpcnn.functional import reference as R


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4), (1, 1, 1, 1), (2, 3, 4)])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 1), (0, 3)])
@pytest.mark.parametrize("layout", ["nchw", "chwn", "strided"])
def test_it_agrees_with_the_loops(backend, rng, shape, before, after, layout):
    x = values(rng, shape, "float32")
    y, cache = F.pad_channels(lay_out(backend, x, layout), before, after)
    expected, kept = R.pad_channels(x, before, after)
    assert y.dtype == "float32"
    assert np.array_equal(backend.to_numpy(y), expected.astype("float32"))
    dy = values(rng, expected.shape, "float32")
    dx = F.pad_channels_backward(backend.asarray(dy), cache)
    assert np.array_equal(backend.to_numpy(dx), R.pad_channels_backward(dy, kept).astype("float32"))


def test_what_does_not_fit(backend, rng):
    x = backend.asarray(values(rng, (2, 3, 4, 4), "float32"))
    with pytest.raises(ShapeError, match="before: expected 0 or more, got -1"):
        F.pad_channels(x, -1)
    with pytest.raises(DTypeError, match=r"after: expected integers, got 1\.5"):
        F.pad_channels(x, 0, 1.5)
    with pytest.raises(ShapeError, match=r"x: expected shape \(N, C, ...\), got \(2,\)"):
        F.pad_channels(x[:, 0, 0, 0])
    _, cache = F.pad_channels(x, 1, 1)
    with pytest.raises(ShapeError, match="dy"):
        F.pad_channels_backward(x, cache)
    with pytest.raises(ShapeError, match="before: expected 0 or more, got -1"):
        nn.ChannelPad(-1)
