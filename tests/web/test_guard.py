"""Whom the page is not for: other sites that a browser on this machine visits, under whatever name."""

import asyncio

import pytest

from tests.web.client import ask, look
from xpcnn.web import Inspector, create_app
from xpcnn.web.guard import host_name

pytest.importorskip("starlette")


@pytest.mark.parametrize(
    ("bound", "asked", "is_mine"),
    [
        ("127.0.0.1", "127.0.0.1:8000", True),
        ("127.0.0.1", "localhost:8000", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "[::1]:8000", True),
        ("127.0.0.1", "evil.example:8000", False),  # DNS rebinding: a name of theirs, an address of ours
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "localhost.evil.example:80", False),
        ("127.0.0.1", "192.168.1.5:8000", False),
        ("127.0.0.1", "user@127.0.0.1", False),
        ("127.0.0.1", "127.0.0.1:8000/evil", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", None, False),
        ("0.0.0.0", "192.168.1.5:8000", True),
        ("0.0.0.0", "[fe80::1]:8000", True),
        ("0.0.0.0", "evil.example:8000", False),
        ("box.home", "box.home:8000", True),
        ("box.home", "box.home.evil.example:8000", False),
    ],
)
def test_hosts(predictor, bound, asked, is_mine):
    app = create_app(Inspector(predictor), host=bound)
    answer = ask(app, "GET", "/", host=asked)
    assert (answer.status == 200) is is_mine
    if not is_mine:
        assert answer.status == 421
        assert b"<" not in answer.body
        assert "content-security-policy" in answer.headers


def test_two_hosts_are_none(app):
    assert ask(app, "GET", "/", headers=[("Host", "127.0.0.1:8000")]).status == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 200),  # curl
        ([("origin", "http://127.0.0.1:8000")], 200),
        ([("origin", "HTTP://127.0.0.1:8000"), ("sec-fetch-site", "same-origin")], 200),
        ([("sec-fetch-site", "same-origin")], 200),
        ([("origin", "http://evil.example")], 403),
        ([("origin", "https://127.0.0.1:8000")], 403),
        ([("origin", "http://127.0.0.1:9000")], 403),
        ([("origin", "http://localhost:8000")], 403),
        ([("origin", "null")], 403),
        ([("origin", "http://127.0.0.1:8000"), ("origin", "http://evil.example")], 403),
        ([("sec-fetch-site", "cross-site")], 403),
        ([("sec-fetch-site", "same-site")], 403),
    ],
)
def test_where_pictures_come_from(app, seven, headers, status):
    answer = look(app, seven, headers=headers)
    assert answer.status == status
    if status == 403:
        assert answer.parts_read == 0
        assert answer.json["error"] == "pictures are taken from this server's own page alone"


def test_preflights_allow_nothing(app):
    headers = [("origin", "http://evil.example"), ("access-control-request-method", "POST")]
    answer = ask(app, "OPTIONS", "/look", headers=headers)
    assert answer.status == 403
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_web_sockets_are_closed(app):
    sent = []

    async def connect():
        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message)

        await app({"type": "websocket", "path": "/", "headers": []}, receive, send)

    asyncio.run(connect())
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    ("value", "name"),
    [("a.b:80", "a.b"), ("A", "a"), ("[::1]", "::1"), ("[::1]:8", "::1"), ("::1", None), ("a:b", None), ("a b", None),
     ("[x]", None), (":80", None), ("a:", None), ("a:80:80", None), ("[::1", None)],
)  # fmt: skip
def test_names_of_hosts(value, name):
    assert host_name(value) == name
