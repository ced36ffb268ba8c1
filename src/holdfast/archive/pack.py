"""Reads what ``scan`` found, cuts it into chunks, and puts those that are not known yet into layers.

Files are read through their own descriptor, opened without following a symlink and without changing their access time;
metadata comes from the same moment. Memory: one run of new chunks (:data:`RUN_BYTES`), whatever the file's size.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import IO

from holdfast.archive import tar
from holdfast.archive.chunks import MAX_CHUNK, SMALL_FILE, Chunker, ChunkMap, chunk_name
from holdfast.archive.frames import LayerWriter
from holdfast.archive.scan import Found
from holdfast.model.snapshot import HOLE_LAYER, MOST_CHUNKS, RECORD, RECORD_SIZE, Entry, weight

RUN_BYTES = 16 * 1024 * 1024
"""New chunks of a longer file that are stored as one tar member, at most."""
_READ_BYTES = 4 * 1024 * 1024
_RECORDS_IN_MEMORY = 4 * 1024 * 1024
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_FEWEST_CHUNKS = 256
_MOST_XATTR_BYTES = 512 * 1024
_NO_XATTRS = (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENODATA)

# A change within one tick of the file system's clock after we read leaves ctime as it was. Clocks tick every 10 ms at
# worst where times have fractions, every 2 s where they have none.
_TICK_NS = 20_000_000
_COARSE_TICK_NS = 2_000_000_000
_SECOND_NS = 1_000_000_000


class ChangedFile(Exception):
    """A file was not the same after it was read as before; ``status`` is how it is now."""

    def __init__(self, status: os.stat_result) -> None:
        super().__init__()
        self.status = status


class Vanished(Exception):
    """A path was there when its directory was listed, and is not any more."""


@dataclass(slots=True)
class Packed:
    """What packing came to: bytes read, bytes that were new, and the paths that changed under the reader's eyes.

    ``reused`` is the weight of the references made to chunks that were known, by layer id.
    """

    bytes_read: int = 0
    bytes_new: int = 0
    reused: Counter[int] = field(default_factory=Counter)
    changed: list[bytes] = field(default_factory=list)

    def reuse(self, record: bytes) -> None:
        """Count a reference to a chunk that was known."""
        _, layer, _, length = RECORD.unpack(record)
        self.reused[layer] += weight(length)


class Packer:
    """Turns what was found into entries, and new contents into layers. Used by one thread."""

    def __init__(self, layers: LayerWriter, known: ChunkMap) -> None:
        self._layers = layers
        self._known = known
        self._open_flags = _FILE | getattr(os, "O_NOATIME", 0)
        self.packed = Packed()

    def pack(self, found: Found, path: bytes) -> list[Entry] | Iterator[Entry]:
        """Give the entries of one path: one, or more for a file of many chunks.

        :raises Vanished: it is not there any more, or is something else now.
        :raises OSError: it cannot be read.
        """
        if stat.S_ISREG(found.status.st_mode):
            return self._file(found, path)
        return [self._other(found, path)]

    def link(self, found: Found, path: bytes, first: bytes) -> Entry:
        """Give the entry of a further name of the file that was found before as ``first``."""
        entry = _entry(path, "h", found.status, target=first)
        self._layers_header(entry)
        return entry

    def _other(self, found: Found, path: bytes) -> Entry:
        status = found.status
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            raise Vanished
        target: bytes | list[int] | None = None
        if kind == "l":
            try:
                target = os.fsencode(os.readlink(found.name, dir_fd=found.folder))
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT):
                    raise Vanished from error
                raise
        elif kind in "cb":
            target = list(tar.device_numbers(status.st_rdev))
        xattrs = read_xattrs(f"/proc/self/fd/{found.folder}/{found.name}")
        entry = _entry(path, kind, status, target=target, xattrs=xattrs)
        self._layers_header(entry)
        return entry

    def _layers_header(self, entry: Entry) -> None:
        head = member_header(entry)
        self._layers.begin(head, len(head))

    def _file(self, found: Found, path: bytes) -> list[Entry] | Iterator[Entry]:
        try:
            descriptor = self._open(found.name, found.folder)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                raise Vanished from error
            raise
        try:
            try:
                return self._contents(descriptor, path, found.status, strict=True)
            except ChangedFile as change:
                if not stat.S_ISREG(change.status.st_mode):
                    raise Vanished from change
                try:
                    return self._contents(descriptor, path, change.status, strict=True)
                except ChangedFile as again:
                    self.packed.changed.append(path)
                    return self._contents(descriptor, path, again.status, strict=False)
        finally:
            os.close(descriptor)

    def _open(self, name: str, folder: int) -> int:
        try:
            return os.open(name, self._open_flags, dir_fd=folder)
        except PermissionError:
            if self._open_flags == _FILE:
                raise
            return os.open(name, _FILE, dir_fd=folder)  # O_NOATIME is for the owner alone

    def _contents(
        self, descriptor: int, path: bytes, status: os.stat_result, *, strict: bool
    ) -> list[Entry] | Iterator[Entry]:
        """Read a file once.

        ``strict`` raises where it changed meanwhile; else what was read is kept, its size as it was read.
        """
        size = status.st_size
        if size > SMALL_FILE or status.st_blocks * 512 < size:
            return self._long(descriptor, path, status, strict=strict)
        data = os.pread(descriptor, size + 1, 0) if size else b""
        after = os.fstat(descriptor)
        if not _same(status, after) or len(data) != size:
            if strict:
                raise ChangedFile(after)
            data = data[:size]
        self.packed.bytes_read += len(data)
        entry = _entry(path, "f", status, xattrs=read_xattrs(descriptor), settled=strict)
        entry.size = len(data)
        if not data:
            self._layers_header(entry)
            return [entry]
        name = chunk_name(data)
        record = self._known.get(name)
        if record is None:
            layer, offset = self._layers.add(member_header(entry), data, name)
            record = RECORD.pack(name, layer, offset, len(data))
            self._known.add(record)
            self.packed.bytes_new += len(data)
        else:
            self.packed.reuse(record)
        entry.chunks = record
        return [entry]

    def _long(
        self, descriptor: int, path: bytes, status: os.stat_result, *, strict: bool
    ) -> list[Entry] | Iterator[Entry]:
        entry = _entry(path, "f", status, xattrs=read_xattrs(descriptor), settled=strict)
        run = _Run(entry, self._layers, self._known, self.packed)
        end = 0
        for start, stop in _data_extents(descriptor, status):
            run.hole(start - end)
            end = self._extent(descriptor, start, stop, run)
            if end < stop:
                break
        else:
            run.hole(status.st_size - end)
            end = status.st_size
        after = os.fstat(descriptor)
        if strict and (end != status.st_size or not _same(status, after)):
            run.abandon()
            raise ChangedFile(after)
        entry.size = run.finish()
        return _entries(entry, run.records)

    def _extent(self, descriptor: int, start: int, stop: int, run: _Run) -> int:
        """Read and cut one stretch of data; returns the offset where it ended, before ``stop`` if the file shrank."""
        chunker = Chunker()
        at = start
        while at < stop:
            data = os.pread(descriptor, min(_READ_BYTES, stop - at), at)
            at += len(data)
            self.packed.bytes_read += len(data)
            short = not data
            for chunk in chunker.feed(data, last=short or at >= stop):
                run.chunk(chunk)
            if short:
                break
        return at


class _Run:
    """The contiguous new chunks of one long file that wait to become a tar member."""

    def __init__(self, entry: Entry, layers: LayerWriter, known: ChunkMap, packed: Packed) -> None:
        self.records: IO[bytes] = SpooledTemporaryFile(max_size=_RECORDS_IN_MEMORY)  # noqa: SIM115 - closed by who ends the run
        self._packed = packed
        self._entry = entry
        self._layers = layers
        self._known = known
        self._offset = 0
        self._start = 0
        self._size = 0
        self._chunks: list[tuple[bytes, memoryview]] = []
        self._names: set[bytes] = set()

    def hole(self, length: int) -> None:
        """Go on behind a hole."""
        if length <= 0:
            return
        self.flush()
        self.records.write(RECORD.pack(bytes(32), HOLE_LAYER, length, 0))
        self._offset += length

    def chunk(self, data: memoryview) -> None:
        """Go on with a chunk: a reference if it is known, else a part of the run."""
        name = chunk_name(data)
        if name in self._names:
            self.flush()
        record = self._known.get(name)
        if record is not None:
            self.flush()
            self._packed.reuse(record)
            self.records.write(record)
        else:
            if self._size + len(data) > RUN_BYTES:
                self.flush()
            if not self._chunks:
                self._start = self._offset
            self._chunks.append((name, data))
            self._names.add(name)
            self._size += len(data)
        self._offset += len(data)

    def flush(self) -> None:
        """Put the run into a layer as one member: the whole file, or a part of it."""
        if not self._chunks:
            return
        self._member(tar.part_name(self._entry.path, self._start))

    def abandon(self) -> None:
        """End the file without an entry; what was read of it is known now."""
        self.flush()
        self.records.close()

    def finish(self) -> int:
        """End the file and return how many bytes of it were read and noted."""
        if self._chunks and self._size == self._offset:
            self._member(None)
        self.flush()
        return self._offset

    def _member(self, part: bytes | None) -> None:
        head = member_header(self._entry, part=part, size=self._size)
        layer = self._layers.begin(head, len(head) + tar.member_size(self._size))
        for name, data in self._chunks:
            record = RECORD.pack(name, layer.id, self._layers.append(layer, data, name), len(data))
            self._known.add(record)
            self.records.write(record)
        self._layers.end(layer, self._size)
        self._packed.bytes_new += self._size
        self._chunks, self._size = [], 0
        self._names.clear()


_KINDS = {
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
}


def member_header(entry: Entry, *, part: bytes | None = None, size: int | None = None) -> bytes:
    """Give the tar header of an entry, or of a part of its contents."""
    name = entry.path or b"."
    if part is not None:
        name = part
    elif entry.kind == "d":
        name += b"/"
    target = entry.target
    xattrs = None if part is not None else entry.xattrs
    if xattrs and sum(len(key) + len(value) for key, value in xattrs) > _MOST_XATTR_BYTES:
        xattrs = None  # the index has them
    return tar.header(
        name,
        entry.kind,
        entry.mode,
        entry.uid,
        entry.gid,
        (entry.size if size is None else size) if entry.kind == "f" else 0,
        entry.mtime_ns,
        target if isinstance(target, bytes) else b"",
        (target[0], target[1]) if isinstance(target, list) else (0, 0),
        xattrs,
    )


def read_xattrs(place: int | str) -> list[tuple[bytes, bytes]] | None:
    """Read the extended attributes of a descriptor, or of a path itself, sorted; None where there are none."""
    follow = isinstance(place, int)
    try:
        names = os.listxattr(place, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return None
        raise
    if not names:
        return None
    found = []
    for name in names:
        with suppress(OSError):
            found.append((os.fsencode(name), os.getxattr(place, name, follow_symlinks=follow)))
    return sorted(found) or None


def _entry(
    path: bytes,
    kind: str,
    status: os.stat_result,
    *,
    target: bytes | list[int] | None = None,
    xattrs: list[tuple[bytes, bytes]] | None = None,
    settled: bool = True,
) -> Entry:
    ctime_ns = status.st_ctime_ns if settled else 0
    age = time.time_ns() - ctime_ns
    if age < _COARSE_TICK_NS and (age < _TICK_NS or ctime_ns % _SECOND_NS == 0):
        ctime_ns = 0
    return Entry(
        path,
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_size if kind == "f" else 0,
        status.st_mtime_ns,
        ctime_ns,
        status.st_ino,
        target,
        xattrs,
        b"",
    )


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return before.st_ctime_ns == after.st_ctime_ns and before.st_size == after.st_size and before.st_ino == after.st_ino


def _data_extents(descriptor: int, status: os.stat_result) -> Iterator[tuple[int, int]]:
    """Give the stretches of a file that hold data; all of it where it is not sparse or the file system cannot say."""
    size = status.st_size
    if status.st_blocks * 512 >= size:
        yield 0, size
        return
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            yield end, size
            return
        if start >= size:
            return
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        yield start, end


def _entries(entry: Entry, records: IO[bytes]) -> Iterator[Entry]:
    """Cut a file's records into its entry and the ``+`` entries behind it.

    A cut falls where a chunk's own name says so, so that a change disturbs only the entries around it.
    """
    with records:
        records.seek(0)
        offset = position = 0
        pending = bytearray()
        current = entry
        while record := records.read(RECORD_SIZE):
            pending += record
            count = len(pending) // RECORD_SIZE
            _, layer, where, length = RECORD.unpack(record)
            position += where if layer == HOLE_LAYER else length
            if count >= MOST_CHUNKS or (count >= _FEWEST_CHUNKS and record[0] < 2):
                current.chunks = bytes(pending)
                yield current
                offset = position
                current = Entry(entry.path, "+", 0, 0, 0, offset, 0, 0, 0, None, None, b"")
                pending.clear()
        if pending or current is entry:
            current.chunks = bytes(pending)
            yield current


assert RUN_BYTES >= MAX_CHUNK  # noqa: S101 - a run holds at least one chunk
