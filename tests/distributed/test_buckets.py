"""Sums of gradients that begin within backward: the same numbers and order on all ranks, and nothing comes too late."""

import numpy as np
import pytest

import xpcnn
from tests.distributed.test_shared_training import alike, close, images, labels, loader, outcome, trained, trainer
from tests.distributed.threads import as_ranks
from xpcnn import nn, optim
from xpcnn.errors import StateError
from xpcnn.optim import GradScaler
from xpcnn.training import Trainer

OPTIONS = [{}, {"accumulate": 2, "clip_norm": 0.1}, {"norm": True, "sync_batch_norm": True}, {"compile": False}]


def overlapped(work, bucket_bytes=1):
    def run(communicator):
        communicator.bucket_bytes = bucket_bytes
        return work(communicator)

    return run


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sums_within_backward_are_those_after_it(backend, options):
    """Added up rank by rank, each number's sum is the same whatever else is added up with it: bit for bit."""
    after = as_ranks(3, lambda c: trained(c, **options), backend.name)
    within = as_ranks(3, overlapped(lambda c: trained(c, **options)), backend.name)
    alike([after[0], *within])


def begun(work, size=2):
    """Return the sizes of a job's sums, in the order in which rank 0 has begun them, and where backward was then."""
    noted = []

    def run(communicator):
        communicator.bucket_bytes = 1
        iallreduce = communicator.iallreduce

        def note(a):
            if communicator.rank == 0:
                noted.append(a.size)
            return iallreduce(a)

        communicator.iallreduce = note
        return work(communicator)

    with xpcnn.use_backend("numpy"):
        as_ranks(size, run)
    return noted


def test_sums_begin_from_the_last_layer_on_in_replays_too():
    """Linear weight (48) and bias (3), then convolution bias (4) and weight (36), by multiples of 16."""
    steps = 9

    def work(communicator):
        made = trainer(communicator)
        x = np.random.default_rng(0).normal(size=(4, 1, 6, 6)).astype("float32")
        for _ in range(steps):
            made.train_batch(x, labels()[:4])
        assert made._step.compiled[0].graphs == 1

    sums = begun(work)
    assert sums == [48, 16, 16, 16 + 48] * (steps - 1)  # not in the first, which counts; the loss goes with the last


def test_a_bucket_is_as_large_as_was_asked_for():
    def work(communicator):
        communicator.bucket_bytes = 4 * 60
        made = trainer(communicator)
        for _ in range(2):
            made.train_batch(images()[:4, None].astype("float32"), labels()[:4])

    assert begun(work) == [16 + 48, 16 + 16 + 48]


def rows():
    x = np.random.default_rng(0).normal(size=(6, 8, 6)).astype("float32")
    return list(zip(x, np.random.default_rng(1).integers(0, 3, (6, 8)), strict=True))


class Twice(nn.Module):
    """Two layers; the bias of the last gets a second gradient after the first layer's."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        self.keep(())
        return self.last(self.first(x))

    def backward(self, dy, *, input_gradient=True):
        self.take()
        dx = self.first.backward(self.last.backward(dy))
        self.last.bias.accumulate(dy.sum(0))
        return dx


def test_a_parameter_with_several_gradients_waits_for_the_last():
    def work(communicator):
        xpcnn.manual_seed(0)
        model = Twice()
        optimizer = optim.SGD(model.parameters(), 0.1)
        made = Trainer(model, optimizer, nn.CrossEntropyLoss(), communicator=communicator, compile=False)
        made.fit(rows(), epochs=2)
        return outcome(made)

    with xpcnn.use_backend("numpy"):
        alike([as_ranks(2, work)[0], *as_ranks(2, overlapped(work))])


class Sometimes(nn.Linear):
    """Its gradient comes twice from its third backward on."""

    calls = 0

    def backward(self, dy, *, input_gradient=True):
        dx = super().backward(dy, input_gradient=input_gradient)
        self.calls += 1
        if self.calls > 2:
            self.bias.accumulate(dy.sum(0))
        return dx


def test_a_gradient_that_comes_too_late_is_an_error():
    def work(communicator):
        communicator.bucket_bytes = 1
        model = nn.Sequential(nn.Linear(6, 4), Sometimes(4, 3))
        optimizer = optim.SGD(model.parameters(), 0.1)
        made = Trainer(model, optimizer, nn.CrossEntropyLoss(), communicator=communicator, compile=False)
        made.fit(rows(), epochs=1)

    with xpcnn.use_backend("numpy"), pytest.raises(StateError, match=r"1\.bias: got more gradients.*bucket_bytes = 0"):
        as_ranks(2, work)


class Switch:
    """Begins sums within backward at step 5, and ends that at step 9."""

    def on_step(self, made):
        made.communicator.bucket_bytes = {5: 1, 9: 0}.get(made.step, made.communicator.bucket_bytes)


def test_it_can_be_switched_while_training(backend):
    after = as_ranks(2, lambda c: trained(c, epochs=3), backend.name)
    alike([after[0], *as_ranks(2, lambda c: trained(c, epochs=3, callbacks=[Switch()]), backend.name)])


class Freeze:
    """Freezes the first layer at step 3, thaws it at step 8, and puts other arrays in a parameter's place at step 5."""

    def on_step(self, made):
        weight = made.model[0].weight
        if made.step in (3, 8):
            weight.requires_grad = made.step == 8
        if made.step == 5:
            made.model[0].bias.data = made.model[0].bias.data.copy()
            made.model[0].bias.grad = made.model[0].bias.grad.copy()


def test_frozen_parameters_and_arrays_of_the_user_s(backend):
    def work(communicator):
        return trained(communicator, epochs=3, callbacks=[Freeze()])

    after = as_ranks(2, work, backend.name)
    alike([after[0], *as_ranks(2, overlapped(work), backend.name)])


def test_groups_whose_parameters_alternate(backend):
    def work(communicator):
        xpcnn.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        groups = [
            {"params": [each for each in model.parameters() if each.name.endswith(kind)], "lr": rate}
            for kind, rate in (("weight", 0.05), ("bias", 0.1))
        ]
        made = Trainer(model, optim.Adam(groups), nn.CrossEntropyLoss(), communicator=communicator)
        made.fit(loader(), epochs=2)
        return outcome(made)

    after = as_ranks(2, work, backend.name)
    alike([after[0], *as_ranks(2, overlapped(work, 64), backend.name)])


def test_float16_is_added_up_after_backward(backend):
    def work(communicator):
        xpcnn.manual_seed(0)
        made = trainer(communicator)
        made.model.half()
        optimizer = optim.SGD(made.model.parameters(), 0.05)
        made = Trainer(made.model, optimizer, nn.CrossEntropyLoss(), scaler=GradScaler(), communicator=communicator)
        made.fit(loader(), epochs=1)
        return outcome(made)

    alike([as_ranks(2, work, backend.name)[0], *as_ranks(2, overlapped(work), backend.name)])


def test_they_end_where_one_process_does(backend):
    results = as_ranks(4, overlapped(lambda c: trained(c)), backend.name)
    close(results[0], trained())
