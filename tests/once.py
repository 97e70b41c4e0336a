"""A plugin of pytest in pytest-benchmark's place: `benchmark` calls a function once and measures nothing.

`python -m pytest -p tests.once -p no:benchmark bench` shows that the benchmarks run, where no time is to be measured.
"""

import pytest


class Once:
    """As much of pytest-benchmark's fixture as bench/ uses."""

    group = stats = None

    def __call__(self, function, *args, **kwargs):
        return function(*args, **kwargs)

    def pedantic(self, function, setup, **_):
        args, kwargs = setup()
        return function(*args, **kwargs)


@pytest.fixture
def benchmark():
    return Once()
