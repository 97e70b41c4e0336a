"""Every check of the project, each in a virtual environment of its own: `nox`, or `nox -s NAME`; `nox -l` lists them.

A plain `nox` is lint, types, the tests on NumPy and on the strict fake device with the newest Python found here, a
short training run, jobs of several ranks, and part of the tests on the built wheel with the oldest; `nox -s tests`
takes every Python. It needs no GPU, and some minutes on two cores. What is passed after `--` goes to the tool of the
session.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False

ROOT = Path(__file__).resolve().parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
BASE = PROJECT["project"]["dependencies"]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
FREE_THREADED = "3.14t"
PROCESSES = str(min(4, os.cpu_count() or 1))  # of one run of the suite
GPU_IS_REQUIRED = os.environ.get("XPCNN_REQUIRE_GPU") == "1"
# A command that runs its arguments where CuPy finds a GPU, emulated or real; PYTHONPATH and other settings reach it.
GPU_LAUNCHER = os.environ.get("XPCNN_GPU_LAUNCHER")


def starts(path: str | os.PathLike[str], version: str) -> bool:
    """Whether an interpreter is there and of that version; a manager's stand-in may be neither."""
    try:
        free = "'t' * bool(sysconfig.get_config_var('Py_GIL_DISABLED'))"
        code = f"import sys, sysconfig, venv; print('%d.%d' % sys.version_info[:2] + {free})"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, timeout=60)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def find(version: str) -> str | None:
    """Return the path of a Python of this version: this one, on the PATH, or where pyenv and uv keep theirs."""
    name = f"python{version}"
    home = Path.home()
    candidates: list[str | Path] = [sys.executable]
    candidates += [Path(folder) / name for folder in os.get_exec_path() if Path(folder) != ROOT / ".nox" / "pythons"]
    for folder in (
        Path(os.environ.get("PYENV_ROOT", home / ".pyenv")) / "versions",
        Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local" / "share" / "uv" / "python")),
    ):
        candidates += sorted(folder.glob(f"*{version}*/bin/{name}"), reverse=True)
    return next((str(path) for path in candidates if starts(path, version)), None)


FOUND = {version: path for version in VERSIONS if (path := find(version))}
WITHOUT_LOCK = find(FREE_THREADED)
MISSING = [version for version in VERSIONS if version not in FOUND]
# nox looks for pythonX.Y on the PATH: put first what `find` found, under that name.
_links = ROOT / ".nox" / "pythons"
if os.name == "posix":
    _links.mkdir(parents=True, exist_ok=True)
    for _version, _path in {**FOUND, **({FREE_THREADED: WITHOUT_LOCK} if WITHOUT_LOCK else {})}.items():
        link = _links / f"python{_version}"
        link.unlink(missing_ok=True)
        link.symlink_to(_path)
    os.environ["PATH"] = os.pathsep.join([str(_links), os.environ["PATH"]])

OLDEST, NEWEST = (
    min(FOUND, key=VERSIONS.index),
    max(FOUND, key=VERSIONS.index),
)  # NumPy's hints are read as the oldest Python reads them
CPU = nox.param("numpy,fake", id="cpu")
CUPY = nox.param("cupy", id="cupy")
nox.options.sessions = [
    "lint",
    "types",
    f"tests-{NEWEST}(cpu)",
    "convergence(numpy)",
    "wheel",
    "distributed",
]


def extra(*names: str) -> list[str]:
    return [line for name in names for line in PROJECT["project"]["optional-dependencies"][name]]


def group(*names: str) -> list[str]:
    return nox.project.dependency_groups(PROJECT, *names)


def cuda_extra() -> str | None:
    """Return the extra with the CuPy for this machine's driver and devices; None where no device answers."""
    driver = runpy.run_path(str(ROOT / "xpcnn" / "backend" / "cupy" / "driver.py"))
    version, capability = driver["driver_version"](), driver["oldest_capability"]()
    return None if version is None or capability is None else driver["fitting"](version, capability)


def cupy_for(session: nox.Session, backends: str) -> list[str]:
    """Return the CuPy to install where it is asked for and a device answers; skip where none does."""
    if "cupy" not in backends:
        return []
    name = cuda_extra()
    if name is None:
        message = "cupy: not run, no CUDA device answers here (nvidia-smi should list one)"
        if GPU_IS_REQUIRED:
            session.error(f"{message}, and XPCNN_REQUIRE_GPU=1 asks for it")
        session.skip(message)
    return extra(name)


def install_for(session: nox.Session, backends: str) -> None:
    """Install what the tests need."""
    cupy = cupy_for(session, backends)
    groups = group("test", "parallel", "onnx", "notebook", "docs")
    session.install(*BASE, *extra("cli", "onnx", "sklearn", "tensorboard", "web"), *groups, *cupy)


def pytest(session: nox.Session, *arguments: str, **environment: str) -> None:
    session.run("python", "-m", "pytest", *arguments, *session.posargs, env=environment)


@nox.session(python=list(FOUND))
@nox.parametrize("backends", [CPU, CUPY])
def tests(session: nox.Session, backends: str) -> None:
    """The suite, on each Python and backend."""
    if MISSING:
        session.log(f"not found here, so not tested: Python {', '.join(MISSING)}")
    install_for(session, backends)
    pytest(session, "-q", "-n", PROCESSES, XPCNN_TEST_BACKENDS=backends)


@nox.session(python=FREE_THREADED)
def free_threaded(session: nox.Session) -> None:
    """The suite on a Python without the lock."""
    session.install("safetensors>=0.9.0rc1")  # the first with wheels for it; pip takes the last final one on its own
    session.install(*BASE, *extra("cli"), *group("test"))
    pytest(session, "-q", XPCNN_TEST_BACKENDS="numpy,fake")


@nox.session(python=NEWEST)
@nox.parametrize("backend", ["numpy", "fake", "cupy"], ids=["numpy", "fake", "cupy"])
def convergence(session: nox.Session, backend: str) -> None:
    """Training on MNIST to an accuracy."""
    session.install(*BASE, *group("test"), *cupy_for(session, backend))
    pytest(session, "-q", "-m", "convergence", "tests/convergence", XPCNN_TEST_BACKENDS=backend)


@nox.session(python=NEWEST)
def trust(session: nox.Session) -> None:
    """What takes long: thousands of damaged files per reader, kills, long runs."""
    install_for(session, "numpy,fake")
    pytest(session, "-q", XPCNN_TRUST="1")
    if sys.platform == "linux":
        session.install(*group("distributed"))
        pytest(session, "-q", "-m", "distributed", "tests/distributed", XPCNN_TRUST="1")
    if GPU_LAUNCHER:
        for late in ("1", "2"):
            on_emulated_gpu(session, "tests", CUDA_ON_CPU_LAZY=late)


@nox.session(python=NEWEST)
def docs(session: nox.Session) -> None:
    """Guides and API as one site in .nox/site, without a warning."""
    session.install(*BASE, *extra("cli", "onnx", "sklearn"), *group("test", "docs"))
    session.run("python", "-m", "tests.site", str(ROOT / ".nox" / "site"))
    pytest(session, "-q", "tests/test_site.py")


@nox.session(python=NEWEST)
def notebooks(session: nox.Session) -> None:
    """The notebooks of xpcnn/examples at their full length, in a kernel without a screen."""
    session.install(*BASE, *extra("cli"), *group("test", "notebook"))
    pytest(session, "-q", "tests/examples/test_notebooks.py", XPCNN_EXAMPLE_IMAGES="0")


@nox.session(python=NEWEST)
def parity(session: nox.Session) -> None:
    """PyTorch as the oracle of every operation, layer, loss, optimiser and schedule; ONNX's own cases for its files."""
    session.install(*BASE, *extra("onnx"), *group("test", "parity", "onnx"))
    pytest(session, "-q", "-m", "parity", "tests/parity")


@nox.session(python=NEWEST)
def distributed(session: nox.Session) -> None:
    """Jobs of several ranks under the MPI of a wheel: the same numbers, faults, kills."""
    if sys.platform != "linux":
        session.skip("distributed: the tests look into /proc, which is there on Linux alone")
    session.install(*BASE, *extra("cli"), *group("test", "distributed"))
    pytest(session, "-q", "-m", "distributed", "tests/distributed")


@nox.session(python=NEWEST)
def browser(session: nox.Session) -> None:
    """The page of `xpcnn serve` in a real browser: Debian's chromium, or the one that XPCNN_BROWSER names."""
    if not os.environ.get("XPCNN_BROWSER") and not shutil.which("chromium"):
        session.error("browser: needs chromium (Debian: apt-get install chromium), or its path in XPCNN_BROWSER")
    session.install(*BASE, *extra("cli", "web"), *group("test", "browser"))
    pytest(session, "-q", "-m", "browser", "tests/web")


@nox.session(python=NEWEST)
def gpu_static(session: nox.Session) -> None:
    """What can be checked of the GPU code without a GPU: CuPy's wheel, the CUDA compiler, kernels run on the CPU."""
    if sys.platform != "linux":
        session.skip("gpu_static: CuPy's wheel for CUDA and g++ are there on Linux alone")
    if not shutil.which("g++"):
        session.error("gpu_static: needs g++ (Debian and Ubuntu: apt-get install g++)")
    session.install(*BASE, *extra("cli"), *group("test", "parallel", "gpu_static"))
    kept = ROOT / ".nox" / "gpu_static" / "kernels"  # each is compiled by one process
    kept.mkdir(parents=True, exist_ok=True)
    session.env["XPCNN_SHIM_FOLDER"] = str(kept)
    # A file stays in one process: its last test asks whether every kernel was launched by those before it.
    pytest(session, "-q", "-n", PROCESSES, "--dist", "loadfile", "-m", "gpu_static", "tests/gpu_static")
    # The suite once more, with every fused primitive of the fake device done by its CUDA kernel.
    folders = ("tests/functional", "tests/nn", "tests/optim")
    plugin = ("-p", "tests.gpu_static.with_kernels")
    pytest(session, "-q", "-n", PROCESSES, *plugin, *folders, XPCNN_TEST_BACKENDS="fake")


# Tests that run on CuPy, or that CuPy's presence may change. The rest computes on NumPy or not at all: as in `tests`.
ON_CUPY = "cupy or nccl or test_switch or test_import or test_commands or test_extras or test_gpu_round"
_installed: list[Path] = []  # folders with the packages of the tests, made by this run of nox


def on_emulated_gpu(session: nox.Session, *arguments: str, **environment: str) -> None:
    """Run pytest on CuPy below the launcher, whose Python finds the packages of the tests beside its own.

    Two processes: what the launcher emulates is a process's own.
    """
    launcher = str(Path(GPU_LAUNCHER or "").resolve())
    environment.setdefault("CUDA_ON_CPU_DEVICES", "2")
    packages = ROOT / ".nox" / "gpu_emulated"
    if packages not in _installed:
        install = ("python", "-m", "pip", "install", "-q", "--upgrade", "--target", str(packages))
        session.run(launcher, *install, *group("test", "parallel"), external=True)
        _installed.append(packages)
    settings = {"XPCNN_TEST_BACKENDS": "cupy", "XPCNN_REQUIRE_GPU": "1", "PYTHONPATH": str(packages), **environment}
    command = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2")
    session.run(launcher, *command, *arguments, *session.posargs, external=True, env=settings)


@nox.session(python=False)
@nox.parametrize(
    "late",
    [
        nox.param("", id="eager"),
        nox.param("1", id="late"),  # work is done as late as streams and events allow
        nox.param("2", id="late-beside"),  # but at once in streams that do not wait for the legacy one
    ],
)
def gpu_emulated(session: nox.Session, late: str) -> None:
    """The suite's tests of CuPy and a short training, by the launcher that XPCNN_GPU_LAUNCHER names."""
    if not GPU_LAUNCHER:
        session.skip("gpu_emulated: not run, XPCNN_GPU_LAUNCHER names no launcher")
    if late:  # all of it is `nox -s trust`
        folders = ("tests/backend", "tests/nn", "tests/training")
        on_emulated_gpu(session, *folders, "-k", "cupy", CUDA_ON_CPU_LAZY=late)
        return
    on_emulated_gpu(session, "tests", "-k", ON_CUPY)
    # A minute of training; the slowest nets take minutes each on an emulated device.
    on_emulated_gpu(session, "-m", "convergence", "tests/convergence", "-k", "lenet5 or tiny")


@nox.session(python=NEWEST)
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session(python=OLDEST)
def types(session: nox.Session) -> None:
    """Mypy, strict, over the package."""
    session.install(*BASE, *group("types"))
    session.run("mypy", *session.posargs)


@nox.session(python=OLDEST)
def wheel(session: nox.Session) -> None:
    """Build sdist and wheel, install the wheel with the source out of sight, and test what is installed."""
    session.install("build")
    outside = Path(session.create_tmp()).resolve()
    for old in outside.iterdir():
        shutil.rmtree(old)
    session.run("python", "-m", "build", "--outdir", str(outside / "dist"), str(ROOT), silent=True)
    (built,) = (outside / "dist").glob("*.whl")
    files = {path for path in (ROOT / "xpcnn").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {path.relative_to(ROOT).as_posix() for path in files if path.name != "README.md"}
    packed = {name for name in zipfile.ZipFile(built).namelist() if name.startswith("xpcnn/")}
    if packed != expected:
        session.error(f"wheel: not as the source has them: {', '.join(sorted(packed ^ expected))}")
    session.install("--force-reinstall", "--no-deps", str(built))
    session.install(*BASE, *extra("cli"), *group("test", "parallel"))
    shutil.copytree(ROOT / "tests", outside / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", outside)
    shutil.copy(ROOT / "README.md", outside)
    session.chdir(outside)
    code = "import pathlib, xpcnn; print(pathlib.Path(xpcnn.__file__).parent)"
    package = Path(str(session.run("python", "-W", "error", "-c", code, silent=True)).strip())
    if ROOT in package.parents and ".nox" not in package.parts:
        session.error(f"wheel: the test would use the source in {package}")
    session.run("python", "-W", "error", "-c", "from xpcnn.datasets import load_mnist; print(*load_mnist(), sep='\\n')")
    session.run("xpcnn", "info")
    session.run("xpcnn", "recipes")
    nn = [f"tests/nn/test_{name}.py" for name in ("sequential", "module", "state", "loss", "inference", "replayed")]
    subset = ["tests/datasets/test_mnist.py", *nn, "tests/backend/test_import.py", "tests/test_public_api.py"]
    session.run("python", "-m", "pytest", "-q", "-n", PROCESSES, *subset, env={"XPCNN_TEST_BACKENDS": "numpy"})


@nox.session(python=NEWEST)
def bench(session: nox.Session) -> None:
    """Library beside loops and backend beside backend, then beside its peers (`python bench/environments.py` first)."""
    session.install(*BASE, *extra("cli"), *group("test", "bench"))
    session.run("python", "-m", "pytest", "-q", "bench")
    session.run("python", "bench/run.py", *session.posargs)


@nox.session(python=NEWEST)
def seeds(session: nox.Session) -> None:
    """Every recipe at its full length: accuracy and time of each."""
    session.install(*BASE, *extra("cli"))
    session.run("python", "bench/seeds.py", *session.posargs)


@nox.session(python=NEWEST)
def web(session: nox.Session) -> None:
    """A small exported network in a browser's onnxruntime, run by Node: the same answers on 1,000 digits."""
    if not (shutil.which("node") and shutil.which("npm")):
        session.skip("web: needs Node with npm, which are not on the PATH")
    session.install(*BASE, *extra("onnx"))
    session.run("python", "-m", "bench.web", "--folder", str(ROOT / ".nox" / "onnxruntime-web"), *session.posargs)
