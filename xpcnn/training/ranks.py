"""What a trainer does with the other ranks of a job: begin alike, share batches out, stay alike, and stop together."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from xpcnn import __version__, random
from xpcnn.backend import Array, backend_of
from xpcnn.data import DataLoader
from xpcnn.distributed import Communicator
from xpcnn.distributed.agreement import agree
from xpcnn.errors import ConfigError, StateError
from xpcnn.functional.part import Part
from xpcnn.training import arrays as array_files
from xpcnn.training.batches import shared
from xpcnn.training.checkpoint import State
from xpcnn.training.shared_step import SharedStep
from xpcnn.training.step import Step

if TYPE_CHECKING:
    from xpcnn.training.trainer import Trainer


SIGNALS = [int(getattr(signal, name, 0)) for name in ("SIGINT", "SIGTERM", "SIGHUP")]


class Ranks:
    """The ranks of a job, as one rank's trainer meets them.

    Parameters
    ----------
    communicator : Communicator

    Attributes
    ----------
    is_first : bool
        Whether this is the rank that shows and writes.
    """

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator
        self._parts: list[Part] = []  # of batches that were given out and not yet trained on
        self.is_first = communicator.rank == 0

    # --- the beginning ----------------------------------------------------------------------------------------------

    def begin(self, trainer: Trainer, train: Any, validation: Any) -> None:
        """Compare what must be the same on all ranks, then give all of them rank 0's parameters, buffers and state.

        Raises
        ------
        ConfigError
            A rank has another version, data, seed, model or option; the message names it. All ranks raise it.
        """
        criterion = trainer.criterion
        unequal = [getattr(criterion, name, None) is not None for name in ("weight", "ignore_index")]
        if any(unequal) and not trainer._sums:
            raise ConfigError(
                "criterion: expected reduction='sum' with class weights or an ignored class on several ranks: the mean "
                "over a part of a batch has another denominator than the batch's"
            )
        agree(self.communicator, facts(trainer, train, validation))
        for array in _state_of(trainer):
            self.communicator.broadcast(array)
        for parameter in trainer.model.parameters():
            parameter.mark_changed("broadcast")

    def state_of_first(self, state: State | None) -> State | None:
        """Return rank 0's state of a training, from whatever files that rank alone may see; None where it has none."""
        content = b""
        if self.is_first and state is not None:
            numbers = json.dumps(state.numbers).encode()
            content = len(numbers).to_bytes(8, "big") + numbers + array_files.encode(state.arrays)
        content = self.communicator.broadcast_bytes(content if self.is_first else None)
        if self.is_first or not content:
            return state
        end = 8 + int.from_bytes(content[:8], "big")
        return State(array_files.decode(content[end:], "checkpoint of rank 0"), json.loads(content[8:end].decode()))

    # --- steps ------------------------------------------------------------------------------------------------------

    def step(self, synchronise: bool) -> Callable[..., Step]:
        """Return what makes a step."""
        return partial(SharedStep, communicator=self.communicator, synchronise=synchronise)

    def batches(self, train: Any, step: Step, done: int) -> Iterator[tuple[Array, Array]]:
        """Yield this rank's part of each batch; `take_parts` says which they were."""
        self._parts.clear()
        for x, labels, part in shared(train, _division(step), "train", done):
            self._parts.append(part)
            yield x, labels

    def take_parts(self) -> tuple[Part, ...]:
        """Return the parts given out since the last call."""
        parts, self._parts = tuple(self._parts), []
        return parts

    def cut(self, step: Step, x: Array, labels: Array) -> tuple[Array, Array]:
        """Return this rank's part of one batch."""
        (part,) = self.batches([(x, labels)], step, 0)
        return part

    # --- staying alike ----------------------------------------------------------------------------------------------

    def flags(self, trainer: Trainer) -> list[float]:
        """Return what this rank tells all others with its next step: which signal has reached it, and any `stop`."""
        return [float(trainer.interrupted and trainer.signum == each) for each in SIGNALS] + [float(trainer.stopped)]

    def agreed(self, trainer: Trainer, step: Step) -> tuple[bool, bool]:
        """Return whether all ranks are to be interrupted, or to stop, after this step.

        A step on the host carries what was known before it began, so that a `stop` ends the training a step later than
        it would in one process; of a device's, nothing can be read without waiting.
        """
        said = step.said if isinstance(step, SharedStep) else None
        if said is None:
            said = [value > 0 for value in self.communicator.largest([int(each) for each in self.flags(trainer)])]
        self._take(trainer, said)
        return any(said[:-1]), said[-1]

    def agree(self, trainer: Trainer) -> None:
        """Let a signal or a `stop` that has reached one rank reach all, now."""
        flags = self.communicator.largest([int(each) for each in self.flags(trainer)])
        self._take(trainer, [each > 0 for each in flags])

    def _take(self, trainer: Trainer, said: list[bool]) -> None:
        for signum, is_set in zip(SIGNALS, said, strict=False):
            if is_set and not trainer.interrupted:
                trainer.interrupted, trainer.signum = True, signum
        if said[-1] and not trainer.stopped:
            trainer.stop("another rank stopped it")

    def check(self, trainer: Trainer) -> None:
        """Compare a checksum of parameters, buffers and random state with the other ranks'.

        Raises
        ------
        StateError
            They are not alike; the message names the ranks that differ from most. All ranks raise it.
        """
        sums = self.communicator.gather(checksum(trainer))
        usual, _ = Counter(sums).most_common(1)[0]
        usual = sums[0] if Counter(sums)[sums[0]] == Counter(sums)[usual] else usual
        others = [str(rank) for rank, each in enumerate(sums) if each != usual]
        if others:
            raise StateError(
                f"step {trainer.step}: parameters, buffers or random state of rank{'s' * (len(others) > 1)} "
                f"{', '.join(others)} are not those of the others: a callback, or faulty memory, has changed them "
                "there; go on from the last checkpoint"
            )


def _division(step: Step) -> Callable[[int], Part]:
    if not isinstance(step, SharedStep):
        raise StateError("step: expected one of a communicator")
    return step.divide


def facts(trainer: Trainer, train: Any, validation: Any) -> dict[str, Any]:
    """Return what must be the same on all ranks, by the name that an error gives it."""
    return {
        "xpcnn": __version__,
        "seed (random state)": _short(json.dumps(random.get_state(), sort_keys=True)),
        "train data": _contents(train),
        "train loader": _settings(train),
        "validation data": _contents(validation),
        "model": _short(_said(trainer.model)) + str(sum(each.size for each in trainer.model.parameters())),
        "optimizer": _said(trainer.optimizer),
        "criterion": _said(trainer.criterion),
        "schedule": _said(trainer.schedule),
        "clip_norm": trainer.clip_norm,
        "nonfinite": trainer.nonfinite,
        "scaler": _said(trainer.scaler),
        "sync_batch_norm": trainer.sync_batch_norm,
        "bucket_bytes": None if trainer.communicator is None else trainer.communicator.bucket_bytes,
        "epochs": trainer.epochs,
        "step": trainer.step,
    }


def checksum(trainer: Trainer) -> int:
    """Return a CRC of parameters, buffers and random state."""
    value = zlib.crc32(json.dumps(random.get_state(), sort_keys=True).encode())
    for array in trainer.model.state_dict().values():
        value = zlib.crc32(_bytes(backend_of(array).to_numpy(array)), value)
    return value


def _state_of(trainer: Trainer) -> list[Array]:
    trainer.optimizer.gather()
    arrays = [parameter.data for parameter in trainer.model.parameters()]
    arrays += [buffer for _, buffer in trainer.model.named_buffers()]
    return arrays + trainer.optimizer.state_buffers()


def _contents(data: Any) -> Any:
    """Return what tells a loader's images and labels from others."""
    if not isinstance(data, DataLoader):
        return None if data is None else type(data).__name__
    crc = zlib.crc32(_bytes(data.labels))
    if hasattr(data.images, "tobytes"):
        crc = zlib.crc32(_bytes(data.images), crc)
    return f"crc {crc:08x} of {data.samples} samples"


def _settings(data: Any) -> str:
    """Return what else fixes a loader's batches."""
    settings = data.settings() if isinstance(data, DataLoader) else {}
    return ", ".join(f"{name}={value}" for name, value in settings.items() if name != "transform")


def _bytes(array: Any) -> Any:
    if not array.flags.c_contiguous:
        array = array.copy(order="C")
    return memoryview(array).cast("B") if array.size else b""


def _said(thing: Any) -> str:
    """Return what is printed of an object, without where it lies in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
