"""The site of guides and API: pdoc has nothing to warn of, and every public name says something there."""

import importlib
import inspect
import re

import pytest

import xpcnn
from tests import site

pytest.importorskip("pdoc", reason="nox -s docs installs it")
pytest.importorskip("onnx")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    site.build(folder)  # a warning is an error
    return folder


def test_a_page_for_each_guide_and_package(built):
    pages = {path.relative_to(built).as_posix() for path in built.rglob("*.html")} - {"index.html"}
    guides = {f"guides/{path.stem}.html" for path in site.GUIDES.glob("*.md")}
    assert {page for page in pages if page.startswith("guides/")} == guides
    api = {f"{name.replace('.', '/')}.html" for name in site.PUBLIC}
    assert pages - guides - {"guides.html"} == api


def test_guides_are_reached_from_the_first_page(built):
    assert re.search(r"url=\S*guides\.html|href=\"\S*guides\.html", (built / "index.html").read_text())
    front = (built / "guides.html").read_text()
    for path in site.GUIDES.glob("*.md"):
        assert f'href="guides/{path.stem}.html"' in front


def test_links_between_pages_lead_somewhere(built):
    for page in built.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r'href="([^"#:]+\.html)', text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_public_name_has_a_docstring():
    silent = []
    for page in site.PUBLIC:
        module = importlib.import_module(page)
        silent += [page] if not inspect.getdoc(module) else []
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if callable(value) and "." not in name and not (value.__doc__ or "").strip():
                silent.append(f"{page}.{name}")
    assert silent == []


def test_pages_show_what_is_documented(built):
    page = (built / "xpcnn" / "nn.html").read_text(encoding="utf-8")
    for name in set(xpcnn.nn.__all__) - {"init"}:  # which has a page
        assert f'id="{name}"' in page
