"""Requests end at their deadline, do not lead inside, and keep a password to themselves."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scratchnet.data import DataError, load_image, web
from tests.attack.servers import OK, drip, flood, serving


@pytest.fixture
def half_a_second(monkeypatch):
    monkeypatch.setattr(web, "SECONDS", 0.5)


@pytest.mark.parametrize(
    "behave",
    [
        lambda client: drip(client, b"HTTP/1.1 200 OK"),
        lambda client: drip(client, OK + b"X: "),
        lambda client: flood(client, b"HTTP/1.1 100 Continue\r\n\r\n"),
        lambda client: drip(client, b"HTTP/1.1 100 Continue\r\n\r\n"),
        lambda client: drip(client, OK + b"\r\nbody"),
        lambda client: time.sleep(5),
    ],
    ids=["status line", "header", "endless continue", "dripped continue", "body", "silence"],
)
def test_one_deadline_over_the_whole_exchange(behave, half_a_second):
    with serving(behave) as port:
        began = time.monotonic()
        with pytest.raises(DataError, match="cannot be fetched: (it took longer than|timed out)"):
            load_image(f"http://127.0.0.1:{port}/cat.png")
        assert time.monotonic() - began < 2.0


def test_bytes_that_arrive_move_the_deadline():
    deadline = web.Deadline(1.0)
    deadline.earn(10 * web.SLOWEST)
    assert 10.5 < deadline.left() <= 11.0


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
        else:
            self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def answer(url):
    with web.request(url) as (reply, _):
        return reply.status, reply.read()


def test_a_redirect_is_followed_and_five_are_the_most(server):
    port = server.server_port
    assert answer(f"http://127.0.0.1:{port}/to?/x") == (200, b"hello")
    with pytest.raises(ValueError, match="leads on more than 5 times"):
        answer(f"http://127.0.0.1:{port}/to?http://127.0.0.1:{port}/to?" * 1 + "/to?" * 9 + "/x")


@pytest.mark.parametrize(
    "where", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://x"]
)
def test_other_schemes_are_not_followed(server, where):
    with pytest.raises(ValueError, match="only http and https"):
        answer(f"http://127.0.0.1:{server.server_port}/to?{where}")


PRIVATE = ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "172.16.0.1", "100.64.0.1", "0.0.0.0"]
PRIVATE += ["[::1]", "[fe80::1]", "[fd00::1]", "[::ffff:127.0.0.1]"]


@pytest.mark.parametrize("host", PRIVATE)
def test_a_public_server_does_not_lead_inside(server, host, monkeypatch):
    real = web.addresses

    def as_if_public(name, port, deadline, of_proxy=False):
        found = real("127.0.0.1" if name == "example.org" else name, port, deadline, of_proxy)
        return [(family, address, name == "example.org" or public) for family, address, public in found]

    monkeypatch.setattr(web, "addresses", as_if_public)
    port = server.server_port
    with pytest.raises(ValueError, match="a public server leads to an address inside a private network"):
        answer(f"http://example.org:{port}/to?http://{host}:{port}/x")
    assert len(server.asked) == 1  # and nothing was asked there


@pytest.mark.parametrize("host, public", [("8.8.8.8", True), ("127.0.0.1", False), ("localhost", False)])
@pytest.mark.parametrize("of_proxy", [False, True])
def test_which_addresses_are_public(host, public, of_proxy):
    assert {kind for *_, kind in web.addresses(host, 80, web.Deadline(10.0), of_proxy)} == {public}


def test_a_password_is_sent_to_its_server_alone_and_never_shown(server, half_a_second):
    port = server.server_port
    assert answer(f"http://me:s%20cret@127.0.0.1:{port}/to?/x") == (200, b"hello")
    first, second = (headers for _, headers in server.asked)
    assert first["Authorization"] == "Basic bWU6cyBjcmV0" and "Authorization" not in second
    for url in (
        f"http://me:secret@127.0.0.1:{port}/x",
        "http://me:secret@127.0.0.1:1/x",
        "ftp://me:secret@h/x",
    ):
        with pytest.raises(DataError) as refused:
            load_image(url)
        assert "secret" not in str(refused.value) and "me:" not in str(refused.value)


def test_a_proxy_is_asked_where_the_environment_names_one(server, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "")
    assert answer("http://example.invalid/cat.png?x=1") == (200, b"hello")
    ((path, headers),) = server.asked
    assert path == "http://example.invalid/cat.png?x=1" and headers["Host"] == "example.invalid"
    assert headers["Proxy-Authorization"] == "Basic bWU6c2VjcmV0"


def test_a_name_that_is_not_found_in_time(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **how: time.sleep(3))
    with pytest.raises(TimeoutError, match="it took longer than"):
        web.addresses("slow.example", 80, web.Deadline(0.2))
