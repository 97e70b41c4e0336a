"""The examples run as they stand, on few images, and show what they promise."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import xpcnn
from xpcnn import examples
from xpcnn.examples.few import mnist

FOLDER = Path(examples.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "few"))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setenv("XPCNN_EXAMPLE_IMAGES", "500")
    before = xpcnn.get_backend().name
    xpcnn.set_backend("numpy")
    yield
    xpcnn.set_backend(before)


def test_the_package_names_each_of_them():
    named = re.findall(r"^    (\w+)  ", examples.__doc__, re.MULTILINE)
    assert sorted(named) == NAMES


def test_as_many_images_as_are_asked_for(monkeypatch):
    assert [len(part) for part in mnist()] == [500, 500]
    monkeypatch.delenv("XPCNN_EXAMPLE_IMAGES")
    assert [len(part) for part in mnist()] == [60000, 10000]


def test_loop(capsys):
    assert import_module("xpcnn.examples.loop").main() > 0.5
    assert re.search(r"as written +mean loss .*\ncompiled +mean loss", capsys.readouterr().out)


def test_layer(capsys):
    assert import_module("xpcnn.examples.layer").main() > 0.1
    assert "all gradients are right" in capsys.readouterr().out


def test_the_layer_lies_between_mean_and_maximum(rng):
    x = rng.normal(size=(3, 2, 5, 5))
    mean, highest = x.mean(axis=(2, 3)), x.max(axis=(2, 3))
    Layer = import_module("xpcnn.examples.layer").LogSumExpPool
    y = Layer(4.0)(x)
    assert (mean < y).all()
    assert (y < highest).all()
    np.testing.assert_allclose(Layer(1e-4)(x), mean, atol=1e-3)
    np.testing.assert_allclose(Layer(1e4)(x), highest, atol=1e-3)


def test_own_pictures(capsys):
    pytest.importorskip("PIL")
    assert import_module("xpcnn.examples.own_pictures").main() > 0.6
    assert "120 pictures of cross, ring" in capsys.readouterr().out


def test_backend(capsys):
    calls = import_module("xpcnn.examples.backend").main()
    assert calls["matmul"] >= 12  # of two layers: forward, weights, input; two batches
    assert xpcnn.get_backend().name == "numpy"


def test_transfer(capsys):
    transferred, _ = import_module("xpcnn.examples.transfer").main()
    assert transferred > 0.4  # 0.2 is chance


def test_sweep():
    found = import_module("xpcnn.examples.sweep").main((1e-6, 0.1))
    assert found[0.1] > found[1e-6]


def test_one_as_a_program(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "xpcnn.examples.layer"]
    here = {**os.environ, "PYTHONPATH": str(Path(xpcnn.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"test accuracy 0\.\d{4}$", done.stdout.strip())
