"""A trained model with what it takes to use it: from pictures as people have them to names with probabilities."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from xpcnn import functional as F
from xpcnn import random
from xpcnn.backend import Array, backend_of, get_backend, use_backend
from xpcnn.backend.graph import guards
from xpcnn.data import ToFloat
from xpcnn.data.description import for_evaluation
from xpcnn.datasets.stored import Sizes, Stored
from xpcnn.errors import ConfigError, DataError, ShapeError, XpcnnError
from xpcnn.functional.layout import plain
from xpcnn.nn import Conv2d, Inference, Linear, Module, Sequential, Softmax
from xpcnn.nn.parameter import clock
from xpcnn.training.evaluation import evaluating, fastest_forward
from xpcnn.training.shifts import mean_over_shifts
from xpcnn.windows import integer

BATCH = 250  # images; activations of this many stay in a CPU's cache longest


# Not as a class: its annotations would be strings, which tools that read signatures cannot resolve.
_Fields = NamedTuple("_Fields", [("label", Any), ("probability", float), ("probabilities", Any)])  # noqa: UP014


class Prediction(_Fields):
    """What a model says of one picture.

    Attributes
    ----------
    label : str or int
        The likeliest class: its name, or its number where the classes have no names.
    probability : float
        Of that class.
    probabilities : numpy.ndarray
        (K,), of all classes in their order.

    Examples
    --------
    >>> from xpcnn import training
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> predict = training.Predictor(model, classes=["cat", "dog"], image_shape=(2, 2))
    >>> (found,) = predict(np.zeros((1, 2, 2), "uint8"))
    >>> found.label, found.probability, found.top(1)
    ('cat', 0.5, [('cat', 0.5)])
    """

    classes: Sequence[Any] | None = None

    def top(self, count: int = 5) -> list[tuple[Any, float]]:
        """Return (label, probability) of the likeliest classes, the likeliest first."""
        order = sorted(range(len(self.probabilities)), key=lambda i: -float(self.probabilities[i]))[:count]
        return [(i if self.classes is None else self.classes[i], float(self.probabilities[i])) for i in order]

    def __repr__(self) -> str:
        return f"Prediction({self.label!r}, {self.probability:.4f})"

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(str(label))}</td><td>{share:.4f}</td><td>"
            f'<div style="background:#4878d0;height:.8em;width:{100 * share:.1f}px"></div></td></tr>'
            for label, share in self.top()
        )
        return f"<table><tr><th>label</th><th>probability</th><th></th></tr>{rows}</table>"


class Predictor:
    """Names what pictures show: `predictor(images) -> list of Prediction`.

    Parameters
    ----------
    model : Module
        It gives logits (N, K), or probabilities where it ends in `nn.Softmax`; of one logit (N, 1), the sigmoid is the
        probability of the second of two classes. Its modes stay as they are.
    classes : sequence of str or int, optional
        Names of the classes in their order; numbers from 0 by default.
    transform : callable, optional
        From images as stored to what the model takes, as for `DataLoader`, which has the same default. What it draws at
        random is for training, and left out.
    image_shape : tuple of int, optional
        Of one image as stored, (H, W), (C, H, W) or (H, W, C): pictures are brought to it. By default it follows from
        what the model was called with last; where that is not known, pictures stay as large as they are.
    fit : str
        How a picture of another shape is brought to that size, as for `datasets.load_folder`.
    digits : bool
        Whether pictures are photographs of digits, of which MNIST's form is made (`datasets.load_image`).
    batch_size : int
        Images that go through the model together.
    average_shifts : int
        Where it is above 0, the probabilities are the mean over an image, as the model takes it, and its shifts by so
        many pixels in the eight directions, which repeat the edge. Takes nine times as long; of most use to networks
        of few layers with pooling.

    Notes
    -----
    It holds the model as it is used (`nn.Inference`), made anew where the library has changed the model since. What the
    user writes into its arrays himself is seen by a new `Predictor`. Threads may share it.

    Examples
    --------
    >>> from xpcnn import training
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> predict = training.Predictor(model, classes=["cat", "dog"], image_shape=(2, 2))
    >>> found = predict(np.zeros((3, 2, 2), "uint8"))
    >>> [each.label for each in found]
    ['cat', 'cat', 'cat']
    """

    def __init__(
        self,
        model: Module,
        *,
        classes: Iterable[Any] | None = None,
        transform: Callable[[Array], Array] | None = None,
        image_shape: Sequence[int] | None = None,
        fit: str = "crop",
        digits: bool = False,
        batch_size: int = BATCH,
        average_shifts: int = 0,
    ) -> None:
        if not isinstance(model, Module):
            raise ConfigError(f"model: expected an nn.Module, got {type(model).__name__}")
        if transform is not None and not callable(transform):
            raise ConfigError(f"transform: expected a callable such as xpcnn.data.ToFloat(), got {transform!r:.60}")
        self.model = model
        self.classes = None if classes is None else check_classes(classes)
        self.transform = transform if transform is None else for_evaluation(transform)
        self.batch_size = integer("batch_size", batch_size, 1)
        self.average_shifts = integer("average_shifts", average_shifts, 0)
        shape: Any = image_shape
        if shape is None and not digits:
            with use_backend(model.backend.name):
                shape = infer_image_shape(model, self.prepare)
        self.stored = Stored(shape, fit, digits)
        self._forward = Forward(model)

    def __repr__(self) -> str:
        classes = "unnamed classes" if self.classes is None else f"{len(self.classes)} classes"
        return f"Predictor({type(self.model).__name__}, {classes}, {self.transform!r}, {self.stored!r})"

    @property
    def image_shape(self) -> Sizes | None:
        """Shape of one image as stored, with None for sizes that may be any; None where nothing is known."""
        return self.stored.image_shape

    def __call__(self, images: Any) -> list[Prediction]:
        """Say what pictures show.

        Parameters
        ----------
        images : path, PIL image, array, or sequence of any of these
            Of one picture or several. An array holds images as stored, (H, W), (C, H, W) or (H, W, C), or several of
            them along a first axis; one of bytes in another size is brought to the model's as a picture is.

        Returns
        -------
        list of Prediction
            In the order of the images.

        Raises
        ------
        DataError, ShapeError, DTypeError
            A picture cannot be read, or an array is none that the model takes; nothing is returned then.
        """
        found: list[Prediction] = []
        for rows in self._probabilities(images):
            for row in rows:
                best = int(row.argmax())
                label = best if self.classes is None else self.classes[best]
                made = Prediction(label, float(row[best]), row)
                made.classes = self.classes
                found.append(made)
        return found

    def probabilities(self, images: Any) -> Array:
        """Return probabilities (N, K) on the model's backend, of images as `__call__` takes them."""
        backend = self.model.backend
        rows = [backend.asarray(rows) for rows in self._probabilities(images)]
        if not rows:
            raise DataError("images: expected one or more, got none")
        return backend.xp.concatenate(rows)

    def prepare(self, batch: Array) -> Array:
        """Return what the model takes for images as stored."""
        if self.transform is not None:
            return self.transform(batch)
        return ToFloat()(batch) if batch.ndim > 2 else backend_of(batch).asarray(batch, "float32")  # (N, D): features

    def _probabilities(self, images: Any) -> Iterator[Any]:
        """Yield probabilities (n, K) of the images, batch by batch, on the host."""
        backend = self.model.backend

        def shares(x: Array) -> Array:
            return to_probabilities(self.model, self._forward(x))

        for batch in self.stored.batches(images, self.batch_size):
            with use_backend(backend.name):
                x = self.prepare(backend.asarray(batch))
                rows = backend.to_numpy(mean_over_shifts(shares, x, self.average_shifts))
            if self.classes is not None and rows.shape[1] != len(self.classes):
                raise ShapeError(
                    f"classes: expected {rows.shape[1]}, as many as the model tells apart, got {self.classes}"
                )
            yield rows


class Forward:
    """A model's forward in evaluation mode, as fast as it gets; a change by the library is seen at the next call.

    Parameters
    ----------
    model : Module
    dtype : str, optional
        What to compute in, on a copy of the model.
    """

    def __init__(self, model: Module, dtype: str | None = None) -> None:
        self.model, self.dtype = model, dtype
        self._held: tuple[Any, Module, Callable[[Array], Array]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_held": None}

    def __call__(self, x: Array) -> Array:
        """Return y for x."""
        held, now = self._held, (clock.now, guards.version[0])
        if held is None or held[0] != now:
            model = self.model if self.dtype is None else copy.deepcopy(self.model).to(dtype=self.dtype)
            forward = fastest_forward(model)
            held = self._held = (clock.now, guards.version[0]), model, forward  # making it is no change of the model
        _, model, forward = held
        try:
            if isinstance(forward, Inference):
                return forward(x)
            with evaluating(model):
                return forward(x)
        except XpcnnError:
            with evaluating(model):
                model(x)  # raises the same, and names the layer, which the inference form cannot
            raise


class Predicting:
    """What a trainer knows of the images of its loaders, to predict others like them."""

    def __init__(self) -> None:
        self._transform: Callable[[Array], Array] | None = None
        self._floats = False
        self._known = False
        self._made: Predictor | None = None
        self._made_of: tuple[Any, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_made": None, "_made_of": ()}

    def look_at(self, model: Module, *loaders: Any) -> None:
        """Remember the transform of the first that has images and one; the model remembers the shape of its images."""
        for loader in loaders:
            dtype, transform = (
                getattr(getattr(loader, "images", None), "dtype", None),
                getattr(loader, "transform", None),
            )
            if dtype is not None and callable(transform):
                self._transform, self._floats, self._known = transform, dtype.kind == "f", True
                model._stored_shape = tuple(loader.images.shape[1:])
                return

    def probabilities(self, model: Module, images: Any, batch_size: int) -> Array:
        """Return probabilities (N, K)."""
        floats = hasattr(images, "dtype") and images.dtype.kind == "f"
        transform = self._transform
        if floats and self._known and not self._floats:
            transform = _as_it_is
        wanted = model, transform, batch_size, model._sample_shape
        if self._made is None or self._made_of != wanted:
            self._made, self._made_of = Predictor(model, transform=transform, batch_size=batch_size), wanted
        return self._made.probabilities(images)


def _as_it_is(batch: Array) -> Array:
    return batch


def to_probabilities(model: Module, y: Array) -> Array:
    """Return what a model gives as probabilities (N, K).

    Raises
    ------
    ShapeError
        It gives no logits of classes.
    """
    if y.ndim != 2:
        raise ShapeError(f"model: expected one that gives logits (N, K), got an array of shape {tuple(y.shape)}")
    if y.shape[1] == 1:  # of one logit
        second, _ = F.sigmoid(y)
        return backend_of(y).xp.concatenate([1 - second, second], axis=1)  # (N, 2)
    return y if _ends_in_softmax(model) else F.softmax(y)


def _ends_in_softmax(model: Module) -> bool:
    while isinstance(model, Sequential) and len(model):
        model = model[-1]
    return isinstance(model, Softmax)


def check_classes(classes: Iterable[Any]) -> list[Any]:
    """Return names of classes as strings or numbers.

    Raises
    ------
    ConfigError
        They are none, or one is there twice.
    """
    if isinstance(classes, str) or not hasattr(classes, "__iter__"):
        raise ConfigError(f"classes: expected a sequence of names, got {classes!r:.60}")
    found = [plain(each) for each in classes]
    for each in found:
        if not isinstance(each, (str, int, float)) or each != each:
            raise ConfigError(f"classes: expected strings or numbers, got {each!r:.60}")
    if not found or len(set(found)) < len(found):
        twice = next((each for each in found if found.count(each) > 1), None)
        raise ConfigError(
            "classes: expected one or more, all different, got " + (f"{twice!r} twice" if found else "none")
        )
    return found


def infer_image_shape(model: Module, prepare: Callable[[Array], Array]) -> Sizes | None:
    """Return the shape of the images of which `prepare` makes what a model was called with last, as far as is known."""
    wanted = model._sample_shape
    if wanted is None or len(wanted) != 3:
        if wanted is not None and len(wanted) == 1:
            return wanted
        first = next((module for module in model.modules() if isinstance(module, (Conv2d, Linear))), None)
        return (first.in_channels, None, None) if isinstance(first, Conv2d) else None
    known = model._stored_shape
    if known is not None and _prepared(prepare, known) == wanted:
        return known
    channels, *size = wanted
    for stored in dict.fromkeys((channels, 1, 3, 4)):
        for last in (False, True):
            found = _before(prepare, wanted, stored, size, last)
            if found is not None:
                return found
    return None


def _before(
    prepare: Callable[[Array], Array], wanted: tuple[int, ...], channels: int, size: Sequence[int], last: bool
) -> Sizes | None:
    """Return the shape of images of so many channels that become `wanted`; a border is found by what it adds."""
    height, width = size
    for _ in range(2):
        if min(height, width) < 1:
            return None
        shape = (height, width, channels) if last else (channels, height, width)
        found = _prepared(prepare, shape)
        if found == wanted:
            return shape
        if found is None or len(found) != 3:
            return None
        height, width = height - found[1] + wanted[1], width - found[2] + wanted[2]
    return None


def _prepared(prepare: Callable[[Array], Array], image_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that an image gets; None where a transform, such as one of the user's own, takes no such one."""
    try:
        with random.fork_rng():
            return tuple(prepare(get_backend().zeros((1, *image_shape), "uint8")).shape[1:])
    except Exception:  # whatever it stumbles over
        return None
