"""Optional libraries: without one, what needs it is one clear error that names the extra which brings it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import xpcnn
from xpcnn import nn, plot
from xpcnn.errors import XpcnnError
from xpcnn.extras import LIBRARIES
from xpcnn.training import History, Progress, TensorBoard

ROOT = Path(__file__).parents[1]
PACKAGE = Path(xpcnn.__file__).parent
NEEDED = {"numpy", "safetensors", "threadpoolctl"}
# With what, and never alone: CuPy's own parts, and what a notebook has at its start.
COMPANIONS = {"cupyx", "cupy_backends", "cuda", "nvmath", "IPython"}


def use_pillow(folder):
    (folder / "a.png").write_bytes(b"")
    xpcnn.datasets.load_image(folder / "a.png")


USES = {  # the library: the extra, and what needs it
    "PIL": ("cli", use_pillow),
    "matplotlib": ("cli", lambda folder: plot.filters(np.zeros((2, 1, 3, 3)))),
    "tqdm": ("cli", lambda folder: Progress(bar=True)),
    "onnx": ("onnx", lambda folder: xpcnn.onnx.export(nn.ReLU(), (1, 4, 4), folder / "a.onnx")),
    "pandas": ("pandas", lambda folder: History().to_pandas()),
    "tensorboardX": ("tensorboard", TensorBoard),
    "sklearn": ("sklearn", lambda folder: importlib.import_module("xpcnn.sklearn").CNNClassifier),
    "mpi4py": ("mpi", lambda folder: importlib.import_module("xpcnn.distributed.start")._import_mpi()),
    "cupy": ("cuda12", lambda folder: importlib.import_module("xpcnn.backend.cupy").create("cupy")),
}
WEB = {"starlette", "uvicorn", "anyio"}  # of the page, whose own tests hide them


def hide(monkeypatch, library):
    """Make `import library` fail, as where it is not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == library or name.startswith("xpcnn.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == library else there(name))
    for module in [module for name, module in sys.modules.items() if name.startswith("xpcnn.") and module]:
        if getattr(module, "find_spec", None) is there:
            monkeypatch.setattr(module, "find_spec", importlib.util.find_spec)


@pytest.mark.parametrize("library", sorted(USES))
def test_the_error_names_the_extra(library, tmp_path, monkeypatch):
    extra, use = USES[library]
    if library == "cupy" and "cupy" in xpcnn.available_backends():
        pytest.skip("it is at work")
    hide(monkeypatch, library)
    with pytest.raises(XpcnnError, match=rf'pip install "\.\[{extra}\]"') as caught:
        use(tmp_path)
    assert "\n" not in str(caught.value)
    assert re.search(r"in a clone of xpcnn, pip install \S.* elsewhere", str(caught.value))


def test_help_of_every_package_needs_none_of_them():
    code = """
import pkgutil, pydoc, sys
sys.modules |= dict.fromkeys(sys.argv[1:])
import xpcnn
print("set_backend" in pydoc.render_doc(xpcnn))
for module in pkgutil.iter_modules(xpcnn.__path__, "xpcnn."):
    if module.name != "xpcnn.__main__":
        pydoc.render_doc(module.name)
"""
    argv = [sys.executable, "-c", code, *USES, *COMPANIONS, *WEB]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_every_library_that_is_imported_is_known():
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"xpcnn"} - NEEDED
    assert foreign - set(USES) - COMPANIONS - WEB == set()


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="the wheel is tested without it")
def test_every_extra_that_is_named_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    documents = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.md"), *ROOT.glob("*.md")]
    named = {
        name.strip()
        for path in documents
        for names in re.findall(r'pip install (?:-\S+ )*"?\.\[([a-z0-9, ]+)\]', path.read_text(encoding="utf-8"))
        for name in names.split(",")
    }
    assert {"cli", "onnx", "cuda12"} <= named <= set(extras)
    not_here = "sys_platform != 'win32'" if sys.platform == "win32" else "sys_platform == 'win32'"
    libraries = {
        extra: tuple(re.split("[<>=;]", line)[0] for line in lines if not_here not in line)
        for extra, lines in extras.items()
    }
    assert libraries == LIBRARIES  # without their versions
