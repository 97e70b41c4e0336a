"""The settings of a run, from what was asked for, the recipe's own and those of the run that is gone on with."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from xpcnn.errors import ConfigError
from xpcnn.functional.precision import check_precision
from xpcnn.optim.groups import check_count
from xpcnn.recipes import folder as folders
from xpcnn.recipes import sources
from xpcnn.recipes.folder import Settings
from xpcnn.recipes.pictures import augmentation
from xpcnn.recipes.recipe import Recipe
from xpcnn.recipes.table import find

DEFAULT = "lenet5"
DEFAULT_SEED = 0
DIGIT = (28, 28)


def choose(
    name: str | None,
    data: str | None,
    epochs: int | None,
    batch_size: int | None,
    seed: int | None,
    as_written: bool,
    resumed: str | os.PathLike[str] | None = None,
    precision: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings that follow from what was asked for, checked; those of the run in `resumed` where it has one.

    Raises
    ------
    ConfigError, DataError
        One is wrong, or differs from the run's.
    """
    extra = extra or {}
    numbers = [("epochs", epochs, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)]
    numbers += [(option, extra.get(option), 1) for option in ("image_size", "patience")]
    augmentation(extra.get("augment"), DIGIT)
    for option, value, least in numbers:
        if value is not None:
            check_count(option, value, least)
    lr = extra.get("lr")
    if lr is not None and (not isinstance(lr, float) or not 0 < lr < math.inf):
        raise ConfigError(f"lr: expected a learning rate above 0, such as 0.01, got {lr!r}")
    if precision is not None and precision not in folders.PRECISIONS:
        check_precision(precision)
        raise ConfigError(f"precision: expected {' or '.join(folders.PRECISIONS)}, got {precision!r}")
    if data is not None and sources.is_named(data):
        data = os.path.abspath(data)
    if resumed is not None and folders.is_run(resumed):
        settings, _ = folders.read(resumed)
        asked: dict[str, Any] = {"recipe": name, "epochs": epochs, "batch_size": batch_size}
        asked |= {"seed": seed, "as_written": as_written or None, "precision": precision}
        asked |= {option: value or None for option, value in extra.items()}
        for option, wanted in asked.items():
            if wanted is not None and wanted != getattr(settings, option):
                raise ConfigError(
                    f"{option}: expected {getattr(settings, option)!r} as the run in {resumed} has it, got {wanted!r}; "
                    "leave it out to go on"
                )
        return settings if data is None else replace(settings, data=data)  # contents are compared when they are read
    recipe = find(name or DEFAULT)
    return Settings(
        recipe=recipe.name,
        data=data,
        epochs=epochs,
        batch_size=batch_size,
        seed=DEFAULT_SEED if seed is None else seed,
        as_written=bool(as_written),
        precision=precision or folders.PRECISIONS[0],
        **extra,
    )


def recipe_of(settings: Settings) -> Recipe:
    """Return the recipe that settings name, with its corrections or as written."""
    recipe = find(settings.recipe)
    return recipe.written() if settings.as_written else recipe
