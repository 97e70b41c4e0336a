"""Running out of memory: which layer, and which batch fits."""

import pytest

from tests.nn.layers import kept_by
from xpcnn import nn
from xpcnn.errors import OutOfMemoryError

from .common import arrays, assert_same, loader, trainer


class Small(nn.Module):
    """Fits batches up to a size."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, x):
        if x.shape[0] > self.most:
            raise OutOfMemoryError("the device has no memory left\nand says so at length")
        return x

    def backward(self, dy):
        return dy


@pytest.mark.parametrize(
    ("most", "advice"),
    [(3, "a batch of 2 fits"), (0, "not even a batch of 1 fits: make the images or the net smaller")],
)
def test_the_layer_and_a_batch_that_fits(backend, most, advice):
    model = nn.Sequential(*trainer().model, Small(most))
    mine = trainer(model=model)
    before = arrays(model)
    with pytest.raises(OutOfMemoryError) as caught:
        mine.fit(loader())
    assert str(caught.value) == (
        f"step 1: out of memory in layer '7' (Small) with a batch of 8; {advice} (the device has no memory left)"
    )
    assert_same(before, arrays(model))
    assert not kept_by(model)
