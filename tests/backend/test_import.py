"""What `import xpcnn` brings in, and what it costs beside NumPy's own import."""

import statistics

import pytest

from tests.backend.processes import python

HEAVY = ("cupy", "matplotlib", "tqdm", "safetensors", "PIL", "torch", "hypothesis", "threadpoolctl", "onnx", "sklearn")


@pytest.mark.parametrize("module", ["xpcnn", "xpcnn.nn", "xpcnn.models", "xpcnn.optim", "xpcnn.functional"])
def test_brings_in_nothing_heavy(module):
    code = f"import {module}, sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    assert python(code, "-W", "error") == ""


def test_everything_is_reached_by_name():
    names = "nn.ReLU functional.relu models.names optim.SGD info no_grad"
    python("\n".join(["import xpcnn", *(f"xpcnn.{name}" for name in names.split())]), "-W", "error")


def test_an_unknown_name():
    python("import xpcnn\ntry: xpcnn.nothing\nexcept AttributeError as e: assert str(e).endswith(\"'nothing'\")")


def test_costs_little_more_than_numpy():
    """Processor time, so that other programs do not count: medians of fresh processes in turn, a wide bound."""
    code = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"
    times = {"numpy": [], "xpcnn": []}
    for _ in range(5):
        for name, measured in times.items():
            measured.append(float(python(code.format(name))))
    numpy, xpcnn = (statistics.median(times[name]) for name in ("numpy", "xpcnn"))
    assert xpcnn < 2 * numpy + 0.3


def test_threads_wait_for_the_first_work():
    code = "import threading, xpcnn.nn; xpcnn.nn.Linear(2, 2); print(threading.active_count())"
    assert python(code) == "1"
