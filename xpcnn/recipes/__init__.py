"""Recipes: a network with its data, initial values, update rule and length of training, run by one name."""

from xpcnn.recipes.choosing import DEFAULT
from xpcnn.recipes.evaluation import Evaluation, evaluate, probabilities
from xpcnn.recipes.folder import is_run
from xpcnn.recipes.predictors import holds_pictures, load_predictor, load_test_set
from xpcnn.recipes.recipe import Recipe, Splits
from xpcnn.recipes.runs import Run, load, load_model, run
from xpcnn.recipes.table import find, names

__all__ = [
    "DEFAULT",
    "Evaluation",
    "Recipe",
    "Run",
    "Splits",
    "evaluate",
    "find",
    "holds_pictures",
    "is_run",
    "load",
    "load_model",
    "load_predictor",
    "load_test_set",
    "names",
    "probabilities",
    "run",
]
