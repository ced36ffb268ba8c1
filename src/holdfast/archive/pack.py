"""Reads what ``scan`` found, cuts it into chunks, and puts those that are not known yet into layers.

Files are read through their own descriptor, opened without following a symlink and without changing their access time;
metadata comes from the same moment.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable

from blake3 import blake3

from holdfast.archive import tar
from holdfast.archive.chunks import SMALL_FILE, ChunkMap
from holdfast.archive.frames import LayerWriter
from holdfast.archive.longfile import LongFiles, Packed, entries_of
from holdfast.archive.metadata import entry_of, kind_of, read_xattrs
from holdfast.archive.scan import Found
from holdfast.model.snapshot import RECORD, Entry

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_FORMAT = 0o170000


class ChangedFile(Exception):
    """A file was not the same after it was read as before; ``status`` is how it is now."""

    def __init__(self, status: os.stat_result) -> None:
        super().__init__()
        self.status = status


class Vanished(Exception):
    """A path was there when its directory was listed, and is not any more."""


class Packer:
    """Turns what was found into entries, and new contents into layers. Used by one thread."""

    def __init__(
        self,
        layers: LayerWriter,
        known: ChunkMap,
        tell: Callable[[], None],
        report: Callable[[bytes, OSError], None],
    ) -> None:
        """``tell`` is called now and then while a long file is read: look at ``packed`` then.

        ``report`` is given paths of which not all could be read.
        """
        self._report = report
        self._layers = layers
        self._known = known
        self._open_flags = _FILE | getattr(os, "O_NOATIME", 0)
        self._links: dict[tuple[int, ...], bytes] = {}
        self.packed = Packed()
        self._long_files = LongFiles(layers, known, self.packed, tell)

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
        return self._links.get(_identity(status)) if status.st_nlink > 1 else None

    def keep_name(self, path: bytes, status: os.stat_result) -> None:
        """Note the name of a file that is in the snapshot, for further names of it."""
        if status.st_nlink > 1 and status.st_mode & _FORMAT != stat.S_IFDIR:
            self._links.setdefault(_identity(status), path)

    def _link(self, path: bytes, status: os.stat_result, first: bytes) -> Entry:
        entry = entry_of(path, "h", status, target=first)
        self._layers_header(entry)
        return entry

    def _other(self, found: Found, status: os.stat_result) -> Entry:
        kind = kind_of(status.st_mode)
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
        xattrs = self._xattrs(f"/proc/self/fd/{found.folder}/{found.name}", found.path)
        entry = entry_of(found.path, kind, status, xattrs, target=target)
        self._layers_header(entry)
        return entry

    def _xattrs(self, place: int | str, path: bytes) -> list[tuple[bytes, bytes]] | None:
        """Read extended attributes. Those that cannot be read cost themselves alone: an empty list says so."""
        try:
            return read_xattrs(place)
        except OSError as error:
            self._report(path, error)
            return []

    def _layers_header(self, entry: Entry) -> None:
        head = tar.member_header(entry)
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
            entries = self._again(descriptor, path, change.status)
            self.keep_name(path, os.fstat(descriptor))
            return entries
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
        entry = entry_of(path, "f", status, self._xattrs(descriptor, path), settled=strict)
        head = tar.header(path, "f", entry.mode, entry.uid, entry.gid, size, entry.mtime_ns, xattrs=entry.xattrs)
        start, total = len(head), len(head) + tar.member_size(size)
        layer = self._layers.begin(total)
        place = self._layers.place(total)
        content = place[start : start + size]
        got = _read_into(descriptor, content)
        after = os.fstat(descriptor)
        if after.st_ctime_ns != status.st_ctime_ns or after.st_size != size or got != size:
            if strict:
                raise ChangedFile(after)
            if got != size:
                return self._shorter(entry, bytes(content[:got]))
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

    def _shorter(self, entry: Entry, data: bytes) -> Iterable[Entry]:
        """Give the entry of a file that had less in it, each time it was read, than its size said."""
        self.packed.bytes_read += len(data)
        entry.size = len(data)
        if not data:
            self._layers_header(entry)
            return [entry]
        head = tar.member_header(entry)
        layer = self._layers.begin(len(head) + tar.member_size(len(data)))
        record = RECORD.pack(blake3(data).digest(), layer.id, layer.tar_bytes + len(head), len(data))
        entry.chunks = known = self._known.add(record)
        if known is not record:
            self.packed.reuse(known)
            return [entry]
        self._layers.write(layer, head)
        self._layers.write(layer, data, record)
        self._layers.write(layer, tar.padding(len(data)))
        self.packed.bytes_new += len(data)
        return [entry]

    def _long(self, descriptor: int, path: bytes, status: os.stat_result, *, strict: bool) -> Iterable[Entry]:
        entry = entry_of(path, "f", status, self._xattrs(descriptor, path), settled=strict)
        sparse = status.st_blocks * 512 < status.st_size
        size, records = self._long_files.read(descriptor, entry, sparse=sparse)
        after = os.fstat(descriptor)
        if strict and (size != status.st_size or after.st_size != size or after.st_ctime_ns != status.st_ctime_ns):
            records.close()
            raise ChangedFile(after)
        entry.size = size
        return entries_of(entry, records)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Give what tells the names of one file from those of another that was given its inode meanwhile."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _read_into(descriptor: int, place: memoryview) -> int:
    """Read a file from its beginning until the place is full or the file ends: one read may give less than there is."""
    got = 0
    while got < len(place):
        more = os.preadv(descriptor, [place[got:]], got)
        if not more:
            break
        got += more
    return got
