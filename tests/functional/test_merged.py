"""Merged operations do what the operations that they stand for do, one after the other."""

import numpy as np
import pytest

from xpcnn.functional.activation import ReLUOp
from xpcnn.functional.addition import AddOp
from xpcnn.functional.channelwise import run, run_backward
from xpcnn.functional.layout import batch_last
from xpcnn.functional.merged import NormReLUOp, PoolReLUOp, merged
from xpcnn.functional.normalization import BatchNormOp
from xpcnn.functional.pooling import max_pool_op

SHAPE = 5, 3, 6, 7  # N, C, H, W


def chain(backend, rng, names, momentum, channels=3):
    """Return operations, and the arrays that a forward and a backward of them write."""
    ops, written = [], []
    for name in names:
        if name == "norm":
            arrays = [backend.asarray(rng.random(channels).astype("float32")) for _ in range(4)]
            batches = backend.asarray(np.array(2, "int64"))
            op = BatchNormOp(*arrays, training=True, momentum=momentum, eps=1e-5, batches=batches)
            written += [*arrays[2:], *op.make_gradients(backend)]
        elif name == "add":
            op = AddOp(batch_last(backend, backend.asarray(rng.normal(size=SHAPE).astype("float32"))))
            op.make_gradient(backend)
            written.append(op.gradient)
        else:
            op = ReLUOp() if name == "relu" else max_pool_op(2, None, 0, 1, False)
        ops.append(op)
    return ops, written


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        ("norm relu", [NormReLUOp]),
        ("norm add relu", [NormReLUOp]),
        ("norm pool relu", [BatchNormOp, PoolReLUOp]),
        ("pool relu norm relu", [PoolReLUOp, NormReLUOp]),
        ("relu norm", [ReLUOp, BatchNormOp]),
    ],
)
def test_merged_operations_do_what_they_stand_for(backend, names, kinds, momentum):
    results = []
    for merges in (False, True):
        rng = np.random.default_rng(0)
        ops, written = chain(backend, rng, names.split(), momentum)
        if merges:
            ops = merged(ops)
            assert [type(op) for op in ops] == kinds
        x = rng.normal(size=SHAPE).astype("float32")
        y, cache = run(ops, backend.asarray(x))
        dx = run_backward(backend.asarray(rng.normal(size=y.shape).astype("float32")), cache)
        results.append([backend.to_numpy(array) for array in (y, dx, *written)])
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
        assert np.abs(mine).max() > 0


def test_without_training_batch_norm_stays_by_itself(backend):
    arrays = [backend.zeros((3,), "float32") for _ in range(4)]
    ops = [BatchNormOp(*arrays, training=False, momentum=0.1, eps=1e-5), ReLUOp()]
    assert [type(op) for op in merged(ops)] == [BatchNormOp, ReLUOp]
