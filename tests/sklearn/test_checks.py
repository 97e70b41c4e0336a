"""scikit-learn's own checks of an estimator, all of them; with XPCNN_TRUST=1 also of the default LeNet-5."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

sklearn = pytest.importorskip("sklearn")

from sklearn.utils.estimator_checks import estimator_checks_generator  # noqa: E402

from xpcnn.sklearn import CNNClassifier  # noqa: E402

from .networks import small  # noqa: E402

ESTIMATORS = {
    "small": CNNClassifier(small, epochs=15, lr=0.02, batch_size=32),
    "stopping": CNNClassifier(
        small, epochs=15, lr=0.02, batch_size=32, early_stopping=True, optimizer="sgd", n_iter_no_change=9
    ),
}
if os.environ.get("XPCNN_TRUST") == "1":
    ESTIMATORS["default"] = CNNClassifier()


def cases():
    """Return every check of every estimator, by names that are the same in all processes."""
    for name, estimator in ESTIMATORS.items():
        for number, (made, check) in enumerate(estimator_checks_generator(estimator)):
            inner = check
            while isinstance(inner, functools.partial):
                inner = inner.func
            yield pytest.param(made, check, id=f"{name}-{number}-{inner.__name__}")


@pytest.mark.parametrize(("estimator", "check"), list(cases()))
def test_estimator(estimator, check):
    check(estimator)


def test_the_check_of_other_array_libraries():
    """It runs where SciPy has been told of them before it is imported."""
    code = (
        "from sklearn.utils.estimator_checks import check_array_api_input\n"
        "from tests.sklearn.test_checks import ESTIMATORS\n"
        "check_array_api_input('CNNClassifier', ESTIMATORS['small'], array_namespace='numpy')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env={**os.environ, "SCIPY_ARRAY_API": "1"},
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
