"""`xpcnn serve`: a page on this machine to draw on, or to drop a picture on, that shows what a network makes of it."""

from __future__ import annotations

import argparse
from pathlib import Path


def run(arguments: argparse.Namespace) -> int:
    """Print the page's address, and serve it until Ctrl-C."""
    from xpcnn import recipes
    from xpcnn.web.server import is_local, serve

    predictor = recipes.load_predictor(arguments.source, backend=arguments.backend)
    host = arguments.host

    def started(address: str) -> None:
        print(f"{address}  (Ctrl-C stops it)", flush=True)
        if not is_local(host):
            print("everybody who reaches this machine can use it", flush=True)

    name = Path(arguments.source).resolve().name.removesuffix(".safetensors")
    serve(predictor, name=name, host=host, port=arguments.port, started=started)
    return 0
