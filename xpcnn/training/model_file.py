"""A model as one file that stands alone: a safetensors file with the architecture in its metadata, as json.

Nothing in it is run: the architecture names classes of `xpcnn.nn`, or of the caller's own that he hands over, with
plain values for their arguments.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import xpcnn
from xpcnn import random
from xpcnn.backend import Array
from xpcnn.data.description import describe_transform, name_of, restore_transform
from xpcnn.datasets.source import read_file, shown
from xpcnn.errors import ConfigError, DataError, XpcnnError
from xpcnn.nn import Module
from xpcnn.nn.description import build, describe
from xpcnn.training.arrays import check_values, decode, encode, host_state, load_host_state
from xpcnn.training.files import check_format, write_bytes
from xpcnn.training.predictor import Predictor

FORMAT = "xpcnn model 1"
KEY = "xpcnn"  # in the metadata: one alone, for safetensors gives several in any order
_KINDS = ("float16", "float32", "float64")


def save_model(
    model: Module,
    path: str | os.PathLike[str],
    *,
    classes: Iterable[Any] | None = None,
    transform: Callable[[Array], Array] | None = None,
    image_shape: Sequence[int] | None = None,
    fit: str = "crop",
    digits: bool = False,
    average_shifts: int = 0,
) -> None:
    """Write a model with all that it takes to use it to one file, whole or not at all.

    Parameters
    ----------
    model : Module
        Of layers of `xpcnn.nn`, and of one's own that keep each argument of their constructor in an attribute of the
        same name. Its modes stay as they are.
    path : str or os.PathLike
    classes, transform, image_shape, fit, digits, average_shifts
        As for `Predictor`. Of the transform, what is drawn at random is for training, and is left out. Functions and
        transforms of one's own are kept by name.

    Raises
    ------
    ConfigError
        A layer or transform cannot be described, or an argument is wrong.
    DataError
        The file cannot be written; what was there before is untouched.

    Notes
    -----
    The file is a safetensors file with the arrays of `state_dict`. Its metadata holds, under "xpcnn", a json object:
    `format`, `version` of the library, `model` (`nn.description`), `classes`, `transform`, `image_shape`, `fit`,
    `digits`, `average_shifts`, `input_shape`, and a SHA-256 of all of it and the arrays.

    Examples
    --------
    >>> from xpcnn import training
    >>> from tempfile import TemporaryDirectory
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> with TemporaryDirectory() as folder:
    ...     training.save_model(model, f"{folder}/m.safetensors", classes=["cat", "dog"], image_shape=(2, 2))
    ...     predict = training.load_model(f"{folder}/m.safetensors")
    ...
    >>> predict.classes
    ['cat', 'dog']
    """
    used = Predictor(  # checks all
        model,
        classes=classes,
        transform=transform,
        image_shape=image_shape,
        fit=fit,
        digits=digits,
        average_shifts=average_shifts,
    )
    arrays = host_state(model)
    described = describe(model)
    _check_rebuilt(model, described, arrays)
    shape = model._sample_shape
    content = {
        "format": FORMAT,
        "version": xpcnn.__version__,
        "model": described,
        "classes": used.classes,
        "transform": None if used.transform is None else describe_transform(used.transform),
        "image_shape": None if used.image_shape is None else list(used.image_shape),
        "fit": fit,
        "digits": digits,
        "average_shifts": used.average_shifts,
        "input_shape": None if shape is None else list(shape),
    }
    content["sha256"] = _digest(content, arrays)
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    write_bytes(path, encode(arrays, {KEY: text}))


def load_model(path: str | os.PathLike[str], *, layers: Iterable[Any] = ()) -> Predictor:
    """Read a model that `save_model` wrote, on the active backend, in eval mode.

    Parameters
    ----------
    path : str or os.PathLike
    layers : sequence
        Classes of one's own that the model has layers of, and functions or transforms of one's own in its transform.

    Returns
    -------
    Predictor
        With `.model`, `.classes`, `.transform`.

    Raises
    ------
    ConfigError
        `layers` holds something else.
    DataError
        The file is not there, is damaged, is of a newer xpcnn, holds parameters alone, or names a layer or transform
        that is neither the library's nor in `layers`.

    Examples
    --------
    >>> from xpcnn import training
    >>> from tempfile import TemporaryDirectory
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> with TemporaryDirectory() as folder:
    ...     training.save_model(model, f"{folder}/m.safetensors", classes=["cat", "dog"], image_shape=(2, 2))
    ...     predict = training.load_model(f"{folder}/m.safetensors")
    ...
    >>> predict(np.zeros((1, 2, 2), "uint8"))[0].label
    'cat'
    """
    source = shown(path)
    content = read_file(path, "model file")
    arrays = decode(content, source)
    about = _metadata(content, source)
    classes, transforms = _own(layers)
    with _naming(source):
        if about.pop("sha256", None) != _digest(about, arrays):
            raise DataError("damaged: its SHA-256 is another; copy it again")
        check_values(arrays, source)
        kinds = {name: (tuple(array.shape), str(array.dtype)) for name, array in arrays.items()}
        for name, (_, dtype) in kinds.items():
            if dtype not in _KINDS and name.rpartition(".")[2] != "num_batches_tracked":
                raise DataError(f"expected floating arrays, got {name!r:.80} as {dtype}")
        with random.fork_rng():  # constructors of the user's own may draw
            model = build(about.get("model"), kinds, classes).eval()
        found = about.get("transform")
        made = Predictor(
            model,
            classes=about.get("classes"),
            transform=None if found is None else restore_transform(found, transforms),
            image_shape=about.get("image_shape"),
            fit=about.get("fit", "crop"),
            digits=about.get("digits", False),
            average_shifts=about.get("average_shifts", 0),
        )
        shape = about.get("input_shape")
        if isinstance(shape, list) and all(type(each) is int and each > 0 for each in shape):
            model._sample_shape = tuple(shape)
    load_host_state(model, arrays, source)
    return made


def is_model_file(path: str | os.PathLike[str]) -> bool:
    """Say whether a file holds an architecture beside the arrays.

    Raises
    ------
    DataError
        It cannot be read, or is no safetensors file.
    """
    content = read_file(path, "model file")
    return KEY in _header(content, shown(path))


def _header(content: bytes, source: str) -> dict[str, Any]:
    """Return the metadata of a safetensors file that `decode` has read."""
    try:
        size = int.from_bytes(content[:8], "little")
        found = json.loads(content[8 : 8 + size]).get("__metadata__")
    except (ValueError, RecursionError, AttributeError) as error:
        raise DataError(f"{source}: expected a safetensors file, got a damaged one") from error
    return found if isinstance(found, dict) else {}


def _metadata(content: bytes, source: str) -> dict[str, Any]:
    found = _header(content, source)
    if KEY not in found:
        raise DataError(
            f"{source}: expected a model file, got parameters without an architecture; make the network and read them "
            "with load_parameters, then save_model"
        )
    try:
        about = json.loads(found[KEY], parse_constant=_refuse)
    except (ValueError, RecursionError, TypeError) as error:
        raise DataError(f"{source}: damaged: {str(error).splitlines()[0]:.80}") from error
    if not isinstance(about, dict):
        raise DataError(f"{source}: damaged: expected an object in its metadata, got {about!r:.40}")
    check_format(source, about.get("format"), FORMAT)
    return about


def _refuse(constant: str) -> Any:
    raise ValueError(f"expected finite numbers, got {constant}")


def _digest(content: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """Return a SHA-256 of the description and of all arrays, in the order of their names."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode("utf-8", "backslashreplace"))
        digest.update(array.data if array.flags.c_contiguous else array.tobytes())
    return digest.hexdigest()


def _own(layers: Iterable[Any]) -> tuple[list[type[Module]], dict[str, Any]]:
    """Return which of the caller's own are classes of layers, and transforms by name."""
    classes: list[type[Module]] = []
    transforms: dict[str, Any] = {}
    if isinstance(layers, type) or not isinstance(layers, Iterable):
        raise ConfigError(f"layers: expected a sequence of classes, got {layers!r:.60}")
    for each in layers:
        if isinstance(each, type) and issubclass(each, Module):
            classes.append(each)
        elif callable(each) and not isinstance(each, (type, Module)):
            transforms[name_of(each)] = each
        else:
            raise ConfigError(
                f"layers: expected subclasses of xpcnn.nn.Module, or transforms as they are called, got {each!r:.60}"
            )
    return classes, transforms


def _check_rebuilt(model: Module, described: Any, arrays: Mapping[str, Any]) -> None:
    """Check that a description gives the same parameters and buffers again.

    Raises
    ------
    ConfigError
        It does not.
    """
    kinds = {name: (tuple(array.shape), str(array.dtype)) for name, array in arrays.items()}
    custom = list(dict.fromkeys(type(module) for module in model.modules()))
    try:
        with random.fork_rng():
            again = build(described, kinds, custom)
        found = {name: (tuple(array.shape), str(array.dtype)) for name, array in again.state_dict().items()}
    except DataError as error:
        raise ConfigError(f"model: cannot be made again from its constructors' arguments: {error}") from error
    if found != kinds:
        name = min(name for name in found.keys() | kinds.keys() if found.get(name) != kinds.get(name))
        raise ConfigError(
            f"model: expected {name!r} as its constructors' arguments make it, {found.get(name, 'not at all')}, got "
            f"{kinds.get(name, 'none')}; was it changed after it was made?"
        )


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    """Let errors of what a file says name the file."""
    try:
        yield
    except XpcnnError as error:
        text = str(error)
        raise DataError(text if text.startswith(source) else f"{source}: {text}") from error
