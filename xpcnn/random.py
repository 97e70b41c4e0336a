"""Every random draw of the library starts here, on the host, so that a seed means the same on every backend.

Initial values and batch orders come from one NumPy Generator. Dropout masks come from a counter-based hash
(`functional/dropout.py`) whose keys are drawn from it.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from xpcnn.errors import ConfigError

_lock = threading.Lock()
_generator = np.random.Generator(np.random.PCG64())


def manual_seed(seed: int) -> None:
    """Seed every random draw of the library.

    Parameters
    ----------
    seed : int
        Zero or more. The same seed gives the same initial values, batch orders and dropout masks on every backend.

    Raises
    ------
    ConfigError
        `seed` is not an integer of zero or more.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or seed < 0:
        raise ConfigError(f"seed: expected an integer of 0 or more, got {seed!r}")
    with _lock:
        _generator.bit_generator.state = np.random.PCG64(int(seed)).state


def generator() -> np.random.Generator:
    """Return the library's host generator (PCG64)."""
    return _generator


def draw_key() -> int:
    """Draw 32 bits for a stream of its own, such as the masks of one dropout layer."""
    with _lock:
        return int(_generator.integers(0, 1 << 32, dtype=np.uint32))


def get_state() -> dict[str, Any]:
    """Return the generator's state as plain numbers and strings, ready for JSON."""
    with _lock:
        state: dict[str, Any] = dict(_generator.bit_generator.state)
        return state


def set_state(state: dict[str, Any]) -> None:
    """Restore a state of `get_state`.

    Raises
    ------
    ConfigError
        `state` is not one that `get_state` returned.
    """
    try:
        with _lock:
            _generator.bit_generator.state = state
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"state: expected what xpcnn.random.get_state() returned, got {state!r:.80}") from error
