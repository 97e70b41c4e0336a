"""What the portable code asks of the array module, read from its syntax and checked against CuPy's real signatures."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# CuPy takes more in `**kwargs` than it can do, or hides its signature.
BY_HAND = {"einsum": {"dtype", "optimize"}}
UFUNC_KEYWORDS = {"out", "dtype", "casting"}
# Methods that only arrays have, so that any call of the name is one of an array.
ARRAY_METHODS = {
    "all", "any", "argmax", "argmin", "argsort", "astype", "cumsum", "fill", "max", "mean", "min", "prod", "ravel",
    "reshape", "squeeze", "std", "sum", "swapaxes", "transpose", "var",
}  # fmt: skip
# They make the device wait for the host, each time; on the result of `to_numpy` they cost nothing.
WAITING = {"item", "tolist"}
SLOW = {"lib.stride_tricks.sliding_window_view": "synchronises on CuPy", "add.at": "uses atomics"}


def problems(text: str, name: str, cupy: Any, numpy_allowed: bool = False) -> list[str]:
    """Return a line for everything in a module's text that CuPy would refuse."""
    found, lines = [], text.splitlines()
    for node in ast.walk(ast.parse(text)):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                root = module.split(".")[0]
                if root in ("cupy", "cupyx", "cupy_backends") or (root == "numpy" and not numpy_allowed):
                    found.append(f"{where}: imports {module}")
        elif isinstance(node, ast.Attribute):
            path = dotted(node)
            if path and resolve(cupy, path) is None:
                found.append(f"{where}: xp.{path} is not in CuPy")
            elif path in SLOW:
                found.append(f"{where}: xp.{path} {SLOW[path]}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            # A value that a line says is the host's waits for nothing.
            is_host = lines[node.lineno - 1].endswith("on the host")
            found += [f"{where}: {line}" for line in call_problems(node, cupy) if not (is_host and "waits" in line)]
    return found


def call_problems(node: ast.Call, cupy: Any) -> Iterator[str]:
    assert isinstance(node.func, ast.Attribute)
    given = {keyword.arg for keyword in node.keywords if keyword.arg}
    path = dotted(node.func)
    if path is None:
        if node.func.attr in WAITING and not node.args and "to_numpy" not in ast.unparse(node.func.value):
            yield f".{node.func.attr}() waits for the device"
        if node.func.attr in ARRAY_METHODS and given:
            allowed, _ = signature(getattr(cupy.ndarray, node.func.attr))
            for keyword in sorted(given - allowed):
                yield f".{node.func.attr}({keyword}=) is not in CuPy"
        return
    target = resolve(cupy, path)
    if target is None or not callable(target) or isinstance(target, type):
        return
    if isinstance(target, cupy.ufunc):
        allowed, most = UFUNC_KEYWORDS, target.nin + target.nout
    elif path in BY_HAND:
        allowed, most = BY_HAND[path], None
    else:
        allowed, most = signature(target)
    for keyword in sorted(given - allowed):
        yield f"xp.{path}({keyword}=) is not in CuPy"
    if most is not None and len(node.args) > most and not any(isinstance(arg, ast.Starred) for arg in node.args):
        yield f"xp.{path} takes {most} arguments by position, not {len(node.args)}"


def dotted(node: ast.expr) -> str | None:
    """Return "lib.stride_tricks.as_strided" for `backend.xp.lib.stride_tricks.as_strided`; None for no use of `xp`."""
    names = []
    while isinstance(node, ast.Attribute):
        if node.attr == "xp":
            return ".".join(reversed(names)) or None
        names.append(node.attr)
        node = node.value
    return ".".join(reversed(names)) if isinstance(node, ast.Name) and node.id == "xp" and names else None


def resolve(cupy: Any, path: str) -> Any:
    found = cupy
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            return None
    return found


def signature(function: Any) -> tuple[set[str], int | None]:
    """Return a function's keywords, and how many arguments it takes by position (None: any number)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a Cython method gives its signature in the first line of its docstring
        line = (function.__doc__ or "").strip().splitlines()[0]
        inside = line[line.index("(") + 1 : line.rindex(")")]
        return {part.split("=")[0].strip(" \\*") for part in inside.split(",")}, None
    kinds = inspect.Parameter
    named = {p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    if any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        return named, None
    return named, sum(p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD) for p in parameters)


def modules(root: Path) -> Iterator[tuple[Path, bool]]:
    """Return the modules of the portable code, and whether each may import NumPy."""
    for package in ("functional", "nn", "models", "optim", "data", "training", "recipes"):
        for path in sorted((root / package).rglob("*.py")):
            yield path, path.parent.name == "reference"
