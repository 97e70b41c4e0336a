"""What ranks say to each other: sums over arrays, copies of one rank's, a barrier, and plain values.

Host arrays go through MPI as they lie. A device's go through what its backend has for that (NCCL), else by way of the
host. Every wait for others is noted on the board of the machine (`board.py`), where the watcher sees who does not come.
"""

from __future__ import annotations

import contextlib
import json
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.distributed.board import Board
from xpcnn.errors import ConfigError

OPERATIONS = {"sum": "SUM", "max": "MAX", "min": "MIN"}
_DOZE = 0.005  # seconds between two looks of a patient wait, which leaves the core to others


class Communicator:
    """The ranks of a job, as one of them sees them; `distributed.init()` makes it.

    All ranks call its methods in the same order.

    Parameters
    ----------
    mpi : module
        `mpi4py.MPI`.
    world : mpi4py.MPI.Comm
        Of the library's own.
    local_rank, local_size : int
        Which rank of its machine this is, and how many there are.
    board : Board or None
        Of the machine.

    Attributes
    ----------
    rank, size : int
        Which this is, from 0, and how many there are.
    seconds : float
        How long this rank has been in reductions, its waits for others included.
    bucket_bytes : int
        Gradients of so many bytes, to whole parameters, are added up while a trainer's backward still computes those of
        earlier layers; 0, the default, adds up all after it. The same on all ranks, before training;
        XPCNN_BUCKET_BYTES sets it at the start. Between ranks of one machine nothing is gained: its cores do the sums
        and cannot compute meanwhile (`python bench/scaling.py`). Over a slow network try 65,536: what is sent in
        larger pieces waits for a rank that answers, and a rank that computes does not.
    """

    def __init__(self, mpi: Any, world: Any, local_rank: int, local_size: int, board: Board | None = None) -> None:
        self._mpi, self._world, self._board = mpi, world, board
        self.rank, self.size = int(world.Get_rank()), int(world.Get_size())
        self.local_rank, self.local_size = local_rank, local_size
        self.seconds = 0.0
        self.bucket_bytes = 0
        self.is_parting = False  # all ranks have agreed to end
        self._reducers: dict[int, Any] = {}

    def __repr__(self) -> str:
        return f"Communicator(rank={self.rank}, size={self.size})"

    def __reduce__(self) -> Any:
        from xpcnn.distributed.start import init

        return init, ()  # a copy, and a pickle read in another process, is that process's own

    # --- arrays -----------------------------------------------------------------------------------------------------

    def allreduce(self, a: Array, op: str = "sum") -> Array:
        """Put the sum over all ranks, the same bits on each, in the place of an array, and return it.

        Parameters
        ----------
        a : array
            Of one shape and dtype on all ranks; float16 is added up in float32.
        op : "sum", "max" or "min"

        Raises
        ------
        ConfigError
            `op` is none of these.
        DTypeError
            `a` is no array of a known backend.
        """
        if op not in OPERATIONS:
            raise ConfigError(f"op: expected {', '.join(map(repr, OPERATIONS))}, got {op!r}")
        backend = backend_of(a)
        reducer = self._reducer(backend)
        if reducer is not None and reducer.takes(a):
            reducer.allreduce(a, op)
            return a
        began = time.perf_counter()
        host = self._on_host(backend, a)
        narrow = host.dtype if host.dtype.char == "e" else None
        if narrow is not None:
            host = host.astype("float32")
        with self._waiting():
            self._world.Allreduce(self._mpi.IN_PLACE, host, getattr(self._mpi, OPERATIONS[op]))
        if narrow is not None:
            with backend.errstate():
                host = host.astype(narrow)
        self._bring_back(backend, a, host)
        self.seconds += time.perf_counter() - began
        return a

    def iallreduce(self, a: Array) -> Callable[[], None]:
        """Begin what `allreduce` does, and return what waits for it.

        Nobody may read or write `a` before. A device's array, and one that MPI cannot take as it lies, has its sum
        when this returns.
        """
        if not backend_of(a).immediate or not a.flags.c_contiguous or a.dtype.char == "e":
            self.allreduce(a)
            return lambda: None
        began = time.perf_counter()
        request = self._world.Iallreduce(self._mpi.IN_PLACE, a, self._mpi.SUM)
        self.seconds += time.perf_counter() - began

        def wait() -> None:
            began = time.perf_counter()
            with self._waiting():
                request.Wait()
            self.seconds += time.perf_counter() - began

        return wait

    def broadcast(self, a: Array, root: int = 0) -> Array:
        """Put the array of rank `root` in the place of every rank's, and return it."""
        backend = backend_of(a)
        host = self._on_host(backend, a)
        with self._waiting():
            self._world.Bcast(host.view("uint8") if host.size else host, root)
        self._bring_back(backend, a, host)
        return a

    def barrier(self, *, patient: bool = False) -> None:
        """Return when all ranks have come here; `patient` leaves the core to others meanwhile."""
        with self._waiting():
            if not patient:
                self._world.Barrier()
                return
            request = self._world.Ibarrier()
            while not request.Test():
                time.sleep(_DOZE)

    def _on_host(self, backend: Backend, a: Array) -> Any:
        """Return a C-contiguous host array of the same values: `a` itself where it is one."""
        host = backend.to_numpy(a)
        return host if host.flags.c_contiguous and host.flags.writeable else host.copy(order="C")

    def _bring_back(self, backend: Backend, a: Array, host: Any) -> None:
        if host is not a:
            a[...] = backend.asarray(host)

    def _reducer(self, backend: Backend) -> Any:
        """Return what reduces a backend's arrays where they lie; None where the host does."""
        if id(backend) not in self._reducers:
            self._reducers[id(backend)] = backend.new_reducer(self.rank, self.size, self.broadcast_bytes)
        return self._reducers[id(backend)]

    # --- plain values -----------------------------------------------------------------------------------------------

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in their order, on each; what JSON can hold."""
        mine = json.dumps(value).encode()
        lengths = array("q", [0] * self.size)
        with self._waiting():
            self._world.Allgather(array("q", [len(mine)]), lengths)
        everything = bytearray(sum(lengths))
        with self._waiting():
            self._world.Allgatherv(mine, [everything, list(lengths), self._mpi.BYTE])
        found, start = [], 0
        for length in lengths:
            found.append(json.loads(everything[start : start + length].decode()))
            start += length
        return found

    def largest(self, values: Sequence[int]) -> list[int]:
        """Return the largest of all ranks' values, place by place."""
        there = array("q", values)
        with self._waiting():
            self._world.Allreduce(self._mpi.IN_PLACE, there, self._mpi.MAX)
        return list(there)

    def broadcast_bytes(self, content: bytes | None, root: int = 0) -> bytes:
        """Return the bytes of rank `root` on each; what others give is not looked at."""
        length = array("q", [len(content or b"")])
        with self._waiting():
            self._world.Bcast(length, root)
        there = bytearray(content or b"") if self.rank == root else bytearray(length[0])
        step = 1 << 30  # MPI counts in 32 bits
        for start in range(0, length[0], step):
            with self._waiting():
                self._world.Bcast(memoryview(there)[start : start + step], root)
        return bytes(there)

    # --- the end ----------------------------------------------------------------------------------------------------

    def part_together(self) -> None:
        """Wait until all ranks are ready to end, however long one still writes; none ends the job for the others."""
        self.barrier(patient=True)
        self.is_parting = True

    def speaks(self) -> bool:
        """Whether this rank is the one of its machine that says why the job ends."""
        return self._board is None or self._board.claim()

    def abort(self, status: int = 1) -> None:
        """End all ranks, now."""
        self._mpi.COMM_WORLD.Abort(status)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        board = self._board
        if board is None:
            yield
            return
        board.wait()
        try:
            yield
        finally:
            board.go_on()
