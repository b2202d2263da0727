"""Hostile servers: whatever they say, and however slowly, a request ends at its deadline, with a sentence."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from scratchnet.data import DataError, load_image, web
from tests.attack.registry import Tally, attack

module = importlib.import_module("scratchnet.data.download")
SECONDS = 0.4  # the deadline of a request, here
MOST = 20_000  # bytes of a file: each ten thousand earn a second
MARGIN = 1.5  # seconds after it, on a machine with other things to do
LONGEST = 6.0  # seconds that a server goes on for, if nobody hangs up

Say = Callable[[bytes], None]

OK = b"HTTP/1.1 200 OK\r\n"
HEADERS = b"Content-Type: image/png\r\nX-Long: " + b"a" * 300 + b"\r\n"
ENDLESS = {
    "status": b"HTTP/1.1 200 " + b"O" * 70_000,
    "status without a line": b"H" * 1000,
    "header": OK + b"X: " + b"a" * 70_000,
    "headers": OK + b"".join(b"X-%d: y\r\n" % k for k in range(1000)),
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
    "processing": b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\n" * 50,
    "body": OK + HEADERS + b"\r\n" + bytes(5000),
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 50,
    "chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n" + bytes(5000),
    "size of a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 5000,
    "trailers": OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 50,
    "noise": bytes(range(256)) * 8,
    "nothing": b"",
}
ONCE = {
    "no HTTP": b"220 mail.example.org ESMTP\r\n",
    "HTTP/0.9": b"an image\r\n",
    "a status that is none": b"HTTP/1.1 999999999 \x1b[2J\x07\r\n\r\n",
    "controls in the reason": b"HTTP/1.1 404 \x1b]0;owned\x07\x1b[31mred\r\nContent-Length: 0\r\n\r\n",
    "a length below zero": OK + b"Content-Length: -5\r\n\r\nabc",
    "an absurd length": OK + b"Content-Length: " + b"9" * 400 + b"\r\n\r\nabc",
    "two lengths": OK + b"Content-Length: 3\r\nContent-Length: 3000\r\n\r\nabc",
    "a length of words": OK + b"Content-Length: \x1b[2Jmany\r\n\r\nabc",
    "a chunk of no size": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    "a chunk below zero": OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc",
    "an unknown encoding": OK + b"Transfer-Encoding: \x1b[2J\r\n\r\nabc",
    "compressed": OK + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08",
    "an empty answer": OK + b"Content-Length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "another part": b"HTTP/1.1 206 Partial\r\nContent-Range: bytes \x1b[2J-5/9\r\n\r\nabc",
    "a login": b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\x1b[2J\r\n\r\n",
    "a header without a colon": OK + b"\x00\x1b[2J\r\n\r\n",
    "folded headers": OK + b"X: a\r\n b\r\n\tc\r\n\r\nabc",
    "null bytes": bytes(2000),
}
LOCATIONS = [
    b"/again",
    b"file:///etc/passwd",
    b"ftp://127.0.0.1/x",
    b"//",
    b"http://[::1",
    b"http://\x1b[2J/",
    b"#",
]
LOCATIONS += [
    b"http://user:secret@127.0.0.1:1/",
    b"data:image/png;base64,AA",
    b"http://127.0.0.1:99999/",
    b"?" * 9999,
]
LOCATIONS += [
    b"http://",
    b"gopher://x",
    b"http://a..b/",
    b"\xff\xfe",
    b"https://localhost:1/",
    b"http://%00/",
]


def behaviours() -> dict[str, Callable[[socket.socket], None]]:
    """Return what a server may do to a client, by name."""
    found: dict[str, Callable[[socket.socket], None]] = {}
    for what, content in ENDLESS.items():
        found[f"endless {what}"] = lambda client, content=content: flood(client, content)
        found[f"dripped {what}"] = lambda client, content=content: drip(client, content)
        found[f"{what}, then silence"] = lambda client, content=content: (
            client.sendall(content),
            wait(client),
        )
        found[f"{what}, then reset"] = lambda client, content=content: (
            client.sendall(content),
            reset(client),
        )
    for what, content in ONCE.items():
        found[what] = lambda client, content=content: client.sendall(content)
        found[f"{what}, dripped"] = lambda client, content=content: drip(client, content)
    for where in LOCATIONS:
        moved = b"HTTP/1.1 302 Found\r\nLocation: " + where + b"\r\nContent-Length: 0\r\n\r\n"
        found[f"moved to {where[:40]!r}"] = lambda client, moved=moved: client.sendall(moved)
    return found


def flood(client: socket.socket, content: bytes) -> None:
    end = time.monotonic() + LONGEST
    client.sendall(content)
    rest = content if content.endswith(b"\r\n\r\n") else content[len(content) // 2 :] or b"\r\n"
    while time.monotonic() < end:
        client.sendall(rest)


def drip(client: socket.socket, content: bytes) -> None:
    end = time.monotonic() + LONGEST
    for byte in itertools.chain(content, itertools.repeat(97)):
        if time.monotonic() > end:
            return
        client.sendall(bytes([byte]))
        time.sleep(0.02)


def wait(client: socket.socket) -> None:
    client.settimeout(LONGEST)
    with contextlib.suppress(OSError):
        while client.recv(4096):
            pass


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@contextlib.contextmanager
def serving(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve connections on a port, each in a thread of its own, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10.0)

    def one(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(LONGEST)
            client.recv(4096)
            behave(client)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=one, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


@attack("servers", "over within the deadline (or refused before), one sentence, no password in it", 60, 3.0)
def servers(tally: Tally) -> None:
    before = web.SECONDS, module.ATTEMPTS, module.MAX_BYTES
    web.SECONDS, module.ATTEMPTS, module.MAX_BYTES = SECONDS, 1, MOST
    try:
        names = list(behaviours())
        tally.rng.shuffle(names)
        for name in itertools.cycle(names):
            if not tally.goes_on():
                return
            attend(tally, name, behaviours()[name])
    finally:
        web.SECONDS, module.ATTEMPTS, module.MAX_BYTES = before


def attend(tally: Tally, name: str, behave: Callable[[socket.socket], None]) -> None:
    """Ask a server for an image, and for a file of known checksum."""
    with serving(behave) as port:
        scheme = "https" if tally.rng.random() < 0.1 else "http"
        url = f"{scheme}://me:secret@127.0.0.1:{port}/cat.png"
        for kind in ("image", "file"):
            with tally.case(f"{name}, {kind}", limit=10.0):
                began = time.monotonic()
                try:
                    if kind == "image":
                        load_image(url)
                    else:
                        module.download(url, Path(tally.folder, "file.part"), "0" * 32)
                    raise AssertionError("it was taken for what was asked for")
                except DataError as error:
                    told = str(error)
                    assert told.isprintable() and "secret" not in told, f"{told!r}"
                took = time.monotonic() - began
                allowed = SECONDS + (MOST / web.SLOWEST if kind == "file" else 0.0)
                assert took < allowed + MARGIN, f"{took:.1f} s, where {allowed} are allowed: {told}"
                tally.outcomes[kind] += 1
