"""The exercise notebook's mistakes: Python 2, and layers that are left to the reader. Its golden arrays are ours."""

import contextlib
import importlib
import pkgutil

import numpy as np
import pytest

import xpcnn
from xpcnn import functional as F
from xpcnn.errors import ConfigError
from xpcnn.functional import reference
from xpcnn.testing import relative_error

CONV = [
    [
        [[-0.08759809, -0.10987781], [-0.18387192, -0.2109216]],
        [[0.21027089, 0.21661097], [0.22847626, 0.23004637]],
        [[0.50813986, 0.54309974], [0.64082444, 0.67101435]],
    ],
    [
        [[-0.98053589, -1.03143541], [-1.19128892, -1.24695841]],
        [[0.69108355, 0.66880383], [0.59480972, 0.56776003]],
        [[2.36270298, 2.36904306], [2.38090835, 2.38247847]],
    ],
]
POOL = [
    [
        [[-0.26315789, -0.24842105], [-0.20421053, -0.18947368]],
        [[-0.14526316, -0.13052632], [-0.08631579, -0.07157895]],
        [[-0.02736842, -0.01263158], [0.03157895, 0.04631579]],
    ],
    [
        [[0.09052632, 0.10526316], [0.14947368, 0.16421053]],
        [[0.20842105, 0.22315789], [0.26736842, 0.28210526]],
        [[0.32631579, 0.34105263], [0.38526316, 0.4]],
    ],
]


def test_every_module_is_python_3():
    for module in pkgutil.walk_packages(xpcnn.__path__, "xpcnn.", onerror=lambda name: None):
        if module.name != "xpcnn.__main__" and "cupy" not in module.name:
            with contextlib.suppress(ConfigError):  # where the library of an extra is not here, which it says
                importlib.import_module(module.name)


@pytest.mark.parametrize("functions", [reference, F], ids=["naive", "fast"])
def test_both_convolutions_give_its_golden_array(functions):
    x = np.linspace(-0.1, 0.5, num=96).reshape(2, 3, 4, 4)
    weight = np.linspace(-0.2, 0.3, num=144).reshape(3, 3, 4, 4)
    y, _ = functions.conv2d(x, weight, np.linspace(-0.1, 0.2, num=3), stride=2, padding=1)
    assert relative_error(y, np.array(CONV)) < 5e-8


@pytest.mark.parametrize("functions", [reference, F], ids=["naive", "fast"])
def test_both_poolings_give_its_golden_array(functions):
    y, _ = functions.max_pool2d(np.linspace(-0.3, 0.4, num=96).reshape(2, 3, 4, 4), 2, stride=2)
    assert relative_error(y, np.array(POOL)) < 5e-7


def test_naive_and_fast_agree_on_its_shapes(rng):
    """A tenth of its 100 images, forward and backward."""
    x, weight = rng.standard_normal((10, 3, 31, 31)), rng.standard_normal((25, 3, 3, 3))
    bias, dy = rng.standard_normal(25), rng.standard_normal((10, 25, 16, 16))
    results = []
    for functions in (reference, F):
        y, cache = functions.conv2d(x, weight, bias, stride=2, padding=1)
        results.append([y, *functions.conv2d_backward(dy, cache)])
        y, cache = functions.max_pool2d(x, 2)
        results[-1] += [y, functions.max_pool2d_backward(np.ones(y.shape), cache)]
    for naive, fast in zip(*results, strict=True):
        np.testing.assert_allclose(fast, naive, rtol=1e-9, atol=1e-9)


def test_its_data_comes_without_the_network():
    """All addresses in the documents are dead: nothing in the package can open one."""
    import ast
    from pathlib import Path

    known = {"urllib", "http", "socket", "requests", "ftplib", "ssl"}
    for path in Path(xpcnn.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & known, path.name
