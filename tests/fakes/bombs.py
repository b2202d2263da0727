"""Archives that are small, and would be large."""

import gzip
import io
import tarfile
from functools import cache

KINDS = b"0", b"L", b"K", b"x", b"g", b"S"  # a file, long names, extended headers, a sparse file


@cache
def bomb(kind, megabytes=100):
    """A thousandth as large as what a member that nobody wants, or a header of this kind, unpacks to."""
    stream, unwanted, wanted = io.BytesIO(), tarfile.TarInfo("set/x"), tarfile.TarInfo("set/a.bin")
    unwanted.type, unwanted.size, wanted.size = kind, megabytes << 20, 1000
    with gzip.GzipFile(fileobj=stream, mode="wb") as file:
        file.write(unwanted.tobuf(tarfile.GNU_FORMAT))
        for _ in range(megabytes):
            file.write(b"0\n" * (1 << 19))
        file.write(wanted.tobuf(tarfile.GNU_FORMAT) + bytes(3 * 1024))
    return stream.getvalue()
