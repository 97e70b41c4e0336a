"""`CNNClassifier`: a network, its training and its validation as one estimator of scikit-learn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from xpcnn import nn, optim, random
from xpcnn.backend import use_backend
from xpcnn.data import DataLoader, ToFloat
from xpcnn.data.description import for_evaluation
from xpcnn.errors import ConfigError, DataError
from xpcnn.functional.precision import cast
from xpcnn.optim.groups import check_range
from xpcnn.sklearn.images import check_shape, fill_up, lay_out, standardize
from xpcnn.sklearn.networks import create
from xpcnn.training import EarlyStopping, Progress, Trainer
from xpcnn.training.predictor import BATCH, Forward
from xpcnn.windows import integer

_OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "sgd": lambda parameters, lr, weight_decay: optim.SGD(
        parameters, lr, momentum=0.9, weight_decay=weight_decay, nesterov=True
    ),
    "rmsprop": optim.RMSprop,
}
_SEEDS = 2**31 - 1


class CNNClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A convolutional network as a classifier of scikit-learn.

    X holds images, (N, H, W), (N, C, H, W) or (N, H, W, C), or their pixels as rows, (N, H*W), as scikit-learn's own
    tools want them; `image_shape` says how rows are laid out. Computes as the active backend, or `backend`, does.

    Parameters
    ----------
    model : str, Module or callable
        A name of `xpcnn.models`; a network, of which each `fit` trains a copy, from its values on; or a function that
        returns one. Functions are called with those of `num_classes`, `in_channels`, `image_size` and `input_shape`
        (C, H, W) that they have as arguments, else as function(input_shape, num_classes).
    image_shape : tuple of int, optional
        (H, W), (C, H, W) or (H, W, C) of one row. By default rows are squares of pixels, filled up with zeros.
    epochs, batch_size : int
    lr, weight_decay : float
    optimizer : str or callable
        "adam", "adamw", "sgd" (with Nesterov's momentum of 0.9) or "rmsprop"; or optimizer(parameters, lr) ->
        Optimizer.
    schedule : callable, optional
        schedule(optimizer, steps) -> Schedule, which counts batches.
    label_smoothing : float
    early_stopping : bool
        Keep a share of the samples apart, stop when the loss on them has not got better for `n_iter_no_change`
        epochs, and return to the best weights.
    validation_fraction : float
        That share, drawn so that each class has its part where that can be.
    n_iter_no_change : int
    image_transform : callable, optional
        As for `DataLoader`, from images as given (bytes stay bytes). By default they are standardised, by the mean and
        deviation of all pixels of the training set, and put into the middle of the network's smallest input. What is
        drawn at random is for training alone.
    random_state : int, RandomState or None
        Of initial values, order, dropout and the split.
    backend : str, optional
        Where to; the active backend by default.
    callbacks : sequence, optional
        Of the `Trainer`.
    verbose : int
        1 shows how the training goes.

    Attributes
    ----------
    classes_ : numpy.ndarray (K,)
    model_ : Module
        The trained network, in eval mode.
    history_ : History
    n_iter_ : int
        Epochs that it was trained for.
    image_shape_ : tuple of int
        Of one image as `image_transform_` takes it.
    image_transform_ : callable
        What brings images to the network; `training.save_model(clf.model_, path, classes=clf.classes_,
        transform=clf.image_transform_, image_shape=clf.image_shape_)` makes a file of it all.
    n_features_in_ : int
    feature_names_in_ : numpy.ndarray
        Where X has names.

    Raises
    ------
    ConfigError, DataError, ShapeError
        All of them also ValueError: a parameter, X or y is wrong, or the network does not fit the images.

    Notes
    -----
    Predictions are computed in float64: they do not depend on how many samples are predicted together.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from xpcnn.sklearn import CNNClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> classifier = CNNClassifier("lenet5", image_shape=(8, 8), epochs=5, random_state=0).fit(X[:1000], y[:1000])
    >>> bool(classifier.score(X[1000:], y[1000:]) > 0.9)
    True
    """

    def __init__(
        self,
        model: Any = "lenet5",
        *,
        image_shape: Sequence[int] | None = None,
        epochs: int = 20,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: Any = "adam",
        schedule: Any = None,
        label_smoothing: float = 0.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        image_transform: Any = None,
        random_state: Any = None,
        backend: str | None = None,
        callbacks: Sequence[Any] | None = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.image_shape = image_shape
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.image_transform = image_transform
        self.random_state = random_state
        self.backend = backend
        self.callbacks = callbacks
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # --- training ---------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> CNNClassifier:
        """Train the network.

        Parameters
        ----------
        X : array-like (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C)
        y : array-like (N,)
            Classes: numbers, strings or truth values, two of them or more.

        Returns
        -------
        CNNClassifier
            Itself.
        """
        self._check()
        X, y = validate_data(self, X, y, allow_nd=True, dtype=self._dtypes(), ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"y: expected two classes or more, got one class, {self.classes_[0]!r}")
        seed = int(check_random_state(self.random_state).randint(_SEEDS))
        with self._on_backend(), random.fork_rng():
            random.manual_seed(seed)
            self._fit(X, labels, seed)
        return self

    def _fit(self, X: np.ndarray, labels: np.ndarray, seed: int) -> None:
        self._shape = check_shape(X.shape[1:], self.image_shape)
        images = lay_out(X, self._shape)
        chosen, held = self._split(labels, seed)
        model, self._size = create(self.model, images.shape[1:], len(self.classes_), self.image_transform)
        transform = self.image_transform
        if transform is None:
            images = fill_up(images, self._size)
            transform = standardize(images[chosen], self._size)
        self.image_shape_ = images.shape[1:]
        optimizer = self._optimizer(model)
        size = min(self.batch_size, len(chosen))
        train = DataLoader(
            images[chosen],
            labels[chosen],
            size,
            seed=seed,
            transform=transform,
            drop_last=len(chosen) % size == 1,  # batch norm takes no single sample
        )
        validation = None
        callbacks = list(self.callbacks or ())
        if len(held):
            validation = DataLoader(
                images[held], labels[held], BATCH, shuffle=False, transform=for_evaluation(transform)
            )
            callbacks.append(EarlyStopping("validation_loss", patience=self.n_iter_no_change))
        if self.verbose:
            callbacks.append(Progress())
        trainer = Trainer(
            model,
            optimizer,
            nn.CrossEntropyLoss(label_smoothing=self.label_smoothing),
            schedule=None if self.schedule is None else self.schedule(optimizer, self.epochs * len(train)),
            schedule_every=None if self.schedule is None else "batch",
            callbacks=callbacks,
        )
        self.history_ = trainer.fit(train, validation, self.epochs)
        self.n_iter_ = trainer.epoch
        model.zero_grad()
        self.model_, self.image_transform_ = model.eval(), for_evaluation(transform) or ToFloat()
        self._forward = Forward(self.model_, "float64")

    def _split(self, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the samples to train on, and of those to validate on."""
        every = np.arange(len(labels))
        if not self.early_stopping:
            return every, every[:0]
        count = max(1, round(self.validation_fraction * len(labels)))
        if len(labels) - count < 2:
            raise DataError(
                f"X: expected more than {len(labels)} samples with early_stopping; some of them are held back"
            )
        fair = np.bincount(labels).min() > 1 and min(count, len(labels) - count) >= len(self.classes_)
        chosen, held = train_test_split(every, test_size=count, random_state=seed, stratify=labels if fair else None)
        return np.sort(chosen), np.sort(held)

    def _optimizer(self, model: nn.Module) -> optim.Optimizer:
        if callable(self.optimizer):
            made = self.optimizer(model.parameters(), self.lr)
            if not isinstance(made, optim.Optimizer):
                raise ConfigError(f"optimizer: expected it to return an optim.Optimizer, got {type(made).__name__}")
            return made
        return _OPTIMIZERS[self.optimizer](model.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def _check(self) -> None:
        integer("epochs", self.epochs, 1)
        integer("batch_size", self.batch_size, 2)
        integer("n_iter_no_change", self.n_iter_no_change, 1)
        check_range("lr", self.lr, 0.0)
        check_range("weight_decay", self.weight_decay, 0.0)
        if not callable(self.optimizer) and self.optimizer not in _OPTIMIZERS:
            raise ConfigError(
                f"optimizer: expected one of {', '.join(_OPTIMIZERS)}, or a function, got {self.optimizer!r:.60}"
            )
        if self.schedule is not None and not callable(self.schedule):
            raise ConfigError(f"schedule: expected schedule(optimizer, steps) -> Schedule, got {self.schedule!r:.60}")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction: expected a number from 0 to 1, got {self.validation_fraction!r}")

    # --- prediction -------------------------------------------------------------------------------------------------

    def predict(self, X: Any) -> np.ndarray:
        """Return the likeliest class of each sample, (N,).

        Parameters
        ----------
        X : array-like, as for `fit`
        """
        shares = self.predict_proba(X)
        found: np.ndarray = self.classes_[shares.argmax(axis=1)]
        return found

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities, float64 (N, K), of the classes in the order of `classes_`.

        Parameters
        ----------
        X : array-like, as for `fit`
        """
        check_is_fitted(self, "model_")
        X = validate_data(self, X, allow_nd=True, dtype=self._dtypes(), reset=False)
        images = lay_out(X, self._shape)
        if self.image_transform is None:
            images = fill_up(images, self._size)
        backend = self.model_.backend
        rows = []
        with use_backend(backend.name):
            for start in range(0, len(images), BATCH):
                x = self.image_transform_(backend.asarray(np.ascontiguousarray(images[start : start + BATCH])))
                rows.append(backend.to_numpy(self._forward(cast(backend, x, "float64"))))
        logits = np.concatenate(rows)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
        return found

    def _dtypes(self) -> list[Any]:
        """Return what X may be as it is; the rest becomes the first."""
        return [np.float32] if self.image_transform is None else [np.float32, np.uint8]

    def _on_backend(self) -> contextlib.AbstractContextManager[Any]:
        return use_backend(self.backend) if self.backend else contextlib.nullcontext()
