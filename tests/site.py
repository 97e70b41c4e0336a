"""The site of guides and API, made by pdoc: `python -m tests.site FOLDER`. A warning of pdoc's is an error."""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from pathlib import Path

import xpcnn

GUIDES = Path(xpcnn.__file__).parent / "guides"
PUBLIC = (  # the pages of the API
    "xpcnn", "xpcnn.backend", "xpcnn.data", "xpcnn.datasets", "xpcnn.distributed", "xpcnn.errors", "xpcnn.examples",
    "xpcnn.explain", "xpcnn.functional", "xpcnn.functional.reference", "xpcnn.models", "xpcnn.nn", "xpcnn.nn.init",
    "xpcnn.onnx", "xpcnn.optim", "xpcnn.plot", "xpcnn.random", "xpcnn.sklearn", "xpcnn.testing", "xpcnn.training",
)  # fmt: skip


def write_guides(folder: Path) -> None:
    """Make a package whose modules' docstrings are the guides, which is what pdoc reads."""
    package = folder / "guides"
    package.mkdir()
    titles = []
    for path in sorted(GUIDES.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        (package / f"{path.stem}.py").write_text(f'{text!r}\n\n__docformat__ = "markdown"\n', encoding="utf-8")
        title = text.splitlines()[0].lstrip("# ")
        titles.append(f"- [{title}](guides/{path.stem}.html)")
    text = "# Guides\n\n" + "\n".join(titles)
    (package / "__init__.py").write_text(f'{text!r}\n\n__docformat__ = "markdown"\n', encoding="utf-8")


def build(out: Path) -> None:
    """Write the site."""
    import pdoc

    pdoc.render.configure(docformat="numpy", footer_text=f"xpcnn {xpcnn.__version__}")
    pages = "|".join(re.escape(name.removeprefix("xpcnn.")) for name in PUBLIC)
    packages = [name for name in PUBLIC if name != "xpcnn.nn.init"]  # which comes with xpcnn.nn
    for name in xpcnn.__all__:  # pdoc reads the module's dictionary, where late names come when they are asked for
        vars(xpcnn).setdefault(name, getattr(xpcnn, name))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        write_guides(Path(folder))
        sys.path.insert(0, folder)
        try:
            pdoc.pdoc("guides", *packages, rf"!xpcnn\.(?!({pages})$)", output_directory=out)
        finally:
            sys.path.remove(folder)
            for name in [name for name in sys.modules if name.split(".")[0] == "guides"]:
                del sys.modules[name]


if __name__ == "__main__":
    build(Path(sys.argv[1]))
    print(f"{sys.argv[1]}/index.html")
