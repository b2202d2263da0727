"""CIFAR-10's readers on whole and on damaged files, and its download from servers of every sort."""

import hashlib
import importlib
import io
import pickle
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from scratchnet.data import DataError, MissingDataError, cifar10

# The function hides the module of the same name.
module = importlib.import_module("scratchnet.data.cifar10")
network = importlib.import_module("scratchnet.data.download")

OFFICIAL_RECORDS, RECORDS = module.RECORDS, 20
BATCHES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Files of 20 records instead of 10,000."""
    monkeypatch.setattr(module, "RECORDS", RECORDS)


def batch(k):
    rng = np.random.default_rng(k)
    return rng.integers(0, 256, (RECORDS, 3072), np.uint8), rng.integers(0, 10, RECORDS)


def binary_files():
    files = {"batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode()}
    for k, name in enumerate(BATCHES):
        pixels, labels = batch(k)
        files[f"{name}.bin"] = np.column_stack([labels.astype(np.uint8), pixels]).tobytes()
    return files


def write_binary(root):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name, content in binary_files().items():
        (folder / name).write_bytes(content)
    return folder


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 and NumPy 1 wrote: byte strings, and NumPy's names of that time."""

    def save_bytes(self, value):
        short = len(value) < 256
        self.write((b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value)
        self.memoize(value)

    def save_str(self, value):
        self.save_bytes(value.encode("ascii"))

    def save_global(self, value, name=None):
        where = value.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{where}\n{name or value.__name__}\n".encode())
        self.memoize(value)

    dispatch = dict(pickle._Pickler.dispatch)
    dispatch[bytes], dispatch[str] = save_bytes, save_str
    dispatch[type(len)] = dispatch[type(save_str)] = save_global


def write_pickles(root, dump):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for k, name in enumerate(BATCHES):
        pixels, labels = batch(k)
        dump(folder / name, {"batch_label": name, "labels": labels.tolist(), "data": pixels})
    dump(folder / "batches.meta", {"num_cases_per_batch": RECORDS, "label_names": NAMES, "num_vis": 3072})
    return folder


def as_python_2(path, value):
    with open(path, "wb") as file:
        Python2Pickler(file, protocol=2).dump(value)


def check(data):
    assert data.name == "CIFAR-10" and list(data.class_names) == NAMES
    assert data.train_images.shape == (5 * RECORDS, 32, 32, 3) and data.train_images.dtype == np.uint8
    assert data.test_images.shape == (RECORDS, 32, 32, 3) and data.test_labels.dtype == np.int64
    for k in range(6):
        pixels, labels = batch(k)
        here = slice(k * RECORDS, (k + 1) * RECORDS) if k < 5 else slice(None)
        images = data.train_images[here] if k < 5 else data.test_images
        assert np.array_equal((data.train_labels if k < 5 else data.test_labels)[here], labels)
        # In the files, an image is its red plane, then green, then blue, each row by row.
        assert (
            images[3, 5, 7].tolist() == pixels[3, [5 * 32 + 7, 1024 + 5 * 32 + 7, 2048 + 5 * 32 + 7]].tolist()
        )
        assert np.array_equal(images.transpose(0, 3, 1, 2).reshape(RECORDS, -1), pixels)


# ---- reading ----


def test_official_sizes_and_address():
    assert OFFICIAL_RECORDS == 10000
    assert module.MD5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert module.URL == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_reads_the_binary_version(tmp_path, kind):
    write_binary(tmp_path)
    check(cifar10(kind(tmp_path)))


def test_reads_the_python_version_of_python_2(tmp_path):
    write_pickles(tmp_path, as_python_2)
    check(cifar10(tmp_path))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_reads_the_python_version_pickled_again_by_python_3(tmp_path, protocol):
    write_pickles(tmp_path, lambda path, value: path.write_bytes(pickle.dumps(value, protocol)))
    check(cifar10(tmp_path))


def test_the_binary_version_is_preferred(tmp_path):
    write_binary(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    check(cifar10(tmp_path, download=False))


def test_nothing_there_and_no_download(tmp_path):
    with pytest.raises(MissingDataError, match="neither cifar-10-batches-bin nor cifar-10-batches-py"):
        cifar10(tmp_path, download=False)
    assert not list(tmp_path.iterdir())


def test_the_inner_folder_itself_is_answered_with_its_parent(tmp_path):
    folder = write_binary(tmp_path)
    with pytest.raises(DataError, match="give its parent"):
        cifar10(folder)


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="is not a folder"):
        cifar10(tmp_path / "file")
    (tmp_path / "cifar-10-batches-bin").write_bytes(b"")
    with pytest.raises(DataError, match="cifar-10-batches-bin"):
        cifar10(tmp_path)


# ---- damaged files: each is named, and nothing is downloaded over them ----


@pytest.fixture
def no_download(monkeypatch):
    monkeypatch.setattr(module, "_fetch", lambda folder: pytest.fail("downloaded over a damaged folder"))


@pytest.mark.parametrize("name", [f"{name}.bin" for name in BATCHES] + ["batches.meta.txt"])
def test_a_missing_binary_file_is_named(tmp_path, no_download, name):
    (write_binary(tmp_path) / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        cifar10(tmp_path)


@pytest.mark.parametrize("name", [*BATCHES, "batches.meta"])
def test_a_missing_pickle_is_named(tmp_path, no_download, name):
    (write_pickles(tmp_path, as_python_2) / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        cifar10(tmp_path)


@pytest.mark.parametrize(
    "change", [lambda c: c[:-1], lambda c: c + b"x", lambda c: b"", lambda c: c[: 3073 * 3]]
)
def test_a_binary_file_of_another_size_is_named(tmp_path, no_download, change):
    path = write_binary(tmp_path) / "data_batch_4.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"data_batch_4.bin has [\d,]+ bytes, where CIFAR-10's has 61,460"):
        cifar10(tmp_path)


def test_a_binary_file_with_an_impossible_label_is_named(tmp_path, no_download):
    path = write_binary(tmp_path) / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[7 * 3073] = 10
    path.write_bytes(content)
    with pytest.raises(DataError, match="test_batch.bin is damaged: record 7 has the label 10"):
        cifar10(tmp_path)


def test_a_folder_in_place_of_a_binary_file_is_named(tmp_path, no_download):
    path = write_binary(tmp_path) / "test_batch.bin"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="test_batch.bin cannot be read"):
        cifar10(tmp_path)


@pytest.mark.parametrize("content", [b"", b"airplane\n", b"\xff\xfe\x00" * 9])
def test_damaged_class_names_are_refused(tmp_path, no_download, content):
    (write_binary(tmp_path) / "batches.meta.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"batches.meta.txt names \d classes"):
        cifar10(tmp_path)


PIXELS, LABELS = np.zeros((RECORDS, 3072), np.uint8), [0] * RECORDS


@pytest.mark.parametrize(
    "content",
    [
        {"labels": LABELS},
        {"data": PIXELS},
        {"data": PIXELS[:-1], "labels": LABELS},
        {"data": PIXELS.astype(np.float32), "labels": LABELS},
        {"data": PIXELS.tolist(), "labels": LABELS},
        {"data": PIXELS, "labels": LABELS[:-1]},
        {"data": PIXELS, "labels": [10, *LABELS[1:]]},
        {"data": PIXELS, "labels": [-1, *LABELS[1:]]},
        {"data": PIXELS, "labels": ["cat", *LABELS[1:]]},
        {"data": PIXELS, "labels": [[1, 2], *LABELS[1:]]},
        {"data": PIXELS, "labels": [1.5, *LABELS[1:]]},
        {"data": PIXELS, "labels": 7},
        ["a list"],
        None,
    ],
)
def test_a_pickle_with_other_content_is_named(tmp_path, no_download, content):
    folder = write_pickles(tmp_path, as_python_2)
    (folder / "data_batch_2").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="data_batch_2"):
        cifar10(tmp_path)


@pytest.mark.parametrize(
    "change", [lambda c: c[:-1000], lambda c: b"", lambda c: b"hello", lambda c: c[500:]]
)
def test_a_damaged_pickle_is_named(tmp_path, no_download, change):
    path = write_pickles(tmp_path, as_python_2) / "data_batch_5"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match="data_batch_5"):
        cifar10(tmp_path)


def test_random_damage_never_ends_in_another_error(tmp_path):
    path = write_pickles(tmp_path, as_python_2) / "test_batch"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole)
        for place in [*rng.integers(0, 300, 3), *rng.integers(len(content), size=3)]:
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            cifar10(tmp_path)  # damage to a pixel alone cannot be noticed
        except DataError as error:
            assert "test_batch" in str(error)


@pytest.mark.parametrize("names", [NAMES[:9], "no list", None])
def test_damaged_pickled_class_names_are_refused(tmp_path, no_download, names):
    folder = write_pickles(tmp_path, as_python_2)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(DataError, match="batches.meta names"):
        cifar10(tmp_path)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_malicious_pickle_runs_nothing(tmp_path, no_download):
    mark = tmp_path / "mark"
    folder = write_pickles(tmp_path, as_python_2)
    by_numpy = b"cnumpy\nload\n(S'x'\ntR."
    nested = b"cnumpy.core.multiarray\n_reconstruct.__class__\n."
    for content in (
        pickle.dumps(Evil(open, str(mark), "w")),
        pickle.dumps({"data": Evil(exec, f"open({str(mark)!r}, 'w')"), "labels": LABELS}),
        b"c__builtin__\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
        pickle.dumps({"labels": Evil(importlib.import_module, "antigravity")}),
        b"\x80\x04c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.",
        by_numpy,
        nested,
        b"\x80\x04\x8c\x05numpy\x8c\x0flib.npyio.NpzFile\x93.",
        b"Pid\n.",
    ):
        (folder / "data_batch_1").write_bytes(content)
        with pytest.raises(DataError, match="data_batch_1"):
            cifar10(tmp_path)
    assert not mark.exists()


def test_a_pickle_cannot_change_what_it_may_call(tmp_path):
    folder = write_pickles(tmp_path, as_python_2)
    # BUILD with a state tries to set attributes on the admitted function.
    for where in (b"c_codecs\nencode\n", b"cnumpy.core.numeric\n_frombuffer\n", b"cnumpy\nndarray\n"):
        (folder / "data_batch_1").write_bytes(where + b"(}S'__call__'\nI1\nstb.")
        with pytest.raises(DataError, match="data_batch_1"):
            cifar10(tmp_path)


# ---- download ----


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
        monkeypatch.setattr(module, "URL", server.url)
        monkeypatch.setattr(module, "MD5", md5 or hashlib.md5(content).hexdigest())
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


GOOD = archive(binary_files(), extra=[tarfile.TarInfo("cifar-10-batches-bin/readme.html")])
FOLDER_ONLY = ["cifar-10-batches-bin"]


def left_in(root):
    return sorted(path.name for path in root.iterdir())


def test_downloads_unpacks_and_leaves_only_the_folder(tmp_path, serve, capsys):
    serve(GOOD)
    check(cifar10(tmp_path / "new" / "folder"))
    assert left_in(tmp_path / "new" / "folder") == FOLDER_ONLY
    assert left_in(tmp_path / "new" / "folder" / FOLDER_ONLY[0]) == sorted(binary_files())
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
    assert left_in(root) == FOLDER_ONLY and left_in(root / FOLDER_ONLY[0]) == sorted(binary_files())
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


def test_a_place_that_cannot_be_written_is_named(tmp_path, serve):
    serve(GOOD)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written to .*file"):
        cifar10(tmp_path / "file" / "folder")
