"""The kernels of `kernels.cu`, compiled by g++ and run on the CPU, behind the interface of `kernels.Kernels`."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from tests.fake_device import FakeArray
from tests.fake_device.backend import FakeBackend
from xpcnn.backend.cupy.fused import fits_shape, row_sums
from xpcnn.backend.cupy.kernels import BLOCK, COMPUTED, TYPES, convert, source
from xpcnn.backend.cupy.updates import FUSED

HERE = Path(__file__).parent
SIGNATURE = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)\s*\{(.*?)\n\}', re.S)
DEVICE_FUNCTION = re.compile(r"__device__ \w+ (\w+)\([^)]*\)\s*\{(.*?)\n\}", re.S)
_ONE_AT_A_TIME = threading.Lock()  # the shim has one grid, and its shared memory is static
GUARD = 64  # numbers on either side of an array that no kernel may touch


def signatures(text: str) -> dict[str, tuple[list[str], bool]]:
    """Return the parameter types of each kernel, and whether its threads meet at barriers."""
    found = {}
    meeting = {"__syncthreads"}  # and the device functions that call it, themselves or through others
    for name, body in DEVICE_FUNCTION.findall(text):
        if any(f"{other}(" in body for other in meeting):
            meeting.add(name)
    for name, parameters, body in SIGNATURE.findall(text.replace("__restrict__ ", "")):
        types = [re.sub(r"\s+", " ", part.strip()).rsplit(" ", 1)[0] for part in parameters.split(",")]
        stars = [part.count("*") for part in parameters.split(",")]
        kinds = [kind.replace("*", "").strip() + "*" * star for kind, star in zip(types, stars, strict=True)]
        found[name] = kinds, any(f"{other}(" in body for other in meeting)
    return found


def translation(text: str) -> str:
    """Return the kernels as C++ with a function `run_NAME(grid, args)` for each."""
    parts = ['#include "shim.h"', f'#line 1 "kernels.cu"\n{text}']
    for name, (kinds, barriers) in signatures(text).items():
        values = ", ".join(f"*({kind}*)args[{i}]" for i, kind in enumerate(kinds))
        parts.append(
            f'extern "C" bool run_{name}(const int* grid, void** args) {{ body = [=] {{ {name}({values}); }}; '
            f"return run_grid(grid, {BLOCK}, {'true' if barriers else 'false'}); }}"
        )
    return "\n".join(parts)


@functools.cache
def compiler() -> str:
    """Return what g++ says it is."""
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def library(char: str, text: str, defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Compile kernels for a dtype; in XPCNN_SHIM_FOLDER, if set, they stay, named by all that they are made of."""
    code = translation(text)
    # No contraction: a product and a sum are rounded apart, as in NumPy. No unique symbols: shared memory of a template
    # would be that of the first library which has it.
    command = ["g++", "-O1", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-fwrapv", "-fno-gnu-unique"]
    command += [f"-DREAL={TYPES[char]}", *defines, f"-I{HERE}"]
    made_of = "\0".join([compiler(), *command, (HERE / "shim.h").read_text(encoding="utf-8"), code])
    with tempfile.TemporaryDirectory(prefix="xpcnn-shim-") as own:
        shared = Path(os.environ.get("XPCNN_SHIM_FOLDER") or own)
        target = shared / f"{hashlib.sha256(made_of.encode()).hexdigest()}.so"
        if not target.exists():
            source_file, made = Path(own, "kernels.cpp"), Path(own, "kernels.so")
            source_file.write_text(code, encoding="utf-8")
            done = subprocess.run([*command, str(source_file), "-o", str(made)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            whole = shutil.copy(made, target.with_suffix(f".{os.getpid()}"))  # other processes see it whole or not
            os.replace(whole, target)
        return ctypes.CDLL(str(target))


class CpuKernels:
    """Stands where `Kernels` stands: same launches, same conversion of arguments, on host memory."""

    has_guards = True  # whether arrays are of `guarded`

    def __init__(self, text: str | None = None, file: str = "kernels.cu", defines: tuple[str, ...] = ()) -> None:
        self.text, self.file, self.defines = text, file, defines
        self.signatures = signatures(source(file) if text is None else text)
        self.launched: list[str] = []  # since it was last cleared
        self.ever: set[str] = set()
        self.variants: dict[Any, CpuKernels] = {}

    def variant(self, file: str, defines: tuple[str, ...]) -> CpuKernels:
        if (file, defines) not in self.variants:
            made = self.variants[file, defines] = type(self)(None, file, defines)
            made.launched, made.ever = self.launched, self.ever
        return self.variants[file, defines]

    def address(self, array: Any) -> int:
        return int(array._host.ctypes.data)

    def launch(self, name: str, dtype: np.dtype[Any], grid: tuple[int, ...], *args: Any) -> None:
        kinds, _ = self.signatures[name]
        args = convert(args, dtype)
        assert len(args) == len(kinds), f"{name}: {len(kinds)} parameters, {len(args)} arguments"
        assert all(extent > 0 for extent in grid), f"{name}: empty grid {grid}"
        values, keep = [], []
        for kind, arg in zip(kinds, args, strict=True):
            value = as_parameter(name, concrete(kind, dtype.char), arg)
            keep.append(value)
            values.append(ctypes.cast(ctypes.byref(value), ctypes.c_void_p))
        text = source(self.file) if self.text is None else self.text
        run = getattr(library(dtype.char, text, self.defines), f"run_{name}")
        run.restype = ctypes.c_bool
        extents = (ctypes.c_int * 2)(*grid, *(1,) * (2 - len(grid)))
        self.launched.append(name)
        self.ever.add(name)
        with _ONE_AT_A_TIME:
            met = run(extents, (ctypes.c_void_p * len(values))(*values))
        assert met, f"{name}: some threads missed a barrier"
        for arg in args:
            if self.has_guards and isinstance(arg, FakeArray):
                check_guards(arg._host, name)


def concrete(kind: str, char: str) -> str:
    """Return a parameter's type for a dtype: S is what is stored, T what is computed."""
    return re.sub(r"\bS\b", TYPES[char], re.sub(r"\bT\b", TYPES[COMPUTED[char]], kind))


POINTERS = {
    "float*": "f", "double*": "d", "const float*": "f", "const double*": "d", "unsigned char*": "B",
    "Half*": "e", "const Half*": "e",
    "const unsigned char*": "B", "const int*": "i", "int*": "i", "const long long*": "q", "unsigned*": "I",
    "const unsigned*": "I", "bool*": "?", "const bool*": "?",
}  # fmt: skip
NUMBERS = {"int": "i", "unsigned": "I", "float": "f", "double": "d"}


def as_parameter(name: str, kind: str, arg: Any) -> Any:
    """Return a C object for an argument; fail where its type is not the parameter's."""
    if arg is None or isinstance(arg, FakeArray):
        assert kind.endswith("*"), f"{name}: {kind} got an array"
        if arg is None:
            return ctypes.c_void_p(0)
        assert arg.dtype.char == POINTERS[kind], f"{name}: {kind} got {arg.dtype}"
        return ctypes.c_void_p(arg._host.ctypes.data)
    assert isinstance(arg, np.generic | np.ndarray), f"{name}: {kind} got {type(arg)}"
    assert not kind.endswith("*"), f"{name}: {kind} got {arg!r}"
    if kind in NUMBERS:
        assert arg.dtype.char == NUMBERS[kind], f"{name}: {kind} got {arg.dtype}"
    else:
        assert arg.dtype.names, f"{name}: {kind} got {arg.dtype}"
    return (ctypes.c_char * arg.dtype.itemsize).from_buffer_copy(arg.tobytes())


def guarded(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array between guards, all filled with what shows when it is read."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=int))
    memory = np.full((size + 2 * GUARD) * dtype.itemsize, 0xFF, np.uint8).view(dtype)  # nan, True or the largest
    if dtype.kind == "b":
        memory.fill(True)
    return memory[GUARD : GUARD + size].reshape(shape)


def check_guards(array: np.ndarray, name: str) -> None:
    """Fail where a kernel wrote beside an array of `guarded`."""
    whole = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    if whole.dtype != np.uint8 or whole.ndim != 1 or whole is array:
        return
    edge = GUARD * array.dtype.itemsize
    if whole.size <= 2 * edge or array.dtype.kind == "b":
        return
    assert (whole[:edge] == 0xFF).all(), f"{name}: wrote before an array"
    assert (whole[-edge:] == 0xFF).all(), f"{name}: wrote beyond an array"


class ShimBackend(FakeBackend):
    """The fake device with the kernels, run on the CPU."""

    fused = FUSED
    merges = keeps_columns = multiplies_float16 = True
    update_limit = 1 << 20
    implicit_gemm = allow_tf32 = False
    compute_capability = (9, 0)
    multiprocessors = 3

    def __init__(self, text: str | None = None) -> None:
        self.kernels = CpuKernels(text)

    def empty(self, shape: Any, dtype: Any) -> FakeArray:
        return FakeArray(guarded(tuple(shape), dtype))

    def scratch(self, slot: str, shape: Any, dtype: Any) -> FakeArray:
        return self.empty(shape, dtype)

    def stores_float16(self, shape: Any) -> bool:
        return bool(self.fused) and fits_shape(shape)

    def row_sums(self, a: Any, out: Any = None) -> Any:
        result = row_sums(self, a, None, out)
        return super().row_sums(a, out) if result is NotImplemented else result

    def row_dots(self, a: Any, b: Any) -> Any:
        result = row_sums(self, a, b)
        return super().row_dots(a, b) if result is NotImplemented else result
