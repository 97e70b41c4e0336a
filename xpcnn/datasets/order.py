"""The order in which an epoch takes its samples: drawn on the host, so that it is the same on every backend."""

from __future__ import annotations

import numpy as np


def epoch_order(samples: int, draws: int, key: int, epoch: int, *, shuffle: bool, replacement: bool) -> np.ndarray:
    """Return indices into a set, int64: a function of its arguments alone, from which a resumed run draws it again.

    Parameters
    ----------
    samples : int
        The size of the set.
    draws : int
        How many indices there are with `replacement`; without it there are `samples`, each once.
    key, epoch : int
        The seed of the loader, or a key drawn for the epoch, and the number of the epoch.
    shuffle : bool
        Draw a new order, rather than go from 0 upwards.
    replacement : bool
        Draw each index from all, whatever came before.
    """
    generator = np.random.Generator(np.random.PCG64([key, epoch]))
    if replacement:
        return generator.integers(0, samples, draws)
    return generator.permutation(samples) if shuffle else np.arange(samples)
