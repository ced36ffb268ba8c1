"""Reads what ``scan`` found, cuts it into chunks, and puts those that are not known yet into layers.

Files are read through their own descriptor, opened without following a symlink and without changing their access time;
metadata comes from the same moment. Memory: a window of :data:`RUN_BYTES` and two reads, whatever the file's size.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from time import time_ns
from typing import IO

from blake3 import blake3

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
_FORMAT = 0o170000
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
        self._window: memoryview | None = None
        self._links: dict[tuple[int, int], bytes] = {}
        self.packed = Packed()

    def pack(self, found: Found) -> Iterable[Entry]:
        """Give the entries of one path: one, or more for a file of many chunks.

        :raises Vanished: it is not there any more, or is something else now.
        :raises OSError: it cannot be read.
        """
        status = found.status
        if status is None or status.st_mode & _FORMAT == stat.S_IFREG:
            return self._file(found)
        first = self.first_name(status)
        entry = self._other(found, status) if first is None else self._link(found.path, status, first)
        self.keep_name(found.path, status)
        return [entry]

    def first_name(self, status: os.stat_result) -> bytes | None:
        """Give the path under which a file of several names was found first; None if this is the first."""
        return self._links.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 else None

    def keep_name(self, path: bytes, status: os.stat_result) -> None:
        """Note the name of a file that is in the snapshot, for further names of it."""
        if status.st_nlink > 1 and status.st_mode & _FORMAT != stat.S_IFDIR:
            self._links.setdefault((status.st_dev, status.st_ino), path)

    def _link(self, path: bytes, status: os.stat_result, first: bytes) -> Entry:
        entry = _entry(path, "h", status, target=first)
        self._layers_header(entry)
        return entry

    def _other(self, found: Found, status: os.stat_result) -> Entry:
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
        entry = _entry(found.path, kind, status, xattrs, target=target)
        self._layers_header(entry)
        return entry

    def _layers_header(self, entry: Entry) -> None:
        head = member_header(entry)
        self._layers.write(self._layers.begin(len(head)), head)

    def _file(self, found: Found) -> Iterable[Entry]:
        path, status = found.path, found.status
        try:
            descriptor = os.open(found.name, self._open_flags, dir_fd=found.folder)
        except OSError as error:
            descriptor = self._open_otherwise(found, error)
        try:
            if status is None:
                status = os.fstat(descriptor)
            if status.st_nlink > 1:
                first = self.first_name(status)
                if first is not None:
                    return [self._link(path, status, first)]
            entries = self._contents(descriptor, path, status, strict=True)
            self.keep_name(path, status)
        except ChangedFile as change:
            return self._again(descriptor, path, change.status)
        else:
            return entries
        finally:
            os.close(descriptor)

    def _again(self, descriptor: int, path: bytes, status: os.stat_result) -> Iterable[Entry]:
        """Read a file that changed once more; if it changes again, keep what was read and mark it."""
        try:
            return self._contents(descriptor, path, status, strict=True)
        except ChangedFile as again:
            self.packed.changed.append(path)
            return self._contents(descriptor, path, again.status, strict=False)

    def _open_otherwise(self, found: Found, error: OSError) -> int:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise Vanished from error
        if not isinstance(error, PermissionError):
            raise error
        return os.open(found.name, _FILE, dir_fd=found.folder)  # O_NOATIME is for the owner alone

    def _contents(self, descriptor: int, path: bytes, status: os.stat_result, *, strict: bool) -> Iterable[Entry]:
        """Read a file once.

        ``strict`` raises where it changed meanwhile; else what was read is kept, its size as it was read.
        """
        size = status.st_size
        if status.st_mode & _FORMAT != stat.S_IFREG:
            raise Vanished
        if size > SMALL_FILE or status.st_blocks * 512 < size:
            return self._long(descriptor, path, status, strict=strict)
        xattrs = read_xattrs(descriptor)
        entry = _entry(path, "f", status, xattrs, settled=strict)
        head = tar.header(path, "f", entry.mode, entry.uid, entry.gid, size, entry.mtime_ns, xattrs=xattrs)
        start, total = len(head), len(head) + tar.member_size(size)
        layer = self._layers.begin(total)
        place = self._layers.place(total)
        content = place[start : start + size]
        got = os.preadv(descriptor, [content], 0) if size else 0
        after = os.fstat(descriptor)
        if after.st_ctime_ns != status.st_ctime_ns or after.st_size != size or got != size:
            if strict:
                raise ChangedFile(after)
            if got != size:
                # Shorter each time: what is missing reads as zeros, as in a file cut short and extended again.
                content[got:] = bytes(size - got)
        self.packed.bytes_read += got
        if size:
            record = RECORD.pack(blake3(content).digest(), layer.id, layer.tar_bytes + start, size)
            entry.chunks = known = self._known.add(record)
            if known is not record:
                self.packed.reuse(known)
                return [entry]
            place[start + size :] = tar.padding(size)
            self.packed.bytes_new += size
            place[:start] = head
            self._layers.commit(layer, total, record, size)
        else:
            place[:] = head
            self._layers.commit(layer, total)
        return [entry]

    def _long(self, descriptor: int, path: bytes, status: os.stat_result, *, strict: bool) -> Iterable[Entry]:
        entry = _entry(path, "f", status, read_xattrs(descriptor), settled=strict)
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
        run.flush()
        if self._window is None:
            self._window = memoryview(bytearray(RUN_BYTES + 2 * _READ_BYTES))
        window = self._window
        chunker = Chunker()
        at = start
        cut = filled = 0  # what is read and not cut yet is window[cut:filled], what was cut and not stored is before it
        while at < stop:
            wanted = min(_READ_BYTES, stop - at)
            if filled + wanted > len(window):
                run.flush()
                window[: filled - cut] = window[cut:filled]
                cut, filled = 0, filled - cut
            got = os.preadv(descriptor, [window[filled : filled + wanted]], at)
            at += got
            filled += got
            self.packed.bytes_read += got
            for length in chunker.cut(window[cut:filled], last=not got or at >= stop):
                run.chunk(window[cut : cut + length])
                cut += length
            if not got:
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
        layer = self._layers.begin(len(head) + tar.member_size(self._size))
        self._layers.write(layer, head)
        for name, data in self._chunks:
            record = RECORD.pack(name, layer.id, layer.tar_bytes, len(data))
            self._layers.write(layer, data, record)
            self._known.add(record)
            self.records.write(record)
        self._layers.write(layer, tar.padding(self._size))
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
    kind, target, xattrs = entry.kind, entry.target, entry.xattrs
    name = part or entry.path or b"."
    if kind == "d":
        name += b"/"
    return tar.header(
        name,
        kind,
        entry.mode,
        entry.uid,
        entry.gid,
        (entry.size if size is None else size) if kind == "f" else 0,
        entry.mtime_ns,
        target if isinstance(target, bytes) else b"",
        (target[0], target[1]) if isinstance(target, list) else (0, 0),
        None if part is not None else xattrs,
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


def _entry(
    path: bytes,
    kind: str,
    status: os.stat_result,
    xattrs: list[tuple[bytes, bytes]] | None = None,
    *,
    target: bytes | list[int] | None = None,
    settled: bool = True,
) -> Entry:
    ctime_ns = status.st_ctime_ns if settled else 0
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
