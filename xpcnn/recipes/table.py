"""All recipes by name."""

from __future__ import annotations

from xpcnn.errors import ConfigError
from xpcnn.recipes.conv8 import CONV8
from xpcnn.recipes.deep3 import DEEP3
from xpcnn.recipes.lenet5 import LENET5, LENET5_FAST
from xpcnn.recipes.mnist_best import MNIST_BEST
from xpcnn.recipes.recipe import Recipe
from xpcnn.recipes.three_layer import THREE_LAYER
from xpcnn.recipes.tiny import TINY

RECIPES = {recipe.name: recipe for recipe in (LENET5, LENET5_FAST, DEEP3, TINY, CONV8, THREE_LAYER, MNIST_BEST)}


def names() -> list[str]:
    """Return the names that `run` takes."""
    return list(RECIPES)


def find(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises
    ------
    ConfigError
        There is none.
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]
