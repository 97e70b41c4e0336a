"""The benchmark measures what it says: the library's own nets, true counts, and results that name no machine."""

from __future__ import annotations

import ast
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(autouse=True)
def bench_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands of bench/ import each other by plain names; leave none of them behind."""
    monkeypatch.syspath_prepend(BENCH)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_every_benchmark_runs() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "-p", "tests.once"]
    command += ["bench", "-k", "not (conv2d and loops)"]  # which take twenty seconds
    done = subprocess.run(command, cwd=BENCH.parent, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


def test_the_free_threaded_peer_refuses_a_python_with_the_lock() -> None:
    import harness

    worker = harness.Worker(harness.PEERS[harness.FREE], sys.executable, 1)
    try:
        if getattr(sys, "_is_gil_enabled", lambda: True)():
            with pytest.raises(harness.PeerError):
                worker.ask("hello")
        else:
            assert worker.ask("hello")["python"].endswith("t")
    finally:
        worker.close()


def test_the_guide_has_the_table_of_the_results() -> None:
    import report

    results = json.loads((BENCH / "results" / "cpu-table.json").read_text(encoding="utf-8"))
    assert report.markdown(results["rows"]) in (BENCH.parent / "xpcnn" / "guides" / "benchmarks.md").read_text(
        encoding="utf-8"
    )


def test_the_guide_has_the_bytes_of_a_convolution_on_a_gpu() -> None:
    import gpu_bytes

    guide = (BENCH.parent / "xpcnn" / "guides" / "gpu.md").read_text(encoding="utf-8")
    assert "\n".join(gpu_bytes.table()) in guide


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_an_implicit_gradient_multiplies_what_meets_a_window_alone(stride: int) -> None:
    from xpcnn.backend.cupy.convolution import extents, gradient_shapes
    from xpcnn.windows import windows

    over = windows((7, 8), (3, 2), stride=stride, padding=1)
    count = sum(columns * depth for _, columns, depth in map(extents, gradient_shapes((5, 4, 3, 2), over, 2)))
    meeting = [
        sum((pixel + axis.before - tap) % stride == 0 for pixel in range(axis.size) for tap in range(axis.kernel))
        for axis in (over.h, over.w)
    ]
    assert count == 5 * 2 * meeting[0] * meeting[1]


@pytest.mark.parametrize(("net", "parameters"), [("lenet5", 61_990), ("deep3", 113_162), ("tiny", 11_540)])
def test_parameters_of_the_source_systems(net: str, parameters: int) -> None:
    import costs
    import workloads

    assert costs.parameters(workloads.NETS[net].layers) == parameters


def test_nets_are_the_library_s() -> None:
    import costs
    import workloads

    from xpcnn import models

    ours = {name: sum(p.data.size for p in models.create(name).parameters()) for name in workloads.NETS}
    assert ours == {name: costs.parameters(net.layers) for name, net in workloads.NETS.items()}


def test_multiply_adds_of_a_convolution_by_counting() -> None:
    import costs
    import workloads as w

    conv = w.Conv(2, 3, 3, stride=2, padding=1)
    rows = columns = range(-1, 5 + 1 - 3 + 1, 2)  # where the windows begin in a padded 5x5 image
    taps = sum(1 for _ in product(range(4), range(3), rows, columns, range(2), range(3), range(3)))  # n f oh ow c kh kw
    workload = w.Workload("conv", "conv", 4, 1.0, image=(2, 5, 5), conv=conv)
    assert costs.output_shape(conv, (2, 5, 5)) == (3, len(rows), len(columns))
    assert costs.cost(workload).multiply_adds == 3 * taps  # y, the gradient of x, the gradient of the weight


def test_first_layer_has_no_input_gradient() -> None:
    import costs
    import workloads as w

    net = w.NETS["conv8"]
    conv, linear = 26 * 26 * 8 * 9, 13 * 13 * 8 * 10
    assert costs.cost(w.WORKLOADS["conv8"]).multiply_adds == 2 * conv + 3 * linear
    assert [after for _, _, after in costs.walk(net.layers, net.image)][-1] == (10,)


def test_multiply_adds_of_winograd_are_those_of_the_products_that_run() -> None:
    import costs
    import profile_step
    import workloads as w

    conv = w.Conv(16, 24, 3, padding=1)
    workload = w.Workload("conv", "conv", 16, 1.0, image=(16, 16, 16), conv=conv)
    done = 0
    for function, arguments in profile_step.record(workload)[0]:
        name, shape, operations = profile_step.describe(function, arguments)
        if name in profile_step.PRODUCTS and min(shape[1:]) > 1:  # probes are of one row
            done += int(operations) // 2
    counted = costs.cost(workload)
    assert counted.least_multiply_adds < 0.7 * counted.multiply_adds
    assert 0.95 < done / counted.least_multiply_adds < 1.1  # strips overlap where blocks meet, and end at the edges


def test_ceil_mode_sizes() -> None:
    import costs
    import workloads as w

    assert [after for _, _, after in costs.walk(w.NETS["deep3"].layers, (1, 28, 28))][8] == (128, 4, 4)


def test_floor_is_the_larger_of_two_times() -> None:
    import costs

    cost = costs.Cost(multiply_adds=70, least_multiply_adds=50, passes=[8, 100])
    rates = {10: 10.0, 50: 20.0}
    assert costs.floor(cost, 100.0, rates) == {"products": 1.0, "memory": 0.8 + 5.0, "floor": 5.8}


def test_measured_processes_inherit_nothing_that_steers_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import harness

    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_WAIT_POLICY", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    found = harness.clean_environment(2)
    assert not {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_WAIT_POLICY", "MALLOC_TRIM_THRESHOLD_"} & set(found)
    assert found["OMP_NUM_THREADS"] == found["OPENBLAS_NUM_THREADS"] == "2"


def test_a_peer_that_is_not_there_is_an_error_with_a_reason_and_no_path() -> None:
    import harness

    worker = harness.Worker("no_such", sys.executable, 1)
    try:
        with pytest.raises(harness.PeerError, match="ModuleNotFoundError") as caught:
            worker.ask("hello")
    finally:
        worker.close()
    assert str(BENCH) not in str(caught.value)


def test_both_sides_of_the_best_digits_have_the_same_settings() -> None:
    from xpcnn import recipes
    from xpcnn.recipes import mnist_best

    found = re.search(
        r"^DEFAULTS = (\{.*?\})", (BENCH / "peers" / "torch_best.py").read_text(), re.DOTALL | re.MULTILINE
    )
    assert found
    recipe = recipes.find("mnist-best")
    (affine,) = recipe.augment
    assert ast.literal_eval(found[1]) == pytest.approx(
        {
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "peak": mnist_best.PEAK,
            "warm": mnist_best.WARM_SHARE,
            "decay": mnist_best.DECAY,
            "average": mnist_best.AVERAGE_DECAY,
            "degrees": affine.degrees[1],
            "shift": 28 * affine.translate[0],
            "scale": affine.scale[1] - 1,
            "dropout": recipe.options.get("dropout", 0.0),
            "smoothing": recipe.label_smoothing,
            "shifts": recipe.average_shifts,
        }
    )


def test_facts_name_no_machine() -> None:
    import harness

    assert not names_this_machine(harness.facts())


@pytest.mark.parametrize("path", sorted(BENCH.glob("results/*.json")), ids=lambda path: path.name)
def test_results_name_no_machine(path: Path) -> None:
    assert not names_this_machine(json.loads(path.read_text()))


def names_this_machine(content: Any) -> bool:
    """Whether the host's name or an absolute path is anywhere in it."""
    text = json.dumps(content)
    return platform.node() in text or bool(re.search(r"[\"' ]/(home|root|tmp|work|usr|opt)/", text))
