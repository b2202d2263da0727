"""Requests over HTTP to servers that are not trusted: one deadline over the exchange, and no way inside.

A timeout of a socket begins again with every byte, so that a server may drip its answer for days. Here every
wait, for the name, the connection, each line of the answer and its body, ends at one deadline, which only
data that arrive can move. A public server may not redirect to an address inside the own network.
"""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import queue
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scratchnet.untrusted import printable

USER_AGENT = "Mozilla/5.0 (compatible; scratchnet)"  # some servers refuse a library's own
SECONDS = 60.0  # for an exchange, and for as much more as its body earns:
SLOWEST = 10_000.0  # bytes per second
REDIRECTS = 5
MOVED = {301, 302, 303, 307, 308}
# What a request may raise: the network, a server that does not speak HTTP, an address that is none.
ERRORS = (OSError, http.client.HTTPException, ValueError)


class Deadline:
    """The time at which an exchange has to be over.

    >>> Deadline(0.0).left()
    Traceback (most recent call last):
    TimeoutError: it took longer than 0 seconds
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Return how many seconds are left; raise TimeoutError if there are none."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"it took longer than {self.seconds:.0f} seconds")
        return left

    def earn(self, count: int) -> None:
        """Move the deadline, for so many bytes that have arrived."""
        self.end += count / SLOWEST


class _Reader(io.RawIOBase):
    """What a socket receives, until the deadline."""

    def __init__(self, timed: _Timed):
        self.timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.timed.ready().recv_into(buffer)


class _Timed:
    """A socket as ``http.client`` uses it, all of whose waits end at one deadline."""

    def __init__(self, plain: socket.socket, deadline: Deadline):
        self.plain, self.deadline = plain, deadline

    def ready(self) -> socket.socket:
        self.plain.settimeout(self.deadline.left())
        return self.plain

    def sendall(self, content: Any) -> None:
        self.ready().sendall(content)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """Leave it open: ``http.client`` closes a connection once the answer's headers have been read."""


class _Connection(http.client.HTTPConnection):
    """A connection to one of the addresses that a name has been found to have, or through a proxy."""

    def __init__(self, url: urllib.parse.SplitResult, deadline: Deadline, public: bool | None):
        super().__init__(url.hostname or "", _port(url))
        self.url, self.deadline, self.public = url, deadline, public
        self.plain: socket.socket | None = None
        proxies = {} if urllib.request.proxy_bypass(self.host) else urllib.request.getproxies()
        self.proxy = urllib.parse.urlsplit(proxies[url.scheme]) if proxies.get(url.scheme) else None
        self.headers_of_proxy = _authorization(self.proxy, "Proxy-Authorization") if self.proxy else {}
        if self.proxy and url.scheme == "https":
            self.set_tunnel(self.host, self.port, self.headers_of_proxy)

    @property
    def target(self) -> str:
        """What is asked for: of a proxy, the whole address."""
        path = urllib.parse.urlunsplit(("", "", self.url.path or "/", self.url.query, ""))
        through_proxy = self.proxy is not None and self.url.scheme == "http"
        return f"http://{self.host_header}{path}" if through_proxy else path

    @property
    def host_header(self) -> str:
        """The server and its port, as in the address."""
        return self.url.netloc.rpartition("@")[2]

    def connect(self) -> None:
        """Connect, and agree on encryption."""
        where = (self.url.hostname or "", _port(self.url))
        inside = [a for a in addresses(*where, self.deadline, of_proxy=self.proxy is not None) if not a[2]]
        if self.public and inside:
            raise ValueError("a public server leads to an address inside a private network")
        self.public = not inside
        if self.proxy is not None:
            where = (self.proxy.hostname or "", self.proxy.port or 80)
        self.plain = self._open(*where)
        timed: Any = _Timed(self.plain, self.deadline)
        self.sock = timed
        if self.url.scheme == "https":
            if self.proxy is not None:
                self._tunnel()  # type: ignore[attr-defined]
            self.plain.settimeout(self.deadline.left())
            context = ssl.create_default_context()
            self.plain = timed.plain = context.wrap_socket(self.plain, server_hostname=self.url.hostname)

    def hang_up(self) -> None:
        """Close it for good."""
        self.close()
        if self.plain is not None:
            self.plain.close()

    def _open(self, host: str, port: int) -> socket.socket:
        problem: OSError | None = None
        for family, address, _ in addresses(host, port, self.deadline):
            plain = socket.socket(family, socket.SOCK_STREAM)
            try:
                plain.settimeout(self.deadline.left())
                plain.connect(address)
                return plain
            except OSError as error:
                plain.close()
                problem = error
        raise problem or OSError(f"{host} has no address")


def addresses(
    host: str, port: int, deadline: Deadline, of_proxy: bool = False
) -> list[tuple[socket.AddressFamily, Any, bool]]:
    """Return the addresses of a name, each with its family and whether it is public.

    Behind a proxy names are the proxy's to find: then only those are told that are addresses themselves.

    >>> addresses("127.0.0.1", 80, Deadline(10.0))[0][1:]
    (('127.0.0.1', 80), False)
    """
    if of_proxy and not _is_address(host):
        return [(socket.AF_INET, (host, port), host.lower().rstrip(".") != "localhost")]
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    # A resolver takes its own time, and cannot be interrupted.
    threading.Thread(target=ask, name="scratchnet-resolver", daemon=True).start()
    try:
        found = answers.get(timeout=deadline.left())
    except queue.Empty:
        deadline.left()  # raises
        raise
    if isinstance(found, Exception):
        raise found
    kinds = [
        (family, address, ipaddress.ip_address(address[0].partition("%")[0])) for family, *_, address in found
    ]
    return [(family, address, kind.is_global) for family, address, kind in kinds]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _port(url: urllib.parse.SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _authorization(url: urllib.parse.SplitResult, name: str = "Authorization") -> dict[str, str]:
    """Return the header that has the name and password of an address, if it has any."""
    if url.username is None and url.password is None:
        return {}
    both = f"{urllib.parse.unquote(url.username or '')}:{urllib.parse.unquote(url.password or '')}"
    return {name: f"Basic {base64.b64encode(both.encode()).decode()}"}


def shown(url: str) -> str:
    """Return an address as it may be printed: without a password.

    >>> shown("https://me:secret@example.org/cat.png")
    'https://example.org/cat.png'
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return printable(url)
    end = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
    return printable(f"{scheme}://{rest[:end].rpartition('@')[2]}{rest[end:]}")


def reason(error: Exception) -> str:
    """Say in a few words why a request failed: one of ``ERRORS``."""
    said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return said if len(said) <= 200 else f"{said[:200]} ..."


def split(url: str) -> urllib.parse.SplitResult:
    """Return the parts of an http or https address, quoted; raise ValueError for any other."""
    # Addresses are often pasted with spaces or accents in them; what is already quoted stays so.
    parts = urllib.parse.urlsplit(urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]"))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("only http and https addresses are followed")
    return parts._replace(netloc=parts.netloc.encode("ascii").decode())


@contextmanager
def request(
    url: str, headers: dict[str, str] | None = None, seconds: float | None = None
) -> Iterator[tuple[http.client.HTTPResponse, Deadline]]:
    """Ask for an address, follow where it leads, and yield the answer, whatever its status, and the deadline.

    Raises one of ``ERRORS`` if there is none, and so does reading the answer: TimeoutError after ``seconds``
    (``SECONDS``).
    """
    deadline = Deadline(SECONDS if seconds is None else seconds)
    parts, public, login = split(url), None, True
    for _ in range(1 + REDIRECTS):
        connection = _Connection(parts, deadline, public)
        try:
            connection.connect()
            public = connection.public
            connection.putrequest("GET", connection.target, skip_host=True, skip_accept_encoding=True)
            own = {"Host": connection.host_header, "User-Agent": USER_AGENT, "Connection": "close"}
            own |= (_authorization(parts) if login else {}) | (headers or {})
            own |= connection.headers_of_proxy if parts.scheme == "http" else {}
            for name, value in own.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            where = answer.headers.get("Location")
            if answer.status not in MOVED or not where:
                yield answer, deadline
                return
            parts = split(urllib.parse.urljoin(parts.geturl(), where))
            login = False
        finally:
            connection.hang_up()
    raise ValueError(f"it leads on more than {REDIRECTS} times")
