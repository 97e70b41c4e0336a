"""README and guides: every example runs as it stands, links lead somewhere, commands are commands."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

import xpcnn
from xpcnn.cli.arguments import parse
from xpcnn.recipes import table

ROOT = Path(__file__).parents[1]
GUIDES = Path(str(resources.files("xpcnn") / "guides"))
PACKAGES = sorted(GUIDES.parent.glob("*/README.md"))
DOCUMENTS = [*ROOT.glob("*.md"), *sorted(GUIDES.glob("*.md"))]
WORDS = 1000  # of README: two screens


def named(path: Path) -> str:
    return path.stem


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def examples(path: Path) -> list[str]:
    """Return the Python examples in order; a later one goes on with what the earlier ones have made."""
    return re.findall(r"^```python\n(.*?)^```", text(path), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if examples(path)], ids=named)
def test_examples_run(path, tmp_path, monkeypatch, capsys):
    """In an empty folder, on a few images; each says something."""
    from xpcnn import datasets
    from xpcnn.datasets import Dataset

    if path.stem == "exchange":
        pytest.importorskip("onnx")
    train, test = datasets.load_mnist()
    few = tuple(Dataset(part.images[:256], part.labels[:256]) for part in (train, test))
    monkeypatch.setattr(datasets, "load_mnist", lambda: few)
    monkeypatch.chdir(tmp_path)
    before, names = xpcnn.get_backend().name, {"__name__": "__main__"}
    try:
        for number, code in enumerate(examples(path), 1):
            exec(compile(code, f"{path.name}, example {number}", "exec"), names)
    finally:
        xpcnn.set_backend(before)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", text(path)):
        assert (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.skipif(not (ROOT / "CONTRIBUTING.md").exists(), reason="the wheel is tested without it")
def test_contributing_names_each_package_readme_and_session():
    contributing = text(ROOT / "CONTRIBUTING.md")
    assert {path.parent.name for path in PACKAGES} >= {"backend", "functional", "training"}
    for path in PACKAGES:
        assert f"xpcnn/{path.parent.name}/README.md" in contributing
    sessions = re.findall(r"^@nox\.session.*?^def (\w+)\(", text(ROOT / "noxfile.py"), re.MULTILINE | re.DOTALL)
    assert len(sessions) > 10
    assert [name for name in sessions if f"`{name}`" not in contributing] == ["lint", "types", "wheel"]


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_a_package_readme_names_files_that_are_there(path):
    for name in re.findall(r"`([a-z_/]+\.py|[a-z]+/)`", text(path)):
        assert list(path.parent.rglob(name.rstrip("/"))) or (path.parents[1] / name).exists(), name
    assert len(text(path).splitlines()) <= 20


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_commands_are_commands(path, capsys):
    for command in set(re.findall(r"(?:^ {4}|`)xpcnn (\w+)", text(path), re.MULTILINE)):
        assert parse([command, "--help"]) is None
        assert f"xpcnn {command}" in capsys.readouterr().out
    for recipe in re.findall(r"xpcnn (?:train|gradcheck) (?!-|RECIPE)([\w-]+)", text(path)):
        assert recipe in table.names(), f"{path.name}: no recipe is called {recipe}"


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="the wheel is tested without it")
def test_readme_is_short_and_knows_the_guides():
    readme = text(ROOT / "README.md")
    assert len(readme.split()) <= WORDS
    named_there = set(re.findall(r"`(\w+)`", readme[readme.index("## Where the rest is") :])) | {"pytorch"}
    assert {path.stem for path in GUIDES.glob("*.md")} <= named_there


def test_the_readme_installs_nothing_by_a_name_that_is_on_no_index():
    """The package is installed from its folder: ".[cuda12]"; its name could one day be anybody's."""
    for path in DOCUMENTS:
        assert re.findall(r"pip install (?:-\S+ )*[\"']?xpcnn\b.*", text(path)) == []
