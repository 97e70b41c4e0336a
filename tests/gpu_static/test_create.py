"""What `create` and the switch say where there is no GPU, no driver, or no CuPy."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import xpcnn
from xpcnn.backend import cupy
from xpcnn.backend.cupy import driver
from xpcnn.errors import BackendError

pytestmark = pytest.mark.gpu_static
if driver.driver_version() is not None:  # pragma: no cover
    pytest.skip("this machine has an NVIDIA driver", allow_module_level=True)


def test_no_driver():
    assert cupy.device_names() == []
    with pytest.raises(BackendError, match=r"'cupy:1' found CuPy 14\.\S+ but no NVIDIA driver; install the driver"):
        cupy.create("cupy:1")
    assert "cupy" not in xpcnn.available_backends()
    with pytest.raises(BackendError, match="no NVIDIA driver"), xpcnn.use_backend("cupy"):
        pass
    with xpcnn.use_backend("auto") as backend:
        assert backend.name == "numpy"


@pytest.mark.parametrize("name", ["cupy:", "cupy:one", "cupy:-1", "cupy:1:2", "cupy:²"])
def test_names_that_are_none(name):
    with pytest.raises(BackendError, match='expected "cupy" or "cupy:K"'):
        cupy.create(name)


@pytest.mark.parametrize(
    ("version", "capability", "advice"),
    [
        (None, None, r"\.\[cuda12\].* or pip install .\.\[cuda13\].* \(no NVIDIA driver answers here"),
        ((12, 4), (8, 0), r"pip install .\.\[cuda12\]. .*elsewhere \(the driver supports CUDA 12.4\)$"),
        ((13, 0), (7, 5), r"pip install .\.\[cuda13\]. .*elsewhere \(the driver supports CUDA 13.0\)$"),
        ((13, 0), None, r"pip install .\.\[cuda13\]"),
        (
            (13, 0),
            (7, 0),
            r"\.\[cuda12\].*13.0, but CUDA 13 has dropped GPUs of compute capability 7.0\)$",
        ),
        ((13, 1), (6, 1), r"pip install .\.\[cuda12\]"),
        ((11, 8), (6, 1), r"update the driver \(the driver supports CUDA 11.8, CuPy needs 12 or newer\)"),
    ],
)
def test_not_installed(monkeypatch, version, capability, advice):
    monkeypatch.setattr(driver, "driver_version", lambda: version)
    monkeypatch.setattr(driver, "oldest_capability", lambda: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cupy.device_names() == []
    with pytest.raises(BackendError, match=r"'cupy' needs CuPy, which is not installed; .*" + advice):
        cupy.create("cupy")


def test_the_advice_is_what_the_project_installs():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for extra in ("cuda12", "cuda13"):
        assert project["optional-dependencies"][extra] == [f"cupy-{extra}x[ctk]>=14.0,<15"]


def test_broken_installation(monkeypatch, tmp_path):
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text("raise ImportError('\\n====\\nlibnvrtc.so.12: cannot open\\n===')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert cupy.device_names() == []
    with pytest.raises(
        BackendError,
        match=r"installed but cannot be imported \(libnvrtc.so.12: cannot open\); remove every cupy package, then",
    ):
        cupy.create("cupy")


class Runtime:
    """CuPy's runtime as far as `create` asks it."""

    is_hip = False

    class CUDARuntimeError(RuntimeError):
        pass

    def __init__(self, answer):
        self.answer = answer

    def getDeviceCount(self):
        if isinstance(self.answer, str):
            raise self.CUDARuntimeError(self.answer)
        return self.answer


@pytest.mark.parametrize(
    ("answer", "driver", "name", "message"),
    [
        (2, (12, 4), "cupy:2", r"'cupy:2' is not there; CUDA devices that answer: 2, named cupy, cupy:1$"),
        (0, (12, 4), "cupy", r"CUDA devices that answer: 0, named none \(check CUDA_VISIBLE_DEVICES\)"),
        ("cudaErrorNoDevice: no CUDA-capable device is detected", (12, 4), "cupy", "CUDA devices that answer: 0"),
        ("cudaErrorInsufficientDriver: too old", (11, 8), "cupy", r"found a driver that CuPy \S+ cannot use"),
    ],
)
def test_driver_without_the_device(monkeypatch, answer, driver, name, message):
    import cupy as real

    monkeypatch.setattr(real.cuda, "runtime", Runtime(answer))
    monkeypatch.setattr(cupy, "driver_version", lambda: driver)
    with pytest.raises(BackendError, match=message):
        cupy.create(name)


def test_cupy_is_not_imported_unless_asked_for():
    code = "import xpcnn, sys; xpcnn.get_backend(); sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0
