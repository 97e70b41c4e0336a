"""`DataLoader`: images and labels, checked once, in batches whose order is drawn on the host."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from xpcnn import random
from xpcnn.backend import Array, Backend, backend_of, get_backend
from xpcnn.data.compose import Compose, describe, takes_images_singly
from xpcnn.data.transforms import COLOURS, ChannelsFirst, ToFloat, Transform
from xpcnn.datasets.checks import check_images, check_labels
from xpcnn.datasets.lazy import LazyImages
from xpcnn.datasets.order import epoch_order
from xpcnn.errors import ConfigError, DataError, DTypeError, ShapeError
from xpcnn.functional.part import Part

Divide = Callable[[int], Part] | None

_RESIDENT_SHARE = 0.5  # of a device's free memory that a set may take to stay there
_SETTINGS = (
    "samples",
    "batch_size",
    "shuffle",
    "replacement",
    "batches_per_epoch",
    "drop_last",
    "seed",
)  # what fixes the order


class DataLoader:
    """Batches of images and labels on the active backend, in an order that is the same on every backend.

    Iterating gives one epoch of `(x, labels)`: x float32 (N, C, H, W) in batch-last memory, labels int64 (N,) or
    float32 (N, K). A batch belongs to whoever took it. Each `for` begins a new epoch, except the first one after
    `load_state_dict`, which goes on where the saved one was.

    Parameters
    ----------
    images : array or LazyImages
        (N, H, W), (N, C, H, W) or (N, H, W, C), integers or floats; floats (N, H, W, C) want
        `transform=ChannelsFirst()`, for they may be features too. Those on the disk are read while the caller works.
    labels : array
        Class indices (N,), integers of 0 or more; or one-hot rows or probabilities (N, K).
    batch_size : int
        Images in a batch; the last one may be smaller.
    shuffle : bool
        Draw a new order for each epoch; otherwise the images come as they lie.
    replacement : bool
        Draw each batch at random from the whole set, whatever came before; every batch is full.
    batches_per_epoch : int, optional
        With `replacement`: how many batches an epoch has, by default ceil(N / batch_size).
    seed : int, optional
        Gives the loader a stream of its own, as a `Generator` does for PyTorch's: the order of its e-th epoch is a
        function of (seed, e) alone, `xpcnn.manual_seed` does not touch it, and `manual_seed` of the loader begins it
        again. By default each epoch's order follows from what `xpcnn.random` gives when the epoch begins: after
        `xpcnn.manual_seed(0)`, an old loader gives the same epochs as a new one.
    drop_last : bool
        Leave out a last batch that is not full.
    transform : callable, optional
        From a batch as stored, on the active backend, to float32 (N, C, H, W); see `xpcnn.data.transforms`. The
        default divides integers by 255 and adds the channel axis. One with an attribute `labels` that is true is
        called as (images, labels) and returns both, the labels (N,) or (N, K). What ours draw at random for a batch
        follows from the seed, or the epoch's key, and the number of epoch and batch alone.

    Raises
    ------
    ShapeError, DTypeError, DataError, ConfigError
        Images, labels or an option are wrong; all are looked at here, once, on the host.

    Notes
    -----
    A set that takes at most half of a device's free memory stays there: the images go over once, the order once an
    epoch, and batches are gathered on the device. Otherwise batches go over one by one, by `Backend.prefetch`.

    On NumPy, an epoch of the 60,000 digits in batches of 128 took 37 ms by the default transform and 50 ms padded and
    normalised as the LeNet notebook has them (one core of an Intel Xeon, November 2026, `pytest bench/test_loader.py`).

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> loader = data.DataLoader(images, np.arange(4), 2, seed=0)
    >>> [(x.shape, str(x.dtype), y.shape) for x, y in loader]
    [((2, 3, 32, 32), 'float32', (2,)), ((2, 3, 32, 32), 'float32', (2,))]
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        batch_size: int,
        *,
        shuffle: bool = True,
        replacement: bool = False,
        batches_per_epoch: int | None = None,
        seed: int | None = None,
        drop_last: bool = False,
        transform: Callable[..., Any] | None = None,
    ) -> None:
        self.images = check_images(_on_host(images))
        labels = check_labels(_on_host(labels), len(self.images))
        self.labels = labels.astype("int64" if labels.ndim == 1 else "float32")
        self.samples = len(self.images)
        self.batch_size = _integer("batch_size", batch_size, 1)
        self.shuffle, self.replacement, self.drop_last = bool(shuffle), bool(replacement), bool(drop_last)
        self.seed = None if seed is None else _integer("seed", seed, 0)
        if transform is not None and not callable(transform):
            raise ConfigError(f"transform: expected a callable such as xpcnn.data.ToFloat(), got {transform!r}")
        self.transform = ToFloat() if transform is None else transform
        _check_channels(self.images, self.transform)
        for each in getattr(self.transform, "transforms", (self.transform,)):
            if hasattr(each, "check_labels"):
                each.check_labels(self.labels)
        self.batches_per_epoch = batches_per_epoch
        if batches_per_epoch is not None:
            self.batches_per_epoch = _integer("batches_per_epoch", batches_per_epoch, 1)
            if not self.replacement:
                raise ConfigError("batches_per_epoch: expected replacement=True with it; without, an epoch is the set")
        if len(self) == 0:
            raise ConfigError(f"batch_size: expected at most {self.samples} with drop_last, got {self.batch_size}")
        self._epoch = 0  # the one under way, or the next where none is
        self._position = 0  # batches given out in it
        self._key: int | None = None  # from which its order is drawn; None where none is under way
        self._goes_on = False  # the next `for` continues it
        self._turn = 0  # of which `for` the state is; an older one leaves it alone
        self._resident: tuple[Backend, Array, Array] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_resident": None}  # a copy brings its images to the device by itself

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        if self.batches_per_epoch is not None:
            return self.batches_per_epoch
        if self.drop_last and not self.replacement:
            return self.samples // self.batch_size
        return -(-self.samples // self.batch_size)

    def __repr__(self) -> str:
        order = "replacement" if self.replacement else "shuffle" if self.shuffle else "in order"
        order += "" if self.seed is None else f", seed={self.seed}"
        order += ", drop_last" * self.drop_last
        images = f"{self.samples} images {self.images.dtype} {list(self.images.shape[1:])}"
        return f"DataLoader({images}, {len(self)} batches of {self.batch_size}, {order}, {self.transform!r})"

    @property
    def num_classes(self) -> int:
        """How many classes a network must tell apart for these labels: K, or the largest index + 1."""
        return int(self.labels.shape[1] if self.labels.ndim == 2 else self.labels.max() + 1)

    def settings(self) -> dict[str, Any]:
        """Return what fixes the batches, as plain values for a run's json."""
        return {name: getattr(self, name) for name in _SETTINGS} | {"transform": describe(self.transform)}

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        return ((x, labels) for x, labels, _ in self._begin(None))

    def parts(self, divide: Callable[[int], Part]) -> Iterator[tuple[Array, Array, Part]]:
        """Iterate as `for` does, over a part of each batch, such as one process of several computes.

        Parameters
        ----------
        divide : callable
            From the images of a batch to the part that is wanted.

        Returns
        -------
        iterator of (x, labels, part)
            `x` and `labels` hold `part.images` of the batch.
        """
        return self._begin(divide)

    def _begin(self, divide: Divide) -> Iterator[tuple[Array, Array, Any]]:
        if self._goes_on:
            self._goes_on = False
        else:
            self._end_epoch()
            self._key = self._new_key()
        order = epoch_order(
            self.samples,
            len(self) * self.batch_size,
            self._key or 0,
            0 if self.seed is None else self._epoch,  # a drawn key is the epoch's own
            shuffle=self.shuffle,
            replacement=self.replacement,
        )
        rest = order[self._position * self.batch_size : len(self) * self.batch_size]
        self._turn += 1
        draws_from = (self._key or 0, 0 if self.seed is None else self._epoch)
        return self._batches(get_backend(), rest, self._turn, self._position, draws_from, divide)

    def _batches(
        self, backend: Backend, order: Any, turn: int, position: int, draws_from: tuple[int, int], divide: Divide
    ) -> Iterator[tuple[Array, Array, Any]]:
        part = None
        # Images are taken one by one only where a transform brings each by itself to what it would be in the batch.
        early = divide if takes_images_singly(self.transform) else None
        for given, (images, labels) in enumerate(self._stored(backend, order, early), position + 1):
            x, labels = self._transformed(images, labels, (*draws_from, given))
            if x.ndim != 4 or x.shape[0] != labels.shape[0]:
                raise ShapeError(f"transform: expected a result ({labels.shape[0]}, C, H, W), got {tuple(x.shape)}")
            if x.dtype.kind != "f":
                raise DTypeError(f"transform: expected a floating result such as float32, got {x.dtype}")
            if self._turn == turn:
                self._position = given
            if divide is not None:
                part = divide(min(self.batch_size, len(order) - (given - position - 1) * self.batch_size))
                if early is None:
                    x, labels = backend.duplicate(x[part.images]), labels[part.images]
            yield x, labels, part
        if self._turn == turn:
            self._end_epoch()

    def _transformed(self, images: Array, labels: Array, draws_from: tuple[int, int, int]) -> Any:
        """Return a batch's images and labels, changed by what is drawn for that batch."""
        transform = self.transform
        if isinstance(transform, Transform):
            return transform.run(images, labels, random.batch_generator(*draws_from) if transform.is_random else None)
        return transform(images, labels) if getattr(transform, "labels", False) else (transform(images), labels)

    def _stored(self, backend: Backend, order: Any, divide: Divide) -> Iterator[tuple[Array, ...]]:
        """Yield batch after batch of images as stored, and labels, on the backend; or a part of each."""
        starts = range(0, len(order), self.batch_size)

        def at(start: int) -> Any:
            batch = order[start : start + self.batch_size]
            return batch if divide is None else batch[divide(len(batch)).images]

        if not self._stays(backend):
            parts = [at(start) for start in starts]
            read = self.images.batches(parts) if isinstance(self.images, LazyImages) else map(self._gathered, parts)
            yield from backend.prefetch((images, self.labels[part]) for images, part in zip(read, parts, strict=True))
            return
        if self._resident is None or self._resident[0] is not backend:
            # `take` would copy a set that is not contiguous anew for every batch.
            images, labels = (backend.contiguous(backend.asarray(array)) for array in (self.images, self.labels))
            self._resident = backend, images, labels
        _, images, labels = self._resident
        order = backend.asarray(order)
        for start in starts:
            part = at(start)
            yield backend.xp.take(images, part, axis=0), backend.xp.take(labels, part, axis=0)

    def _gathered(self, part: Any) -> Any:
        return self.images[part]

    def _new_key(self) -> int:
        if self.seed is not None:
            return self.seed
        # An evaluation, which goes in order, must not change what is drawn after it.
        if not (self.shuffle or self.replacement or getattr(self.transform, "is_random", False)):
            return 0
        return int(random.generator().integers(0, 1 << 32, dtype="uint32"))

    def manual_seed(self, seed: int) -> None:
        """Begin a stream of the loader's own, from its first epoch: the next `for` gives what a new loader would.

        Parameters
        ----------
        seed : int
            Zero or more.

        Raises
        ------
        ConfigError
            `seed` is not an integer of zero or more.
        """
        self.seed = _integer("seed", seed, 0)
        self._epoch, self._position, self._key, self._goes_on = 0, 0, None, False
        self._turn += 1

    def _stays(self, backend: Backend) -> bool:
        """Say whether the whole set is, or may be, where the backend's arrays are."""
        if isinstance(self.images, LazyImages):
            return False
        if self._resident is not None and self._resident[0] is backend:
            return True
        free = backend.device_bytes_free()
        return free is None or self.images.nbytes + self.labels.nbytes <= _RESIDENT_SHARE * free

    def _end_epoch(self) -> None:
        if self._key is not None:
            self._epoch, self._position, self._key = self._epoch + 1, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is, as plain values: enough to give out exactly the batches that would have come."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return settings | {"epoch": self._epoch, "position": self._position, "key": self._key}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved loader was: the next `for` gives out the rest of its epoch.

        Between two epochs nothing is left; the next `for` then begins the next one. With `seed` None its key is drawn
        from `xpcnn.random`, whose state is saved and restored by whoever saves this one.

        Raises
        ------
        DataError
            `state` is not a state of a loader of this set and these options.
        """
        if not isinstance(state, Mapping):
            raise DataError(f"state: expected what DataLoader.state_dict() returned, got {type(state).__name__}")
        for name in _SETTINGS:
            if state.get(name, ...) != getattr(self, name):
                raise DataError(
                    f"state: expected {name} {getattr(self, name)}, got {state.get(name, 'none')!r:.40}; "
                    "make the loader as it was when the state was saved"
                )
        epoch, position, key = (state.get(name, ...) for name in ("epoch", "position", "key"))
        numbers = (epoch, position) if key is None else (epoch, position, key)
        most = 0 if key is None else len(self)
        if not all(type(number) is int and number >= 0 for number in numbers) or position > most:
            raise DataError(
                f"state: expected epoch, position and key of a loader, got {epoch!r:.40}, {position!r:.40}, {key!r:.40}"
            )
        self._epoch, self._position, self._key = epoch, position, key
        self._turn += 1
        self._goes_on = key is not None


def _check_channels(images: Any, transform: Callable[..., Any]) -> None:
    """Raise ShapeError for floats that look like (N, H, W, 3), where nothing says that they are."""
    first = transform.transforms[0] if isinstance(transform, Compose) and transform.transforms else transform
    if images.ndim != 4 or images.dtype.kind != "f" or type(first) is ChannelsFirst or not isinstance(first, Transform):
        return
    _, channels, height, width = images.shape
    if width in COLOURS and not {channels, height} & set(COLOURS):
        raise ShapeError(
            f"images: expected floats as (N, C, H, W), got {images.shape}, which looks like (N, H, W, C); "
            "give transform=xpcnn.data.ChannelsFirst(), first in a Compose"
        )


def _on_host(array: Any) -> Any:
    """Return a device's array as a host array; anything else as it is."""
    if isinstance(array, LazyImages):
        return array
    try:
        backend = backend_of(array)
    except DTypeError:
        return array
    return backend.to_numpy(array)


def _integer(name: str, value: Any, least: int) -> int:
    """Return an option that must be an integer of `least` or more."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ConfigError(f"{name}: expected an integer of {least} or more, got {value!r}")
    return number
