"""Starlette and uvicorn, imported when they are asked for: `pip install ".[web]"`."""

from __future__ import annotations

import importlib
from typing import Any

from xpcnn.errors import ConfigError
from xpcnn.extras import install_line


def library(name: str) -> Any:
    """Return a module of one of them.

    Raises
    ------
    ConfigError
        It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"the page needs {name.split('.')[0]}, which is not installed: {install_line('web')}"
        ) from None
