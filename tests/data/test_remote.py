"""Files at an address are downloaded once, resumed, and checked each time that they are used."""

# ruff: noqa: F811, for the fixture

import hashlib
from pathlib import Path

import pytest

from scratchnet.data import DataError, MissingDataError, local_file
from tests.data.test_download import serve  # noqa: F401

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCHNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_address_becomes_a_file_once(cache, serve):
    server = serve(CONTENT)
    address = f"{server.url}?token=a/b#sha256={SHA256.upper()}"
    path = Path(local_file(address))
    assert path.parent == cache and path.read_bytes() == CONTENT
    assert path.name == f"{SHA256[:16]}-cifar-10-binary.tar.gz"
    assert local_file(address) == str(path) and len(server.requests) == 1
    assert [p.name for p in cache.iterdir()] == [path.name]


def test_what_broke_off_goes_on_where_it_ended(cache, serve):
    server = serve(CONTENT, "break off", "serve")
    assert Path(local_file(f"{server.url}#sha256={SHA256}")).read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_file_that_was_damaged_in_the_cache_is_downloaded_again(cache, serve):
    server = serve(CONTENT)
    path = Path(local_file(f"{server.url}#sha256={SHA256}"))
    path.write_bytes(CONTENT[:-1] + b"x")
    assert Path(local_file(f"{server.url}#sha256={SHA256}")).read_bytes() == CONTENT


def test_another_file_is_refused(cache, serve):
    server = serve(CONTENT[::-1])
    with pytest.raises(MissingDataError, match=f"what arrived has not the SHA256 {SHA256}"):
        local_file(f"{server.url}#sha256={SHA256}")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("fragment", ["", "#", "#sha256=abc", f"#md5={SHA256}", f"#sha256={SHA256}x"])
def test_an_address_without_a_checksum_is_refused(cache, fragment):
    with pytest.raises(DataError, match="https://example.org/a.pth needs its checksum: add #sha256="):
        local_file(f"https://me:secret@example.org/a.pth{fragment}")
    assert not cache.exists()


def test_other_names_are_files(tmp_path):
    assert local_file(tmp_path / "a.pth") == str(tmp_path / "a.pth")
    assert local_file("ftp://example.org/a.pth") == "ftp://example.org/a.pth"
