"""A worker process plays its part of recorded steps: what goes to it, and the same bits."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import xpcnn
from xpcnn import nn
from xpcnn.backend.numpy import regions, workers
from xpcnn.backend.numpy.arena import new_arena
from xpcnn.backend.numpy.convolution import mending
from xpcnn.errors import BackendError, ConfigError

from .helped_steps import Placed, a_region, make, record_of, recorded, regions_of, replay_until_helped, until
from .test_trace import SHAPES

pytestmark = pytest.mark.skipif(new_arena(4096) is None, reason="the system has no shared memory of this kind")


def assert_same_bits(make, shape):
    training, replay = recorded(make, shape)
    written = Placed(make(), shape)
    first = replay_until_helped(training, replay)
    turns = [helper._turn for helper in xpcnn.get_backend().workers._workers]
    for seed in range(first, first + 3):
        training.feed(seed)
        replay()
    helpers = xpcnn.get_backend().workers._workers
    assert [helper._turn for helper in helpers] > turns, "no region was handed over"
    for seed in range(first + 3):
        written.feed(seed)
        written.step()
    for name, value in written.state().items():
        np.testing.assert_array_equal(value, training.state()[name], err_msg=name)
    return replay


@pytest.mark.parametrize("name", ["lenet5", "three-layer", "resnet20"])
def test_a_helper_gives_the_bits_of_the_step(helped, name):
    replay = assert_same_bits(lambda: make(name), SHAPES[name])
    assert regions_of(replay)[0] > 0
    assert regions_of(replay)[1] == 0


@pytest.mark.parametrize("layer", [nn.LeakyReLU, nn.Sigmoid, nn.GELU, lambda: nn.AvgPool2d(3, 2, 1), nn.Dropout])
def test_every_kind_of_layer(helped, layer):
    def make():
        xpcnn.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(4, 48, 3, padding=1), nn.BatchNorm2d(48), layer(),
            nn.Conv2d(48, 40, 3, padding=1), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(40, 10),
        )  # fmt: skip

    replay = assert_same_bits(make, (4, 14, 14))
    assert regions_of(replay)[0] > 0


class WithALargePixel(Placed):
    """Images for Winograd's transforms, one of them with a pixel that must not spread, in every other batch."""

    def __init__(self, model, shape, batch=12):
        super().__init__(model, shape, batch)

    def feed(self, seed):
        super().feed(seed)
        if seed % 2:
            self.x[5, 3, 4, 4] = 2e3


def test_what_is_mended_is_mended_in_steps_with_a_helper(helped, monkeypatch):
    def make():
        xpcnn.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(16, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 16, 3), nn.GlobalAvgPool2d(), nn.Flatten(),
            nn.Linear(16, 10),
        )  # fmt: skip

    found, usual = [], mending.suspects
    monkeypatch.setattr(mending, "suspects", lambda *arguments: found.append(usual(*arguments)) or found[-1])
    shape = (16, 11, 10)
    training, replay = recorded(make, shape, WithALargePixel)
    written = WithALargePixel(make(), shape)
    first = replay_until_helped(training, replay)
    assert regions_of(replay)[0] > 0
    assert regions_of(replay)[1] == 0
    found.clear()
    for seed in range(first, first + 4):
        training.feed(seed)
        replay()
    assert {image for images in found for image in images} == {5}
    for seed in range(first + 4):
        written.feed(seed)
        written.step()
    for name, value in written.state().items():
        np.testing.assert_array_equal(value, training.state()[name], err_msg=name)


def test_several_helpers(helped):
    xpcnn.set_num_threads(3)
    assert_same_bits(make, SHAPES["lenet5"])
    assert len(helped.workers._workers) == 2


def test_a_trainer_s_steps_go_to_the_helper(helped):
    model = make()
    trainer = xpcnn.training.Trainer(model, xpcnn.optim.SGD(model.parameters(), 0.01), nn.CrossEntropyLoss())
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((8, 1, 32, 32)).astype("float32"), rng.integers(0, 10, 8)

    def helped_now():
        trainer.train_batch(x, labels)
        graph = record_of(trainer)
        return graph is not None and graph._link._ready

    until(helped_now, "the helper is not ready")
    assert regions_of(record_of(trainer))[1] == 0, "every region's arrays lie in shared memory"


@pytest.mark.parametrize("allowed", ["0", "1"])
def test_steps_before_a_record_give_its_bits(helped, monkeypatch, allowed):
    """Work is cut alike as written and recorded, whatever the slab: sums of channels depend on it."""
    monkeypatch.setenv("XPCNN_PROCESSES", allowed)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((200, 1, 32, 32)).astype("float32"), rng.integers(0, 10, 200)) for _ in range(7)]
    states = []
    for capture in (True, False):
        model = make()
        optimizer = xpcnn.optim.SGD(model.parameters(), 0.01)
        trainer = xpcnn.training.Trainer(model, optimizer, nn.CrossEntropyLoss(), compile=capture)
        for x, labels in batches:
            trainer.train_batch(x, labels)
        states.append({name: array.copy() for name, array in model.state_dict().items()})
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)


def test_slabs_are_smaller_for_helpers(helped, monkeypatch):
    usual = helped.slab_bytes
    with helped.as_recorded():
        assert helped.slab_bytes < usual
        with ThreadPoolExecutor(1) as other:
            assert other.submit(lambda: helped.slab_bytes).result() == usual
        with helped.as_recorded():
            pass
        assert helped.slab_bytes < usual
    assert helped.slab_bytes == usual
    monkeypatch.setenv("XPCNN_PROCESSES", "0")
    with helped.as_recorded():
        assert helped.slab_bytes == usual


@pytest.mark.parametrize("kind", [object, "U3", "complex64", [("a", "i4")]])
def test_arrays_of_no_numbers_stay_where_they_are(helped, kind):
    array = np.zeros(3, kind)
    assert helped.place(array) is array


def test_what_has_its_place_keeps_it(helped):
    array = helped.place(np.arange(6.0).reshape(2, 3).T)
    assert array.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert helped.place(array) is array


def test_it_starts_after_enough_replays(helped, monkeypatch):
    monkeypatch.setattr(regions, "REPLAYS_BEFORE", 5)
    training, replay = recorded()
    for seed in range(4):
        training.feed(seed)
        replay()
    assert helped.workers._workers == []
    assert replay_until_helped(training, replay)
    assert len(helped.workers._workers) == 1


def test_it_does_not_start_for_little_work(helped, monkeypatch):
    monkeypatch.setattr(regions, "WORTH_A_PROCESS", 1e12)
    _, replay = recorded()
    for _ in range(5):
        replay()
    assert helped.workers._workers == []


def test_it_sleeps_and_wakes(helped):
    training, replay = recorded()
    seed = replay_until_helped(training, replay)
    helper = helped.workers._workers[0]
    for _ in range(3):
        until(lambda: helper.words[workers.page.ASLEEP], "it does not fall asleep")
        training.feed(seed)
        replay()
    written = Placed(make(), SHAPES["lenet5"])
    for number in [*range(seed), seed, seed, seed]:
        written.feed(number)
        written.step()
    np.testing.assert_array_equal(written.loss, training.loss)


def test_threads_play_while_helpers_do_worse(helped, monkeypatch):
    monkeypatch.setattr(regions, "PATIENCE", 0.0)
    monkeypatch.setattr(regions, "REST", 1e-9)
    training, replay = recorded()
    replay_until_helped(training, replay)
    helper = helped.workers._workers[0]
    played = []
    for _ in range(10):
        turn = helper._turn
        replay()
        played.append(helper._turn > turn)
    assert played == [True, False] * 5
    assert replay._link._rest == 16e-9


def test_fewer_threads_after_recording(helped):
    training, replay = recorded()
    seed = replay_until_helped(training, replay)
    turn = helped.workers._workers[0]._turn
    xpcnn.set_num_threads(1)
    training.feed(seed)
    replay()
    assert helped.workers._workers[0]._turn == turn, "one thread means no helper"
    xpcnn.set_num_threads(2)
    training.feed(seed)
    replay()
    assert helped.workers._workers[0]._turn > turn


def test_records_that_are_gone_are_forgotten(helped):
    training, replay = recorded()
    replay_until_helped(training, replay)
    helper = helped.workers._workers[0]
    others = [recorded()]
    replay_until_helped(*others[0])
    number = a_region(replay)
    del replay, training
    gc.collect()
    assert number in helper.dropped
    others.append(recorded())
    replay_until_helped(*others[1])
    assert helper.dropped == []
    with pytest.raises(BackendError, match=f"KeyError: {number}"):
        helped.workers.run(number, 1, regions.play, [])


def test_arrays_of_the_caller_s_own_stay(helped):
    x, y = np.ones((2, 64, 1000), "float32"), helped.place(np.zeros((2, 64, 1000), "float32"))

    def step():
        owner = xpcnn.backend.backend_of(x)
        owner.parallel(lambda i: owner.xp.add(x[i], y[i], out=y[i]), range(2), 1e6)
        owner.parallel(lambda i: owner.xp.add(y[i], 1.0, out=y[i]), range(2), 1e6)

    replay = helped.capture(step)
    count = 1

    def ready():
        nonlocal count
        count += 1
        replay()
        return replay._link._ready

    until(ready, "the helper is not ready")
    x += 1
    replay()
    assert regions_of(replay) == (1, 1)
    assert (y == 2 * count + 3).all()


def test_constants_travel(helped):
    constant = helped.constant(np.arange(1000, dtype="float32"))
    y = helped.place(np.zeros((2, 1000), "float32"))

    def step():
        owner = xpcnn.backend.backend_of(y)
        owner.parallel(lambda i: owner.xp.add(constant[::-1], y[i], out=y[i]), range(2), 1e6)

    replay = helped.capture(step)
    replay()
    assert regions_of(replay) == (1, 0)
    with pytest.raises(ValueError, match="read-only"):
        constant[0] = 1


def test_what_cannot_be_said_stays(helped):
    y = helped.place(np.zeros((2, 4), "float32"))

    def step():
        owner = xpcnn.backend.backend_of(y)
        owner.parallel(lambda i: owner.xp.concatenate([y[i], y[i]]), range(2), 1e6)

    replay = helped.capture(step)
    replay()
    assert regions_of(replay) == (0, 1)
    assert not replay._link._open


def test_one_thread_has_none(helped):
    xpcnn.set_num_threads(1)
    array = np.ones(3)
    assert helped.place(array) is array
    assert recorded()[1]._link is None
    assert helped.info()["helpers"] == 0


def test_a_system_without_shared_memory(helped, monkeypatch):
    monkeypatch.setattr(workers, "new_arena", lambda reserved: None)
    array = np.ones(3)
    assert helped.place(array) is array
    _, replay = recorded()
    replay()
    assert replay._link is None


def test_the_environment_forbids_it(helped, monkeypatch):
    monkeypatch.setenv("XPCNN_PROCESSES", "0")
    assert helped.info()["helpers"] == 0
    assert recorded()[1]._link is None
    monkeypatch.setenv("XPCNN_PROCESSES", "1")
    assert helped.info()["helpers"] == 1
    monkeypatch.setenv("XPCNN_PROCESSES", "no")
    with pytest.raises(ConfigError, match="XPCNN_PROCESSES: expected 0"):
        _ = helped.workers.arena
