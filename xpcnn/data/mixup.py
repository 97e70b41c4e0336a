"""`MixUp`: images and labels mixed in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xpcnn.backend import Array, Backend, backend_of
from xpcnn.data.stage import Stage, to_float
from xpcnn.errors import ConfigError, DataError
from xpcnn.functional.layout import batch_first


@dataclass(frozen=True)
class MixUp(Stage):
    """Mix each image and its label with another of the batch; labels become rows (N, K).

    Parameters
    ----------
    alpha : float
        A batch's share comes from Beta(alpha, alpha): the smaller, the nearer to 0 or 1.
    num_classes : int, optional
        Of labels that are class indices; rows (N, K) need none.

    Notes
    -----
    x = share x + (1 - share) x[order], and labels alike; one share and one order of the images for a batch.

    References
    ----------
    H. Zhang et al., "mixup: beyond empirical risk minimization", arXiv:1710.09412.

    Examples
    --------
    >>> from xpcnn import data
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")
    >>> loader = data.DataLoader(images, np.arange(4), 2, transform=data.MixUp(0.2, num_classes=4))
    >>> x, y = next(iter(loader))
    >>> x.shape, y.shape, y.sum(axis=1).round(3)
    ((2, 3, 32, 32), (2, 4), array([1., 1.], dtype=float32))
    """

    alpha: float = 1.0
    num_classes: int | None = None
    labels = True

    def __post_init__(self) -> None:
        alpha, classes = self.alpha, self.num_classes
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
            raise ConfigError(f"alpha: expected a number above 0, got {alpha!r}")
        if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int) or classes < 1):
            raise ConfigError(f"num_classes: expected an integer of 1 or more, got {classes!r}")

    def draw(self, rng: Any, count: int, image: tuple[int, ...]) -> tuple[Any, ...]:
        """Return the share of a batch, a float, and the order of the images to mix in, int64 (N,)."""
        return float(rng.beta(self.alpha, self.alpha)), rng.permutation(count)

    def check_labels(self, labels: Any) -> None:
        """Check a loader's labels, on the host.

        Raises
        ------
        ConfigError, DataError
            They are indices and `num_classes` is not given, or one is too large.
        """
        if labels.ndim == 1 and self.num_classes is None:
            raise ConfigError("num_classes: MixUp needs it for labels that are class indices: MixUp(num_classes=10)")
        if labels.ndim == 1 and int(labels.max()) >= int(self.num_classes or 0):
            raise DataError(f"labels: expected class indices below MixUp's {self.num_classes}, got {labels.max()}")

    def run_stage(self, x: Array, labels: Array | None, rng: Any) -> tuple[Array, Array | None]:
        share, order = self.draw(rng, int(x.shape[0]), ())
        return self.change(backend_of(x), x, share, order), self.mix_labels(labels, share, order)

    def change(self, backend: Backend, x: Array, *draws: Any) -> Array:
        share, order = draws
        memory = to_float(x).transpose(1, 2, 3, 0)  # (C, H, W, N)
        other = backend.xp.take(memory, backend.asarray(order), axis=3)
        backend.xp.multiply(other, 1 - share, out=other)
        backend.xp.multiply(memory, share, out=memory)
        return batch_first(backend.xp.add(memory, other, out=memory))

    def mix_labels(self, labels: Array, share: float, order: Any) -> Array:
        """Return rows of probabilities, float32 (N, K)."""
        backend = backend_of(labels)
        if labels.ndim == 1:
            if self.num_classes is None:
                self.check_labels(labels)
            classes = backend.xp.arange(0, self.num_classes, dtype="int64")
            rows = (labels.reshape(-1, 1) == classes).astype("float32")  # (N, K)
        else:
            rows = labels.astype("float32")
        return rows * share + backend.xp.take(rows, backend.asarray(order), axis=0) * (1 - share)
