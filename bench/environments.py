"""Virtual environments of the peers, in a folder outside the repository: `python bench/environments.py [NAME ...]`.

A peer whose Python or wheels are not to be had here is named and skipped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """The Pythons that would do, best first, and what pip installs."""

    pythons: tuple[str, ...]
    requirements: tuple[str, ...]


NEWER = ("3.12", "3.11", "3.13")
ENVIRONMENTS = {
    "xpcnn": Environment(NEWER, ("numpy>=2", "threadpoolctl", "safetensors", "tqdm", "matplotlib")),
    # Its safetensors is the first with wheels for a Python without the lock.
    "xpcnn-free-threaded": Environment(
        ("3.14t",), ("numpy>=2", "threadpoolctl", "safetensors>=0.9.0rc1", "tqdm", "matplotlib")
    ),
    "torch": Environment(NEWER, ("torch==2.13.0", "numpy>=2")),
    "jax": Environment(NEWER, ("jax[cpu]", "numpy>=2")),
    # Chainer's last release: it needs NumPy below 1.24 (np.bool) and pkg_resources, which newer setuptools has dropped.
    "chainer": Environment(("3.11", "3.10"), ("setuptools<70", "wheel", "numpy==1.23.5", "chainer==7.8.1")),
    # Beside its own PyTorch: the release that `torch` has came out before one of torchvision that fits it.
    "torchvision": Environment(NEWER, ("torch==2.14.1", "torchvision==0.29.1", "numpy>=2")),
    "onnxruntime": Environment(NEWER, ("onnxruntime", "onnx", "numpy>=2")),
}


def default_folder() -> Path:
    """Below the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "xpcnn-bench"


def find_python(versions: tuple[str, ...]) -> str | None:
    """The first interpreter of these versions that starts."""
    for version in versions:
        if version == ".".join(map(str, sys.version_info[:2])):
            return sys.executable
        path = shutil.which(f"python{version}")
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def create(name: str, folder: Path) -> str | None:
    """Make one environment where it is not there yet; the reason where that fails."""
    environment = ENVIRONMENTS[name]
    target = folder / name
    done = target / "complete"
    wanted = "\n".join(environment.requirements)
    if done.exists() and done.read_text() == wanted:
        return None
    base = find_python(environment.pythons)
    if base is None:
        return f"no Python of {', '.join(environment.pythons)} found"
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run([base, "-m", "venv", str(target)], check=True)
    python = target / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Chainer is built without isolation so that it sees the setuptools pinned above.
    isolated = [] if name != "chainer" else ["--no-build-isolation"]
    tools = [r for r in environment.requirements if name == "chainer" and not r.startswith("chainer")]
    for requirements in ([tools] if tools else []) + [list(environment.requirements)]:
        result = subprocess.run([*pip, *isolated, *requirements], capture_output=True, text=True)
        if result.returncode:
            return (result.stderr.strip().splitlines() or ["pip failed"])[-1]
    done.write_text(wanted)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *ENVIRONMENTS], help="all without")
    parser.add_argument("--envs", type=Path, default=default_folder(), help="where they are kept")
    options = parser.parse_args()
    options.envs.mkdir(parents=True, exist_ok=True)
    for name in options.names or ENVIRONMENTS:
        reason = create(name, options.envs)
        print(f"{name}: {'skipped: ' + reason if reason else 'ready'}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
