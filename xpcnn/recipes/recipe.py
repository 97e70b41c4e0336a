"""What a recipe is: a network with its data, initial values, update rule, batch size and length of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from xpcnn.data import Compose, DataLoader
from xpcnn.data.transforms import Transform
from xpcnn.datasets import Dataset, to_categorical
from xpcnn.models import create
from xpcnn.nn import CrossEntropyLoss, Module
from xpcnn.optim import Optimizer, Schedule

CLASSES = 10  # of MNIST and of CIFAR-10, and the fewest that a network is made for
EVALUATION_BATCH = 250  # images; activations of this many stay in a CPU's cache longest


class Splits(NamedTuple):
    """The parts of a set; where there is no validation part, the test set is looked at after each epoch."""

    train: Dataset
    validation: Dataset | None
    test: Dataset


@dataclass(frozen=True)
class Recipe:
    """One line of the table of recipes.

    Attributes
    ----------
    name, network : str
        What the command line calls it, and its layers in short.
    model, options : str, mapping
        Arguments of `xpcnn.models.create`.
    transforms : mapping of str to Transform
        What brings a batch of each kind of data ("mnist", "cifar10") to the network's input.
    split : callable
        split(train, test) -> Splits, of the sets as the files have them.
    optimizer : callable
        optimizer(model) -> Optimizer.
    schedule : callable or None
        schedule(optimizer, total number of steps) -> Schedule, which counts batches.
    batch_size, epochs : int
    steps_per_epoch : int or None
        Batches are drawn with replacement, so many an epoch; otherwise an epoch is the shuffled set.
    reduction : str
        Of the loss over the batch: "mean" or "sum".
    label_smoothing : float
        The share of a label that is spread over all classes, in training.
    one_hot : bool
        Whether labels are given as one-hot rows.
    log_every : int
        Steps between two plain lines.
    as_written : mapping
        What `as_written=True` puts in the place of these attributes.
    on : mapping of str to mapping
        What a kind of data puts in their place.
    classes : int
        Of the data: 10, or more for letters.
    augment : tuple of callable
        What changes the images that are trained on, before the transform.
    image_size : int
        Pixels a side of the images that the network takes where it is not built to others.
    callbacks : callable
        callbacks() -> those of the trainer that belong to the recipe.
    validates : bool
        Whether the test set is looked at after each epoch where there is no validation part.
    average_shifts : int
        Pixels by which images are shifted for an evaluation, as for `Predictor`.
    built_to : (channels, height, width) or None
        Images of the user's own, as stored, to which the network is built.
    lr_scale : float
        What a batch smaller than the recipe's makes of the optimiser's learning rate.
    accuracy, relative_time : float
        The mean test accuracy of five seeds, and the time of the whole training with `lenet5`'s as 1, as
        `python -m bench.seeds` measures them.
    """

    name: str
    network: str
    model: str
    transforms: Mapping[str, Transform]
    split: Callable[[Dataset, Dataset], Splits]
    optimizer: Callable[[Module], Optimizer]
    batch_size: int
    epochs: int
    accuracy: float
    relative_time: float
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Callable[[Optimizer, int], Schedule] | None = None
    steps_per_epoch: int | None = None
    reduction: str = "mean"
    label_smoothing: float = 0.0
    one_hot: bool = False
    log_every: int = 50
    as_written: Mapping[str, Any] = field(default_factory=dict)
    on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    classes: int = CLASSES
    augment: tuple[Callable[..., Any], ...] = ()
    image_size: int = 28
    callbacks: Callable[[], Sequence[Any]] = tuple
    validates: bool = True
    average_shifts: int = 0
    built_to: tuple[int, int, int] | None = None
    lr_scale: float = 1.0

    def written(self) -> Recipe:
        """Return the recipe with the document's own initial values and rates."""
        return replace(self, **self.as_written)

    def for_data(self, kind: str) -> Recipe:
        """Return the recipe as it is for a kind of data."""
        return replace(self, **self.on.get(kind, {}))

    def for_classes(self, count: int) -> Recipe:
        """Return the recipe with a network for so many classes."""
        return replace(self, classes=count)

    def create_model(self) -> Module:
        """Return a new network on the active backend."""
        return create(self.model, **{"num_classes": self.classes, **self.options, **self._sizes()})

    def _sizes(self) -> dict[str, Any]:
        """Return the options that build the network to images of the user's own."""
        if self.built_to is None:
            return {}
        channels, height, width = self.built_to
        return {"in_channels": channels, "image_size": (height, width)}

    def create_criterion(self) -> CrossEntropyLoss:
        """Return the loss."""
        return CrossEntropyLoss(reduction=self.reduction, label_smoothing=self.label_smoothing)

    def train_loader(self, dataset: Dataset, kind: str, batch_size: int | None = None) -> DataLoader:
        """Return the batches to train on, of data of one kind."""
        size = batch_size or self.batch_size
        return DataLoader(
            dataset.images,
            self._labels(dataset),
            size,
            drop_last=len(dataset) % size == 1 < len(dataset) and size > 1,  # batch norm makes nothing of one image
            replacement=self.steps_per_epoch is not None,
            batches_per_epoch=self.steps_per_epoch,
            transform=Compose(*self.augment, self.transforms[kind]) if self.augment else self.transforms[kind],
        )

    def evaluation_loader(self, dataset: Dataset, kind: str) -> DataLoader:
        """Return the batches to evaluate on, in their order."""
        return DataLoader(
            dataset.images, self._labels(dataset), EVALUATION_BATCH, shuffle=False, transform=self.transforms[kind]
        )

    def input_shape(self, kind: str | None = None) -> tuple[int, ...]:
        """Return the shape of one image as the network takes it."""
        from xpcnn.backend import get_backend

        kind = kind or next(iter(self.transforms))
        if self.built_to is not None:
            return self.built_to
        stored = (1, 28, 28) if kind == "mnist" else (1, 3, 32, 32)
        return tuple(self.transforms[kind](get_backend().zeros(stored, "uint8")).shape[1:])

    def _labels(self, dataset: Dataset) -> Any:
        return to_categorical(dataset.labels, self.classes) if self.one_hot else dataset.labels


def on_test(train: Dataset, test: Dataset) -> Splits:
    """Train on the whole training set."""
    return Splits(train, None, test)


def hold_out(share: float) -> Callable[[Dataset, Dataset], Splits]:
    """Return a split that keeps the last `share` of the training set for validation."""

    def split(train: Dataset, test: Dataset) -> Splits:
        first, rest = train.split(round(len(train) * (1 - share)))
        return Splits(first, rest, test)

    return split
