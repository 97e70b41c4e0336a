"""One request to an ASGI application, byte by byte as a test wants it; and a reader of its answer."""

import asyncio
import json
from dataclasses import dataclass

HOST = "127.0.0.1:8000"


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes
    parts_read: int

    @property
    def json(self):
        return json.loads(self.body)


async def ask_later(app, method, path, body=(), *, headers=(), host=HOST, stall=False):
    """Return the answer to a request whose body comes in parts; with `stall` it never ends."""
    path, _, query = path.partition("?")
    parts = [body] if isinstance(body, bytes) else list(body)
    given = [*([("host", host)] if host is not None else []), *headers]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given],
        "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    sent, read = [], 0

    async def receive():
        nonlocal read
        if read < len(parts):
            read += 1
            more = stall or read < len(parts)
            return {"type": "http.request", "body": parts[read - 1], "more_body": more}
        if stall or parts:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    start = sent[0]
    return Answer(
        start["status"],
        {name.decode().lower(): value.decode() for name, value in start["headers"]},
        b"".join(message.get("body", b"") for message in sent[1:]),
        read,
    )


def ask(*arguments, **options):
    return asyncio.run(ask_later(*arguments, **options))


def look(app, content, *, target=None, kind="image/png", headers=(), **options):
    """Return the answer to a picture."""
    path = "/look" if target is None else f"/look?target={target}"
    return ask(app, "POST", path, content, headers=[("content-type", kind), *headers], **options)
