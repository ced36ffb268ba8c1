"""Writes a tree, or one file, as one tar stream: any tar can read it, and nothing of it is kept in memory.

A header comes before the contents and says how long they are, so that is what is written: a file that grows meanwhile
is cut there, and one that shrinks is filled up with zeros and reported. Holes are written as the zeros that they read
as.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from holdfast.archive import tar
from holdfast.archive.metadata import entry_of, kind_of, read_xattrs
from holdfast.archive.scan import Found
from holdfast.model.snapshot import Entry

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_PIECE_BYTES = 1024 * 1024


@dataclass(slots=True)
class Written:
    """What went into a tar stream: paths by kind, and the bytes of the files' contents."""

    files: int = 0
    directories: int = 0
    others: int = 0
    bytes: int = 0


class TreeTar:
    """Writes what ``scan`` found as a tar stream.

    ``report`` is given the paths that could not be read, or not whole. Memory: one piece, and for each file of several
    names the first of them.
    """

    def __init__(self, report: Callable[[bytes, OSError], None]) -> None:
        self.written = Written()
        self._report = report
        self._links: dict[tuple[int, int], bytes] = {}
        self._piece = bytearray(_PIECE_BYTES)
        self._used = 0

    def stream(self, founds: Iterable[Found]) -> Iterator[memoryview]:
        """Give the stream in pieces of at most 1 MiB. A source whose status is not known is asked for it."""
        for found in founds:
            try:
                yield from self._member(found)
            except FileNotFoundError:
                continue  # it vanished
            except OSError as error:
                self._report(found.path, error)
        yield from self._add(tar.END)
        yield self._taken()

    def _member(self, found: Found) -> Iterator[memoryview]:
        status = found.status
        if status is None or stat.S_ISREG(status.st_mode):
            yield from self._file(found)
            return
        first = self._first_name(status)
        if first is not None:
            yield from self._link(found.path, status, first)
            return
        kind = kind_of(status.st_mode)
        if kind is None:
            return
        target: bytes | list[int] | None = None
        if kind == "l":
            target = os.fsencode(os.readlink(found.name, dir_fd=found.folder))
        elif kind in "cb":
            target = list(tar.device_numbers(status.st_rdev))
        xattrs = self._xattrs(f"/proc/self/fd/{found.folder}/{found.name}", found.path)
        yield from self._add(tar.member_header(entry_of(found.path, kind, status, xattrs, target=target)))
        self._keep_name(found.path, status)
        if kind == "d":
            self.written.directories += 1
        else:
            self.written.others += 1

    def _file(self, found: Found) -> Iterator[memoryview]:
        descriptor = _open(found)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EAGAIN, "it became something else while it was read")
            first = self._first_name(status)
            if first is not None:
                yield from self._link(found.path, status, first)
                return
            entry = entry_of(found.path, "f", status, self._xattrs(descriptor, found.path))
            head = tar.member_header(entry)
            total = len(head) + tar.member_size(entry.size)
            if total > _PIECE_BYTES - self._used and self._used:
                yield self._taken()
            if total > _PIECE_BYTES:
                os.pread(descriptor, 1, 0)  # whatever cannot be read at all is left out, not filled up
                yield from self._add(head)
                yield from self._contents(descriptor, entry)
            else:
                self._small_file(descriptor, entry, head)
            self._keep_name(found.path, status)
            self.written.files += 1
            self.written.bytes += entry.size
        finally:
            os.close(descriptor)

    def _small_file(self, descriptor: int, entry: Entry, head: bytes) -> None:
        """Read a file straight into the piece, behind its header."""
        start = self._used + len(head)
        place = memoryview(self._piece)[start : start + entry.size]
        got = 0
        while got < entry.size:
            more = os.preadv(descriptor, [place[got:]], got)
            if not more:
                place[got:] = bytes(entry.size - got)  # a read that failed may have left something there
                self._shrank(entry.path)
                break
            got += more
        self._piece[self._used : start] = head
        end = start + tar.member_size(entry.size)
        self._piece[start + entry.size : end] = tar.padding(entry.size)
        self._used = end

    def _contents(self, descriptor: int, entry: Entry) -> Iterator[memoryview]:
        offset = 0
        while offset < entry.size:
            room = min(_PIECE_BYTES - self._used, entry.size - offset)
            place = memoryview(self._piece)[self._used : self._used + room]
            try:
                got = os.preadv(descriptor, [place], offset)
            except OSError as error:
                self._report(entry.path, error)
                yield from self._zeros(entry.size - offset)
                break
            if not got:
                self._shrank(entry.path)
                yield from self._zeros(entry.size - offset)
                break
            self._used += got
            offset += got
            if self._used == _PIECE_BYTES:
                yield self._taken()
        yield from self._add(tar.padding(entry.size))

    def _zeros(self, count: int) -> Iterator[memoryview]:
        while count:
            if self._used == _PIECE_BYTES:
                yield self._taken()
            room = min(_PIECE_BYTES - self._used, count)
            self._piece[self._used : self._used + room] = bytes(room)
            self._used += room
            count -= room

    def _link(self, path: bytes, status: os.stat_result, first: bytes) -> Iterator[memoryview]:
        yield from self._add(tar.member_header(entry_of(path, "h", status, target=first)))
        self.written.others += 1

    def _first_name(self, status: os.stat_result) -> bytes | None:
        """Give the path under which a file of several names is in the archive already."""
        return self._links.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 else None

    def _keep_name(self, path: bytes, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            self._links[status.st_dev, status.st_ino] = path

    def _xattrs(self, place: int | str, path: bytes) -> list[tuple[bytes, bytes]] | None:
        """Read extended attributes. Those that cannot be read cost themselves alone."""
        try:
            return read_xattrs(place)
        except OSError as error:
            self._report(path, error)
            return None

    def _shrank(self, path: bytes) -> None:
        self._report(path, OSError(errno.EAGAIN, "it became shorter while it was read; the rest is zeros"))

    def _add(self, data: bytes) -> Iterator[memoryview]:
        """Put data into the piece, giving full ones away."""
        start = 0
        while start < len(data):
            if self._used == _PIECE_BYTES:
                yield self._taken()
            part = data[start : start + _PIECE_BYTES - self._used]
            self._piece[self._used : self._used + len(part)] = part
            self._used += len(part)
            start += len(part)

    def _taken(self) -> memoryview:
        """Give the piece away, and begin a new one: whoever got it may keep it."""
        full = memoryview(self._piece)[: self._used]
        self._piece, self._used = bytearray(_PIECE_BYTES), 0
        return full


def _open(found: Found) -> int:
    try:
        return os.open(found.name, _FILE | os.O_NOATIME, dir_fd=found.folder)
    except PermissionError:  # O_NOATIME is for the owner alone
        return os.open(found.name, _FILE, dir_fd=found.folder)
