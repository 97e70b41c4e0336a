"""The two-image notebook's mistakes: initial values too small to learn from, float64 casts, a compiler."""

import sys
from pathlib import Path

import numpy as np
import pytest

import xpcnn
from tests.recipes.small import write_digits
from xpcnn import nn, recipes
from xpcnn.nn.contexts import trace


def test_its_initial_values_stay_at_chance_and_ours_do_not(tmp_path):
    digits = write_digits(tmp_path, train=1200, test=500)
    ours = [recipes.run("tiny", data=digits, seed=seed).metrics.accuracy for seed in range(3)]
    its = [recipes.run("tiny", data=digits, seed=seed, as_written=True).metrics.accuracy for seed in range(3)]
    assert min(ours) > 0.6
    assert max(its) < 0.3


@pytest.mark.parametrize("name", ["tiny", "lenet5", "deep3"])
def test_a_step_in_float32_stays_in_float32(backend, rng, name):
    recipe = recipes.find(name)
    model = recipe.create_model()
    optimizer = recipe.optimizer(model)
    x = recipe.transforms["mnist"](backend.asarray(rng.integers(0, 256, (4, 28, 28), dtype=np.uint8)))
    criterion = recipe.create_criterion()
    with trace() as calls:
        loss = criterion(model(x), backend.asarray(rng.integers(0, 10, 4)))
    model.forget()
    for layer, before, after in calls:
        assert (before.dtype, after.dtype) == (np.float32, np.float32), layer
    loss = criterion(model(x), backend.asarray(rng.integers(0, 10, 4)))
    dx = model.backward(criterion.backward())
    optimizer.step()
    assert loss.dtype == dx.dtype == np.float32
    for path, parameter in model.named_parameters():
        assert (parameter.data.dtype, parameter.grad.dtype) == (np.float32, np.float32), path


def test_float64_stays_where_it_is_asked_for(backend, rng):
    layer = nn.Conv2d(1, 1, 3, dtype="float64")
    y = layer(backend.asarray(rng.standard_normal((2, 1, 6, 6))))
    assert y.dtype == np.float64
    assert layer.backward(y).dtype == np.float64


def test_nothing_needs_a_compiler():
    """Nothing to compile but CUDA sources, which the GPU's own compiler reads when one is there."""
    package = Path(xpcnn.__file__).parent
    kinds = {path.suffix for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert not kinds & {".c", ".cc", ".cpp", ".h", ".pyx", ".pxd", ".f", ".f90", ".rs", ".so", ".pyd", ".dll"}
    assert "Cython" not in sys.modules
    assert "pyximport" not in sys.modules
