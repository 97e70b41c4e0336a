"""Sums of gradients over ranks that begin while backward still computes the gradients of earlier layers.

Flat gradients are cut into buckets of neighbouring parameters. Backward comes from the last layer to the first, and a
bucket's sum begins as soon as all its gradients are complete and the sums before it have begun: every rank begins the
same sums in the same order, so that the same ranks give the same bits. The first step begins none; it counts how often
each parameter gets a gradient, and in which order.

Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", arXiv:2006.15704, sec. 3.2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from xpcnn.backend import Array
from xpcnn.backend.graph import host
from xpcnn.distributed import Communicator
from xpcnn.errors import StateError
from xpcnn.nn import Parameter
from xpcnn.nn.parameter import receiving
from xpcnn.optim import Optimizer


class Bucket:
    """Neighbouring parameters of a flat buffer.

    Attributes
    ----------
    array : (n,) array
        Their gradients, with what the first bucket of all has before them.
    expected : dict
        How many gradients each parameter gets in a backward, by its id.
    missing : int
        Parameters whose gradients are not complete in this backward.
    """

    def __init__(self, array: Array, parameters: list[Parameter], counts: dict[int, int]) -> None:
        self.array = array
        self.expected = {id(parameter): counts.get(id(parameter), 0) for parameter in parameters}
        self.missing = 0


class Buckets:
    """The sums of an optimiser's gradients over the ranks of a job, in `communicator.bucket_bytes` a piece.

    Parameters
    ----------
    communicator : Communicator
    optimizer : Optimizer
    """

    def __init__(self, communicator: Communicator, optimizer: Optimizer) -> None:
        self._communicator, self._optimizer = communicator, optimizer
        self._kind: tuple[int, int] | None = None  # the layout of the buffers that `_order` is for, and the size
        self._order: list[Bucket] = []  # as sums begin; empty until a backward has been counted
        self._places: dict[int, tuple[Bucket | None, Array]] = {}  # each parameter's bucket and gradient, by its id
        self._counts: dict[int, int] = {}  # gradients in this backward, by the parameter's id, the last one last
        self._begun: list[Callable[[], None]] = []  # waits for sums

    def prepare(self, is_on: bool) -> bool:
        """Get ready for a step, in which sums begin or not; return whether what was recorded does something else."""
        for wait in self._begun:  # of a step that has raised
            wait()
        self._begun.clear()
        if is_on:
            self._optimizer.gather()
        kind = (self._optimizer.generation, self._communicator.bucket_bytes) if is_on else None
        if self._kind == kind:
            return False
        self._kind, self._order, self._places = kind, [], {}
        if not is_on:
            return True
        self._places = {id(each): (None, grad) for flat in self._optimizer.flats() for each, _, grad in flat.views}
        return True

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Begin sums in a backward that is a step's last."""
        self._counts.clear()
        for bucket in self._order:
            bucket.missing = len(bucket.expected)
        with receiving(self._receive):
            yield

    def _receive(self, parameter: Parameter) -> None:
        """Take note that a parameter has got a gradient."""
        key = id(parameter)
        bucket, place = self._places.get(key, (None, None))
        if place is None or parameter.gradient_array is not place:  # frozen, or another array that is taken in later
            return
        count = self._counts.pop(key, 0) + 1
        self._counts[key] = count
        if bucket is None:
            return
        if count > bucket.expected[key] and bucket in self._order[: len(self._begun)]:
            raise StateError(
                f"{parameter.name}: got more gradients in this backward than in the first, when their sum over ranks "
                "may have begun; set communicator.bucket_bytes = 0 where steps differ"
            )
        bucket.missing -= count == bucket.expected[key]
        # The last one has room for what is known after backward only.
        while len(self._begun) < len(self._order) - 1 and not self._order[len(self._begun)].missing:
            host(self._begin)

    def _begin(self) -> None:
        self._begun.append(self._communicator.iallreduce(self._order[len(self._begun)].array))

    def finish(self) -> bool:
        """Wait for all sums; return whether steps recorded from now on begin them earlier."""
        if (self._optimizer.generation, self._communicator.bucket_bytes) != self._kind:
            raise StateError("step: expected parameters where they were, got other arrays from a backward")
        if not self._order:
            for array in self._optimizer.gradient_buffers():
                self._communicator.allreduce(array)
            self._plan()
            return True
        while len(self._begun) < len(self._order):
            self._begin()
        for wait in self._begun:
            wait()
        self._begun.clear()
        return False

    def _plan(self) -> None:
        """Cut the buffers into buckets, and put these into the order in which backward has completed them."""
        last = {key: when for when, key in enumerate(self._counts)}
        buckets: list[Bucket] = []
        whens: list[int] = []
        flats = self._optimizer.flats()
        for flat in flats:
            stop = flat.summed.size
            parameters: list[Parameter] = []
            for (parameter, _, _), (place, _) in zip(reversed(flat.views), reversed(flat.places), strict=True):
                parameters.append(parameter)
                start = flat.head + place.start if place.start else 0
                if start and (stop - start) * flat.summed.itemsize < self._communicator.bucket_bytes:
                    continue
                buckets.append(Bucket(flat.summed[start:stop], parameters, self._counts))
                has_head = flat is flats[0] and not start
                whens.append(len(last) + 1 if has_head else max(last.get(id(each), len(last)) for each in parameters))
                stop, parameters = start, []
        # One order for all: a rank whose backward differs would add up what does not belong together.
        whens = self._communicator.gather(whens)[0]
        self._order = [buckets[i] for i in sorted(range(len(buckets)), key=whens.__getitem__)]
        bucket_of = {key: bucket for bucket in buckets for key in bucket.expected}
        self._places = {key: (bucket_of[key], grad) for key, (_, grad) in self._places.items()}
