"""Checkpoints on disk: folders `step-NUMBER` of a safetensors file and a json file, whole or not there.

The json holds the safetensors file's SHA-256 and its own, so that any damaged bit is found. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xpcnn.datasets.source import look_at, read_file
from xpcnn.errors import ConfigError, DataError
from xpcnn.optim.groups import check_count
from xpcnn.training import arrays as array_files
from xpcnn.training.files import check_format, explained, flush
from xpcnn.training.lock import FolderLock

FORMAT = "xpcnn checkpoint 1"
ARRAYS, NUMBERS = "arrays.safetensors", "state.json"
PREFIX = "step-"
LARGEST_JSON = 1 << 26  # bytes


@dataclass
class State:
    """All that a training needs to go on: host arrays by name, and plain numbers, strings, lists and dicts."""

    arrays: dict[str, Any]
    numbers: dict[str, Any]


class Checkpointer:
    """Writes checkpoints of a training now and then, and finds the last one again.

    Parameters
    ----------
    folder : path
        Made where it is not there. One training at a time uses it (`StateError` for a second one).
    every_steps : int or None
        Write after so many steps.
    every_seconds : float or None
        Write when so much time has passed since the last one.
    every_epochs : int or None
        Write at the end of so many epochs, after validation.
    keep : int
        The newest ones that stay; the one of the best epoch (by validation accuracy, else by loss) stays too.

    Raises
    ------
    ConfigError
        A number is not above 0.

    Examples
    --------
    >>> from xpcnn import training
    >>> from tempfile import TemporaryDirectory
    >>> folder = TemporaryDirectory()
    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> optimizer = optim.SGD(model.parameters(), 0.1)
    >>> checkpoint = training.Checkpointer(folder.name)
    >>> trainer = training.Trainer(model, optimizer, nn.CrossEntropyLoss(), checkpoint=checkpoint)
    >>> batches = [(np.ones((8, 4), "float32"), np.arange(8) % 3)]
    >>> history = trainer.fit(batches, epochs=1)
    >>> history = trainer.fit(batches, epochs=3, resume=True)  # a new process would go on as well
    >>> trainer.epoch
    3
    >>> folder.cleanup()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every_steps: int | None = None,
        every_seconds: float | None = 300.0,
        every_epochs: int | None = 1,
        keep: int = 3,
    ) -> None:
        for name, value in (("every_steps", every_steps), ("every_epochs", every_epochs), ("keep", keep)):
            if value is not None:
                check_count(name, value)
        if every_seconds is not None and not (isinstance(every_seconds, (int, float)) and every_seconds > 0):
            raise ConfigError(f"every_seconds: expected a number above 0, got {every_seconds!r}")
        self.folder = Path(folder)
        self.every_steps, self.every_seconds, self.every_epochs = every_steps, every_seconds, every_epochs
        self.keep = keep
        self.clock: Callable[[], float] = time.monotonic
        self._lock = FolderLock(self.folder)
        self._written_at = self.clock()
        self._scores: dict[int, float] = {}

    def __repr__(self) -> str:
        return (
            f"Checkpointer({str(self.folder)!r}, every_steps={self.every_steps}, every_seconds={self.every_seconds}, "
            f"every_epochs={self.every_epochs}, keep={self.keep})"
        )

    # --- the length of a training ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the folder for this training, and clear away what an interrupted write left.

        Raises
        ------
        StateError
            Another training uses it.
        DataError
            It cannot be written.
        """
        self._lock.acquire()
        for leftover in self.folder.glob(f".{PREFIX}*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        self._written_at = self.clock()
        self._scores = {}

    def close(self) -> None:
        """Let others use the folder."""
        self._lock.release()

    def due(self, step: int) -> bool:
        """Say whether a checkpoint should be written after this step."""
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        return self.every_seconds is not None and self.clock() - self._written_at >= self.every_seconds

    def due_at_epoch(self, epoch: int) -> bool:
        """Say whether a checkpoint should be written after so many epochs."""
        return self.every_epochs is not None and epoch % self.every_epochs == 0

    # --- writing ----------------------------------------------------------------------------------------------------

    def write(self, state: State, score: float | None = None) -> Path:
        """Write a checkpoint of `state.numbers["step"]` and drop those that need not stay.

        `score` is higher for a better model; the best scored one stays.

        Raises
        ------
        DataError
            The folder cannot be written or is full; the earlier checkpoints are untouched.
        """
        step = int(state.numbers["step"])
        target = self.folder / f"{PREFIX}{step:010d}"
        temporary = self.folder / f".{target.name}.{os.getpid()}.tmp"
        with explained(target):
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir(parents=True)
                content = array_files.encode(state.arrays)
                numbers = {"format": FORMAT, **state.numbers, "score": score, "arrays_sha256": _sha(content)}
                text = _sealed(numbers)
                for name, data in ((ARRAYS, content), (NUMBERS, text.encode())):
                    (temporary / name).write_bytes(data)
                    flush(temporary / name)
                flush(temporary)
                if target.exists():  # the same step again, after a resume that went no further
                    self._drop(target)
                os.rename(temporary, target)
                flush(self.folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        self._written_at = self.clock()
        if score is not None and not math.isnan(score):
            self._scores[step] = score
        self._prune()
        return target

    def _prune(self) -> None:
        steps = self.steps()
        for step in steps:
            if step not in self._scores:
                self._scores[step] = self._score(step)
        self._scores = {step: self._scores[step] for step in steps}
        best = max(steps, key=lambda step: (self._scores[step], -step))
        for step in steps[: -self.keep]:
            if step != best or self._scores[step] == -math.inf:
                self._drop(self.path(step))

    def _score(self, step: int) -> float:
        with contextlib.suppress(DataError, TypeError, ValueError):
            return float(read_numbers(self.path(step))["score"])
        return -math.inf

    def _drop(self, path: Path) -> None:
        # Renamed first: a folder that is half gone must not look like a checkpoint.
        doomed = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    # --- reading ----------------------------------------------------------------------------------------------------

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"{PREFIX}{step:010d}"

    def steps(self) -> list[int]:
        """Return the steps of which there are checkpoints, in order."""
        if look_at(self.folder) != "folder":
            return []
        names = [path.name.removeprefix(PREFIX) for path in self.folder.glob(f"{PREFIX}*") if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> State | None:
        """Read the newest checkpoint; None where there is none.

        Raises
        ------
        DataError
            It is damaged; the message says which one.
        """
        steps = self.steps()
        return read_checkpoint(self.path(steps[-1])) if steps else None

    def best(self) -> State | None:
        """Read the checkpoint of the best epoch; None where none has a score."""
        scored = {step: self._score(step) for step in self.steps()}
        scored = {step: score for step, score in scored.items() if score > -math.inf}
        return read_checkpoint(self.path(max(scored, key=lambda step: (scored[step], -step)))) if scored else None


def read_checkpoint(path: str | os.PathLike[str]) -> State:
    """Read a checkpoint's folder.

    Raises
    ------
    DataError
        Something in it is missing or damaged.
    """
    numbers = read_numbers(path)
    source = Path(path) / ARRAYS
    content = read_file(source, "checkpoint")
    if _sha(content) != numbers.get("arrays_sha256"):
        raise DataError(
            f"{source}: expected the arrays of this checkpoint, got a damaged file; remove {Path(path).name}"
        )
    return State(array_files.decode(content, str(source)), numbers)


def read_numbers(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the json of a checkpoint's folder, checked against its own checksum."""
    source = Path(path) / NUMBERS
    content = read_file(source, "checkpoint", LARGEST_JSON)
    try:
        numbers = json.loads(content.decode())
        seal = numbers.pop("sha256") if isinstance(numbers, dict) else None
        whole = seal == json.loads(_sealed(numbers))["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{source}: expected the json of a checkpoint, got a damaged file ({reason:.120})") from error
    if not whole:
        raise DataError(f"{source}: expected the json of a checkpoint, got a damaged file; remove {Path(path).name}")
    check_format(source, numbers.get("format"), FORMAT)
    if not isinstance(numbers.get("step"), int):
        raise DataError(f"{source}: expected the number of its step, got {numbers.get('step')!r:.40}")
    return dict(numbers)


def _sealed(numbers: Mapping[str, Any]) -> str:
    """Return `numbers` as JSON that holds its own SHA-256."""
    body = json.dumps(numbers, sort_keys=True, allow_nan=True)
    return json.dumps({**numbers, "sha256": _sha(body.encode())}, sort_keys=True, allow_nan=True) + "\n"


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
