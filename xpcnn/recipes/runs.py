"""Running a recipe: data, network, training, test, and the folder that it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xpcnn import __version__, random
from xpcnn.backend import resolve, use_backend
from xpcnn.data import DataLoader
from xpcnn.datasets import Dataset, load_mnist
from xpcnn.datasets.dataset import fingerprint
from xpcnn.distributed import Communicator
from xpcnn.distributed.agreement import agree
from xpcnn.errors import ConfigError, DataError, ShapeError
from xpcnn.information import info
from xpcnn.nn import Module
from xpcnn.optim import GradScaler
from xpcnn.recipes import folder as folders
from xpcnn.recipes import sources
from xpcnn.recipes.choosing import choose, recipe_of
from xpcnn.recipes.evaluation import EvaluatingTrainer, Evaluation, evaluate
from xpcnn.recipes.folder import Settings
from xpcnn.recipes.pictures import KIND, Pictures, adapted, augmentation, explained, hold_out, sized
from xpcnn.recipes.recipe import Recipe
from xpcnn.training import Checkpointer, EarlyStopping, History, Metrics, Progress, load_parameters, save_model

MOST_PIXELS = 1 << 13  # a side, of what a run.json may ask for
_FIXED = {"format", "settings"}  # what run.json holds of every run


@dataclass(repr=False)
class Run:
    """A recipe that was run, or read back from its folder.

    Attributes
    ----------
    recipe, settings : Recipe, Settings
    kind : str
        Of its data: "mnist", "cifar10" or "pictures".
    model : Module
    history : History
    test : Dataset
    evaluation : Evaluation
        Of the test set.
    folder : Path or None
    """

    recipe: Recipe
    settings: Settings
    kind: str
    model: Module
    history: History
    test: Dataset
    evaluation: Evaluation
    folder: Path | None = None

    def __repr__(self) -> str:
        place = "" if self.folder is None else f", folder {str(self.folder)!r}"
        return (
            f"Run({self.recipe.name} on {self.kind}, seed {self.settings.seed}, {self.history!r}, "
            f"test accuracy {self.metrics.accuracy:.4f}{place})"
        )

    @property
    def metrics(self) -> Metrics:
        """Loss and accuracy on the test set."""
        return self.evaluation.metrics


def run(
    name: str | None = None,
    *,
    backend: str | None = None,
    data: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    out: str | os.PathLike[str] | None = None,
    as_written: bool = False,
    precision: str | None = None,
    resume: bool = False,
    callbacks: Sequence[Any] = (),
    progress: bool = False,
    numbered: bool = False,
    image_size: int | None = None,
    augment: str | None = None,
    patience: int | None = None,
    skip_broken: bool = False,
    lr: float | None = None,
    communicator: Communicator | None = None,
    sync_batch_norm: bool = False,
) -> Run:
    """Train a recipe and test it.

    Parameters
    ----------
    name : str, optional
        One of `recipes.names()`; "lenet5" by default.
    backend : str, optional
        Where to; the active backend by default.
    data : str, optional
        "mnist" (carried), a folder with one sub-folder of pictures a class, or in parts (`datasets.load_folder`), of
        MNIST's IDX files or CIFAR-10's batches, an .npz file, or `mnist.pkl.gz`. The network is built to the pictures.
    epochs, batch_size : int, optional
        The recipe's own by default; for pictures of one's own as many as fit their number, and the learning rate with
        the batch.
    seed : int, optional
        0 by default.
    out : path, optional
        The run folder: parameters, run.json, history, checkpoints. Without it nothing is written.
    as_written : bool
        Train with the document's own initial values and rates.
    precision : str, optional
        "float32" by default; "float16": parameters and activations in float16, float32 masters of the parameters, and a
        scale of the loss that finds itself (`nn.Module.half`, `optim.GradScaler`).
    resume : bool
        Go on with the run in `out`, with its settings; begin where there is none.
    callbacks : sequence
        Of the trainer.
    progress : bool
        Show on standard error how it goes: a bar on a terminal, elsewhere a line every so many batches.
    numbered : bool
        Where `out` is there already, take OUT-2, OUT-3, ... instead: the first that this process makes itself.
    image_size : int, optional
        Pixels a side to which pictures of a folder are brought. By default they keep a common size of up to 96 pixels,
        and else get the recipe's.
    augment : str, optional
        Train on images changed at random: "shift" for digits and letters, "photo" for photographs.
    patience : int, optional
        Stop after so many epochs without a lower validation loss, with the best weights. A set without a validation
        part holds out a tenth of each class for it.
    skip_broken : bool
        Leave out pictures that cannot be read; otherwise they are an error that lists them.
    lr : float, optional
        The rate that the schedule begins with, or rises to, instead of the recipe's.
    communicator : Communicator, optional
        Whose ranks train together (`xpcnn.distributed.init()`), each on its part of the batches; rank 0 alone has the
        folder, and shows.
    sync_batch_norm : bool
        As for `Trainer`.

    Raises
    ------
    ConfigError, DataError, BackendError
        A name, a number, the data, the folder or the backend is wrong.
    KeyboardInterrupt
        Ctrl-C, after a checkpoint was written to `out`.
    """
    extra: dict[str, Any] = {
        "image_size": image_size,
        "augment": augment,
        "patience": patience,
        "skip_broken": bool(skip_broken),
    }
    extra["lr"] = float(lr) if isinstance(lr, (int, float)) and not isinstance(lr, bool) else lr
    follows = communicator is not None and communicator.rank > 0
    asked: dict[str, Any] = {"recipe": name, "data": data, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    asked |= {"as_written": as_written, "precision": precision, "resume": resume, "sync_batch_norm": sync_batch_norm}
    if communicator is not None:
        agree(communicator, {"xpcnn": __version__} | asked | extra)
    there = out if resume and not follows else None
    settings = choose(name, data, epochs, batch_size, seed, as_written, there, precision, extra)
    if communicator is not None:  # of the folder, which rank 0 alone need see
        settings = Settings(**json.loads(communicator.broadcast_bytes(json.dumps(asdict(settings)).encode())))
    recipe = recipe_of(settings)
    if progress:
        callbacks = [*callbacks, Progress(recipe.log_every)]
    if communicator is not None and backend:
        backend = resolve(backend).spread(communicator.local_rank).name
    folder = Path(out) if out is not None and not follows else None
    with use_backend(backend) if backend else contextlib.nullcontext():
        return _run(recipe, settings, folder, resume, callbacks, numbered, communicator, sync_batch_norm)


def load(folder: str | os.PathLike[str], *, backend: str | None = None, data: str | None = None) -> Run:
    """Read a run back from its folder and test it.

    Parameters
    ----------
    folder : path
        That `run(..., out=folder)` or `xpcnn train` left.
    backend : str, optional
        Where to; the active backend by default.
    data : str, optional
        Another set to test on, as for `run`.

    Raises
    ------
    DataError
        The folder is not there, damaged or unfinished, or its data is gone.
    """
    model, recipe, settings, _ = load_model(folder, backend=backend)
    place = data if data is not None else settings.data
    kind, train, test, _ = sources.load(place, recipe.transforms, recipe.name, _pictures(recipe, settings))
    test = recipe.split(train, test).test
    with use_backend(model.backend.name):
        evaluation = evaluate(model, recipe.evaluation_loader(test, kind), average_shifts=recipe.average_shifts)
    history = History.load(Path(folder) / folders.HISTORY)
    return Run(recipe, settings, kind, model, history, test, evaluation, Path(folder))


def load_model(folder: str | os.PathLike[str], *, backend: str | None = None) -> tuple[Module, Recipe, Settings, str]:
    """Return the network of a run folder, in eval mode, with its recipe, settings and kind of data.

    Raises
    ------
    DataError
        As for `load`.
    """
    settings, content = folders.read(folder)
    recipe = recipe_of(settings)
    about = content.get("data")
    kind = about.get("kind") if isinstance(about, dict) else None
    if kind == KIND and isinstance(about, dict):
        recipe = _built(folder, recipe, about)
    if not isinstance(kind, str) or kind not in recipe.transforms:
        raise DataError(
            f"{folder}: damaged {folders.SETTINGS}: expected its kind of data, got {kind!r:.40}; train again"
        )
    classes = about.get("classes", recipe.classes) if isinstance(about, dict) else recipe.classes
    if type(classes) is not int or not recipe.classes <= classes <= sources.MOST_CLASSES:
        raise DataError(f"{folder}: damaged {folders.SETTINGS}: expected a number of classes, got {classes!r:.40}")
    recipe = recipe.for_classes(classes)
    with use_backend(backend) if backend else contextlib.nullcontext():
        model = recipe.create_model()
    if settings.precision == "float16":
        model.half()
    parameters = Path(folder) / folders.MODEL
    load_parameters(model, parameters)
    return model.eval(), recipe, settings, kind


def _run(
    recipe: Recipe,
    settings: Settings,
    folder: Path | None,
    resume: bool,
    callbacks: Sequence[Any],
    numbered: bool,
    communicator: Communicator | None,
    sync_batch_norm: bool,
) -> Run:
    began, clock = time.time(), time.monotonic()  # the one may be set back
    goes_on = folder is not None and resume and folders.is_run(folder)
    if folder is not None and not goes_on and not numbered:
        folders.check_free(folder)
    kind, train_set, test_set, validation_set = sources.load(
        settings.data, recipe.transforms, recipe.name, _pictures(recipe, settings)
    )
    parts = [part for part in (train_set, validation_set, test_set) if part is not None]
    contents = None if settings.data is None else fingerprint(*parts)
    if folder is not None and goes_on:
        _check_contents(folder, settings, contents)
    if kind == KIND:
        recipe = adapted(recipe, train_set.images.shape[1:], sources.count_classes(2, *parts), validation_set)
    else:
        recipe = recipe.for_data(kind).for_classes(sources.count_classes(recipe.classes, *parts))
    train_set, validation_set, test_set = recipe.split(train_set, test_set)
    if settings.patience is not None:
        if validation_set is None:
            train_set, validation_set = hold_out(train_set)
        callbacks = [EarlyStopping(patience=settings.patience), *callbacks]
    if kind == KIND:
        recipe = sized(recipe, len(train_set))
    epochs = settings.epochs or recipe.epochs
    scale = recipe.lr_scale if settings.lr is None and settings.batch_size is None else 1.0
    settings = replace(settings, epochs=epochs, batch_size=settings.batch_size or recipe.batch_size)
    recipe = replace(recipe, augment=(*recipe.augment, *augmentation(settings.augment, train_set.images.shape[1:])))
    random.manual_seed(settings.seed)
    try:
        model = recipe.create_model()
    except (ConfigError, ShapeError) as error:
        raise explained(recipe, error) from error
    train = recipe.train_loader(train_set, kind, settings.batch_size)
    test = recipe.evaluation_loader(test_set, kind)
    validation = test if recipe.validates else None
    if validation_set is not None:
        validation = recipe.evaluation_loader(validation_set, kind)
    optimizer = recipe.optimizer(model)
    if scale != 1.0:
        settings = replace(settings, lr=scale * optimizer.param_groups[0]["lr"])
    if settings.lr is not None:  # before the schedule, which follows it
        for group in optimizer.param_groups:
            group["lr"] = settings.lr
    scaler = None
    if settings.precision == "float16":
        model.half()  # after the optimiser, which goes on from the float32 values
        scaler = GradScaler()
    schedule = recipe.schedule(optimizer, epochs * len(train)) if recipe.schedule else None
    if folder is not None and numbered:
        folder = folders.make_new(folder)
    checkpoint = Checkpointer(folder / folders.CHECKPOINTS) if folder is not None else None
    trainer = EvaluatingTrainer(
        model,
        optimizer,
        recipe.create_criterion(),
        schedule=schedule,
        schedule_every="batch",
        callbacks=[*recipe.callbacks(), *callbacks],
        scaler=scaler,
        checkpoint=checkpoint,
        communicator=communicator,
        sync_batch_norm=sync_batch_norm,
    )
    trainer.average_shifts = recipe.average_shifts
    about = _describe(recipe, model, train, kind, began)
    if communicator is not None:
        about["ranks"] = communicator.size
    about["data"] |= {"classes": recipe.classes, "sha256": contents, "names": train_set.classes}
    about["data"] |= {"image_shape": list(train_set.images.shape[1:])}
    if folder is not None and checkpoint is not None:
        checkpoint.open()  # before run.json is written: of two runs that begin at once, one has the folder
    try:
        if folder is not None:
            if goes_on:
                recorded, content = folders.read(folder)
                if recorded != settings:  # its data lies elsewhere now
                    folders.write(folder, settings, {name: content[name] for name in content.keys() - _FIXED})
            else:
                if folders.is_run(folder):
                    folders.check_free(folder)  # another run began while this one loaded its data
                folders.write(folder, settings, {"state": "training", **about})
        trainer.fit(train, validation, epochs=epochs, resume=resume)
    finally:
        if checkpoint is not None:
            checkpoint.close()
    last = trainer.last
    if last is None or trainer.last_loader is not test or trainer.batch:  # of before an epoch that `stop` cut short
        last = evaluate(model, test, communicator, recipe.average_shifts)
    done = Run(recipe, settings, kind, model, trainer.history, test_set, last, folder)
    if folder is not None:
        save_model(
            model,
            folder / folders.MODEL,
            classes=test_set.classes,
            transform=recipe.transforms[kind],
            image_shape=test_set.images.shape[1:],
            digits=kind == "mnist",
            average_shifts=recipe.average_shifts,
        )
        trainer.history.save(folder / folders.HISTORY)
        folders.write(folder, settings, {"state": "done", **about, **_results(done, time.monotonic() - clock)})
    return done


def _pictures(recipe: Recipe, settings: Settings) -> Pictures:
    return Pictures(recipe.image_size, settings.image_size, settings.skip_broken)


def _built(folder: str | os.PathLike[str], recipe: Recipe, about: Mapping[str, Any]) -> Recipe:
    """Return the recipe as it was built to the pictures of a run."""
    shape, classes = about.get("image_shape"), about.get("classes")
    sizes = shape if isinstance(shape, list) and len(shape) in (2, 3) else [0]
    if not all(type(n) is int and 1 <= n <= MOST_PIXELS for n in [*sizes, classes]):
        raise DataError(f"{folder}: damaged {folders.SETTINGS}: expected a shape of images, got {shape!r:.40}")
    return adapted(recipe, sizes, int(about["classes"]))


def _check_contents(folder: Path, settings: Settings, contents: str | None) -> None:
    """Check that the data is what the run in a folder began with, wherever it lies now.

    Raises
    ------
    ConfigError
        It is not.
    """
    recorded, content = folders.read(folder)
    about = content.get("data")
    began_with = about.get("sha256") if isinstance(about, dict) else None
    if began_with is None and recorded.data is None:
        began_with = None if contents is None else fingerprint(*load_mnist())
    elif began_with is None and recorded.data == settings.data:  # a run of before fingerprints
        return
    if contents is None and began_with is not None:
        contents = fingerprint(*load_mnist())
    if contents != began_with:
        raise ConfigError(
            f"data: expected the contents of {recorded.data!r} as the run in {folder} has them, got others in "
            f"{settings.data!r}; leave it out to go on, or name where they are now"
        )


def _describe(recipe: Recipe, model: Module, train: DataLoader, kind: str, began: float) -> dict[str, Any]:
    """Return what is to be known of a run before it begins."""
    return {
        "network": recipe.network,
        "parameters": sum(parameter.size for parameter in model.parameters()),
        "data": {"kind": kind, **train.settings()},
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(began)),
        "commit": folders.commit(),
        "machine": info(),
    }


def _results(done: Run, seconds: float) -> dict[str, Any]:
    """Return what came of a run."""
    table = done.history.to_dict()["epochs"]
    epochs = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return {
        "test": {"loss": done.metrics.loss, "accuracy": done.metrics.accuracy, "images": done.metrics.count},
        "epochs": epochs,
        "seconds": round(seconds, 3),
    }
