import asyncio
import threading

import numpy as np
import pytest

import xpcnn
from tests.backend.minimal import Mine, MinimalBackend
from tests.backend.processes import fails, python
from tests.fake_device import FakeBackend
from xpcnn import backend as switch
from xpcnn import models, nn, optim
from xpcnn.backend import backend_of
from xpcnn.errors import BackendError, DTypeError, MixedBackendsError


@pytest.fixture
def default():
    """Put the process default back after the test."""
    before = switch._default
    yield
    switch._default = before


@pytest.fixture
def mine():
    """Register the minimal backend for the length of a test."""
    backend = MinimalBackend()
    xpcnn.register_backend(backend)
    yield backend
    del switch._backends["mine"]
    switch._by_type.pop(Mine, None)


class TestActiveBackend:
    def test_numpy_is_the_default(self):
        assert python("import xpcnn; print(xpcnn.get_backend().name)") == "numpy"

    def test_environment(self):
        assert python("import xpcnn; print(xpcnn.get_backend().name)", XPCNN_BACKEND="auto") in ("numpy", "cupy")
        done = fails("import xpcnn; xpcnn.get_backend()", XPCNN_BACKEND="numby")
        assert "BackendError: name: expected one of numpy, cupy, auto, got 'numby'" in done.stderr

    def test_set_backend_is_of_the_process(self, default):
        xpcnn.set_backend("fake")
        seen = []
        thread = threading.Thread(target=lambda: seen.append(xpcnn.get_backend().name))
        thread.start()
        thread.join()
        assert seen == ["fake"]
        xpcnn.set_backend("numpy")
        assert xpcnn.get_backend().name == "numpy"

    def test_use_backend_nests_and_ends_with_an_error(self):
        with xpcnn.use_backend("fake") as outer:
            assert xpcnn.get_backend() is outer
            with xpcnn.use_backend("numpy") as inner:
                assert xpcnn.get_backend() is inner
                with pytest.raises(ZeroDivisionError), xpcnn.use_backend("fake"):
                    raise ZeroDivisionError
                assert xpcnn.get_backend() is inner
            assert xpcnn.get_backend() is outer
        assert xpcnn.get_backend().name == "numpy"

    def test_use_backend_wins_over_set_backend(self, default):
        with xpcnn.use_backend("fake"):
            xpcnn.set_backend("numpy")
            assert xpcnn.get_backend().name == "fake"
        assert xpcnn.get_backend().name == "numpy"

    def test_use_backend_is_of_one_thread(self):
        names, start = {}, threading.Barrier(2)

        def work(name):
            with xpcnn.use_backend(name):
                start.wait()
                layer = nn.Linear(2, 2)
                start.wait()
                names[name] = xpcnn.get_backend().name, layer.backend.name

        threads = [threading.Thread(target=work, args=(name,)) for name in ("numpy", "fake")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert names == {"numpy": ("numpy", "numpy"), "fake": ("fake", "fake")}

    def test_use_backend_is_of_one_task(self):
        async def work(name):
            with xpcnn.use_backend(name):
                for _ in range(3):
                    await asyncio.sleep(0)
                    assert xpcnn.get_backend().name == name
            return xpcnn.get_backend().name

        async def main():
            with xpcnn.use_backend("fake"):
                return await asyncio.gather(work("numpy"), work("fake"), work("numpy"))

        assert asyncio.run(main()) == ["fake"] * 3

    def test_auto(self, default):
        xpcnn.set_backend("auto")
        expected = "cupy" if "cupy" in xpcnn.available_backends() else "numpy"
        assert xpcnn.get_backend().name == expected

    @pytest.mark.parametrize("name", ["numby", "", "cuda", "NumPy"])
    def test_a_name_that_is_none(self, name):
        for call in (xpcnn.set_backend, lambda name: xpcnn.use_backend(name).__enter__()):
            with pytest.raises(
                BackendError, match=r"name: expected one of numpy, .*cupy, auto, got .*register_backend"
            ):
                call(name)

    @pytest.mark.parametrize("name", [None, 3, np])
    def test_what_is_no_name(self, name):
        with pytest.raises(BackendError, match='name: expected a backend\'s name such as "numpy", got'):
            xpcnn.set_backend(name)

    @pytest.mark.parametrize("name", ["cupy:x", "cupy:-1", "cupy:"])
    def test_what_is_no_device(self, name):
        with pytest.raises(BackendError, match=r'name: (expected "cupy" or "cupy:K"|.* needs CuPy)'):
            xpcnn.set_backend(name)

    def test_a_failed_switch_changes_nothing(self, default):
        xpcnn.set_backend("fake")
        with pytest.raises(BackendError):
            xpcnn.set_backend("numby")
        assert xpcnn.get_backend().name == "fake"

    @pytest.mark.skipif("cupy" in xpcnn.available_backends(), reason="a GPU is there")
    def test_cupy_that_is_not_there_says_what_to_do(self):
        for name in ("cupy", "cupy:1"):
            with pytest.raises(BackendError, match=r"CuPy|driver|device") as caught:
                xpcnn.set_backend(name)
            assert "\n" not in str(caught.value)
            assert "pip install" in str(caught.value)

    def test_available_backends(self):
        names = xpcnn.available_backends()
        assert names[0] == "numpy"
        assert "fake" in names  # of the suite
        for name in names:
            with xpcnn.use_backend(name) as backend:
                assert backend.to_numpy(backend.asarray([1.0])).tolist() == [1.0]


class TestOwner:
    def test_is_found_by_type(self):
        with xpcnn.use_backend("fake") as fake:
            device = fake.zeros((2,), "float32")
        assert backend_of(device) is fake
        assert backend_of(np.zeros(2)).name == "numpy"
        assert backend_of(None, np.zeros(2), None, np.zeros(3)).name == "numpy"

    def test_is_one(self):
        with xpcnn.use_backend("fake") as fake:
            device = fake.zeros((2,), "float32")
        for arrays in ((device, np.zeros(2)), (np.zeros(2), None, device)):
            with pytest.raises(
                MixedBackendsError, match=r"expected all on one backend, got .* and .*; bring them"
            ) as error:
                backend_of(*arrays)
            assert isinstance(error.value, TypeError)
            assert isinstance(error.value, BackendError)

    @pytest.mark.parametrize("thing", [[1.0], 1.0, "x", object()])
    def test_of_no_array(self, thing):
        with pytest.raises(DTypeError, match=r"array: expected an array of numpy, .*, got .*asarray"):
            backend_of(thing)

    def test_of_nothing(self):
        with pytest.raises(DTypeError, match="expected at least one array, got none"):
            backend_of(None)


class TestBackendOfTheUser:
    def test_trains_like_numpy(self, mine, rng):
        x, labels = rng.normal(size=(8, 1, 32, 32)).astype("float32"), rng.integers(0, 10, 8)
        losses = {}
        for name in ("numpy", "mine"):
            xpcnn.manual_seed(1)
            with xpcnn.use_backend(name) as backend:
                net = models.create("lenet5")
                optimizer = optim.SGD(net.parameters(), 0.05, momentum=0.9)
                criterion = nn.CrossEntropyLoss()
                losses[name] = []
                for _ in range(4):
                    optimizer.zero_grad()
                    loss = criterion(net(backend.asarray(x)), backend.asarray(labels))
                    net.backward(criterion.backward())
                    optimizer.step()
                    assert backend.owns(loss)
                    losses[name].append(float(backend.to_numpy(loss)))
        assert losses["mine"] == pytest.approx(losses["numpy"], rel=1e-4)
        assert losses["mine"][-1] < losses["mine"][0]

    def test_takes_part_everywhere(self, mine, default):
        assert "mine" in xpcnn.available_backends()
        xpcnn.set_backend("mine")
        assert xpcnn.get_backend() is mine
        net = models.create("tiny")
        assert all(isinstance(array, Mine) for array in net.state_dict().values())
        assert net.to("numpy").backend.name == "numpy"
        assert net.to("mine").backend is mine
        assert xpcnn.info()["backend"] == "mine"

    def test_is_kept_apart(self, mine):
        with pytest.raises(MixedBackendsError, match=r"got numpy and mine|got mine and numpy"):
            backend_of(np.zeros(2), mine.asarray(np.zeros(2)))

    def test_is_told_when_it_becomes_active(self, mine, monkeypatch):
        calls = []
        monkeypatch.setattr(MinimalBackend, "activate", lambda self: calls.append("on"))
        with xpcnn.use_backend("mine"):
            assert calls == ["on"]
            with xpcnn.use_backend("numpy"):
                pass
            assert calls == ["on", "on"]  # again, for others may have changed the device

    def test_may_be_replaced(self, mine):
        xpcnn.register_backend(second := MinimalBackend())
        assert backend_of(second.asarray([1.0])) is second

    @pytest.mark.parametrize("name", ["numpy", "cupy", "cupy:1", "auto", "", None, 3])
    def test_needs_a_name_of_its_own(self, name):
        backend = MinimalBackend()
        backend.name = name
        with pytest.raises(BackendError, match=r"backend.name: expected a name other than numpy, cupy and auto, got"):
            xpcnn.register_backend(backend)

    @pytest.mark.parametrize("thing", [MinimalBackend, np, None])
    def test_is_an_instance(self, thing):
        with pytest.raises(BackendError, match=r"expected an instance of a subclass of xpcnn.Backend, got"):
            xpcnn.register_backend(thing)

    def test_needs_its_six(self):
        backend = xpcnn.Backend()
        for call in (
            lambda: backend.owns(1),
            lambda: backend.asarray(1),
            lambda: backend.to_numpy(1),
            backend.synchronize,
        ):
            with pytest.raises(NotImplementedError):
                call()


def test_every_backend_gives_what_the_base_has():
    """A method keeps its argument names and defaults, so that callers need not know whose it is."""
    import inspect

    from xpcnn.backend.cupy import CupyBackend
    from xpcnn.backend.numpy import NumpyBackend

    for backend in (NumpyBackend, CupyBackend, FakeBackend, MinimalBackend):
        for name, method in inspect.getmembers(xpcnn.Backend, inspect.isfunction):
            ours = inspect.signature(getattr(backend, name)).parameters
            for base in inspect.signature(method).parameters.values():
                if base.name != "self":
                    assert base.name in ours, (backend, name)
                    assert ours[base.name].default == base.default, (backend, name)


def test_asarray_of_what_is_no_array(backend):
    assert backend.asarray([[1, 2]], "float32").shape == (1, 2)
    assert backend.asarray(np.ones(3)).dtype == "float64"
    if backend.name == "numpy":
        with pytest.raises(DTypeError, match="a: expected an array or nested lists of numbers, got dict"):
            backend.asarray({})
