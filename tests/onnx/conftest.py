"""What the tests of ONNX files share; without the library, as on an emulated GPU, they are skipped."""

import importlib.util

import numpy as np
import pytest

from xpcnn.backend import backend_of

collect_ignore_glob = [] if importlib.util.find_spec("onnx") else ["test_*.py"]


@pytest.fixture(scope="session")
def run_file():
    """Give a function that runs a file on arrays by name in onnxruntime."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3

    def run(path, *arrays):
        content = path if isinstance(path, bytes) else str(path)
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        return session.run(None, dict(zip(names, arrays, strict=True)))

    return run


def randomise(model, seed=0):
    """Give every parameter and running statistic of a model a value that shows."""
    rng = np.random.default_rng(seed)
    for name, array in model.state_dict().items():
        if array.dtype.kind != "f":
            continue
        values = rng.normal(size=array.shape) * 0.5
        values = np.abs(values) + 0.5 if name.endswith("running_var") else values
        array[...] = backend_of(array).asarray(values.astype(str(array.dtype)))
    return model


def relative(actual, expected):
    """Return the relative difference by norm."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    return np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)


def sizes_of(name, model):
    """Return the (C, H, W) that a network of `models` takes."""
    channels = next(parameter.shape[1] for parameter in model.parameters() if len(parameter.shape) == 4)
    size = 28 if name in ("deep3", "tiny", "conv4", "conv8") else 32
    return channels, size, size
