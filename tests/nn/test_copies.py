"""Everything can be copied and pickled at any time, and a copy shares nothing with what it came from."""

import copy
import itertools
import pickle

import numpy as np
import pytest

import xpcnn
from tests.functional.strategies import values
from tests.models import small
from tests.models.small import SHAPES
from xpcnn import data, models, nn, optim
from xpcnn.backend import backend_of
from xpcnn.errors import StateError
from xpcnn.training import Trainer

from .layers import LAYERS, make

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}


@pytest.fixture(params=COPIES)
def copied(request):
    return COPIES[request.param]


def host(arrays):
    return [backend_of(array).to_numpy(array) for array in arrays]


def arrays_of(model):
    return host([*model.state_dict().values(), *(parameter.grad for parameter in model.parameters())])


def assert_apart(first, second):
    for mine, other in itertools.product(arrays_of(first), arrays_of(second)):
        assert not np.shares_memory(mine, other)


def assert_same_values(first, second):
    for mine, other in zip(arrays_of(first), arrays_of(second), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_between_forward_and_backward(backend, rng, copied, name):
    layer, x = make(name, rng, "float32")
    x = backend.asarray(x)
    layer(x)
    y = layer(x)
    twin = copied(layer)
    assert repr(twin) == repr(layer)
    assert_same_values(twin, layer)
    assert_apart(twin, layer)
    if len(list(layer.modules())) > 1 or layer.parameters():
        with pytest.raises(StateError, match="expected a forward before it"):
            twin.backward(y)
    twin.eval()
    for _ in range(2 if layer.training else 1):
        layer.backward(y)
    layer.eval()
    layer.zero_grad()
    twin.zero_grad()
    np.testing.assert_array_equal(*host([layer(x), twin(x)]))
    np.testing.assert_array_equal(*host([layer.backward(y), twin.backward(y)]))
    assert_same_values(twin, layer)


@pytest.mark.parametrize("name", models.names())
def test_every_model(backend, rng, copied, name):
    model = small.create(name)
    x = backend.asarray(values(rng, (2, *SHAPES[name]), "float32"))
    model(x)
    twin = copied(model)
    assert_same_values(twin, model)
    assert_apart(twin, model)
    np.testing.assert_array_equal(*host([twin.eval()(x), model.eval()(x)]))


def test_parameters(backend, copied):
    parameter = nn.Parameter(backend.asarray(np.arange(3.0)), "gain")
    for _ in range(2):
        twin = copied(parameter)
        for name in ("name", "requires_grad", "grad_is_zero"):
            assert getattr(twin, name) == getattr(parameter, name)
        np.testing.assert_array_equal(*host([twin.data, parameter.data]))
        np.testing.assert_array_equal(*host([twin.grad, parameter.grad]))
        parameter.accumulate(backend.asarray(np.ones(3)))
        parameter.requires_grad = False


def test_attributes_and_shared_layers_of_a_user_stay(backend, rng, copied):
    net = nn.Sequential(nn.Tanh(), nn.Linear(3, 3), nn.Tanh())
    net.append(net[1]).note = {"a": 1}
    net[1].weight.requires_grad = False
    net[2].eval()
    twin = copied(net)
    assert twin[1] is twin[3] is not net[1]
    assert twin.note == {"a": 1}
    assert [each.training for each in twin.modules()] == [each.training for each in net.modules()]
    assert not twin[1].weight.requires_grad
    twin.append(nn.ReLU())
    assert len(net) == 4


def test_losses(backend, rng, copied):
    for criterion, target in ((nn.CrossEntropyLoss(label_smoothing=0.1), np.array([0, 1])), (nn.MSELoss(), None)):
        x = backend.asarray(values(rng, (2, 3), "float32"))
        target = backend.zeros((2, 3), "float32") if target is None else backend.asarray(target)
        loss = criterion(x, target)
        twin = copied(criterion)
        with pytest.raises(StateError):
            twin.backward()
        np.testing.assert_array_equal(*host([twin(x, target), loss]))
        np.testing.assert_array_equal(*host([twin.backward(), criterion.backward()]))


OPTIMISERS = [
    lambda p: optim.SGD(p, 0.01),
    lambda p: optim.SGD(p, 0.001, 0.9, nesterov=True),
    lambda p: optim.Adam(p, 0.01, amsgrad=True),
    lambda p: optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    lambda p: optim.Adagrad(p, 0.1),
]


def steps(model, update, x, count):
    for _ in range(count):
        model.backward(model(x), input_gradient=False)
        update.step()
        update.zero_grad()


@pytest.mark.parametrize("make_optimiser", OPTIMISERS)
@pytest.mark.parametrize("order", [("model", "optimizer"), ("optimizer", "model")])
def test_a_model_and_its_optimiser_stay_tied(backend, rng, copied, make_optimiser, order):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    update = make_optimiser(model.parameters())
    x = backend.asarray(values(rng, (5, 4), "float32"))
    steps(model, update, x, 2)
    model[0].requires_grad_(False)
    steps(model, update, x, 2)
    y = model(x)
    both = {"model": model, "optimizer": update}
    twins = copied({name: both[name] for name in order})
    twin, other = twins["model"], twins["optimizer"]
    assert other.parameters() == twin.parameters()
    assert_apart(model, twin)
    model.backward(y)
    update.zero_grad()
    for net in (model, twin):
        net[0].requires_grad_(True)
    steps(model, update, x, 3)
    steps(twin, other, x, 3)
    assert_same_values(model, twin)
    assert update.state_dict().keys() == other.state_dict().keys()
    for name, value in update.state_dict().items():
        np.testing.assert_array_equal(value, other.state_dict()[name])


@pytest.mark.parametrize("make_optimiser", OPTIMISERS)
def test_one_of_the_two_alone(backend, rng, copied, make_optimiser):
    model = nn.Sequential(nn.Linear(4, 3))
    update = make_optimiser(model.parameters())
    x = backend.asarray(values(rng, (5, 4), "float32"))
    steps(model, update, x, 2)
    other, twin = copied(update), copied(model)
    before = [array.copy() for array in arrays_of(twin)]
    steps(model, update, x, 2)
    for mine, value in zip(arrays_of(twin), before, strict=True):
        np.testing.assert_array_equal(mine, value)
    for mine, its in zip(other.parameters(), twin.parameters(), strict=True):
        np.testing.assert_array_equal(*host([mine.data, its.data]))
    twin[0].weight, twin[0].bias = other.parameters()
    steps(twin, other, x, 2)
    assert_same_values(model, twin)


def training(backend, rng, **options):
    images, labels = rng.integers(0, 255, (40, 4, 4)).astype("uint8"), np.arange(40) % 3
    loader = data.DataLoader(images, labels, 8, seed=1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    update = optim.SGD(net.parameters(), 0.1, 0.9)
    schedule = optim.StepLR(update, 7)
    return Trainer(net, update, nn.CrossEntropyLoss(), schedule=schedule, schedule_every="batch", **options), loader


@pytest.mark.parametrize("options", [{}, {"compile": False}, {"scaler": True}])
def test_a_training_goes_on_as_two(backend, rng, copied, options):
    if options.get("scaler"):
        options = {"scaler": optim.GradScaler(growth_interval=3)}
    trainer, loader = training(backend, rng, **options)
    trainer.fit(loader, epochs=3)
    twin, other = copied((trainer, loader))
    assert twin.optimizer.parameters() == twin.model.parameters()
    assert twin.schedule.optimizer is twin.optimizer
    assert_apart(twin.model, trainer.model)
    for mine, batches in ((trainer, loader), (twin, other)):
        xpcnn.manual_seed(5)
        mine.fit(batches, epochs=2)
    assert_same_values(twin.model, trainer.model)
    assert twin.history.steps == trainer.history.steps


def test_a_trainer_between_batches(backend, rng, copied):
    trainer, loader = training(backend, rng)
    batches = list(loader)
    for x, labels in batches:
        trainer.train_batch(x, labels)
    twin = copied(trainer)
    for each in (trainer, twin):
        xpcnn.manual_seed(5)
        for x, labels in batches:
            each.train_batch(x, labels)
        each.read()
    assert_same_values(twin.model, trainer.model)


def test_a_loader_in_mid_epoch(backend, rng, copied):
    _, loader = training(backend, rng)
    batches = iter(loader)
    next(batches)
    twin = copied(loader)
    assert twin.state_dict() == loader.state_dict()
    state = loader.state_dict()
    loader.load_state_dict(state)
    twin.load_state_dict(state)
    for mine, other in zip(list(loader), list(twin), strict=True):
        for array, value in zip(host(mine), host(other), strict=True):
            np.testing.assert_array_equal(array, value)


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_inference(backend, rng, copied, name):
    infer = nn.Inference(models.create(name))
    x = backend.asarray(values(rng, (3, *SHAPES[name]), "float32"))
    for _ in range(2):
        y = infer(x)
    twin = copied(infer)
    assert twin.backend is backend
    for _ in range(2):
        np.testing.assert_array_equal(*host([twin(x), y]))


def test_a_copy_of_a_model_that_was_placed_trains_in_workers_like_any_other(rng):
    """Buffers of the copy lie where recorded steps reach them."""
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    twin = pickle.loads(pickle.dumps(net))
    kinds = [type(array.base) for _, array in net.named_buffers()]
    assert [type(array.base) for _, array in twin.named_buffers()] == kinds
    assert xpcnn.get_backend().name == "numpy"
