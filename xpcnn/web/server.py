"""The page bound to an address, until Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from xpcnn.errors import ConfigError
from xpcnn.training import Predictor
from xpcnn.web.app import create_app
from xpcnn.web.guard import LOOPBACK
from xpcnn.web.inspection import Inspector
from xpcnn.web.library import library

PORT = 8000
_TRIED = 20  # ports, where none is asked for
_CONNECTIONS = 128  # at once; more are told to come again
_IDLE, _FAREWELL = 10, 2  # seconds: of a silent connection, and for answers under way at Ctrl-C


def serve(
    predictor: Predictor,
    *,
    name: str = "model",
    host: str = "127.0.0.1",
    port: int | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve the page of a network until Ctrl-C or SIGTERM.

    Parameters
    ----------
    predictor : Predictor
        Such as `training.load_model` or `recipes.load_predictor` gives.
    name : str
        What the page calls it.
    host : str
        Address to bind to; "0.0.0.0" lets everybody in who reaches this machine.
    port : int, optional
        By default the first free one from 8000; 0 is any free one.
    started : callable, optional
        Called with the page's address once it can be reached.

    Raises
    ------
    ConfigError
        The address cannot be had, or Starlette or uvicorn is not installed.
    """
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 1 << 16):
        raise ConfigError(f"port: expected a number from 0 to 65535, got {port!r:.40}")
    if not isinstance(host, str) or not host:
        raise ConfigError(f"host: expected an address such as 127.0.0.1, got {host!r:.40}")
    uvicorn = library("uvicorn")
    app = create_app(Inspector(predictor, name), host=host)
    reason: BaseException | None = None
    for each in range(PORT, PORT + _TRIED) if port is None else (port,):
        server = _server(uvicorn, app, host, each, started)
        try:
            with _silent("uvicorn.error") as before, contextlib.suppress(KeyboardInterrupt):
                server.before = before
                server.run()
            return
        except SystemExit as error:  # that is how uvicorn says that it did not get the address
            reason = error.__context__
    where = f"{host}:{port}" if port is not None else f"{host}, ports {PORT} to {PORT + _TRIED - 1}"
    raise ConfigError(f"{where}: {_why(reason)}; choose another with --port or --host") from reason


def address(host: str, port: int) -> str:
    """Return where a browser on this machine finds the page."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}/"


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    return host in LOOPBACK


def _server(uvicorn: Any, app: Any, host: str, port: int, started: Callable[[str], None] | None) -> Any:
    """Return uvicorn's server, not yet running."""

    class Server(uvicorn.Server):  # type: ignore[misc]
        before: Callable[[], None]

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            self.before()
            if started is not None and self.started:
                started(address(host, self.servers[0].sockets[0].getsockname()[1]))

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_FAREWELL,
    )
    return Server(config)


def _why(error: BaseException | None) -> str:
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    # From Python 3.13 on, an address that no interface has is an OSError without a number.
    return str(getattr(error, "strerror", None) or error or "it cannot be had").lower()


@contextlib.contextmanager
def _silent(name: str) -> Iterator[Callable[[], None]]:
    """Let a logger say nothing, until what is given is called or the block ends."""
    logger = logging.getLogger(name)
    was_disabled = logger.disabled

    def speak() -> None:
        logger.disabled = was_disabled

    logger.disabled = True
    try:
        yield speak
    finally:
        speak()
