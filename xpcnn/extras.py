"""The optional libraries by the extra that brings them, and the line that installs one."""

import sys

_MPI = "impi-rt" if sys.platform == "win32" else "mpich"
LIBRARIES = {  # as pyproject.toml has them, without their versions
    "cli": ("tqdm", "matplotlib", "pillow"),
    "onnx": ("onnx",),
    "sklearn": ("scikit-learn",),
    "pandas": ("pandas",),
    "web": ("starlette", "uvicorn", "pillow"),
    "tensorboard": ("tensorboardX",),
    "cuda12": ("cupy-cuda12x[ctk]",),
    "cuda13": ("cupy-cuda13x[ctk]",),
    "rocm": ("cupy-rocm-7-0",),
    "mpi": ("mpi4py", _MPI),
}


def install_line(extra: str) -> str:
    """Return what to type for an extra: in a clone of xpcnn, whose versions are tried, and anywhere else."""
    names = " ".join(f'"{name}"' if "[" in name else name for name in LIBRARIES[extra])
    return f'pip install ".[{extra}]" in a clone of xpcnn, pip install {names} elsewhere'
