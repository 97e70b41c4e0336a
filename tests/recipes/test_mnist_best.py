"""The recipe of the best digits: the test set is looked at once, and what is tested is the average of the weights."""

import math

import numpy as np

from xpcnn import recipes
from xpcnn.data import RandomAffine
from xpcnn.training import ModelAverage


class Watch:
    """Counts evaluations, and keeps the weights that the last step left."""

    def __init__(self):
        self.evaluations, self.weights = 0, None

    def on_fit_start(self, trainer):
        evaluate = trainer.evaluate

        def counted(data):
            self.evaluations += 1
            return evaluate(data)

        trainer.evaluate = counted

    def on_step(self, trainer):
        self.weights = trainer.model.backend.to_numpy(trainer.model[0].weight.data).copy()


def test_it_learns_and_tests_the_average(more_digits, backend, tmp_path):
    epochs = 8 if backend.name == "numpy" else 2  # of minutes on a device that is not there
    watch = Watch()
    run = tmp_path / "run"
    done = recipes.run("mnist-best", data=more_digits, epochs=epochs, batch_size=32, callbacks=[watch], out=run)
    assert watch.evaluations == 0, "until the end"
    assert all(value is None or math.isnan(value) for value in done.history.epochs["validation_loss"])
    assert done.metrics.count == 90
    assert done.metrics.accuracy > 0.5 or epochs < 8
    assert (backend.to_numpy(done.model[0].weight.data) != watch.weights).any()
    shares = backend.to_numpy(done.evaluation.probabilities)
    used = recipes.load_predictor(run)
    np.testing.assert_allclose(backend.to_numpy(used.probabilities(done.test.images)), shares, rtol=1e-4, atol=1e-6)
    used.average_shifts = 0
    assert abs(backend.to_numpy(used.probabilities(done.test.images)) - shares).max() > 1e-3, "of one view of each"


def test_it_is_what_it_says(digits):
    recipe = recipes.find("mnist-best")
    (affine,) = recipe.augment
    assert isinstance(affine, RandomAffine)
    (average,) = recipe.callbacks()
    assert isinstance(average, ModelAverage)
    assert recipe.callbacks()[0] is not average, "each run has its own"
    once, again = (recipes.run("mnist-best", data=digits, epochs=1, seed=3) for _ in range(2))
    np.testing.assert_array_equal(list(once.history.steps["loss"]), list(again.history.steps["loss"]))
    assert once.metrics == again.metrics


def test_it_is_trained_on_other_images_in_each_epoch(digits):
    recipe = recipes.find("mnist-best")
    done = recipes.run("mnist-best", data=digits, epochs=1)
    loader = recipe.train_loader(done.test, "mnist", 10)
    loader.manual_seed(0)
    first, second = (next(iter(loader))[0] for _ in range(2))
    assert (first != second).any()
    plain = recipe.evaluation_loader(done.test, "mnist")
    np.testing.assert_array_equal(next(iter(plain))[0], next(iter(plain))[0])
