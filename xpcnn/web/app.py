"""The application: the page with its files, and `/look`, which takes a picture and gives what the network makes of it.

    GET  /            the page; its style, script and icon beside it
    GET  /model       json: what the network is (`Inspector.describe`)
    POST /look        json: what it makes of the picture in the body (`Inspector.look`); `?target=3` explains class 3

Errors are json too, `{"error": one line}`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

from xpcnn.datasets.lazy import usable_cores
from xpcnn.errors import DataError, OutOfMemoryError, XpcnnError
from xpcnn.web.guard import Guard
from xpcnn.web.inspection import Inspector
from xpcnn.web.library import library
from xpcnn.web.uploads import LARGEST, read_picture

_FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "drawing.js": "text/javascript; charset=utf-8",
    "showing.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_PATIENCE = 30.0  # seconds for a picture to arrive
_AT_ONCE = min(4, usable_cores() + 1)  # pictures that are decoded; of 33 million pixels each takes 200 MB


class _Refusal(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def create_app(inspector: Inspector, *, host: str = "127.0.0.1") -> Guard:
    """Return the page of a network as an ASGI application, for `serve` or any other server.

    Parameters
    ----------
    inspector : Inspector
    host : str
        The name or address under which it is reached (`Guard`).

    Raises
    ------
    ConfigError
        Starlette is not installed.
    """
    responses = library("starlette.responses")
    routing = library("starlette.routing")
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="xpcnn-web")

    def answered(work: Callable[[], Any]) -> Any:
        status, text = 422, ""
        try:
            return responses.JSONResponse(work())
        except OutOfMemoryError as error:
            status, text = 503, str(error)
        except XpcnnError as error:
            text = str(error)
        except MemoryError:
            status, text = 503, "there is no memory for this picture"
        return failure(status, text)

    def failure(status: int, text: str) -> Any:
        return responses.JSONResponse({"error": one_line(text)}, status)

    async def model(request: Any) -> Any:
        return answered(inspector.describe)

    async def look(request: Any) -> Any:
        try:
            target = _target(request.query_params.get("target"))
            content = await _body(request)
        except _Refusal as refusal:
            return failure(refusal.status, str(refusal))
        stored = inspector.predictor.stored
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            pool, lambda: answered(lambda: inspector.look(read_picture(content, stored), target))
        )

    def page(name: str, kind: str) -> Any:
        content = (resources.files("xpcnn.web") / "static" / name).read_bytes()

        async def give(request: Any) -> Any:
            return responses.Response(content, media_type=kind)

        return routing.Route("/" if name == "index.html" else f"/{name}", give, methods=["GET"])

    routes = [page(name, kind) for name, kind in _FILES.items()]
    routes += [routing.Route("/model", model, methods=["GET"]), routing.Route("/look", look, methods=["POST"])]
    return Guard(library("starlette.applications").Starlette(routes=routes), host)


def one_line(text: str) -> str:
    """Return an error as a sentence on one line, without the name of an argument that its reader never gave."""
    line = " ".join(text.split()).removeprefix("images: ")
    return line[:1].upper() + line[1:]


def _target(given: str | None) -> int | None:
    if given is None:
        return None
    if not given.isdecimal() or len(given) > 9:
        raise _Refusal(400, "target: expected the number of a class")
    return int(given)


async def _body(request: Any) -> bytes:
    """Return the picture in a request's body, of which no more than is taken is ever held."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if not kind.startswith("image/"):  # nor can a form of another site send such a thing
        raise _Refusal(415, f"expected a picture (Content-Type: image/...), got {kind or 'none'}"[:120])
    too_large = _Refusal(413, f"the picture is larger than {LARGEST >> 20} MiB; shrink it")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:19]) > LARGEST:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(_PATIENCE):
            async for part in request.stream():
                if len(content) + len(part) > LARGEST:
                    raise too_large
                content += part
    except TimeoutError:
        raise _Refusal(408, "the picture did not arrive in time") from None
    except library("starlette.requests").ClientDisconnect:
        raise _Refusal(400, "the picture did not arrive whole") from None
    if not content:
        raise _Refusal(422, str(DataError("the picture is empty")))
    return bytes(content)
