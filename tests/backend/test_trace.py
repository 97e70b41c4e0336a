"""A step recorded on NumPy and replayed does what the step itself does, bit by bit, whatever the data."""

import numpy as np
import pytest

import xpcnn
from tests.models import small
from tests.models.small import SHAPES
from xpcnn import functional, models, nn, optim
from xpcnn.backend.numpy.convolution.lowering import windows_view
from xpcnn.backend.numpy.memory import BlockPool
from xpcnn.backend.numpy.traced import plain
from xpcnn.errors import BackendError, DataError


class Training:
    """A net, its optimiser, and one batch in fixed memory."""

    def __init__(self, model, shape, batch=6):
        self.model, self.criterion = model, nn.CrossEntropyLoss()
        self.optimizer = optim.SGD(model.parameters(), 0.01, momentum=0.9)
        self.x = np.empty((*shape, batch), "float32").transpose(3, 0, 1, 2)
        self.labels = np.empty(batch, int)
        self.losses = []
        self.loss = np.empty((), "float32")

    def feed(self, seed):
        rng = np.random.default_rng(seed)
        self.x[...] = rng.standard_normal(self.x.shape)
        self.labels[...] = rng.integers(0, 10, self.labels.shape)
        self.optimizer.gather()
        self.optimizer.upload()
        xpcnn.manual_seed(seed)  # the same masks for all who take this batch

    def step(self):
        loss = self.criterion(self.model(self.x), self.labels)
        xpcnn.backend.backend_of(loss).xp.copyto(self.loss, loss)
        self.model.backward(self.criterion.backward(), input_gradient=False)
        self.optimizer.collect()
        self.optimizer.apply()
        self.optimizer.zero_grad()

    def state(self):
        arrays = dict(self.model.named_buffers()) | {n: p.data for n, p in self.model.named_parameters()}
        return {name: array.copy() for name, array in arrays.items()} | {"loss": self.loss.copy()}


def assert_replays_exactly(make, shape, steps=3):
    written, recorded = (Training(make(), shape) for _ in range(2))
    for training in (written, recorded):
        training.feed(0)
        training.step()
    recorded.feed(1)
    replay = xpcnn.get_backend().capture(recorded.step)  # does the work of a step
    written.feed(1)
    written.step()
    for seed in range(2, 2 + steps):
        written.feed(seed)
        written.step()
        recorded.feed(seed)
        replay()
        for name, value in written.state().items():
            np.testing.assert_array_equal(value, recorded.state()[name], err_msg=f"{name} after batch {seed}")


@pytest.mark.parametrize("name", models.names())
def test_a_replay_is_the_step(name):
    def make():
        xpcnn.manual_seed(0)
        return small.create(name)

    assert_replays_exactly(make, SHAPES[name])


@pytest.mark.parametrize("layer", [nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.GELU, lambda: nn.AvgPool2d(3, 2, 1)])
def test_every_other_layer_replays(layer):
    def make():
        xpcnn.manual_seed(0)
        conv = nn.Conv2d(2, 4, 3, stride=2, groups=2, padding=((1, 0), (2, 1)))
        return nn.Sequential(conv, layer(), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(4, 10))

    assert_replays_exactly(make, (2, 9, 8))


def test_a_replay_shares_work_out_to_threads_without_changing_it():
    threads = xpcnn.get_num_threads()

    def make():
        xpcnn.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(8, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 24 * 24, 10)
        )

    try:
        xpcnn.set_num_threads(2)
        assert_replays_exactly(make, (8, 24, 24))
    finally:
        xpcnn.set_num_threads(threads)


@pytest.mark.parametrize("arena", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda owner, x: owner.zeros(x.shape, "float32"),
        lambda owner, x: owner.xp.zeros(x.shape, "float32"),
        lambda owner, x: owner.xp.ones(x.shape, "float32"),
        lambda owner, x: owner.xp.full(x.shape, 3, "float32"),
        lambda owner, x: owner.xp.arange(3, dtype="float32"),
        lambda owner, x: owner.xp.zeros_like(x * 2),
    ],
)
def test_a_constant_that_the_step_writes_to_is_new_in_each_replay(monkeypatch, make, arena):
    backend = xpcnn.get_backend()
    if not arena:
        monkeypatch.setattr(type(backend.workers), "arena", None)
    x, y = backend.place(np.ones(3, "float32")), backend.place(np.empty((2, 3), "float32"))

    def step():
        owner = xpcnn.backend.backend_of(x)
        total, unwritten = make(owner, x), make(owner, x)
        total += owner.wrap(x) if hasattr(owner, "wrap") else x
        total[1:] *= 2
        owner.xp.copyto(y[0], total)
        owner.xp.copyto(y[1], unwritten)

    step()
    expected = [y.copy()]
    x += 4
    step()
    expected.append(y.copy())
    x -= 4
    replay = backend.capture(step)
    np.testing.assert_array_equal(y, expected[0])
    for change, wanted in ((0, 0), (4, 1), (-4, 0)):
        x += change
        replay()
        np.testing.assert_array_equal(y, expected[wanted])


def test_a_replay_checks_labels_as_the_step_does():
    xpcnn.manual_seed(0)
    training = Training(models.create("conv8"), SHAPES["conv8"])
    training.feed(0)
    replay = xpcnn.get_backend().capture(training.step)
    training.labels[2] = 10
    with pytest.raises(DataError, match="labels: expected classes from 0 to 9"):
        replay()


def test_a_number_of_the_host_cannot_be_recorded():
    x = np.ones(3, "float32")
    backend = xpcnn.get_backend()

    def step():
        xp = xpcnn.backend.backend_of(x).xp
        x[...] = xp.sum(x)

    with pytest.raises(BackendError, match="capture: making a plain NumPy array needs a value"):
        backend.capture(step)
    assert xpcnn.backend.backend_of(x) is backend, "the recorder must be gone after an error"


def test_a_record_uses_a_block_again_once_the_step_has_dropped_it():
    backend = xpcnn.get_backend()
    x = np.ones(1 << 18, "float32")

    def step():
        owner = xpcnn.backend.backend_of(x)
        for _ in range(20):
            owner.xp.add(x, 1.0, out=owner.empty(x.shape, x.dtype))

    pool = backend.capture(step).blocks
    assert isinstance(pool, BlockPool)
    assert len(pool.kept) == 1


def test_a_record_has_no_claim_on_what_it_saw_through_windows():
    backend = xpcnn.get_backend()
    memory = []

    def step():
        recording = backend.for_array(None)
        a = recording.empty((4, 1 << 18), "float32")
        recording.xp.copyto(a, 1)
        recording.xp.add(windows_view(recording, a, 1, 10, 6, 4), 1, out=recording.empty((4, 10, 6), "float32"))
        memory.append(plain(a).__array_interface__["data"][0])
        del a
        memory.append(plain(recording.empty((4, 1 << 18), "float32")).__array_interface__["data"][0])

    backend.capture(step)
    assert memory[0] == memory[1]


def every_elementwise_layer():
    """Layers whose work is a few calls each: none of them may be an operator, which a record does not see."""
    norm = nn.BatchNorm1d(12, momentum=None)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), norm, nn.LeakyReLU(0.2), nn.Linear(12, 12), nn.Softmax(), nn.Sigmoid(),
        nn.Linear(12, 12), nn.Tanh(), nn.GELU(), nn.Dropout(0.5), nn.Residual(nn.Linear(12, 12)), nn.Linear(12, 10),
    )  # fmt: skip


def test_every_layer_is_recorded_whole():
    def make():
        xpcnn.manual_seed(0)
        return every_elementwise_layer()

    assert_replays_exactly(make, (1, 4, 4))


def test_a_foreign_byte_order_is_read_anew_by_each_replay():
    x = np.ones((3, 4), ">f4")
    y = np.empty((3, 4), "float32")

    def step():
        result, _ = functional.relu(x)
        xpcnn.backend.backend_of(result).xp.copyto(y, result)

    replay = xpcnn.get_backend().capture(step)
    x[...] = 5
    replay()
    assert np.all(y == 5)
