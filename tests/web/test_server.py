"""The page as it is started: its address, its end, and what hostile connections do to it."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from xpcnn.cli import main
from xpcnn.errors import ConfigError
from xpcnn.extras import install_line
from xpcnn.training import save_model
from xpcnn.web import serve
from xpcnn.web.server import address

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory, predictor):
    path = tmp_path_factory.mktemp("models") / "digits.safetensors"
    save_model(predictor.model, path, transform=predictor.transform, digits=True)
    return str(path)


class Server:
    def __init__(self, model_file, *arguments):
        command = [sys.executable, "-W", "error", "-m", "xpcnn", "serve", model_file, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.line = self.process.stdout.readline()
        found = re.match(r"http://([\w.]+):(\d+)/", self.line)
        assert found, self.process.stderr.read()
        self.host, self.port = found[1], int(found[2])

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def end(self, number=signal.SIGINT):
        self.process.send_signal(number)
        out, error = self.process.communicate(timeout=60)
        return self.process.returncode, out, error


@pytest.fixture(scope="module")
def server(model_file):
    made = Server(model_file, "--port", "0")
    yield made
    if made.process.poll() is None:
        made.end()


def test_it_says_where_it_is_and_ends_in_peace(model_file):
    server = Server(model_file)
    assert re.fullmatch(r"http://127\.0\.0\.1:80[0-1]\d/  \(Ctrl-C stops it\)\n", server.line)
    assert server.ask("GET", "/")[0] == 200
    assert json.loads(server.ask("GET", "/model")[1])["name"] == "digits"
    assert server.end() == (0, "", "")


def test_a_silent_connection_does_not_hold_it_up(model_file):
    server = Server(model_file, "--port", "0")
    with socket.create_connection((server.host, server.port)) as silent:
        silent.sendall(
            b"POST /look HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n"
        )
        code, _, _ = server.end()
    assert code == 0


def test_a_taken_port_is_a_mistake_in_one_line(server, model_file, capsys):
    assert main(["serve", model_file, "--port", str(server.port)]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"xpcnn serve: 127.0.0.1:{server.port}: address already in use; choose another with --port or --host\n"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "70000"], "port: expected a number from 0 to 65535, got 70000"),
        (["--port", "x"], "argument --port: invalid int value"),
        (["--host", ""], "host: expected an address"),
        (
            ["--host", "203.0.113.9"],
            r"203\.0\.113\.9, ports 8000 to 8019: (cannot assign requested address|could not bind)",
        ),
        (["--host", "no such host"], "no such host, ports 8000 to 8019: "),
        (["--backend", "tpu"], "expected one of numpy"),
    ],
)
def test_mistakes(model_file, capsys, arguments, says):
    assert main(["serve", model_file, *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(says, error)
    assert error.count("\n") == 1


def test_a_model_that_is_not_there(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("missing", ["uvicorn", "starlette.routing"])
def test_without_the_extra(model_file, capsys, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["serve", model_file]) == 2
    name = missing.split(".")[0]
    expected = f"xpcnn serve: the page needs {name}, which is not installed: {install_line('web')}\n"
    assert capsys.readouterr().err == expected


def test_options_of_the_function(predictor):
    with pytest.raises(ConfigError, match="port: expected a number from 0 to 65535, got True"):
        serve(predictor, port=True)
    with pytest.raises(ConfigError, match="predictor: expected a Predictor"):
        serve(predictor.model)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", "http://127.0.0.1:8/"), ("0.0.0.0", "http://127.0.0.1:8/"), ("::1", "http://[::1]:8/"),
     ("::", "http://[::1]:8/"), ("box", "http://box:8/")],
)  # fmt: skip
def test_addresses(host, expected):
    assert address(host, 8) == expected


def test_it_tells_when_everybody_can_come_in(model_file):
    server = Server(model_file, "--port", "0", "--host", "0.0.0.0")
    assert server.process.stdout.readline() == "everybody who reaches this machine can use it\n"
    assert server.ask("GET", "/", Host="192.168.1.5")[0] == 200
    assert server.ask("GET", "/", Host="evil.example")[0] == 421
    assert server.end()[0] == 0


def test_many_clients(server, seven):
    answers = []

    def client():
        answers.extend(server.ask("POST", "/look", seven, Content_Type="image/png") for _ in range(5))

    threads = [threading.Thread(target=client) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 60
    assert {status for status, _ in answers} == {200}
    assert len({tuple(json.loads(body)["probabilities"]) for _, body in answers}) == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01 nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /look HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /look HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 5\r\n\r\nab",
        b"POST /look HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ],
    ids=["TLS", "long header", "two hosts", "no host", "large", "cut off", "smuggled", "climbing"],
)
def test_hostile_connections(server, sent):
    with socket.create_connection((server.host, server.port), timeout=60) as connection:
        received = b""
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                received += part
        except OSError:  # it may well hang up
            pass
    assert not received.startswith(b"HTTP/1.1 200")
    assert b"root:" not in received
    assert server.process.poll() is None
    assert server.ask("GET", "/model")[0] == 200
