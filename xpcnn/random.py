"""Every random draw of the library starts here, on the host, so that a seed means the same on every backend.

Initial values and batch orders come from a NumPy Generator. Dropout masks come from a counter-based hash
(`functional/dropout.py`), one key for each call: key n is a hash of n and of 64 bits that follow from the seed.

The rule for threads: the process has one random state, which the main thread seeds and all threads draw from. Where
another thread calls `manual_seed` or `set_state`, it gets a state of its own, for as long as it lives: what it draws
from then on follows from its seed alone, whatever others draw, and neither changes the other's values. A thread that
never seeds draws from the process's state, each value once, in the order in which threads happen to come.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from xpcnn.errors import ConfigError

_KEYS = 1 << 32  # keys of one seed are all different for so many calls
_WORD = _KEYS - 1
_TRANSFORMS = 1  # marks the streams that transforms draw from


class _State:
    """A generator and a stream of keys, seeded together; every draw is safe in threads."""

    def __init__(self, seed: int | None = None) -> None:
        self.lock = threading.Lock()
        self.generator = np.random.Generator(np.random.PCG64())
        self.seed(seed)

    def seed(self, seed: int | None) -> None:
        sequence = np.random.SeedSequence(seed)
        into, out = (int(word) for word in np.random.SeedSequence(sequence.entropy, spawn_key=(0,)).generate_state(2))
        with self.lock:
            self.generator.bit_generator.state = np.random.PCG64(sequence).state
            self.into, self.out, self.drawn = into, out, 0

    def draw_key(self) -> int:
        with self.lock:
            n = self.drawn
            self.drawn = n + 1
        # MurmurHash3's finaliser maps 32 bits one to one: the keys of a seed do not repeat.
        h = (n ^ self.into) & _WORD
        h = (h ^ h >> 16) * 0x85EBCA6B & _WORD
        h = (h ^ h >> 13) * 0xC2B2AE35 & _WORD
        return h ^ h >> 16 ^ self.out

    def get(self) -> dict[str, Any]:
        with self.lock:
            state: dict[str, Any] = dict(self.generator.bit_generator.state)
            return state | {"keys": {"into": self.into, "out": self.out, "drawn": self.drawn}}

    def set(self, state: dict[str, Any]) -> None:
        keys = state["keys"]
        into, out, drawn = (keys[name] for name in ("into", "out", "drawn"))
        if not all(type(word) is int and 0 <= word < _KEYS for word in (into, out)) or type(drawn) is not int:
            raise ValueError("keys")
        with self.lock:
            self.generator.bit_generator.state = {name: value for name, value in state.items() if name != "keys"}
            self.into, self.out, self.drawn = into, out, drawn


class _Own(threading.local):
    """The state of a thread that has one of its own."""

    state: _State | None = None


_process = _State()
_own = _Own()


def _current() -> _State:
    return _own.state or _process


def _to_seed() -> _State:
    """Return the state that this thread may overwrite: its own, which it gets now, or in the main thread the process's.

    What is written there holds no state that is half old: a new one is only published when it has its values.
    """
    if _own.state is not None:
        return _own.state
    if threading.current_thread() is threading.main_thread():
        return _process
    return _State()


def manual_seed(seed: int) -> None:
    """Seed every random draw of the library, or, in a thread other than the main one, every draw of that thread.

    Parameters
    ----------
    seed : int
        Zero or more. The same seed gives the same initial values, batch orders and dropout masks on every backend.

    Raises
    ------
    ConfigError
        `seed` is not an integer of zero or more.

    Notes
    -----
    A `DataLoader(seed=k)` has a stream of its own, which this does not touch.

    Examples
    --------
    >>> xpcnn.manual_seed(0)
    >>> first = nn.Linear(3, 2).weight.data
    >>> xpcnn.manual_seed(0)
    >>> bool((nn.Linear(3, 2).weight.data == first).all())
    True
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or seed < 0:
        raise ConfigError(f"seed: expected an integer of 0 or more, got {seed!r}")
    state = _to_seed()
    state.seed(int(seed))
    _publish(state)


def generator() -> np.random.Generator:
    """Return the host generator (PCG64) that this thread draws from."""
    return _current().generator


def batch_generator(key: int, epoch: int, batch: int) -> np.random.Generator:
    """Return the host generator of what transforms draw for one batch (from 1 on) of an epoch: a function of the three.

    It shares nothing with the order of the epoch, which is drawn from (key, epoch).
    """
    return np.random.Generator(np.random.PCG64([key, epoch, batch, _TRANSFORMS]))


def draw_key() -> int:
    """Draw 32 bits that name one dropout mask; costs less than a microsecond."""
    return _current().draw_key()


Keys = tuple[int, int, int]


def key_stream() -> Keys:
    """Return where in its stream of keys this thread is; costs less than a microsecond."""
    state = _current()
    return state.into, state.out, state.drawn


def go_back(keys: Keys) -> None:
    """Let this thread draw the keys from a place in its stream on, as if it had drawn none since."""
    state = _current()
    state.into, state.out, state.drawn = keys


@contextlib.contextmanager
def drawing_again(keys: Keys) -> Iterator[None]:
    """Let this thread draw the keys from a place in a stream on once more, and go on afterwards where it is now."""
    before, state = _own.state, _State.__new__(_State)
    state.lock, state.generator = threading.Lock(), _current().generator
    state.into, state.out, state.drawn = keys
    _own.state = state
    try:
        yield
    finally:
        _own.state = before


def get_state() -> dict[str, Any]:
    """Return the state that this thread draws from as plain numbers and strings, ready for JSON."""
    return _current().get()


def set_state(state: dict[str, Any]) -> None:
    """Restore a state of `get_state`: of the process, or in a thread other than the main one that thread's own.

    Raises
    ------
    ConfigError
        `state` is not one that `get_state` returned; nothing is changed then.
    """
    target = _to_seed()
    try:
        target.set(state)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"state: expected what xpcnn.random.get_state() returned, got {state!r:.80}") from error
    _publish(target)


@contextlib.contextmanager
def fork_rng() -> Iterator[None]:
    """Let this thread draw from a copy of its state for the length of a `with` block, and forget the copy then."""
    before, copy = _own.state, _State()
    copy.set(_current().get())
    _own.state = copy
    try:
        yield
    finally:
        _own.state = before


def _publish(state: _State) -> None:
    if state is not _process:
        _own.state = state
