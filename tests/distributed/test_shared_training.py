"""Ranks train what one process would: the same images, masks, statistics, gradients and history."""

import numpy as np
import pytest

import xpcnn
from tests.distributed.threads import as_ranks
from xpcnn import nn, optim
from xpcnn.backend import backend_of
from xpcnn.data import DataLoader
from xpcnn.errors import ConfigError, NonFiniteError, StateError
from xpcnn.functional.part import part_of
from xpcnn.optim import GradScaler
from xpcnn.training import Checkpointer, Trainer

COUNT, BATCH = 43, 8  # the last batch has three images: fewer than four ranks


def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 6, 6)).astype("uint8")


def labels():
    return np.random.default_rng(1).integers(0, 3, COUNT)


def loader(**options):
    return DataLoader(images(), labels(), BATCH, **options)


def net(norm=False):
    statistics = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), *statistics, nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.2), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(16, 3),
    )  # fmt: skip


def trainer(communicator=None, norm=False, reduction="mean", **options):
    xpcnn.manual_seed(0)
    model = net(norm)
    optimizer = optim.SGD(model.parameters(), 0.05 if reduction == "mean" else 0.01, momentum=0.9)
    return Trainer(model, optimizer, nn.CrossEntropyLoss(reduction=reduction), communicator=communicator, **options)


def outcome(made):
    state = {name: backend_of(a).to_numpy(a).copy() for name, a in made.model.state_dict().items()}
    return state, made.history.to_dict()


def trained(communicator=None, epochs=2, **options):
    made = trainer(communicator, **options)
    made.fit(loader(), loader(shuffle=False), epochs=epochs)
    return outcome(made)


def close(actual, expected, eps=2e-5):
    for name, value in expected[0].items():
        np.testing.assert_allclose(actual[0][name], value, rtol=eps, atol=eps, err_msg=name)
    for table in ("steps", "epochs"):
        for name, column in expected[1][table].items():
            if name not in ("seconds", "images_per_second") and None not in column:
                np.testing.assert_allclose(actual[1][table][name], column, rtol=eps, atol=eps, err_msg=name)


def alike(results):
    for state, history in results[1:]:
        for name, value in results[0][0].items():
            np.testing.assert_array_equal(state[name], value, err_msg=name)
        assert history["steps"] == results[0][1]["steps"]
        assert history["epochs"]["validation_loss"] == results[0][1]["epochs"]["validation_loss"]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ranks_end_where_one_process_does(backend, size, reduction):
    results = as_ranks(size, lambda c: trained(c, reduction=reduction), backend.name)
    alike(results)
    close(results[0], trained(reduction=reduction))


@pytest.mark.parametrize("size", [2, 4])
def test_synchronised_batch_norm_is_that_of_the_whole_batch(backend, size):
    results = as_ranks(size, lambda c: trained(c, norm=True, sync_batch_norm=True), backend.name)
    alike(results)
    close(results[0], trained(norm=True), 1e-4)


def test_statistics_of_parts_are_averaged(backend):
    results = as_ranks(2, lambda c: trained(c, norm=True), backend.name)
    alike(results)
    assert abs(results[0][0]["1.running_mean"] - trained(norm=True)[0]["1.running_mean"]).max() < 0.5


def test_several_threads_draw_the_masks_of_the_batch(monkeypatch):
    """Slabs of channels are another thread's work, which knows of no part."""
    x = np.random.default_rng(0).normal(size=(8, 16, 24, 24)).astype("float32")

    def masks(part, images):
        from xpcnn.functional.part import computing

        xpcnn.manual_seed(0)
        with computing(() if part is None else (part,)):
            return xpcnn.functional.dropout(images, 0.5, training=True)[0] != 0

    with xpcnn.use_backend("numpy") as numpy:
        monkeypatch.setattr(numpy.pool, "_size", 2)
        monkeypatch.setattr(numpy.pool, "worth", 0.0)
        whole = masks(None, x)
        for rank in range(3):
            part = part_of(8, rank, 3)
            np.testing.assert_array_equal(masks(part, x[part.images]), whole[part.images])
            flat = x.reshape(8, 16, -1)  # of a shape that is neither images nor features
            whole_flat = masks(None, flat)
            np.testing.assert_array_equal(masks(part, flat[part.images]), whole_flat[part.images])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulated_batches_are_those_of_one_process(backend, reduction):
    results = as_ranks(4, lambda c: trained(c, accumulate=2, reduction=reduction), backend.name)
    alike(results)
    close(results[0], trained(accumulate=2, reduction=reduction))


def test_recorded_steps_are_those_as_written(backend):
    recorded = as_ranks(2, trained, backend.name)
    written = as_ranks(2, lambda c: trained(c, compile=False), backend.name)
    for name, value in written[0][0].items():
        np.testing.assert_array_equal(recorded[0][0][name], value)


def test_parts_of_other_places_have_graphs_of_their_own():
    """The third rank of three has two images of eight at 6, and two of six at 4: one shape, other masks."""

    def work(communicator):
        made = trainer(communicator)
        x = np.random.default_rng(0).normal(size=(8, 1, 6, 6)).astype("float32")
        for i in range(12):
            count = 8 if i % 2 else 6
            made.train_batch(x[:count], labels()[:count])
        return outcome(made)

    def alone():
        made = trainer()
        x = np.random.default_rng(0).normal(size=(8, 1, 6, 6)).astype("float32")
        for i in range(12):
            count = 8 if i % 2 else 6
            made.train_batch(x[:count], labels()[:count])
        return outcome(made)

    with xpcnn.use_backend("numpy"):
        close(as_ranks(3, work)[0], alone())


def test_one_sum_a_step(backend):
    def work(communicator):
        made = trainer(communicator)
        made.fit(loader(drop_last=True), epochs=1)
        return communicator.calls / made.step

    assert as_ranks(2, work, backend.name) == [1.0, 1.0]


def test_overflow_on_one_rank_leaves_the_step_out_on_all(backend):
    def work(communicator):
        made = trainer(communicator, nonfinite="skip")
        before = outcome(made)[0]
        x = backend.asarray(np.ones((4, 1, 6, 6), "float32"))
        x[3] = float("nan")  # in the last rank's part
        made.train_batch(x, backend.asarray(np.zeros(4, "int64")))
        made.read()
        after = outcome(made)[0]
        assert all(np.array_equal(before[name], after[name]) for name in before)
        return made.skipped

    assert as_ranks(2, work, backend.name) == [1, 1]

    def stops(communicator):
        made = trainer(communicator)
        x = backend.asarray(np.full((4, 1, 6, 6), np.nan, "float32"))
        made.train_batch(x, backend.asarray(np.zeros(4, "int64")))
        made.read()

    with pytest.raises(NonFiniteError, match="step 1"):
        as_ranks(2, stops, backend.name)


def test_float16_scales_alike(backend):
    def work(communicator):
        xpcnn.manual_seed(0)
        model = net()
        optimizer = optim.SGD(model.parameters(), 0.05)
        model.half()
        made = Trainer(model, optimizer, nn.CrossEntropyLoss(), scaler=GradScaler(), communicator=communicator)
        made.fit(loader(), epochs=1)
        return outcome(made)

    alike(as_ranks(2, work, backend.name))


def test_clipping_is_by_the_norm_of_the_whole_gradient(backend):
    results = as_ranks(2, lambda c: trained(c, clip_norm=0.1), backend.name)
    close(results[0], trained(clip_norm=0.1))


class Stop:
    def __init__(self, rank, step):
        self.rank, self.step = rank, step

    def on_step(self, made):
        if made.step == self.step and made.communicator.rank == self.rank:
            made.stop("enough")


def test_a_stop_on_one_rank_is_everyone_s(backend):
    def work(communicator):
        made = trainer(communicator, callbacks=[Stop(1, 2)])
        made.fit(loader(), epochs=2)
        return made.step, made.stopped

    steps = {step for step, stopped in as_ranks(2, work, backend.name) if stopped}
    assert len(steps) == 1
    assert steps <= {2, 3}  # a step on the host carries what was known when it began


class Once:
    once = True

    def __init__(self):
        self.calls = 0

    def on_step(self, made):
        self.calls += 1


class Each(Once):
    once = False


def test_rank_0_alone_calls_what_is_to_be_called_once(backend):
    def work(communicator):
        callbacks = [Once(), Each()]
        trainer(communicator, callbacks=callbacks).fit(loader(), epochs=1)
        return [each.calls for each in callbacks]

    assert as_ranks(2, work, backend.name) == [[6, 6], [0, 6]]


def test_evaluation_counts_each_image_once(backend):
    alone = trainer().evaluate(loader(shuffle=False))
    for size in (2, 4):
        for found in as_ranks(size, lambda c: trainer(c).evaluate(loader(shuffle=False)), backend.name):
            assert found.count == COUNT
            assert found.accuracy == alone.accuracy
            assert found.loss == pytest.approx(alone.loss, rel=1e-6)


@pytest.mark.parametrize("average_shifts", [0, 1])
def test_evaluation_of_a_recipe_keeps_the_order(backend, average_shifts):
    from xpcnn.recipes.evaluation import evaluate

    xpcnn.manual_seed(0)
    alone = evaluate(net(), loader(shuffle=False), average_shifts=average_shifts)

    def work(communicator):
        xpcnn.manual_seed(0)
        return evaluate(net(), loader(shuffle=False), communicator, average_shifts)

    for found in as_ranks(4, work, backend.name):
        np.testing.assert_allclose(*map(backend.to_numpy, (found.probabilities, alone.probabilities)), rtol=1e-5)
        np.testing.assert_array_equal(*map(backend.to_numpy, (found.labels, alone.labels)))
        assert found.metrics.accuracy == alone.metrics.accuracy


def test_any_iterable_of_batches_is_shared_out(backend):
    images = [np.random.default_rng(i).normal(size=(5, 1, 6, 6)).astype("float32") for i in range(4)]
    data = [(backend.asarray(x), backend.asarray(labels()[:5])) for x in images]

    def work(communicator=None):
        made = trainer(communicator)
        made.fit(data, data, epochs=2)
        return outcome(made)

    close(as_ranks(2, work, backend.name)[0], work())


@pytest.mark.parametrize("norm", [False, True])
def test_a_checkpoint_goes_on_bit_by_bit_and_on_other_numbers_of_ranks(backend, tmp_path, norm):
    def work(communicator, epochs, folder=None, resume=False):
        made = trainer(communicator, norm=norm)
        if folder is not None and (communicator is None or communicator.rank == 0):
            made.checkpoint = Checkpointer(folder, every_steps=3)
        made.fit(loader(), epochs=epochs, resume=resume)
        return outcome(made)

    whole = as_ranks(2, lambda c: work(c, 3), backend.name)
    as_ranks(2, lambda c: work(c, 1, tmp_path), backend.name)
    resumed = as_ranks(2, lambda c: work(c, 3, tmp_path, True), backend.name)
    alike([whole[0], *resumed])
    if not norm:
        import shutil

        for step in ("step-0000000018", "step-0000000015"):
            shutil.rmtree(tmp_path / step, ignore_errors=True)
        close(work(None, 3, tmp_path, True), whole[0])


# --- what is not alike ---------------------------------------------------------------------------------------------


def data_of(rank):
    pictures = images()
    pictures[3] += rank
    return DataLoader(pictures, labels(), BATCH)


DIFFERENT = {
    "seed": (lambda c: (xpcnn.manual_seed(c.rank), trainer(c), xpcnn.manual_seed(c.rank))[1], lambda c: loader()),
    "train data": (trainer, lambda c: data_of(c.rank)),
    "model": (lambda c: trainer(c, norm=c.rank == 1), lambda c: loader()),
    "clip_norm": (lambda c: trainer(c, clip_norm=1.0 + c.rank), lambda c: loader()),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_rank_that_has_something_else_is_named(backend, what):
    make, data = DIFFERENT[what]
    with pytest.raises(ConfigError, match=rf"rank 1: {what}.*as rank 0 has it"):
        as_ranks(2, lambda c: make(c).fit(data(c), epochs=1), backend.name)


def test_parameters_start_as_those_of_rank_0(backend):
    def work(communicator):
        made = trainer(communicator)
        made.model[0].weight.data[...] = communicator.rank
        made.fit(loader(), epochs=0)
        return float(backend.to_numpy(made.model[0].weight.data.max()))

    assert as_ranks(2, work, backend.name) == [0.0, 0.0]


class Spoil:
    def on_step(self, made):
        if made.step == 2 and made.communicator.rank == 1:
            made.model[0].bias.data[0] += 1e-3


def test_a_rank_that_drifts_is_named(backend):
    with pytest.raises(StateError, match=r"random state of rank 1 are not those of the others"):
        as_ranks(3, lambda c: trainer(c, callbacks=[Spoil()]).fit(loader(), epochs=1), backend.name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"communicator": 3}, "communicator: expected what"),
        ({"compile": True, "sync_batch_norm": True, "norm": True}, "compile: expected"),
    ],
)
def test_options_that_make_no_sense(options, message):
    def work(communicator):
        made = trainer(**{"communicator": communicator} | options)
        made.fit(loader(), epochs=1)

    with pytest.raises(ConfigError, match=message):
        as_ranks(1, work)


@pytest.mark.parametrize("options", [{"weight": [1.0, 2.0, 3.0]}, {"ignore_index": 1}])
def test_a_weighted_mean_is_refused(options):
    def work(communicator):
        made = trainer(communicator)
        made.criterion = nn.CrossEntropyLoss(**options)
        made.fit(loader(), epochs=1)

    with pytest.raises(ConfigError, match="reduction='sum'"):
        as_ranks(2, work)
