"""Images that stay on the disk: a sequence with the shape of an array, read batch by batch when they are wanted."""

from __future__ import annotations

import math
import operator
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

_AHEAD = 2  # batches that are read while the caller works on one
_PIECES = 4  # that a batch is cut into for each thread, so that none waits for the slowest picture


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LazyImages(Sequence[Any]):
    """Images that are read one by one, behind what is known of them all.

    Parameters
    ----------
    read : callable
        read(source) -> array of the shape and dtype of one image; called in several threads.
    sources : sequence
        What to read, one for each image, such as paths.
    image_shape : tuple of int
        Of one image.
    dtype : dtype

    Notes
    -----
    `images[i]` is one image, `images[indices]` and `images[a:b]` are arrays of several; `numpy.asarray(images)` reads
    all. Nothing is kept.

    Examples
    --------
    >>> from xpcnn import datasets
    >>> images = datasets.LazyImages(lambda k: np.full((2, 2), k, "uint8"), range(1000), (2, 2))
    >>> images.shape, images[[3, 5]][:, 0, 0]  # only these two are read
    ((1000, 2, 2), array([3, 5], dtype=uint8))
    """

    def __init__(
        self,
        read: Callable[[Any], np.ndarray],
        sources: Sequence[Any],
        image_shape: tuple[int, ...],
        dtype: Any = "uint8",
    ) -> None:
        self._read, self._sources = read, sources
        self.shape = (len(sources), *image_shape)
        self.dtype = np.dtype(dtype)
        self.ndim = len(self.shape)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize  # of the array that it stands for

    def __len__(self) -> int:
        return len(self._sources)

    def __repr__(self) -> str:
        return f"LazyImages({len(self)} images {self.dtype} {list(self.shape[1:])})"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) or np.ndim(index) == 1:
            return next(iter(self.batches([np.arange(len(self))[index]])))
        return self._one(self._sources[operator.index(index)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("images that stay on the disk are read into a new array")
        return np.asarray(self[:], dtype)

    def subset(self, indices: Any) -> LazyImages:
        """Return the images at `indices`, still on the disk."""
        chosen = np.arange(len(self))[indices]
        return LazyImages(self._read, [self._sources[i] for i in chosen], self.shape[1:], self.dtype)

    def batches(self, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the images at each of `parts` (indices), reading the next ones while the caller works on the last."""
        threads = usable_cores()
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[tuple[np.ndarray, list[Future[None]]]] = deque()
            try:
                for part in parts:
                    out = np.empty((len(part), *self.shape[1:]), self.dtype)
                    step = max(1, -(-len(part) // (_PIECES * threads)))
                    pieces = [(out[i : i + step], part[i : i + step]) for i in range(0, len(part), step)]
                    waiting.append((out, [pool.submit(self._fill, *piece) for piece in pieces]))
                    if len(waiting) > _AHEAD:
                        yield _done(*waiting.popleft())
                while waiting:
                    yield _done(*waiting.popleft())
            finally:
                for _, futures in waiting:
                    for future in futures:
                        future.cancel()

    def _fill(self, out: np.ndarray, indices: np.ndarray) -> None:
        for image, index in zip(out, indices, strict=True):
            image[...] = self._one(self._sources[index])

    def _one(self, source: Any) -> np.ndarray:
        return self._read(source)


def _done(out: np.ndarray, futures: list[Future[None]]) -> np.ndarray:
    for future in futures:
        future.result()
    return out
