"""`xpcnn guide [NAME]`: the guides that the package carries, as text."""

from __future__ import annotations

import argparse
from importlib import resources
from typing import TYPE_CHECKING

from xpcnn.errors import ConfigError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def run(arguments: argparse.Namespace) -> int:
    """Print a guide, or the names and titles of all."""
    guides = all_guides()
    if arguments.name is None:
        width = max(map(len, guides))
        for name, guide in guides.items():
            print(f"{name:{width}}  {guide.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
        print('`xpcnn guide NAME` shows one. What it says of pip install ".[EXTRA]" is typed in a clone of xpcnn.')
        return 0
    if arguments.name not in guides:
        raise ConfigError(f"guide: expected one of {', '.join(guides)}, got {arguments.name!r}")
    print(guides[arguments.name].read_text(encoding="utf-8"), end="")
    return 0


def all_guides() -> dict[str, Traversable]:
    """Return the guides by name."""
    folder = resources.files("xpcnn") / "guides"
    found = {each.name.removesuffix(".md"): each for each in folder.iterdir() if each.name.endswith(".md")}
    return dict(sorted(found.items()))
