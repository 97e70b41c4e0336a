"""A compiled forward and backward of every layer gives what the written one gives, to the bit, masks included."""

import numpy as np
import pytest

import xpcnn
from tests.functional.strategies import values
from tests.nn.layers import LAYERS, make
from xpcnn import nn


def step(layer, x, dy):
    y = layer(x)
    dx = layer.backward(dy)
    return y, dx


@pytest.mark.parametrize("name", LAYERS)
def test_recorded_as_written(backend, rng, name):
    layer, x = make(name, rng, "float32")
    with nn.no_grad():
        shape = layer(backend.asarray(x)).shape
    buffers = [(array, backend.copy(array)) for _, array in layer.named_buffers()]

    def run(function, count):
        for array, value in buffers:
            array[...] = value
        xpcnn.manual_seed(1)
        found, draws = [], np.random.default_rng(3)
        for _ in range(count):
            layer.zero_grad()
            arrays = [backend.asarray(values(draws, each, "float32")) for each in (x.shape, shape)]
            results = function(layer, *arrays)
            gradients = [parameter.grad for parameter in layer.parameters()]
            found.append([backend.to_numpy(array).copy() for array in (*results, *gradients)])
        return found

    with backend.as_recorded():
        written = run(step, 6)
    for ours, theirs in zip(run(xpcnn.compile(step), 6), written, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert np.array_equal(a, b, equal_nan=True)
