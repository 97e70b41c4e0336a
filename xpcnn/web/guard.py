"""Who may ask, and what browsers may do with the answer: a page for this machine is no page for other sites.

A site that the user visits can send requests to 127.0.0.1 too, or let a name of its own point there (DNS rebinding).
So the Host header has to name this server, and what is sent has to come from the page itself.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
_ADDED = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]


class Guard:
    """An ASGI application before another: it lets through what is meant for this server and comes from its page.

    Parameters
    ----------
    app : ASGI application
    host : str
        What the server is bound to. On a loopback address it answers to loopback names alone; on another one to that,
        and to addresses in numbers, which no other site can have as its name.
    """

    def __init__(self, app: App, host: str) -> None:
        self._app = app
        self._host = host.lower()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_ADDED]}
            await send(message)

        refused = self._refused(scope)
        if refused is None:
            await self._app(scope, receive, guarded)
            return
        status, text = refused
        body = json.dumps({"error": text}).encode()
        length = (b"content-length", str(len(body)).encode())
        headers = [(b"content-type", b"application/json"), length, (b"connection", b"close")]
        await guarded({"type": "http.response.start", "status": status, "headers": headers})
        await guarded({"type": "http.response.body", "body": body})

    def _refused(self, scope: Message) -> tuple[int, str] | None:
        """Return status and reason where a request is not for this server or not from its page."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not self._is_mine(host_name(hosts[0])):
            return 421, "this server is reached by its own address alone"
        if scope["method"] in ("GET", "HEAD"):
            return None
        origins = headers.get("origin", [])
        if any(origin.lower() != f"{scope['scheme']}://{hosts[0].lower()}" for origin in origins):
            return 403, "pictures are taken from this server's own page alone"
        if not origins and headers.get("sec-fetch-site", ["none"])[0] not in ("none", "same-origin"):
            return 403, "pictures are taken from this server's own page alone"
        return None

    def _is_mine(self, name: str | None) -> bool:
        if name is None:
            return False
        if name in LOOPBACK or name == self._host:
            return True
        return self._host not in LOOPBACK and _is_address(name)


def host_name(value: str) -> str | None:
    """Return the name of a Host header without its port; None where it is no such header."""
    name, found, port = value.strip().lower().rpartition(":")
    if not found or value.endswith("]"):
        name, port = value.strip().lower(), "0"
    if not port.isdecimal():
        return None
    if name.startswith("[") and name.endswith("]"):
        return name[1:-1] if ":" in name else None
    return name if name and not set(name) & set(":[]/@ ") else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
