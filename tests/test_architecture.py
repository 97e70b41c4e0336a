"""The house keeps to its plan: data flows left to right, and one place alone knows which backend it is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xpcnn"

# A part imports from its left.
ORDER = (
    "errors", "extras", "random", "windows", "backend", "functional", "nn", "explain", "models", "optim", "datasets",
    "data", "distributed",
    "testing", "training", "plot", "onnx", "sklearn", "information", "recipes", "web", "cli", "__main__", "examples",
)  # fmt: skip
RANK = {part: rank for rank, part in enumerate(ORDER)}
# History.plot(path), and the finder's, hand over to their neighbour on the right when they are called, and not before.
TO_THE_RIGHT = {("training/history.py", "xpcnn.plot"), ("training/lr_finder.py", "xpcnn.plot")}

HOST_SIDE = ("random.py", "functional/reference/")  # these files, and the parts below, may use NumPy
HOST_PARTS = ("backend", "datasets", "plot", "testing", "onnx", "sklearn", "examples", "web", "cli")
GPU_MODULES = {"cupy", "cupyx", "cupy_backends", "nvmath", "cuda"}
CUPY_FILES = ("backend/cupy/",)  # the files that import CuPy


def files():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(source, package=()):
    """Yield (line, module) of every import of a source, wherever it stands; `package` resolves relative ones."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join((*package[: len(package) - node.level + 1], node.module or "")) if node.level else node.module
            )
            base = base.strip(".")
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant):
                yield node.lineno, argument.value


def imports_of(path):
    return imports(path.read_text(encoding="utf-8"), ("xpcnn", *path.relative_to(PACKAGE).parts[:-1]))


def wrong_directions(path):
    here = part_of(path)
    for line, module in imports_of(path):
        if not module.startswith("xpcnn."):
            continue
        there = module.split(".")[1]
        if (name_of(path), module) in TO_THE_RIGHT:
            continue
        if there in RANK and there != here and RANK[there] > RANK[here]:
            yield f"{name_of(path)}:{line} imports {module}"


def comparisons_by_name(tree):
    """Yield the lines that ask which backend it is: comparisons of `.name` or a name with a backend's."""
    known = {"numpy", "cupy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            constants = {leaf.value for side in sides for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)}
            if any(isinstance(value, str) and value.split(":")[0] in known for value in constants):
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            values = [
                leaf.value for argument in node.args for leaf in ast.walk(argument) if isinstance(leaf, ast.Constant)
            ]
            if any(isinstance(value, str) and value.split(":")[0] in known for value in values):
                yield node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            classes = {getattr(leaf, "id", "") for argument in node.args[1:] for leaf in ast.walk(argument)}
            if classes & {"NumpyBackend", "CupyBackend"}:
                yield node.lineno


def test_every_part_has_its_place():
    parts = {part_of(path) for path in files()} - {"__init__"}
    assert parts <= set(RANK), f"give {parts - set(RANK)} a place in ORDER"


def test_imports_go_from_left_to_right():
    assert [found for path in files() if part_of(path) != "__init__" for found in wrong_directions(path)] == []


def test_importing_the_package_brings_in_backend_and_random_alone():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "typing", "xpcnn.backend", "xpcnn.random"}


def test_backend_alone_imports_cupy():
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path in files()
        for line, module in imports_of(path)
        if module.split(".")[0] in GPU_MODULES and not name_of(path).startswith(CUPY_FILES)
    ]
    assert wrong == []


def test_cupy_is_imported_when_it_is_asked_for_and_not_before():
    for path in files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {module.split(".")[0] for _, module in imports(ast.unparse(node), ("xpcnn",))}
                assert not modules & GPU_MODULES or part_of(path) == "backend", name_of(path)


def test_numpy_stays_on_the_host_side():
    wrong = [
        f"{name_of(path)}:{line}"
        for path in files()
        for line, module in imports_of(path)
        if module.split(".")[0] == "numpy"
        and not name_of(path).startswith(HOST_SIDE)
        and part_of(path) not in HOST_PARTS
    ]
    assert wrong == []


def test_nobody_else_asks_which_backend_it_is():
    wrong = [
        f"{name_of(path)}:{line}"
        for path in files()
        if part_of(path) not in ("backend", "cli", "examples")
        for line in comparisons_by_name(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert wrong == []


def test_no_assert_on_what_a_user_gave():
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert wrong == []


def test_no_pickle_is_loaded():
    wrong = []
    for path in files():
        modules = {module.split(".")[0] for _, module in imports_of(path)}
        wrong += [
            f"{name_of(path)} imports {name}" for name in modules & {"_pickle", "shelve", "marshal", "dill", "joblib"}
        ]
        if "pickle" in modules:  # the reader that cannot run code takes the opcodes' names from there
            attributes = {
                node.attr
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Attribute)
            }
            wrong += [f"{name_of(path)} uses {name}" for name in attributes & {"load", "loads", "Unpickler"}]
            assert name_of(path) == "datasets/unpickle.py"
    assert wrong == []


def test_no_network():
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path in files()
        for line, module in imports_of(path)
        if module.split(".")[0] in {"urllib", "http", "socket", "requests", "ftplib", "ssl"}
    ]
    assert wrong == []


def test_every_module_says_what_it_owns():
    for path in files():
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring, f"{name_of(path)} has no docstring"
        assert len(docstring.splitlines()) <= 15, f"{name_of(path)}: say it shorter"


def test_top_level_holds_what_the_plan_names():
    plan = {
        "pyproject.toml", "xpcnn", "tests", "bench", "README.md", "noxfile.py", ".ci", ".gitignore", "LICENSE",
        "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md",
    }  # fmt: skip
    import subprocess

    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} <= plan


# --- the rules find what they are for --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "import xpcnn.training",
        "from xpcnn import training",
        "from xpcnn.training.trainer import Trainer",
        "def f():\n    from xpcnn.training import Trainer",
        "from ..training import Trainer",
        "import importlib\nimportlib.import_module('xpcnn.training')",
    ],
)
def test_an_import_to_the_right_is_found(source):
    found = {module for _, module in imports(source, ("xpcnn", "nn"))}
    assert any(module.startswith("xpcnn.training") for module in found)


@pytest.mark.parametrize(
    "source",
    [
        'if backend.name == "cupy": pass',
        'on_gpu = get_backend().name in ("cupy", "cupy:1")',
        'if xp.__name__ != "numpy": pass',
        'if backend.name.startswith("cupy"): pass',
        "if isinstance(backend, CupyBackend): pass",
    ],
)
def test_a_question_for_the_backend_is_found(source):
    assert list(comparisons_by_name(ast.parse(source)))


def test_plain_code_is_not():
    source = 'x = {"numpy": 1}\nif name == "numbers": pass\nif isinstance(x, Backend): pass\nprint("cupy")'
    assert list(comparisons_by_name(ast.parse(source))) == []
