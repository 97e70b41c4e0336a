"""What `train` leaves, ready to be used: the model file of a run folder or any other, and data to test it on."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from xpcnn.backend import use_backend
from xpcnn.datasets import Dataset, load_folder
from xpcnn.datasets.dataset import fingerprint
from xpcnn.datasets.source import look_at, shown
from xpcnn.datasets.stored import MODE_OF
from xpcnn.datasets.tree import has_pictures
from xpcnn.errors import ConfigError, DataError
from xpcnn.recipes import folder as folders
from xpcnn.recipes import sources
from xpcnn.recipes.pictures import TEST_SHARE, hold_out
from xpcnn.recipes.runs import load_model
from xpcnn.training import Predictor
from xpcnn.training import load_model as load_model_file
from xpcnn.training.model_file import is_model_file

_KINDS = ("mnist", "cifar10")


def load_predictor(source: str | os.PathLike[str], *, backend: str | None = None) -> Predictor:
    """Return the predictor of a model file or of a run folder.

    Parameters
    ----------
    source : str or os.PathLike
        A file of `training.save_model`, or a folder that `run(..., out=folder)` or `xpcnn train` left.
    backend : str, optional
        Where to; the active backend by default.

    Raises
    ------
    DataError
        It is not there, damaged or unfinished.
    """
    path = Path(source)
    if look_at(path) != "file":
        folders.read(path)
        path = path / folders.MODEL
        if not look_at(path) or not is_model_file(path):  # unfinished, or of before there were model files
            model, recipe, _, kind = load_model(source, backend=backend)
            return Predictor(
                model,
                transform=recipe.transforms[kind],
                digits=kind == "mnist",
                average_shifts=recipe.average_shifts,
            )
    with use_backend(backend) if backend else contextlib.nullcontext():
        return load_model_file(path)


def holds_pictures(data: str | None) -> bool:
    """Say whether `data` is a folder of sub-folders or with a table, and none of MNIST's or CIFAR-10's files."""
    return data is not None and look_at(data) == "folder" and not sources.is_set(data) and has_pictures(data)


def load_test_set(data: str | None, predictor: Predictor, run: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the images and labels on which a model is to be tested, with the model's classes.

    Parameters
    ----------
    data : str or None
        A folder of pictures, one sub-folder a class (its part "test" or "val", where it has parts); or as for `run`.
        None is the carried MNIST, for models of photographed digits.
    predictor : Predictor
    run : str or os.PathLike, optional
        The run folder that it is of: of the pictures of that run, wherever they lie now, those alone are taken that it
        was not trained on.

    Raises
    ------
    ConfigError
        None is given for a model of anything else.
    DataError
        The data is not there or damaged, or has classes or images that the model does not know.
    """
    stored = predictor.stored
    if data is None and not stored.digits:
        raise ConfigError(
            "data: expected the data to test on, such as a folder with one sub-folder of pictures a class"
        )
    if data is not None and holds_pictures(data):
        if stored.channels not in MODE_OF:
            raise DataError(f"{shown(data)}: the model takes images of shape {stored.image_shape}, and no pictures")
        settings, content = (None, {}) if run is None else folders.read(run)
        broken = "skip" if settings is not None and settings.skip_broken else "raise"
        found = load_folder(data, size=stored.size, mode=MODE_OF[stored.channels], fit=stored.fit, broken=broken)
        test = found[-1] if isinstance(found, tuple) else _unseen(found, content.get("data"))
    else:
        test = sources.load(data, _KINDS, "of the model")[2]
    return _with_classes(test, predictor, "mnist" if data is None else data)


def _unseen(dataset: Dataset, about: Any) -> Dataset:
    """Return what a run whose run.json says this `about` its data held out of a set; all of one that is not the run's.

    A set of other pictures has another fingerprint.
    """
    recorded = about.get("sha256") if isinstance(about, dict) else None
    with contextlib.suppress(DataError):  # a class of one picture: nobody trained on that
        train, test = hold_out(dataset, TEST_SHARE)
        if fingerprint(train, test) == recorded:
            return test
    return dataset


def _with_classes(test: Dataset, predictor: Predictor, data: str) -> Dataset:
    """Return a set whose labels number the classes of a predictor."""
    if test.classes is None or predictor.classes is None:
        return test
    numbers = {str(name): number for number, name in enumerate(predictor.classes)}
    strange = [name for name in test.classes if name not in numbers]
    if strange:
        raise DataError(
            f"{shown(data)}: expected the model's classes, {', '.join(numbers)!s:.100}, got also {strange[0]!r:.60}"
        )
    mine = [numbers[name] for name in test.classes]
    labels = test.labels.copy()
    for theirs, number in enumerate(mine):
        labels[test.labels == theirs] = number
    return replace(test, labels=labels, classes=[str(name) for name in predictor.classes])
