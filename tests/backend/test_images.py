"""Batches turned from (N, ...) to (..., N), the way that gets past the cache's sets held against a plain copy."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpcnn
from xpcnn import nn
from xpcnn.backend import backend_of, get_backend, use_backend
from xpcnn.backend.numpy import images
from xpcnn.functional.layout import batch_last, copy_batch_last

COUNTS = [1, 15, 16, 17, 63, 64, 65, 130]
SHAPES = [(1, 32, 32), (3, 16, 8), (4, 7, 9), (128,), (512,), (2, 64), (3, 16, 16, 4)]


@pytest.fixture(autouse=True)
def _on_numpy():
    with use_backend("numpy"):
        yield


def numbers(count, shape, dtype):
    """Bit patterns of every kind, nan included."""
    dtype = np.dtype(dtype)
    whole = (count, *shape)
    return np.frombuffer(np.random.default_rng(0).bytes(dtype.itemsize * int(np.prod(whole))), dtype).reshape(whole)


@settings(max_examples=150, deadline=None)
@given(
    count=st.sampled_from(COUNTS),
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(["float32", "float64", "uint8", "float16", ">f4"]),
    threads=st.sampled_from([1, 2]),
    gap=st.booleans(),
)
def test_a_turned_copy_is_the_copy_to_the_bit(count, shape, dtype, threads, gap):
    backend, x = get_backend(), numbers(count, shape, dtype)
    before = xpcnn.get_num_threads()
    xpcnn.set_num_threads(threads)
    try:
        expected = np.moveaxis(x, 0, -1)
        room = np.full((*shape[:-1], shape[-1] + 2 * gap, count), 7, x.dtype)
        out = room[..., gap : gap + shape[-1], :]  # (..., N), with a border where there is a gap
        backend.copyto(np.moveaxis(out, -1, 0), x)
        assert out.tobytes() == expected.tobytes()
        if gap:
            assert (room[..., [0, -1], :] == 7).all()
        turned = backend.contiguous(expected)
        assert turned.flags.c_contiguous
        assert turned.tobytes() == expected.tobytes()
        assert np.moveaxis(copy_batch_last(backend, x), 0, -1).tobytes() == expected.tobytes()
    finally:
        xpcnn.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32), (64, 8, 8)])
def test_images_that_meet_themselves_in_the_cache_are_set_apart(shape):
    """Otherwise the test above would hold a plain copy against itself."""
    backend, x = get_backend(), numbers(128, shape, "float32")
    out = np.empty((*shape, 128), np.float32)
    assert images.turn(backend, out, np.moveaxis(x, 0, -1))
    assert images.turn(backend, np.moveaxis(out, -1, 0), x)
    assert not images.turn(backend, out[..., ::-1], np.moveaxis(x, 0, -1))
    assert not images.turn(backend, np.empty_like(x), x)
    assert not images.turn(backend, np.moveaxis(np.empty((*shape, 128)), -1, 0), x)
    assert not images.turn(backend, out[..., :15], np.moveaxis(x[:15], 0, -1))


def turn(find, seed):
    """A function that turns its argument, and one for it."""
    x = np.random.default_rng(seed).normal(size=(70, 2, 16, 8)).astype("float32")
    return (lambda x: batch_last(find(x), x) * 1), x


def test_a_recorded_copy_reads_its_argument_anew():
    run = xpcnn.compile(turn(backend_of, 0)[0])
    for seed in range(8):
        x = turn(backend_of, seed)[1]
        np.testing.assert_array_equal(run(x), np.moveaxis(x, 0, -1))
    assert run.graphs == 1


def test_arguments_of_a_replay_may_lie_in_any_way():
    """How a copy goes is decided at each call: a record is kept for a shape, not for strides."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    predict = nn.Inference(model)
    for seed in range(9):
        x = turn(backend_of, seed)[1]
        lies = [x, np.asfortranarray(x), np.repeat(x, 2, axis=3)[..., ::2], x[::-1].copy()[::-1]][seed % 4]
        assert np.array_equal(lies, x)
        np.testing.assert_allclose(predict(lies), model(x), rtol=1e-5, atol=1e-5)


def test_a_copy_that_goes_past_the_recorder_is_no_constant():
    run = xpcnn.compile(turn(lambda x: get_backend(), 0)[0])
    found = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for seed in range(8):
            x = turn(backend_of, seed)[1]
            found.append(np.array_equal(run(x), np.moveaxis(x, 0, -1)))
    assert all(found)
    assert any("runs as written" in str(each.message) for each in said)
