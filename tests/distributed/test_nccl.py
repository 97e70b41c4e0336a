"""Sums over devices by NCCL, as far as a stand-in goes: who asks for it, what it is handed, and the graph on each side.

The stand-in takes the place of `cupy.cuda.nccl`: threads meet in it, and it adds up what lies at the addresses that it
is given. Two devices are needed, which an emulator gives (nox -s gpu_emulated).
"""

import sys
import threading
import types

import numpy as np
import pytest

import xpcnn
from tests.conftest import BACKENDS
from tests.distributed.test_shared_training import alike, close, outcome, trained, trainer
from tests.distributed.threads import Meeting, ThreadCommunicator
from xpcnn.backend import available_backends

pytestmark = pytest.mark.skipif("cupy" not in BACKENDS, reason="needs CuPy's arrays (XPCNN_TEST_BACKENDS=cupy)")


def stand_in():
    """Return a module like `cupy.cuda.nccl`, and the calls that reached it."""
    import cupy

    made = types.ModuleType("cupy.cuda.nccl")
    made.available, made.calls, made.meetings = True, [], {}
    types_of = {"INT8": "b", "UINT8": "B", "INT32": "i", "UINT32": "I", "INT64": "q", "UINT64": "Q", "FLOAT16": "e"}
    types_of |= {"FLOAT32": "f", "FLOAT64": "d"}
    for name, letter in types_of.items():
        setattr(made, f"NCCL_{name}", letter)
    made.NCCL_SUM, made.NCCL_MAX, made.NCCL_MIN = np.add, np.maximum, np.minimum
    made.get_unique_id = lambda: b"meeting" + bytes(121)

    class NcclCommunicator:
        def __init__(self, size, identity, rank):
            assert identity == made.get_unique_id()
            meeting = made.meetings.setdefault(identity, Meeting(size))
            self.meeting, self.rank = meeting, rank

        def allReduce(self, source, target, count, letter, op, stream):
            assert source == target
            made.calls.append((self.rank, count, letter, cupy.cuda.runtime.getDevice()))
            dtype = np.dtype(letter)
            memory = cupy.cuda.UnownedMemory(source, count * dtype.itemsize, self)
            there = cupy.ndarray((count,), dtype, cupy.cuda.MemoryPointer(memory, 0))
            self.meeting.there[self.rank] = there.get()
            self.meeting.barrier.wait()
            total = op.reduce(list(self.meeting.there))
            self.meeting.barrier.wait()
            there.set(total.astype(dtype))

    made.NcclCommunicator = NcclCommunicator
    return made


class DeviceCommunicator(ThreadCommunicator):
    """One thread's with a device of its own, whose sums are the backend's own affair."""

    def __init__(self, meeting, rank):
        super().__init__(meeting, rank)
        self._reducers = {}

    def allreduce(self, a, op="sum"):
        reducer = self._reducer(xpcnn.backend.backend_of(a))
        if reducer is None or not reducer.takes(a):
            return super().allreduce(a, op)
        self.calls += 1
        reducer.allreduce(a, op)
        return a


def on_devices(work):
    """Return what work(communicator) gives on each of two devices."""
    meeting, results, errors = Meeting(2), [None] * 2, []

    def run(rank):
        try:
            backend = xpcnn.backend.resolve("cupy").spread(rank)
            with xpcnn.use_backend(backend.name):
                xpcnn.manual_seed(0)
                results[rank] = work(DeviceCommunicator(meeting, rank))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.fixture
def nccl(monkeypatch):
    if "cupy:1" not in available_backends():
        pytest.skip("needs two devices")
    import cupy

    made = stand_in()
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", made)
    monkeypatch.setattr(cupy.cuda, "nccl", made, raising=False)
    # Emulated devices may all say that they are one.
    monkeypatch.setattr("xpcnn.backend.cupy.nccl._place", lambda backend: str(backend.device.id).encode())
    return made


def test_each_rank_has_a_device_and_its_sums_stay_there(nccl):
    def work(communicator):
        found = trained(communicator)
        return found, xpcnn.get_backend().name

    results = on_devices(work)
    assert [name for _, name in results] == ["cupy", "cupy:1"]
    alike([found for found, _ in results])
    with xpcnn.use_backend("cupy"):
        close(results[0][0], trained())
    assert {(rank, device) for rank, _, _, device in nccl.calls} == {(0, 0), (1, 1)}
    assert {letter for _, _, letter, _ in nccl.calls} == {"f"}  # gradients, with loss and right answers behind them


def test_a_graph_on_each_side_of_the_sum(nccl):
    def work(communicator):
        made = trainer(communicator)
        from tests.distributed.test_shared_training import loader

        made.fit(loader(drop_last=True), epochs=3)
        return outcome(made), [part.graphs for part in made._step.compiled]

    results = on_devices(work)
    assert [graphs for _, graphs in results] == [[1, 1], [1, 1]]


def test_without_nccl_sums_go_by_way_of_the_host(nccl, monkeypatch):
    nccl.available = False

    def work(communicator):
        backend = xpcnn.get_backend()
        a = backend.asarray(np.full(4, communicator.rank + 1, "float32"))
        return backend.to_numpy(communicator.allreduce(a)).tolist()

    with pytest.warns(RuntimeWarning, match="by way of the host: NCCL is not installed"):
        assert on_devices(work) == [[3.0] * 4] * 2
    assert nccl.calls == []


def test_two_ranks_on_one_device_do_without(nccl, monkeypatch):
    monkeypatch.setattr("xpcnn.backend.cupy.nccl._place", lambda backend: b"the same")

    def work(communicator):
        backend = xpcnn.get_backend()
        return backend.to_numpy(communicator.allreduce(backend.asarray(np.ones(2, "float32")))).tolist()

    with pytest.warns(RuntimeWarning, match="two processes have the same device"):
        assert on_devices(work) == [[2.0] * 2] * 2
