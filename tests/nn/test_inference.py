"""A model in its inference form gives what the model gives, recorded or not, and leaves the model alone."""

import contextlib
import gc
import threading
import weakref

import numpy as np
import pytest

import xpcnn
from tests.fake_device import FakeBackend
from tests.fake_device.recording import RecordingBackend
from tests.functional.strategies import values
from tests.marks import needs_recording
from tests.models import small
from tests.models.small import SHAPES
from xpcnn import models, nn
from xpcnn.backend import backend_of, get_backend, register_backend, use_backend
from xpcnn.backend.graph import Compiled
from xpcnn.errors import ConfigError, DTypeError, MixedBackendsError, ShapeError, XpcnnError
from xpcnn.testing import assert_close

from .layers import LAYERS, in_float64, make


def trained(name, rng):
    """A model whose running statistics, gammas and betas are what a training might leave, gammas below zero too."""
    model = small.create(name)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            shape = layer.weight.shape
            layer.running_mean[...] = model.backend.asarray(values(rng, shape, "float32"))
            layer.running_var[...] = model.backend.asarray(rng.uniform(0.3, 3, shape).astype("float32"))
            layer.weight.data[...] = model.backend.asarray(values(rng, shape, "float32"))
            layer.bias.data[...] = model.backend.asarray(values(rng, shape, "float32"))
        elif isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            layer.bias.data[...] = model.backend.asarray(values(rng, layer.bias.shape, "float32"))
    return model


def expected(model, x):
    modes = [(module, module.training) for module in model.modules()]
    try:
        with nn.no_grad():
            return model.backend.to_numpy(model.eval()(x)).copy()
    finally:
        for module, training in modes:
            module.training = training


def on_host(array):
    return backend_of(array).to_numpy(array)


def same(y, other):
    np.testing.assert_array_equal(on_host(y), on_host(other))


def least(backend, batch):
    """Return how many images show on this backend what so many do: NumPy alone cuts a large batch into pieces."""
    return batch if backend.slab_bytes else min(batch, 9)


@pytest.fixture
def threads():
    before = xpcnn.get_num_threads()
    yield xpcnn.set_num_threads
    xpcnn.set_num_threads(before)


def shapes(compiled):
    """Return the shapes of batches for which there are graphs."""
    return [key[-1][-1][0] for key, case in compiled._cases.items() if case.free]


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.names())
def test_every_model(backend, rng, name):
    model = trained(name, rng)
    infer = nn.Inference(model)
    for batch in (1, 3, 1, 3):
        x = backend.asarray(values(rng, (batch, *SHAPES[name]), "float32"))
        y = infer(x)
        assert y.shape == (batch, 10)
        assert_close(backend.to_numpy(y), expected(model, x), tolerance=1e-5)


@needs_recording
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_a_large_batch_goes_through_in_pieces(threads, rng, name, count):
    threads(count)
    model = trained(name, rng)
    infer = nn.Inference(model)
    for batch in (100, 16, 17, 100):
        x = values(rng, (batch, *SHAPES[name]), "float32")
        assert_close(infer(x), expected(model, x), tolerance=1e-5)
    assert shapes(infer._batches.shared), "no batch was cut"
    assert max(shape[0] for shape in shapes(infer._batches.whole) + shapes(infer._batches.shared)) < 100


@needs_recording
@pytest.mark.parametrize("batch", [1, 5, 100])
@pytest.mark.parametrize("name", models.names())
def test_recorded_is_unrecorded(backend, rng, name, batch):
    """Bit by bit, with new data in every replay."""
    model, batch = trained(name, rng), least(backend, batch)
    recorded, written = nn.Inference(model), nn.Inference(model, records=0)
    for _ in range(3):
        x = backend.asarray(values(rng, (batch, *SHAPES[name]), "float32"))
        same(recorded(x), written(x))
    assert bool(shapes(recorded._batches.whole) + shapes(recorded._batches.shared)) is backend.captures
    assert not isinstance(written._batches.whole, Compiled)
    assert not isinstance(written._batches.shared, Compiled)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(backend, rng, name):
    layer, host = make(name, rng)
    infer = nn.Inference(in_float64(layer))
    for _ in range(3):
        x = backend.asarray(host)
        assert_close(on_host(infer(x)), expected(layer, x), tolerance=1e-12)
        np.testing.assert_array_equal(on_host(x), host, err_msg="the input was written over")
        host = host[::-1] * 1.5


NETS = {
    "batch norm first": lambda: [nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)],
    "batch norm after pooling": lambda: [nn.Conv2d(4, 6, 3), nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU()],
    "batch norm before pooling": lambda: [nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.MaxPool2d(2)],
    "two in a row": lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6, eps=0.1), nn.Tanh()],
    "no bias": lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.GELU()],
    "groups": lambda: [nn.Conv2d(4, 6, 3, groups=2, stride=2), nn.BatchNorm2d(6), nn.AvgPool2d(2)],
    "through dropout": lambda: [nn.Conv2d(4, 6, 3), nn.Dropout(0.5), nn.BatchNorm2d(6), nn.LeakyReLU(0.3)],
    "in a sequential": lambda: [nn.Sequential(nn.Conv2d(4, 6, 3)), nn.Sequential(nn.BatchNorm2d(6), nn.Sigmoid())],
    "dense": lambda: [nn.Flatten(), nn.Linear(4 * 7 * 6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5)],
    "dense without bias": lambda: [nn.Flatten(), nn.Linear(4 * 7 * 6, 5, bias=False), nn.BatchNorm1d(5)],
    "the whole image": lambda: [nn.Conv2d(4, 6, (7, 6)), nn.BatchNorm2d(6), nn.Flatten()],
    "winograd": lambda: [nn.Conv2d(4, 32, 3), nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.MaxPool2d(2)],
    "shortcut is x": lambda: [nn.Residual(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)))],
    "relu in the body": lambda: [nn.Conv2d(4, 4, 1), nn.Residual(nn.ReLU()), nn.ReLU()],
    "body is x": lambda: [nn.Residual(nn.Sequential(), nn.Conv2d(4, 4, 1))],
    "empty body": lambda: [nn.Conv2d(4, 4, 1), nn.Residual(nn.Sequential(), nn.Sequential(nn.ReLU()))],
    "view in the body": lambda: [nn.Flatten(), nn.Residual(nn.Flatten(), nn.Sequential(nn.Dropout(0.2)))],
    "softmax": lambda: [nn.Conv2d(4, 5, 3), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Softmax()],
    "softmax over the batch": lambda: [nn.Flatten(), nn.Linear(4 * 7 * 6, 5), nn.Softmax(0)],
}


@pytest.mark.parametrize("records", [0, 8])
@pytest.mark.parametrize("batch", [2, 50])
@pytest.mark.parametrize("name", NETS)
def test_every_way_of_folding(backend, rng, monkeypatch, name, batch, records):
    if backend.slab_bytes is not None:
        monkeypatch.setattr(backend, "slab_bytes", 1 << 14)  # so small that 50 images are cut
    model = nn.Sequential(*NETS[name]())
    for array in model.state_dict().values():
        array[...] = backend.asarray(rng.uniform(0.2, 1.5, array.shape).astype("float32"))
    infer = nn.Inference(model, records)
    for _ in range(3):
        host = values(rng, (batch, 4, 7, 6), "float32")
        x = as_inside(backend, host)
        assert_close(backend.to_numpy(infer(x)), expected(model, x), tolerance=1e-5)
        np.testing.assert_array_equal(backend.to_numpy(x), host, err_msg="the input was written over")


def as_inside(backend, host):
    """Return the array on the backend in batch-last memory, where nothing need be copied before it is computed with."""
    memory = backend.asarray(np.ascontiguousarray(host.transpose(1, 2, 3, 0)))
    return memory.transpose(3, 0, 1, 2)


def test_float64(backend, rng):
    model = nn.Sequential(nn.Conv2d(1, 3, 3, dtype="float64"), nn.BatchNorm2d(3, dtype="float64"), nn.ReLU())
    x = backend.asarray(values(rng, (4, 1, 8, 8), "float64"))
    assert nn.Inference(model)(x).dtype == "float64"
    assert_close(on_host(nn.Inference(model)(x)), expected(model, x), tolerance=1e-14)


def test_batch_norm_is_gone():
    """LeNet-5: three convolutions with two chains of bias, pooling and ReLU and one ReLU, and two dense layers."""
    path = nn.Inference(models.create("lenet5"))._path
    kinds = [type(step).__name__ for step in path.steps]
    assert kinds == ["_Convolution", "_Chain"] * 3 + ["_AsItIs", "_Dense", "_Chain", "_Dense"]
    ops = [[type(op).__name__ for op in step.ops] for step in path.steps if hasattr(step, "ops")]
    assert ops == [["MaxPoolOp", "AffineOp", "ReLUOp"]] * 2 + [["ReLUOp"]] * 2
    assert all(op.scale is None for step in path.steps[1:4:2] for op in step.ops if hasattr(op, "scale"))


# --- whose memory -----------------------------------------------------------------------------------------------------


def test_the_model_stays_as_it_is(backend, rng):
    model = trained("lenet5", rng)
    model[1].eval()  # modes may differ from layer to layer
    x = backend.asarray(values(rng, (4, 1, 32, 32), "float32"))
    y = model(x)
    draws = xpcnn.random.get_state()
    modes = [module.training for module in model.modules()]
    before = {name: backend.to_numpy(array).copy() for name, array in model.state_dict().items()}
    infer = nn.Inference(model)
    infer(x)
    infer(x)
    assert [module.training for module in model.modules()] == modes
    assert xpcnn.random.get_state() == draws
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(backend.to_numpy(array), before[name], err_msg=name)
    model.backward(y)  # what its forward has kept is still there


def test_later_training_does_not_reach_it(backend, rng):
    model = trained("resnet20", rng)
    infer = nn.Inference(model)
    x = backend.asarray(values(rng, (2, 3, 32, 32), "float32"))
    before = on_host(infer(x)).copy()
    for array in model.state_dict().values():
        array *= 0.5
    np.testing.assert_array_equal(on_host(infer(x)), before)
    assert_close(on_host(nn.Inference(model)(x)), expected(model, x), tolerance=1e-5)
    assert np.max(np.abs(expected(model, x) - before)) > 1e-3


def test_it_may_stand_in_a_compiled_function(backend, rng):
    predict = nn.Inference(trained("lenet5", rng))
    batches = [backend.asarray(values(rng, (3, *SHAPES["lenet5"]), "float32")) for _ in range(8)]
    found = xpcnn.compile(lambda x: backend_of(x).xp.multiply(predict(x), 2.0))
    for x in batches:
        same(found(x), 2 * on_host(predict(x)))
    if backend.captures:
        assert (found.graphs, found.reasons) == (1, [])


@pytest.mark.parametrize("batch", [3, 100])
@pytest.mark.parametrize("layers", [lambda: [nn.Conv2d(1, 4, 3), nn.Flatten()], lambda: [nn.Flatten()], list])
def test_what_it_returns_belongs_to_the_caller(backend, rng, layers, batch):
    infer = nn.Inference(nn.Sequential(*layers()))
    x = backend.asarray(values(rng, (batch, 1, 9, 9), "float32"))
    first = infer(x)
    kept, given = first.copy(), x.copy()
    second = infer(-x)
    same(first, kept)
    second[...] = 7
    first[...] = 7
    same(x, given)
    same(infer(x), kept)


@pytest.mark.parametrize("lies", ["batch first", "batch last", "backwards", "every second"])
def test_inputs_may_lie_anyhow(backend, rng, lies):
    x = values(rng, (6, 1, 32, 32), "float32")
    x = as_inside(backend, x) if lies == "batch last" else backend.asarray(x)
    if lies == "backwards":
        x = x[::-1, :, ::-1]
    elif lies == "every second":
        x = x[::2]
    model = trained("lenet5", rng)
    infer = nn.Inference(model)
    for _ in range(2):
        assert_close(on_host(infer(x)), expected(model, x), tolerance=1e-5)


# --- records ----------------------------------------------------------------------------------------------------------


@needs_recording
def test_records_are_few(backend, rng, monkeypatch):
    if not backend.captures:
        pytest.skip(f"{backend.name} records nothing")
    infer = nn.Inference(models.create("conv8"), records=2)
    made = []
    record = Compiled._record
    monkeypatch.setattr(Compiled, "_record", lambda *arguments: made.append(1) or record(*arguments))
    images = backend.asarray(values(rng, (5, 1, 28, 28), "float32"))

    def call(*batches):
        made.clear()
        for n in batches:
            infer(images[:n])
        assert len(shapes(infer._batches.whole)) <= 2
        return len(made)

    assert call(1, 2) == 0  # what comes once is not worth it
    assert call(1, 2) == 2
    assert call(1, 2, 1, 1) == 0
    assert call(3, 3) == 1  # in the place of 2
    assert call(1) == 0
    assert call(2, 2) == 1
    assert call(3, 3) == 1


def test_sizes_are_forgotten_too(backend, rng):
    infer = nn.Inference(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GlobalAvgPool2d()), records=2)
    for size in range(5, 10):
        infer(backend.asarray(values(rng, (20, 1, size, size), "float32")))
    assert len(infer._batches.sizes) <= 2


@needs_recording
def test_a_dead_record_takes_its_memory_along(rng):
    infer = nn.Inference(models.create("deep3"), records=1)
    for _ in range(2):
        infer(values(rng, (2, 1, 28, 28), "float32"))
    ((record,),) = [case.free for case in infer._batches.whole._cases.values()]
    blocks = weakref.ref(record._replay.blocks)
    del record
    gc.disable()
    try:
        infer(values(rng, (3, 1, 28, 28), "float32"))
        assert blocks() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("batch", [4, 64])
def test_threads_may_share_it(backend, rng, batch):
    model, batch = trained("lenet5", rng), least(backend, batch)
    infer, written = nn.Inference(model), nn.Inference(model, records=0)
    images = [backend.asarray(values(rng, (batch, 1, 32, 32), "float32")) for _ in range(4)]
    wanted = [on_host(written(x)) for x in images]
    wrong = []

    def work(mine):
        for i in range(20):
            k = (mine + i) % 4
            if not np.array_equal(on_host(infer(images[k])), wanted[k]):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@pytest.fixture
def device():
    recording = RecordingBackend()
    register_backend(recording)
    with use_backend("fake"):
        yield recording
    register_backend(FakeBackend())


@needs_recording
@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_a_device_records_each_shape_once(device, rng, name):
    model = trained(name, rng)
    recorded, written = nn.Inference(model), nn.Inference(model, records=0)
    for batch in (2, 3, 2, 3):
        x = device.asarray(values(rng, (batch, *SHAPES[name]), "float32"))
        np.testing.assert_array_equal(device.to_numpy(recorded(x)), device.to_numpy(written(x)))
    assert device.records == 2


@needs_recording
def test_what_cannot_be_recorded_is_said_once(device, rng, monkeypatch):
    forward = nn.Flatten.forward

    def looking(self, x):
        device.to_numpy(x)
        return forward(self, x)

    monkeypatch.setattr(nn.Flatten, "forward", looking)
    model = trained("tiny", rng)
    infer = nn.Inference(model)
    x = device.asarray(values(rng, (2, 1, 28, 28), "float32"))
    with pytest.warns(RuntimeWarning, match="runs as written: .*copies to the host") as said:
        results = [device.to_numpy(infer(x)) for _ in range(3)]
    assert len(said) == 1
    for y in results:
        assert_close(y, expected(model, x), tolerance=1e-5)


# --- modules of one's own ---------------------------------------------------------------------------------------------


class Centred(nn.Module):
    """Takes the mean of the batch off, as no piece of a batch can, and counts its calls, as no record can."""

    def __init__(self):
        super().__init__()
        self.calls, self.shift = 0, nn.Parameter(get_backend().asarray(np.ones(1, "float32")))

    def forward(self, x):
        self.calls += 1
        assert not self.training
        return x - x.mean() + self.shift.data * self.calls

    def backward(self, dy):
        return dy


@needs_recording
def test_a_module_of_ones_own_runs_as_it_is(backend, rng):
    own = Centred()
    model = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), own, nn.ReLU(), nn.Flatten())
    infer = nn.Inference(model)
    x = backend.asarray(values(rng, (60, 1, 8, 8), "float32"))
    refusal = pytest.warns(RuntimeWarning, match="sets the attribute 'calls' of a Centred")
    with refusal if backend.captures else contextlib.nullcontext():
        ys = [infer(x) for _ in range(5)]
    assert own.calls == 0, "the copy is called, not the model's own"
    assert own.training
    assert not shapes(infer._batches.whole) + shapes(infer._batches.shared)
    for y in ys:
        assert_close(on_host(y), expected(model, x), tolerance=1e-5)  # counts along
    own.shift.data[...] = 100
    assert np.max(on_host(infer(x))) < 50


class Doubled(nn.ReLU):
    """A subclass of a layer is one's own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Reversed(nn.Sequential):
    """As is a container with a forward of its own."""

    def forward(self, x):
        for layer in reversed(self.layers):
            x = layer(x)
        return x


@needs_recording
@pytest.mark.parametrize("layer", [Doubled, lambda: Reversed(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Dropout(0.5))])
def test_subclasses_are_ones_own(backend, rng, layer):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), layer(), nn.ReLU())
    x = backend.asarray(values(rng, (20, 1, 8, 8), "float32"))
    infer = nn.Inference(model)
    for _ in range(3):
        x = x[::-1] * 1.5
        assert_close(on_host(infer(x)), expected(model, x), tolerance=1e-5)
    assert shapes(infer._batches.whole) == ([x.shape] if backend.captures else [])


def test_what_its_own_module_returns_is_not_written_over(backend, rng):
    class Same(nn.Module):
        def forward(self, x):
            return x

    x = as_inside(backend, values(rng, (3, 1, 8, 8), "float32"))
    before = x.copy()
    y = nn.Inference(nn.Sequential(Same(), nn.ReLU()))(x)
    same(x, before)
    same(y, backend.xp.maximum(x, 0))
    y = nn.Inference(Same())(x)
    y[...] = 7
    same(x, before)


# --- what does not fit ------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_errors(backend, other_backend):
    with pytest.raises(ConfigError, match=r"model: expected an instance of xpcnn.nn.Module, got list"):
        nn.Inference([nn.ReLU()])
    with pytest.raises(ConfigError, match=r"model: expected modules that copy.deepcopy copies, got Fixed, TypeError"):
        nn.Inference(nn.Sequential(Fixed()))
    with pytest.raises(ShapeError, match="records: expected 0 or more, got -1"):
        nn.Inference(nn.ReLU(), records=-1)
    infer = nn.Inference(models.create("lenet5"))
    with pytest.raises(DTypeError, match="expected an array, got list"):
        infer([[1.0]])
    for batch in (2, 100):
        with pytest.raises(ShapeError, match=rf"got 3 in shape \({batch}, 3, 32, 32\)"):
            infer(backend.zeros((batch, 3, 32, 32), "float32"))
        with pytest.raises(DTypeError, match="floating"):
            infer(backend.asarray(np.zeros((batch, 1, 32, 32), "uint8")))
    for shape in ((), (1, 32)):
        with pytest.raises(XpcnnError):
            infer(backend.zeros(shape, "float32"))
    with use_backend(other_backend) as other, pytest.raises(MixedBackendsError):
        infer(other.zeros((1, 1, 32, 32), "float32"))
    zeros = backend.zeros((1, 1, 32, 32), "float32")
    same(infer(zeros), infer(zeros))


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm2d(4), lambda: nn.BatchNorm1d(3)])
def test_batch_norm_that_does_not_fit_says_so(backend, rng, norm):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), norm(), nn.ReLU()).eval()
    x = backend.asarray(values(rng, (2, 1, 8, 8), "float32"))
    with pytest.raises(ShapeError) as said:
        model(x)
    with pytest.raises(ShapeError) as says:
        nn.Inference(model)(x)
    # Folded steps are no layers that could be named.
    assert str(said.value) == f"layer '1' ({type(model[1]).__name__}): {says.value}"
