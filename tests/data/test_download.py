"""Downloads from servers of every sort, and archives that are not to be trusted."""

import gzip
import hashlib
import importlib
import io
import tarfile
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scratchnet.data import DataError, MissingDataError, cifar10
from tests.fakes.bombs import KINDS, bomb
from tests.fakes.cifar_files import binary_files, check, module, small_files  # noqa: F401

network = importlib.import_module("scratchnet.data.download")


def archive(files, extra=()):
    """A gzipped tar of ``cifar-10-batches-bin/`` with these files, and any more members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            content = b"evil" if member.isfile() else b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


class Server(ThreadingHTTPServer):
    """Serves one file and obeys `plan`: a list of what to do at each request; the last entry is repeated."""

    daemon_threads = True

    def __init__(self, content, plan):
        self.content, self.plan, self.requests = content, list(plan), []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/cifar-10-binary.tar.gz"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append(asked)
        action = server.plan.pop(0) if len(server.plan) > 1 else server.plan[0]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        body = server.content
        if isinstance(action, int) and action >= 400:
            self.send_error(action)
            return
        if asked and action != "ignore range":
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            shift = 1 if action == "wrong range" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{len(body) - 1}/{len(body)}")
            body = body[start:]
        else:
            self.send_response(200)
        if action != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if action == "garbage":
            body = bytes(len(body))
        self.wfile.write(body[: len(body) // 2] if action == "break off" else body)


@pytest.fixture
def serve(monkeypatch):
    """Start a server and point the reader at it; waits between attempts are left out."""
    servers = []
    monkeypatch.setattr(network.time, "sleep", lambda seconds: None)

    def start(content, *plan, md5=None):
        server = Server(content, plan or ["serve"])
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        served = {"url": server.url, "md5": md5 or hashlib.md5(content).hexdigest()}
        monkeypatch.setattr(module, "CIFAR10", module.CIFAR10._replace(**served))
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


GOOD = archive(binary_files(), extra=[tarfile.TarInfo("cifar-10-batches-bin/readme.html")])
FOLDER_ONLY = ["cifar-10-batches-bin"]
UNPACKED = sorted([*binary_files(), "SHA256SUMS"])


def left_in(root):
    return sorted(path.name for path in root.iterdir())


def test_downloads_unpacks_and_leaves_only_the_folder(tmp_path, serve, capsys):
    serve(GOOD)
    check(cifar10(tmp_path / "new" / "folder"))
    assert left_in(tmp_path / "new" / "folder") == FOLDER_ONLY
    assert left_in(tmp_path / "new" / "folder" / FOLDER_ONLY[0]) == UNPACKED
    assert capsys.readouterr() == ("", "")  # no progress bar where there is no terminal


def test_what_was_downloaded_is_read_from_disk_next_time(tmp_path, serve):
    server = serve(GOOD)
    cifar10(tmp_path)
    cifar10(tmp_path)
    assert len(server.requests) == 1


def test_a_transfer_that_breaks_off_is_resumed(tmp_path, serve):
    server = serve(GOOD, "break off", "break off", "serve")
    check(cifar10(tmp_path))
    half = len(GOOD) // 2
    quarter = (len(GOOD) - half) // 2
    assert server.requests == [None, f"bytes={half}-", f"bytes={half + quarter}-"]
    assert left_in(tmp_path) == FOLDER_ONLY


def test_three_attempts_and_the_next_run_goes_on_from_there(tmp_path, serve):
    server = serve(GOOD, "break off", "break off", "break off", "serve")
    with pytest.raises(MissingDataError, match="3 attempts.*connection ended after.*--data shapes10"):
        cifar10(tmp_path)
    assert left_in(tmp_path) == ["cifar-10-binary.tar.gz.part"]
    check(cifar10(tmp_path))
    assert len(server.requests) == 4 and server.requests[3] is not None
    assert left_in(tmp_path) == FOLDER_ONLY


@pytest.mark.parametrize("behaviour", ["ignore range", "wrong range", "no length"])
def test_servers_that_do_not_resume_properly(tmp_path, serve, behaviour):
    serve(GOOD, "break off", behaviour, "serve")
    check(cifar10(tmp_path))


def test_a_whole_part_file_needs_no_server(tmp_path, serve):
    server = serve(GOOD, 500)
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(GOOD)
    check(cifar10(tmp_path))
    assert server.requests == []


@pytest.mark.parametrize("part", [GOOD + b"too much", bytes(len(GOOD)), b"wrong beginning"])
def test_a_wrong_part_file_is_thrown_away(tmp_path, serve, part):
    serve(GOOD)
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(part)
    check(cifar10(tmp_path))
    assert left_in(tmp_path) == FOLDER_ONLY


def test_a_wrong_checksum_is_refused_and_nothing_kept(tmp_path, serve):
    server = serve(GOOD, "garbage")
    with pytest.raises(MissingDataError, match="MD5"):
        cifar10(tmp_path)
    assert left_in(tmp_path) == [] and server.requests == [None] * 3


def test_garbage_once_then_the_file(tmp_path, serve):
    serve(GOOD, "garbage", "serve")
    check(cifar10(tmp_path))


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_server_error_says_what_to_do(tmp_path, serve, status):
    serve(GOOD, status)
    with pytest.raises(MissingDataError, match=f"answered {status}.*--data-dir.*--data shapes10"):
        cifar10(tmp_path)
    assert left_in(tmp_path) == []


def test_no_server_at_all_says_what_to_do(tmp_path, serve):
    server = serve(GOOD)
    server.shutdown()
    server.server_close()
    with pytest.raises(MissingDataError, match="could not download http://127.0.0.1.*--data shapes10"):
        cifar10(tmp_path)
    assert left_in(tmp_path) == []


def test_waits_between_attempts_grow(tmp_path, serve, monkeypatch):
    serve(GOOD, 500)
    waits = []
    monkeypatch.setattr(network.time, "sleep", waits.append)
    with pytest.raises(MissingDataError):
        cifar10(tmp_path)
    assert len(waits) == 2 and 0 < waits[0] < waits[1] < 10


def evil_members():
    folder = "cifar-10-batches-bin/"
    for name in (
        "/tmp/scratchnet-evil",
        "../evil",
        folder + "../../evil",
        folder + "sub/test_batch.bin",
        "evil",
    ):
        yield tarfile.TarInfo(name)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        member = tarfile.TarInfo(folder + "test_batch.bin")
        member.type, member.linkname = kind, "../../../etc/passwd"
        yield member


def test_evil_members_are_never_written(tmp_path, serve):
    root = tmp_path / "a" / "b"
    serve(archive(binary_files(), extra=evil_members()))
    check(cifar10(root))
    assert left_in(root) == FOLDER_ONLY and left_in(root / FOLDER_ONLY[0]) == UNPACKED
    assert left_in(tmp_path) == ["a"] and left_in(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("member", list(evil_members()), ids=lambda m: f"{m.name} {m.type}")
def test_evil_members_cannot_stand_in_for_a_file(tmp_path, serve, member):
    files = binary_files()
    del files["test_batch.bin"]
    serve(archive(files, extra=[member]))
    with pytest.raises(DataError, match="does not contain cifar-10-batches-bin/test_batch.bin"):
        cifar10(tmp_path)
    assert left_in(tmp_path) == ["cifar-10-binary.tar.gz.part"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"not an archive", "cannot be unpacked"),
        (b"", "cannot be unpacked"),
        (GOOD[: len(GOOD) // 2], "cannot be unpacked"),
        (GOOD[:20] + bytes(500) + GOOD[520:], "cannot be unpacked"),
        (archive({"test_batch.bin": b"short"}), "has 5 bytes"),
        (archive({"batches.meta.txt": bytes(2 << 20)}), "bytes"),
    ],
)
def test_a_bad_archive_leaves_no_folder(tmp_path, serve, content, message):
    serve(content)
    with pytest.raises(DataError, match=message):
        cifar10(tmp_path)
    assert "cifar-10-batches-bin" not in left_in(tmp_path)
    assert not [name for name in left_in(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_may_not_unpack_to_more_than_is_wanted(tmp_path, kind):
    (tmp_path / "set.tar.gz").write_bytes(bomb(kind))
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"set.tar.gz cannot be unpacked: it holds more than 1,\d+,\d+ bytes"
        ):
            network.unpack(tmp_path / "set.tar.gz", tmp_path / "set", {"a.bin": 1000})
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert left_in(tmp_path) == ["set.tar.gz"]


def test_an_archive_may_not_go_on_after_its_end(tmp_path):
    whole = gzip.decompress(GOOD)
    (tmp_path / "set.tar.gz").write_bytes(gzip.compress(whole + bytes(8 << 20)))
    with pytest.raises(DataError, match="holds more than"):
        network.unpack(tmp_path / "set.tar.gz", tmp_path / "cifar-10-batches-bin", {"test_batch.bin": None})


def test_a_place_that_cannot_be_written_is_named(tmp_path, serve):
    serve(GOOD)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written to .*file"):
        cifar10(tmp_path / "file" / "folder")
