"""Memory shared with other libraries through DLPack: by NumPy's exporter and a stand-in here; PyTorch is in parity."""

import numpy as np
import pytest

from xpcnn import nn, no_grad
from xpcnn.backend import exchange, is_portable, resolve
from xpcnn.errors import BackendError, DTypeError


class Theirs:
    """An array of another library: it speaks DLPack, and nothing else."""

    def __init__(self, array, device=None, refusal=None):
        self.array, self.device, self.refusal = array, device, refusal
        self.dtype, self.shape = array.dtype, array.shape

    def __dlpack__(self, **options):
        if self.refusal is not None:
            raise self.refusal
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device or self.array.__dlpack_device__()


VIEWS = {
    "dense": lambda a: a,
    "transposed": lambda a: a.T,
    "every second": lambda a: a[:, ::2],
    "backwards": lambda a: a[::-1, ::-1],
    "one number": lambda a: a[0, 0, ...],
    "nothing": lambda a: a[:0],
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "bool"])
@pytest.mark.parametrize("view", VIEWS)
def test_memory_is_shared(backend, view, dtype):
    if backend.name == "fake":
        pytest.skip("its device speaks no DLPack")
    base = backend.asarray(np.arange(24).reshape(4, 6).astype(dtype))
    theirs = VIEWS[view](base)
    ours = backend.from_dlpack(Theirs(theirs))
    assert backend.owns(ours)
    assert ours is not theirs
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if theirs.size:
        assert ours.strides == theirs.strides
        ours[...] = 1  # seen there
        assert (backend.to_numpy(theirs) == 1).all()
        assert (backend.to_numpy(base) == 1).sum() >= theirs.size
        base[...] = 0  # and here
        assert (backend.to_numpy(ours) == 0).all()


def test_an_array_of_the_backend_comes_back_as_it_is(backend):
    if backend.name == "fake":
        pytest.skip("its device speaks no DLPack")
    array = backend.zeros((2, 3), "float32")
    assert backend.from_dlpack(array) is array


def test_read_only_stays_read_only():
    array = np.arange(4.0)
    array.flags.writeable = False
    ours = resolve("numpy").from_dlpack(Theirs(array))
    assert not ours.flags.writeable
    assert np.shares_memory(ours, array)


@pytest.mark.parametrize("value", [[1.0, 2.0], 3.0, None, "x"])
def test_what_does_not_speak_dlpack(backend, value):
    with pytest.raises(DTypeError, match=r"x: expected an array that speaks DLPack, .*got (list|float|NoneType|str)"):
        backend.from_dlpack(value)


@pytest.mark.parametrize(
    ("device", "place"),
    [((2, 0), "CUDA device 0"), ((10, 1), "ROCm device 1"), ((8, 0), "Metal device 0"), ((99, 0), "of type 99 0")],
)
def test_another_device(device, place):
    with pytest.raises(BackendError, match=f"x: expected memory that numpy reaches, got Theirs on .*{place}; copy it"):
        resolve("numpy").from_dlpack(Theirs(np.ones(2), device))


def test_host_memory_and_the_other_device_are_refused_by_a_device(backend):
    if not backend.name.startswith("cupy"):
        pytest.skip("for devices")
    with pytest.raises(BackendError, match=r"x: expected memory that cupy reaches, got ndarray on the host"):
        backend.from_dlpack(np.ones(2))
    with pytest.raises(BackendError, match=r"x: expected memory that numpy reaches, got ndarray on CUDA device 0"):
        resolve("numpy").from_dlpack(backend.zeros((2,), "float32"))
    if backend.xp.cuda.runtime.getDeviceCount() > 1:
        there = resolve("cupy:1").zeros((2,), "float32")
        with pytest.raises(BackendError, match=r"x: expected memory that cupy reaches, got ndarray on CUDA device 1"):
            resolve("cupy").from_dlpack(there)
        assert resolve("cupy:1").from_dlpack(there) is there


@pytest.mark.parametrize(
    ("refusal", "error", "message"),
    [
        (BufferError("Cannot pack tensors on meta"), BackendError, "shared without a copy, got Theirs of float64 .Can"),
        (
            RuntimeError("Unsupported dtype in DLTensor."),
            DTypeError,
            "x: expected a dtype that can be shared, got Thei",
        ),
        (BufferError("DLPack only supports native byte order."), DTypeError, "x: expected a dtype that can be shared"),
    ],
)
def test_what_is_not_handed_over(refusal, error, message):
    with pytest.raises(error, match=message) as caught:
        resolve("numpy").from_dlpack(Theirs(np.ones(2), refusal=refusal))
    assert "\n" not in str(caught.value)


def test_a_tensor_that_autograd_watches():
    theirs = Theirs(np.ones(2), refusal=BufferError("Can't export tensors that require gradient"))
    theirs.requires_grad = True
    with pytest.raises(BackendError, match=r"expected a tensor outside of autograd, .*hand over x.detach\(\)"):
        resolve("numpy").from_dlpack(theirs)


def test_a_dtype_that_dlpack_does_not_have():
    with pytest.raises(DTypeError, match="x: expected a dtype that can be shared"):
        resolve("numpy").from_dlpack(Theirs(np.ones(2, "S3")))


def test_a_backend_without_an_importer(backend):
    if backend.name != "fake":
        pytest.skip("the others have one")
    with pytest.raises(BackendError, match="x: expected an array that can be shared without a copy"):
        backend.from_dlpack(np.ones(2))


def test_results_and_parameters_go_out(backend, rng):
    """A convolution's result may lie batch-last, with odd strides: whoever reads them reads the same numbers."""
    if backend.name == "fake":
        pytest.skip("its device speaks no DLPack")
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2))
    with no_grad():
        y = model(backend.asarray(rng.normal(size=(4, 2, 8, 8)).astype("float32")))
    for array in (y, *(parameter.data for parameter in model.parameters())):
        seen = backend.xp.from_dlpack(array)
        assert np.array_equal(backend.to_numpy(seen), backend.to_numpy(array))
        array[...] = 3
        assert (backend.to_numpy(seen) == 3).all()


def test_widening_bfloat16_is_exact():
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = exchange.widen_bfloat16(bits)
    sign, exponent, fraction = (bits >> 15).astype(int), (bits >> 7 & 255).astype(int), (bits & 127).astype(int)
    finite = exponent < 255
    magnitude = np.where(exponent == 0, fraction * 2.0**-133, (1 + fraction / 128) * 2.0 ** (exponent - 127))
    assert np.array_equal(wide[finite], np.where(sign == 1, -magnitude, magnitude)[finite])
    assert np.array_equal(np.isnan(wide), ~finite & (fraction > 0))
    assert np.array_equal(np.isinf(wide), ~finite & (fraction == 0))


def test_host_arrays_of_all_kinds(backend):
    array = np.arange(6, dtype="float32").reshape(2, 3)
    for value in (array, backend.asarray(array), Theirs(array), Watched(array), Bits(array)):
        host = exchange.to_host(value, "x")
        assert isinstance(host, np.ndarray)
        assert np.array_equal(host, array)


class Watched(Theirs):
    """A tensor on a device and part of a graph, as PyTorch has them: read after `detach().cpu()` alone."""

    def __init__(self, array):
        super().__init__(array, (2, 0), BufferError("Can't export tensors that require gradient"))

    def detach(self):
        return self

    def cpu(self):
        return Theirs(self.array)


class Bits(Watched):
    """A bfloat16 tensor, which only its own library widens."""

    def __init__(self, array):
        super().__init__(array)
        self.dtype = "torch.bfloat16"

    def cpu(self):
        return self

    def float(self):
        return self.array


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([1j]), np.array([None])])
def test_no_numbers(value):
    with pytest.raises(DTypeError, match="x: expected real numbers, got dtype"):
        exchange.to_host(value, "x")


def test_what_cannot_be_read():
    with pytest.raises(DTypeError, match=r"x: expected an array that can be read, got Theirs of float64 \(on meta\)"):
        exchange.to_host(Theirs(np.ones(2), refusal=BufferError("on meta")), "x")


def test_a_recorded_function_takes_it_too(backend):
    import xpcnn

    if backend.name == "fake" or is_portable():
        pytest.skip("nothing is recorded")
    function = xpcnn.compile(lambda x: backend.from_dlpack(x) * 2)
    for start in range(3):
        x = backend.asarray(np.arange(start, start + 4, dtype="float32"))
        assert np.array_equal(backend.to_numpy(function(x)), 2 * backend.to_numpy(x))
