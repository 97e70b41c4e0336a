"""The examples of docstrings: every public name has one, and it runs with np, xpcnn, F, nn and optim."""

import doctest
import importlib
import inspect

import numpy as np
import pytest

import xpcnn
from xpcnn import functional, nn, optim
from xpcnn.datasets.formats import describe

PACKAGES = (
    "xpcnn", "xpcnn.data", "xpcnn.datasets", "xpcnn.explain", "xpcnn.functional", "xpcnn.models", "xpcnn.nn",
    "xpcnn.nn.init", "xpcnn.optim", "xpcnn.plot", "xpcnn.testing", "xpcnn.training",
)  # fmt: skip
USUAL = {"np": np, "xpcnn": xpcnn, "F": functional, "nn": nn, "optim": optim}
# What these read is a set as it was handed out, which nothing here makes.
WITHOUT = {"xpcnn.datasets.load_cifar10", "xpcnn.datasets.load_mnist_folder", "xpcnn.datasets.load_mnist_pickle"}
NEEDS = {"xpcnn.plot": "matplotlib", "load_picture": "PIL", "load_folder": "PIL", "load_image": "PIL"}
NEEDS["TensorBoard"] = "tensorboardX"


def public():
    for package in PACKAGES:
        module = importlib.import_module(package)
        listed = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
        for name in listed:
            value = getattr(module, name)
            ours = getattr(value, "__module__", "") or ""
            if (inspect.isclass(value) or inspect.isroutine(value)) and ours.startswith("xpcnn"):
                if package == "xpcnn.nn.init" and ours != package:
                    continue
                yield f"{package}.{name}", value


NAMES = dict(public())


def examples(name):
    return doctest.DocTestParser().get_doctest(inspect.getdoc(NAMES[name]) or "", dict(USUAL), name, None, None)


def test_every_public_name_has_an_example():
    assert {name for name in NAMES if not examples(name).examples} == WITHOUT
    assert len(NAMES) > 200


@pytest.mark.parametrize("name", sorted(set(NAMES) - WITHOUT))
def test_it_runs(name, tmp_path, monkeypatch):
    package, _, last = name.rpartition(".")
    for library in (NEEDS.get(package), NEEDS.get(last)):
        if library:
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    before, threads, winograd = xpcnn.get_backend().name, xpcnn.get_num_threads(), xpcnn.get_winograd()
    xpcnn.set_backend("numpy")
    said = []
    try:
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(examples(name), out=said.append)
    finally:
        xpcnn.set_backend(before)
        xpcnn.set_num_threads(threads)
        xpcnn.set_winograd(winograd)
    assert not said, "".join(said)


def test_a_wrong_example_is_found():
    said = []
    wrong = doctest.DocTestParser().get_doctest(
        ">>> F.relu(np.array([-1.0]))[0]\narray([1.])\n", dict(USUAL), "w", None, 0
    )
    doctest.DocTestRunner(verbose=False).run(wrong, out=said.append)
    assert "array([0.])" in "".join(said)


def test_a_safetensors_file_is_one_whatever_the_length_of_its_header():
    """A header of 640 bytes begins like a pickle: 0x80, 2."""
    for length in (512, 640, 896, 1152):
        assert describe(length.to_bytes(8, "little") + b'{"__metadata__"') == "a safetensors file"
    assert describe(b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}") == "a pickle"
