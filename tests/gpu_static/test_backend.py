"""The CuPy backend's own code with CuPy's runtime stood in for: start-up, memory, messages, streams and captures."""

import threading
from types import SimpleNamespace

import cupy
import numpy as np
import pytest

from xpcnn.backend import cupy as module
from xpcnn.backend.base import Backend
from xpcnn.backend.cupy import kernel_cache, transfer
from xpcnn.backend.cupy.updates import FUSED
from xpcnn.errors import BackendError, DTypeError, OutOfMemoryError

from .host_cupy import device, view

pytestmark = pytest.mark.gpu_static
GIB = 1 << 30


class FakeDeviceHandle:
    current = 0

    def __init__(self, number):
        self.id = number

    def use(self):
        FakeDeviceHandle.current = self.id

    def __enter__(self):
        self.before, FakeDeviceHandle.current = FakeDeviceHandle.current, self.id
        return self

    def __exit__(self, *_):
        FakeDeviceHandle.current = self.before

    def synchronize(self):
        pass


@pytest.fixture
def runtime(monkeypatch):
    """Two GPUs as CuPy's runtime would describe them."""
    answers = SimpleNamespace(
        capability=(9, 0), free=60 * GIB, count=2, is_hip=False, pool=SimpleNamespace(used=2 * GIB, free=GIB, limit=0)
    )

    def properties(number):
        major, minor = answers.capability
        name = b"NVIDIA Stand-in"
        return {
            "name": name, "major": major, "minor": minor, "multiProcessorCount": 132, "totalGlobalMem": 80 * GIB
        }  # fmt: skip

    pool = SimpleNamespace(
        used_bytes=lambda: answers.pool.used,
        free_bytes=lambda: answers.pool.free,
        get_limit=lambda: answers.pool.limit,
    )
    stand_in = SimpleNamespace(
        getDeviceCount=lambda: answers.count,
        getDeviceProperties=properties,
        memGetInfo=lambda: (answers.free, 80 * GIB),
        runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: 13010,
        is_hip=False,
        CUDARuntimeError=cupy.cuda.runtime.CUDARuntimeError,
    )
    monkeypatch.setattr(cupy.cuda, "runtime", stand_in)
    monkeypatch.setattr(module, "_missing_compiler", lambda cupy: None)
    monkeypatch.setattr(cupy.cuda, "Device", FakeDeviceHandle)
    monkeypatch.setattr(cupy.cuda, "device", SimpleNamespace(get_device_id=lambda: FakeDeviceHandle.current))
    monkeypatch.setattr(cupy, "get_default_memory_pool", lambda: pool)
    monkeypatch.setattr(module, "_by_device", {})
    monkeypatch.delenv("XPCNN_TF32", raising=False)
    monkeypatch.delenv("XPCNN_IMPLICIT_GEMM", raising=False)
    FakeDeviceHandle.current = 0
    answers.stand_in = stand_in
    return answers


def test_creation(runtime):
    assert module.device_names() == ["cupy", "cupy:1"]
    first, second = module.create("cupy"), module.create("cupy:1")
    assert (first.name, second.name) == ("cupy", "cupy:1")
    assert module.create("cupy:0") is first
    assert isinstance(first, Backend)
    assert first.fused is FUSED
    assert first.captures
    assert not first.capture_runs
    assert not first.immediate
    assert first.column_bytes == 1 << 31
    with pytest.raises(BackendError, match="CUDA devices that answer: 2"):
        module.create("cupy:2")


def test_the_device_follows_the_arrays(runtime):
    first, second = module.create("cupy"), module.create("cupy:1")
    second.activate()
    assert FakeDeviceHandle.current == 1
    array = device(np.zeros(3, np.float32))  # of device 0
    assert second.for_array(array) is first
    assert FakeDeviceHandle.current == 0


def test_tf32(runtime, monkeypatch):
    assert module.create("cupy").allow_tf32 is False
    monkeypatch.setenv("XPCNN_TF32", "1")
    assert module.create("cupy:1").allow_tf32 is True
    runtime.capability = (7, 5)
    module._by_device.clear()
    with pytest.raises(BackendError, match=r"allow_tf32: expected .* 8\.0 or newer, got NVIDIA Stand-in with 7\.5"):
        module.create("cupy")


def test_implicit_gemm(runtime, monkeypatch):
    first = module.create("cupy")
    assert (first.implicit_gemm, first.keeps_columns) == (False, True)
    before = first.settings()
    first.implicit_gemm = True
    assert (first.implicit_gemm, first.keeps_columns) == (True, False)
    assert first.settings() != before  # a recorded step sees it
    first.implicit_gemm = False
    assert (first.settings(), first.keeps_columns) == (before, True)
    monkeypatch.setenv("XPCNN_IMPLICIT_GEMM", "1")
    assert module.create("cupy:1").info()["implicit_gemm"] is True


def test_info_and_hints(runtime, monkeypatch, tmp_path):
    backend = module.create("cupy")
    info = backend.info()
    assert info["device"] == "NVIDIA Stand-in"
    assert (info["runtime"], info["driver"], info["compute_capability"]) == ("13.0", "13.1", "9.0")
    assert info["pool_used_bytes"] == 2 * GIB
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    assert [hint.split()[0] for hint in backend.hints()] == ["XPCNN_TF32=1"]
    monkeypatch.setattr(kernel_cache, "instead_of", "/home/nobody")
    assert backend.hints()[-1] == (
        f"CuPy cannot write its compiled kernels to /home/nobody, so they are in {tmp_path}, which may not stay: set "
        "CUPY_CACHE_DIR to a folder that can be written"
    )


def test_free_bytes(runtime):
    backend = module.create("cupy")
    assert backend.device_bytes_free() == 61 * GIB
    runtime.pool.limit = 10 * GIB
    assert backend.device_bytes_free() == 8 * GIB


def test_out_of_memory(runtime, monkeypatch):
    backend = module.create("cupy")

    def refuse(*_, **__):
        raise cupy.cuda.memory.OutOfMemoryError(3 * GIB, 2 * GIB)

    for name in ("empty", "zeros", "asarray"):
        monkeypatch.setattr(cupy, name, refuse)
    message = (
        r"^cupy: out of memory allocating 3,221,225,472 bytes; NVIDIA Stand-in has 64,424,509,440 of 85,899,345,920 "
        r"bytes free, this process uses 2,147,483,648 and keeps 1,073,741,824 for later; use a smaller batch"
    )
    for ask in (lambda: backend.empty((3,), "f"), lambda: backend.zeros((3,), "f"), lambda: backend.asarray([1.0])):
        with pytest.raises(OutOfMemoryError, match=message):
            ask()
    with pytest.raises(MemoryError), backend.guard():
        refuse()


def test_what_is_no_array(runtime):
    backend = module.create("cupy")
    with pytest.raises(DTypeError, match="expected an array of CuPy, got ndarray"):
        backend.to_numpy(np.zeros(3))
    for wrong in (object(), "text", None, {1: 2}, np.array([object()]), np.array(["a"])):
        with pytest.raises(DTypeError, match="a: expected"):
            backend.asarray(wrong)


# --- streams ----------------------------------------------------------------------------------------------------------


class Queue:
    """A stream whose work waits until somebody needs it, or runs at once: what was not ordered may do either."""

    def __init__(self, is_early=False):
        self.work, self.is_early = [], is_early

    def wait_event(self, event):
        self.add(event.run)

    def add(self, task):
        if self.is_early:
            task()
        else:
            self.work.append(task)

    def run(self, upto=None):
        while self.work and (upto is None or upto > 0):
            self.work.pop(0)()
            upto = None if upto is None else upto - 1


class FakeCupy:
    """As much of CuPy as `prefetch` uses, with every copy as late, or as early, as its events allow."""

    def __init__(self, is_early):
        outer = self
        self.current = Queue()
        self.copies = 0

        class Array:
            def __init__(self, host):
                self.host = host

            def transpose(self, axes):
                return Array(self.host.transpose(axes))

            def set(self, source, stream):
                def copy():
                    outer.copies += 1
                    self.host[...] = source

                stream.add(copy)

        class Event:
            def __init__(self, disable_timing=False):
                self.stream, self.mark = None, 0

            def record(self, stream=None):
                self.stream = outer.current if stream is None else stream
                self.passed = False
                self.stream.add(self._pass)

            def _pass(self):
                self.passed = True

            def run(self):
                while self.stream is not None and not self.passed:
                    self.stream.run(1)

            synchronize = run

        self.ndarray = Array
        self.cuda = SimpleNamespace(
            Stream=lambda non_blocking: Queue(is_early),
            Event=Event,
            get_current_stream=lambda: self.current,
            alloc_pinned_memory=lambda size: PinnedMemory(size),
        )


class PinnedMemory(bytearray):
    def __init__(self, size):
        super().__init__(size)
        self.mem = SimpleNamespace(size=size)


def prefetching(is_early=False):
    fake = FakeCupy(is_early)

    def empty(shape, dtype):
        array = fake.ndarray(np.full(shape, 77, dtype))
        fake.current.add(lambda: array.host.fill(55))  # whoever had this memory before still writes to it
        return array

    return fake, SimpleNamespace(xp=fake, lanes=[], activate=lambda: None, empty=empty)


def test_prefetch_gives_every_batch_as_it_was():
    fake, backend = prefetching()
    rng = np.random.default_rng(0)
    batches = [(rng.random((4, 3, 2)).transpose(2, 0, 1), rng.integers(0, 9, n)) for n in (5, 5, 5, 5, 3)]
    got = []
    for x, labels in transfer.prefetch(backend, iter(batches)):
        fake.current.run()  # the step on this batch
        got.append((x.host.copy(), labels.host.copy()))
        assert x.host.strides == batches[len(got) - 1][0].strides  # the order of axes in memory is kept
    assert fake.copies == 10
    for (x, labels), (expected, numbers) in zip(got, batches, strict=True):
        np.testing.assert_array_equal(x, expected)
        np.testing.assert_array_equal(labels, numbers)
    assert len(backend.lanes) == 1
    list(transfer.prefetch(backend, batches))
    assert len(backend.lanes) == 1  # pinned memory is used again


@pytest.mark.parametrize("is_early", [False, True])
def test_prefetch_to_a_host_that_runs_ahead(is_early):
    """No memory, pinned or of the device, is written before its last use is over, whichever stream is behind."""
    fake, backend = prefetching(is_early)
    got = [x for (x,) in transfer.prefetch(backend, [(np.full(4, number),) for number in range(9)])]
    fake.current.run()
    assert [set(x.host.tolist()) for x in got] == [{number} for number in range(9)]


def test_prefetch_starts_the_next_copy_before_the_step():
    fake, backend = prefetching()
    taken = []

    def batches():
        for number in range(4):
            taken.append(number)
            yield (np.full(3, number),)

    stream = transfer.prefetch(backend, batches())
    next(stream)
    assert taken == [0, 1]  # the second is on its way while the first is worked on
    next(stream)
    assert taken == [0, 1, 2]
    stream.close()
    fake.current.run()
    assert fake.copies == 3  # the third arrived before its memory can be used again


def test_prefetch_passes_arrays_of_the_device_through():
    fake, backend = prefetching()
    there = fake.ndarray(np.zeros(2))
    ((a, b),) = transfer.prefetch(backend, [(there, np.ones(2))])
    fake.current.run()
    assert a is there
    np.testing.assert_array_equal(b.host, np.ones(2))
    assert list(transfer.prefetch(backend, [])) == []


def test_memory_order():
    rng = np.random.default_rng(0)
    for axes in ((0, 1, 2, 3), (3, 0, 1, 2), (1, 0, 3, 2)):
        a = rng.random((2, 3, 4, 5)).transpose(axes)
        order = transfer.memory_order(a)
        assert a.transpose(order).flags.c_contiguous
    assert transfer.memory_order(rng.random((4, 6))[:, ::2]) == [0, 1]
    assert transfer.memory_order(np.zeros(())) == []


# --- kernels, threads -------------------------------------------------------------------------------------------------


def test_kernels_are_compiled_once_per_dtype(runtime, monkeypatch):
    made = []

    class RawModule:
        def __init__(self, code, options):
            made.append(options)

        def get_function(self, name):
            return lambda grid, block, args: made.append((name, grid, block, [type(arg) for arg in args]))

    monkeypatch.setattr(cupy, "RawModule", RawModule)
    backend = module.create("cupy")
    x, out = (device(np.zeros(300, np.float32)) for _ in "ab")
    for _ in range(2):
        assert FUSED["relu_forward"](backend, x, out) is None
    assert made[0] == ("--std=c++17", "-DREAL=float")
    assert made[1:] == [("relu_forward", (2,), (256,), [cupy.ndarray, cupy.ndarray, np.int32])] * 2
    assert FUSED["relu_forward"](backend, device(np.zeros(3, np.float16)), out) is NotImplemented


def test_backends_are_made_once_by_many_threads(runtime):
    found = []
    threads = [threading.Thread(target=lambda: found.append(module.create("cupy"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(backend) for backend in found}) == 1
    assert view(device(np.ones(2))).tolist() == [1, 1]
