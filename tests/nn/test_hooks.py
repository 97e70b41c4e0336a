"""Forward hooks: what they are given, when they run, and that nothing recorded or fused passes them by."""

import copy
import gc
import pickle

import numpy as np
import pytest

import xpcnn
from xpcnn import get_backend, nn, optim
from xpcnn.backend import backend_of
from xpcnn.data import DataLoader
from xpcnn.errors import ConfigError
from xpcnn.training import Trainer

pytestmark = pytest.mark.usefixtures("backend")


def net():
    xpcnn.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Residual(body), nn.ReLU(), nn.MaxPool2d(2),
        nn.Concat(nn.Identity(), nn.Conv2d(4, 2, 1)), nn.Flatten(), nn.Linear(54, 3),
    )  # fmt: skip


def images(count=8, seed=0):
    return get_backend().asarray(np.random.default_rng(seed).standard_normal((count, 1, 8, 8)).astype("float32"))


def host(array):
    return backend_of(array).to_numpy(array).copy()


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    gc.collect()
    from xpcnn.nn import hooks

    assert not hooks._hooked


@pytest.mark.parametrize("training", [True, False])
def test_every_module_is_heard_with_its_own_arrays(training):
    """Against calls that are recorded one by one, which fuse nothing."""
    from xpcnn.nn.contexts import trace

    model = net().train(training)
    x = images()
    with xpcnn.no_grad(), trace() as calls:
        copy.deepcopy(model)(x)
    expected = [(type(module).__name__, host(a), host(b)) for module, a, b in calls]
    heard = []

    def hook(module, args, output):
        assert isinstance(args, tuple)
        heard.append((module, *args, output))

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    y = model(x)
    dx = model.backward(y)
    found = [(type(module).__name__, host(a), host(b)) for module, a, b in heard]  # after the backward, as they were
    assert [name for name, *_ in found] == [name for name, *_ in expected]
    for (name, *mine), (_, *others) in zip(found, expected, strict=True):
        for a, b in zip(mine, others, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)
    for handle in handles:
        handle.remove()
    plain = net().train(training)
    z = plain(x)
    np.testing.assert_allclose(host(z), host(y), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(host(plain.backward(z)), host(dx), rtol=1e-3, atol=1e-4)


def test_a_removed_hook_is_heard_no_more():
    model, heard = nn.Sequential(nn.ReLU(), nn.Tanh()), []
    x = images()
    handle = model[1].register_forward_hook(lambda *given: heard.append(1))
    assert repr(handle) == "RemovableHandle(a hook of Tanh)"
    model(x)
    handle.remove()
    handle.remove()
    assert repr(handle) == "RemovableHandle(removed)"
    model(x)
    assert heard == [1]
    with model.register_forward_hook(lambda *given: heard.append(2)):
        model(x)
    model(x)
    assert heard == [1, 2]


def test_results_are_handed_on_in_order():
    model = nn.Sequential(nn.Identity(), nn.Identity())
    x = images()
    with (
        model[0].register_forward_hook(lambda module, args, output: output + 1),
        model[0].register_forward_hook(lambda module, args, output: output * 2),
        model[0].register_forward_hook(lambda module, args, output: output - 3, prepend=True),
        model.register_forward_hook(lambda module, args, output: None),
    ):
        y = model(x)
    np.testing.assert_allclose(host(y), (host(x) - 3 + 1) * 2, rtol=1e-6)


def test_a_hook_that_comes_after_recording_is_seen():
    model = net()
    optimizer = optim.SGD(model.parameters(), 0.01)
    criterion = nn.CrossEntropyLoss()

    @xpcnn.compile
    def step(x, y):
        loss = criterion(model(x), y)
        model.backward(criterion.backward())
        optimizer.step()
        optimizer.zero_grad()
        return loss

    y = get_backend().asarray(np.arange(8) % 3)
    for _ in range(6):
        step(images(), y)
    heard = []
    with model[2].register_forward_hook(lambda module, args, output: heard.append(host(output))):
        for seed in range(3):
            step(images(seed=seed), y)
    assert len(heard) == 3
    assert not np.array_equal(heard[0], heard[1])
    before = step.graphs
    step(images(), y)
    step(images(), y)
    assert len(heard) == 3
    assert step.graphs == before


@pytest.mark.parametrize("place", [(), (2,), (3, "body", 0)])
def test_evaluations_in_pieces_hear_it_once(place):
    model, heard = net().eval(), []
    with xpcnn.no_grad():
        before = [host(model(images(100))) for _ in range(5)]
        module = model
        for step in place:
            module = getattr(module, step) if isinstance(step, str) else module[step]
        with module.register_forward_hook(lambda module, args, output: heard.append(output.shape[0])):
            y = model(images(100))
        model(images(100))
    assert heard == [100]
    np.testing.assert_allclose(host(y), before[-1], rtol=1e-4, atol=1e-5)


def test_in_a_trainer_and_its_evaluation():
    data = DataLoader(np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype("uint8"), np.arange(40) % 3, 8)

    def made():
        model = net()
        return Trainer(model, optim.SGD(model.parameters(), 0.01), nn.CrossEntropyLoss())

    heard = []
    mine, plain = made(), made()
    data.manual_seed(0)
    mine.fit(data, epochs=1)
    with mine.model[4].register_forward_hook(lambda module, args, output: heard.append(output.shape)):
        mine.fit(data, epochs=1)
        assert len(heard) == 5
        mine.evaluate(DataLoader(data.images, data.labels, 8, shuffle=False))
        assert len(heard) == 10
    mine.fit(data, epochs=1)
    assert len(heard) == 10
    data.manual_seed(0)
    plain.fit(data, epochs=3)
    np.testing.assert_allclose(mine.history.steps["loss"], plain.history.steps["loss"], rtol=1e-4)


def test_a_hook_that_raises_leaves_nothing_kept():
    model = net()
    broken = model[3].body[0].register_forward_hook(lambda *given: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        model(images())
    assert not model._forwards
    broken.remove()
    model.backward(model(images()))


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_have_no_hooks(twin_of):
    model, heard = net(), []
    with model[0].register_forward_hook(lambda *given: heard.append(1)):
        twin_of(model)(images())
    assert heard == []


def test_what_is_no_function():
    with pytest.raises(ConfigError, match=r"hook: expected a function of \(module, args, output\), got int"):
        nn.ReLU().register_forward_hook(3)


def test_models_that_are_gone_hold_nobody_up():
    model = nn.Sequential(nn.ReLU())
    handle = model.register_forward_hook(lambda *given: None)
    del model
    gc.collect()
    handle.remove()
    assert repr(handle) == "RemovableHandle(removed)"


def test_parts_of_a_network_are_networks_of_the_same_layers():
    model = net().eval()
    x = images()
    assert len(model) == 9
    assert list(model) == [model[i] for i in range(9)]
    assert model[-1] is model[8]
    front, back = model[:6], model[6:]
    assert isinstance(front, nn.Sequential)
    assert front[0] is model[0]
    np.testing.assert_allclose(host(back(front(x))), host(model(x)), rtol=1e-5, atol=1e-6)
    with pytest.raises(IndexError):
        model[9]
