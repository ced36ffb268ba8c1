"""What a file system says of a path, as an entry says it."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from time import time_ns

from holdfast.model.snapshot import Entry

_MOST_XATTR_BYTES = 512 * 1024
_NO_XATTRS = (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENODATA)
_FORMAT = 0o170000

# A change within one tick of the file system's clock after we read leaves ctime as it was. Clocks tick every 10 ms at
# worst where times have fractions, every 2 s where they have none.
_TICK_NS = 20_000_000
_COARSE_TICK_NS = 2_000_000_000
_SECOND_NS = 1_000_000_000

_KINDS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
}


def kind_of(mode: int) -> str | None:
    """Give an entry's kind for a file's mode; None for a socket, which no snapshot holds."""
    return _KINDS.get(mode & _FORMAT)


def entry_of(
    path: bytes,
    kind: str,
    status: os.stat_result,
    xattrs: list[tuple[bytes, bytes]] | None = None,
    *,
    target: bytes | list[int] | None = None,
    settled: bool = True,
) -> Entry:
    """Give the entry of a path, without contents yet.

    Where the file system's clock could hide a change right after this moment, where it is not ``settled``, and where
    its attributes could not be read (``xattrs`` is an empty list), ``ctime_ns`` is 0: read it again next time.
    """
    unread = xattrs is not None and not xattrs
    ctime_ns = status.st_ctime_ns if settled and not unread else 0
    age = time_ns() - ctime_ns
    if age < _COARSE_TICK_NS and (age < _TICK_NS or ctime_ns % _SECOND_NS == 0):
        ctime_ns = 0
    return Entry(
        path,
        kind,
        status.st_mode & 0o7777,
        status.st_uid,
        status.st_gid,
        status.st_size if kind == "f" else 0,
        status.st_mtime_ns,
        ctime_ns,
        status.st_ino,
        target,
        xattrs or None,
        b"",
    )


def read_xattrs(place: int | str) -> list[tuple[bytes, bytes]] | None:
    """Read the extended attributes of a descriptor, or of a path itself, sorted; None where there are none."""
    follow = isinstance(place, int)
    try:
        names = os.listxattr(place) if follow else os.listxattr(place, follow_symlinks=False)
        if not names:
            return None
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return None
        raise
    found = []
    for name in names:
        with suppress(OSError):
            found.append((os.fsencode(name), os.getxattr(place, name, follow_symlinks=follow)))
    if sum(len(name) + len(value) for name, value in found) > _MOST_XATTR_BYTES:
        raise OSError(errno.E2BIG, f"extended attributes of more than {_MOST_XATTR_BYTES} bytes are not kept")
    return sorted(found) or None
