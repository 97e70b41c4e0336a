"""Each recipe is its document's: network, data, initial values, update rule, batch size, number of steps."""

import math

import numpy as np
import pytest

from xpcnn import recipes
from xpcnn.datasets import load_mnist
from xpcnn.errors import ConfigError
from xpcnn.random import manual_seed
from xpcnn.testing import initial_loss_check, overfit_check

# parameters, batch size, epochs, batches an epoch, test images
TABLE = {
    "lenet5": (61_990, 128, 1, 469, 10_000),
    "lenet5-fast": (61_990, 96, 1, 625, 10_000),
    "deep3": (113_162, 32, 10, 1563, 20_000),
    "tiny": (11_540, 2, 1, 2000, 10_000),
    "conv8": (13_610, 1, 3, 1000, 10_000),
    "three-layer": (1_645_346, 50, 10, 1000, 10_000),
    "mnist-best": (98_938, 128, 7, 469, 10_000),
}
INPUTS = {"lenet5": (1, 32, 32), "lenet5-fast": (1, 32, 32), "three-layer": (3, 32, 32), "mnist-best": (1, 24, 24)}


def set_up(name, as_written=False):
    """Return recipe, model, optimiser, schedule, loader and splits, on the whole of MNIST."""
    recipe = recipes.find(name)
    recipe = recipe.written() if as_written else recipe
    manual_seed(1)
    model = recipe.create_model()
    optimizer = recipe.optimizer(model)
    splits = recipe.split(*load_mnist())
    loader = recipe.train_loader(splits.train, "mnist")
    schedule = recipe.schedule(optimizer, recipe.epochs * len(loader)) if recipe.schedule else None
    return recipe, model, optimizer, schedule, loader, splits


def test_names():
    assert recipes.names() == list(TABLE)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ConfigError, match=r"expected one of lenet5, lenet5-fast, deep3, .*, got 'lenet6'"):
        recipes.run("lenet6")


@pytest.mark.parametrize("name", TABLE)
def test_sizes(name):
    recipe, model, _, _, loader, splits = set_up(name)
    parameters, batch_size, epochs, batches, tests = TABLE[name]
    assert sum(parameter.size for parameter in model.parameters()) == parameters
    assert (recipe.batch_size, recipe.epochs, len(loader), len(splits.test)) == (batch_size, epochs, batches, tests)
    x, labels = next(iter(loader))
    assert x.shape == (batch_size, *INPUTS.get(name, (1, 28, 28)))
    assert x.dtype == np.float32
    assert labels.shape == ((batch_size, 10) if name == "tiny" else (batch_size,))
    assert recipe.input_shape("mnist") == x.shape[1:]


@pytest.mark.parametrize("name", TABLE)
def test_no_image_is_both_trained_and_tested_on(name):
    """The parts are cuts of the 70,000, in the order of the files."""
    splits = set_up(name)[-1]
    train, test = load_mnist()
    whole = np.concatenate([train.labels, test.labels])
    assert np.array_equal(splits.train.labels, whole[: len(splits.train)])
    assert np.array_equal(splits.test.labels, whole[-len(splits.test) :])
    held = 0 if splits.validation is None else len(splits.validation)
    assert held == (10_000 if name in ("tiny", "three-layer") else 0)
    assert len(splits.train) + held + len(splits.test) <= 70_000


@pytest.mark.parametrize("name", TABLE)
def test_it_names_no_backend(name):
    import inspect
    import sys

    assert name
    for module in [module for key, module in sys.modules.items() if key.startswith("xpcnn.recipes.")]:
        source = inspect.getsource(module)
        assert "cupy" not in source.lower(), module
        assert "import numpy" not in source, module


def test_lenet5_prepares_digits_as_its_document():
    _, _, _, _, _, splits = set_up("lenet5")
    x = recipes.find("lenet5").transforms["mnist"](splits.train.images[:3])
    expected = (np.pad(splits.train.images[:3], ((0, 0), (2, 2), (2, 2))) / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(x[:, 0], expected, atol=1e-6)


def test_three_layer_makes_digits_look_like_cifar10():
    _, _, _, _, _, splits = set_up("three-layer")
    x = recipes.find("three-layer").transforms["mnist"](splits.train.images[:3])
    expected = np.pad(splits.train.images[:3], ((0, 0), (2, 2), (2, 2))) / 255 - 0.13
    for channel in range(3):
        np.testing.assert_allclose(x[:, channel], expected, atol=1e-6)


def test_conv8_centres_pixels():
    _, _, _, _, _, splits = set_up("conv8")
    x = recipes.find("conv8").transforms["mnist"](splits.train.images[:3])
    np.testing.assert_allclose(x[:, 0], splits.train.images[:3] / 255 - 0.5, atol=1e-6)


def test_lenet5_rate_and_decay():
    _, model, optimizer, schedule, _, _ = set_up("lenet5")
    shrinks = {id(p): group["shrink"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        layer = type(model[int(name.split(".")[0])]).__name__
        assert shrinks[id(parameter)] == (0.0 if layer == "BatchNorm2d" else 4e-4), name
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)
    for step in range(100):
        assert optimizer.lr == pytest.approx(0.1 * 0.9 ** (step // 30))
        schedule.step()


@pytest.mark.parametrize(("as_written", "rate", "momentum"), [(False, 0.01, 0.9), (True, 1e-3, 0.0)])
def test_deep3_rate(as_written, rate, momentum):
    _, _, optimizer, schedule, _, _ = set_up("deep3", as_written)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (rate, momentum, 4e-4)
    assert schedule is None


def test_three_layer_decays_its_weights_on_cifar10_alone():
    recipe = recipes.find("three-layer")
    model = recipe.create_model()
    decays = {}
    for kind in ("mnist", "cifar10"):
        optimizer = recipe.for_data(kind).optimizer(model)
        assert optimizer.lr == 1e-3
        decays[kind] = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays["mnist"][id(parameter)] == 0.0
        assert decays["cifar10"][id(parameter)] == (1e-3 if name.endswith("weight") else 0.0), name


def test_tiny_draws_pairs_and_its_rate_falls_with_time():
    recipe, _, optimizer, schedule, loader, _ = set_up("tiny")
    assert loader.replacement
    assert recipe.reduction == "sum"
    for _ in range(1000):
        schedule.step()
    assert optimizer.lr == pytest.approx(0.01 / (1 + 1e-6 * 1000))


def test_initial_values():
    """He where the document's leave a net at chance; the document's own elsewhere, and with as_written."""

    def spread(name, layer, as_written=False):
        return float(np.std(set_up(name, as_written)[1][layer].weight.data))

    assert spread("lenet5", 8) == pytest.approx(math.sqrt(2 / (16 * 25)), rel=0.05)
    assert spread("deep3", 3) == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.05)
    assert spread("tiny", 4) == pytest.approx(math.sqrt(2 / 169), rel=0.05)
    assert all(set_up_tiny(seed)[0].weight.data.sum() >= 0 for seed in range(20))
    assert spread("tiny", 4, as_written=True) == pytest.approx(0.01, rel=0.05)
    assert spread("conv8", 0) == pytest.approx(1 / 9, rel=0.3)
    assert spread("conv8", 3) == pytest.approx(1 / 1352, rel=0.05)
    assert spread("three-layer", 4) == pytest.approx(1e-3, rel=0.05)


def set_up_tiny(seed):
    manual_seed(seed)
    return recipes.find("tiny").create_model()


def test_as_written_changes_values_and_rates_alone():
    for name in recipes.names():
        recipe = recipes.find(name)
        assert set(recipe.as_written) <= {"options", "optimizer", "reduction", "accuracy"}
    assert recipes.find("tiny").written().reduction == "mean"


def test_three_layer_begins_without_an_opinion():
    assert initial_loss_check(set_up("three-layer")[1], (3, 32, 32), 10, tolerance=0.01)


def test_three_layer_learns_100_digits_by_heart():
    recipe = recipes.find("three-layer")
    from xpcnn.models import create

    manual_seed(0)
    model = create("three-layer", hidden_dim=200, weight_scale=1e-2)
    train = load_mnist()[0].subset(slice(100))
    found = overfit_check(model, recipe.transforms["mnist"](train.images), train.labels.astype("int64"), epochs=20)
    assert found, str(found)
    assert len(found.losses) == 40
