"""Ranks that are threads of this process, with what a communicator does done by a barrier: any backend, no MPI."""

import json
import threading
from contextlib import nullcontext

import numpy as np

from xpcnn import manual_seed
from xpcnn.backend import backend_of, use_backend
from xpcnn.distributed import Communicator


class Meeting:
    """Where the threads put what they have."""

    def __init__(self, size):
        self.size, self.there = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=120)


class ThreadCommunicator(Communicator):
    """One thread's; sums are made in the order of the ranks, by each for itself."""

    def __init__(self, meeting, rank):
        self.meeting, self.rank, self.size = meeting, rank, meeting.size
        self.local_rank, self.local_size, self.seconds, self.is_parting = rank, meeting.size, 0.0, False
        self.calls = self.bucket_bytes = 0

    def exchange(self, value):
        self.meeting.there[self.rank] = value
        self.meeting.barrier.wait()
        every = list(self.meeting.there)
        self.meeting.barrier.wait()
        return every

    def allreduce(self, a, op="sum"):
        self.calls += 1
        backend = backend_of(a)
        every = self.exchange(backend.to_numpy(a).copy())
        total = every[0].copy()
        for other in every[1:]:
            total = {"sum": np.add, "max": np.maximum, "min": np.minimum}[op](total, other)
        a[...] = backend.asarray(total.astype(every[0].dtype))
        return a

    def iallreduce(self, a):
        """Add up what is there now: a gradient that comes later would be lost."""
        self.allreduce(a)
        return lambda: None

    def broadcast(self, a, root=0):
        backend = backend_of(a)
        a[...] = backend.asarray(self.exchange(backend.to_numpy(a).copy())[root])
        return a

    def barrier(self, *, patient=False):
        self.exchange(None)

    def gather(self, value):
        return [json.loads(each) for each in self.exchange(json.dumps(value))]

    def largest(self, values):
        return [max(each) for each in zip(*self.exchange(list(values)), strict=True)]

    def broadcast_bytes(self, content, root=0):
        return self.exchange(content)[root]


def as_ranks(size, work, backend="numpy", seed=0):
    """Return what work(communicator) gives on each of `size` threads, each seeded alike; an error of one is raised."""
    meeting = Meeting(size)
    results, errors = [None] * size, []

    def run(rank):
        try:
            with use_backend(backend) if backend else nullcontext():
                manual_seed(seed)
                results[rank] = work(ThreadCommunicator(meeting, rank))
        except BaseException as error:
            errors.append(error)
            if not isinstance(error, threading.BrokenBarrierError):
                meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if errors:
        raise errors[0]
    return results
