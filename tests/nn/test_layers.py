"""What holds for every layer and container: its gradients, its state rules, and whose arrays are whose."""

import inspect
from functools import partial

import numpy as np
import pytest

from tests.functional.strategies import LAYOUTS, lay_out, values
from tests.nn.layers import LAYERS, in_float64, make
from xpcnn import manual_seed, nn
from xpcnn.errors import DTypeError, MixedBackendsError, ShapeError, StateError
from xpcnn.testing import assert_close, gradcheck

every_layer = pytest.mark.parametrize("name", LAYERS)
with_something = pytest.mark.parametrize("name", [name for name in LAYERS if name != "Sequential of nothing"])
that_compute = pytest.mark.parametrize(
    "name", [name for name in LAYERS if not name.startswith(("Flatten", "Identity", "Sequential of nothing"))]
)
with_parameters = pytest.mark.parametrize(
    "name", [name for name in LAYERS if make(name, np.random.default_rng(0))[0].parameters()]
)


def test_every_layer_of_the_package_is_here():
    layers = {name for name in nn.__all__ if inspect.isclass(getattr(nn, name))}
    layers = {name for name in layers if issubclass(getattr(nn, name), nn.Module)} - {"Module"}
    assert layers == {name.split(" ")[0] for name in LAYERS}


@every_layer
def test_gradients_are_right(backend, rng, name):
    layer, x = make(name, rng)
    if "BatchNorm" in name:
        for parameter in layer.parameters():
            parameter.data = backend.asarray(values(rng, parameter.shape, "float32"))
        layer.running_mean[...] = backend.asarray(values(rng, (4,), "float32"))
    report = gradcheck(layer, x)
    assert report, report
    assert len(report.rows) == 1 + len(layer.parameters())


@every_layer
def test_gradients_are_right_for_a_batch_of_one(backend, rng, name):
    layer, x = make(name, rng)
    if name == "BatchNorm1d":
        with pytest.raises(ShapeError, match="expected more than one value per channel"):
            layer.forward(backend.asarray(x[:1].astype("float32")))
    else:
        report = gradcheck(layer, x[:1])
        assert report, report


@every_layer
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "nchw"])
def test_memory_layout_changes_no_result(backend, rng, name, layout):
    layer, x = make(name, rng, "float32")
    state = {key: backend.copy(array) for key, array in layer.named_buffers()}
    manual_seed(0)  # the same masks
    y = layer(lay_out(backend, x, "nchw"))
    dy = values(rng, y.shape, "float32")
    dx = layer.backward(lay_out(backend, dy, "nchw"))
    gradients = [backend.copy(parameter.grad) for parameter in layer.parameters()]
    layer.zero_grad()
    for key, array in layer.named_buffers():
        array[...] = state[key]
    manual_seed(0)
    assert_close(layer(lay_out(backend, x, layout)), y)
    assert_close(layer.backward(lay_out(backend, dy, layout)), dx)
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        assert_close(parameter.grad, gradient)


@with_something
def test_backward_before_forward(backend, rng, name):
    layer, x = make(name, rng, "float32")
    y = layer(backend.asarray(x))
    layer.forget()
    with pytest.raises(StateError, match=r"backward: expected a forward before it that kept its cache, got none"):
        layer.backward(y)
    with pytest.raises(StateError):
        layer.backward(y, input_gradient=False)


@every_layer
def test_one_backward_for_each_forward(backend, rng, name):
    layer, x = make(name, rng, "float32")
    y = layer(backend.asarray(x))
    layer.backward(y)
    with pytest.raises(StateError, match="each forward outside of no_grad"):
        layer.backward(y)


@every_layer
def test_two_forwards_keep_a_stack(backend, rng, name):
    layer, x = make(name, rng, "float32")
    layer.train()  # evaluation mode keeps the last forward's caches alone
    buffers = [(array, backend.copy(array)) for _, array in layer.named_buffers()]

    def forward(each):  # with the same dropout masks each time
        for array, value in buffers:
            array[...] = value
        manual_seed(3)
        return layer(each)

    xs = [backend.asarray(x), backend.asarray(x[::-1].copy() + 1)]
    alone = [layer.backward(forward(each)) for each in xs]
    ys = [forward(each) for each in xs]
    for i in (1, 0):  # the last forward is the first to go back
        assert_close(layer.backward(ys[i]), alone[i])
    with pytest.raises(StateError):
        layer.backward(ys[0])


@every_layer
def test_no_grad_keeps_nothing_and_changes_no_result(backend, rng, name):
    layer, x = make(name, rng, "float32")
    layer.eval()
    device = backend.asarray(x)
    y = layer(device)
    layer.forget()
    with nn.no_grad():
        assert_close(layer(device), y, tolerance=0.0)
    if name != "Sequential of nothing":
        with pytest.raises(StateError):
            layer.backward(y)


@every_layer
def test_backward_without_dx_leaves_the_same_gradients(backend, rng, name):
    layer, x = make(name, rng, "float32")
    layer.eval()
    y = layer(backend.asarray(x))
    layer.backward(y)
    gradients = [backend.copy(parameter.grad) for parameter in layer.parameters()]
    layer.zero_grad()
    layer(backend.asarray(x))
    assert layer.backward(y, input_gradient=False) is None
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        assert_close(parameter.grad, gradient)


@every_layer
def test_arrays_of_the_caller_stay_the_caller_s(backend, rng, name):
    layer, x = make(name, rng, "float32")
    device, other = backend.asarray(x.copy()), backend.asarray(x[::-1].copy() * 3)
    y = layer(device)
    dy = backend.asarray(values(rng, y.shape, "float32"))
    dx = layer.backward(dy)
    before = [backend.to_numpy(array).copy() for array in (device, dy, y, dx)]
    assert np.array_equal(before[0], x)
    for _ in range(3):
        layer.backward(layer(other))
    for array, host in zip((device, dy, y, dx), before, strict=True):
        assert np.array_equal(backend.to_numpy(array), host)


@every_layer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(backend, rng, name, dtype):
    layer, x = make(name, rng, dtype)
    if dtype == "float64":
        in_float64(layer)
    y = layer(backend.asarray(x))
    assert backend.owns(y)
    assert y.dtype == dtype
    assert layer.backward(y).dtype == dtype
    assert all(parameter.grad.dtype == dtype for parameter in layer.parameters())


@that_compute
def test_integers_are_refused(backend, rng, name):
    layer, x = make(name, rng, "float32")
    with pytest.raises(DTypeError, match=r"expected a floating type such as float32, got uint8"):
        layer(backend.zeros(x.shape, "uint8"))


@with_something
def test_a_gradient_that_does_not_fit_costs_nothing(backend, rng, name):
    layer, x = make(name, rng, "float32")
    layer.eval()
    y = layer(backend.asarray(x))
    expected = layer.backward(y)
    layer.zero_grad()
    layer(backend.asarray(x))
    wrong = backend.zeros((y.shape[0] + 1, *y.shape[1:]), "float32")
    for call in (layer.backward, partial(layer.backward, input_gradient=False)):
        with pytest.raises(ShapeError, match=r"dy: expected shape \("):
            call(wrong)
        if "Flatten" not in name:
            with pytest.raises(DTypeError, match="dy: expected dtype float32, got float64"):
                call(y.astype("float64"))
    assert_close(layer.backward(y), expected)


@with_parameters
def test_arrays_of_two_backends(backend, rng, name):
    layer, x = make(name, rng, "float32")
    other = "fake" if backend.name == "numpy" else "numpy"
    from xpcnn.backend import use_backend

    with use_backend(other) as elsewhere:
        stray = elsewhere.asarray(x)
    with pytest.raises(
        MixedBackendsError,
        match=rf"expected all on one backend, got ({other} and {backend.name}|"
        rf"{backend.name} and {other}).*asarray\(...\)|model.to\(",
    ) as caught:
        layer(stray)
    assert isinstance(caught.value, TypeError)
    assert "\n" not in str(caught.value)
    y = layer(backend.asarray(x))
    with pytest.raises(MixedBackendsError):
        layer.backward(elsewhere.zeros(y.shape, "float32"))


@every_layer
def test_repr_is_python_where_it_can_be(name, rng):
    layer, _ = make(name, rng)
    text = repr(layer)
    assert text.startswith(f"{type(layer).__name__}(")
    assert text.count("(") == text.count(")")
