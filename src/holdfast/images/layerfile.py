"""Layers that rest in a file for a while: those whose digests are known only once they were read.

On their way they are unpacked, if they are gzipped, and seen to be whole tars: nothing else could tell that one was cut
short.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from holdfast.archive import gzip
from holdfast.archive.tar import BLOCK
from holdfast.errors import DamageError, TargetError
from holdfast.images.spool import Spool
from holdfast.model.digest import Digest

Data = bytes | memoryview

_PIECE_BYTES = 1024 * 1024
_LARGEST_PAX_HEADER = 1024 * 1024
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_OTHER_HEADERS = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_BARE_TYPES = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


@dataclass(frozen=True, slots=True)
class FiledLayer:
    """A layer in a file of layers, uncompressed: its digest, where it begins there, and its size, both in bytes."""

    diff_id: Digest
    start: int
    size: int


class LayerFile:
    """A temporary file that holds layers one after another. It is written by one thread, and goes with this object.

    ``bytes_taken`` counts what came in, gzipped layers as they came.
    """

    def __init__(self, spool: Spool) -> None:
        self.bytes_taken = 0
        self._size = 0
        self._spool = spool
        self._file = spool.open()
        weakref.finalize(self, self._file.close)

    def take(self, data: Iterator[Data]) -> FiledLayer:
        """Read a layer, gzipped or not, into the file. Memory: a few buffers.

        :raises DamageError: it is no whole tar.
        :raises NoSpaceError: there is no room for it.
        :raises TargetError: it cannot be written.
        """
        hasher = hashlib.sha256()
        walk = _TarWalk()
        start = self._size
        for piece in _unpacked(self._counted(data)):
            walk.feed(piece)
            hasher.update(piece)
            self._write(piece)
        walk.finish()
        return FiledLayer(Digest("sha256", hasher.hexdigest()), start, self._size - start)

    def pieces(self, layer: FiledLayer) -> Iterator[Data]:
        """Give a layer's bytes; any number of readers may do so at once."""
        start, end = layer.start, layer.start + layer.size
        while start < end:
            piece = os.pread(self._file.fileno(), min(_PIECE_BYTES, end - start), start)
            if not piece:
                raise TargetError("a temporary file was cut short")
            start += len(piece)
            yield piece

    def _counted(self, data: Iterator[Data]) -> Iterator[Data]:
        for piece in data:
            self.bytes_taken += len(piece)
            yield piece

    def _write(self, piece: Data) -> None:
        left = memoryview(piece)
        with self._spool.translated():
            while left:
                written = os.pwrite(self._file.fileno(), left, self._size)
                self._size += written
                left = left[written:]


def _unpacked(data: Iterator[Data]) -> Iterator[Data]:
    first = next(data, b"")
    whole = chain([first], data)
    return gzip.decompressed(whole) if bytes(first[:2]) == gzip.MAGIC else whole


class _TarWalk:
    """Follows a tar from header to header, to tell one that was cut short from a whole one.

    As to what a member holds and may do, that is the engine's to judge. Memory: one header, at most 1 MiB.
    """

    def __init__(self) -> None:
        self._state: Literal["header", "records", "contents", "end"] = "header"
        self._left = BLOCK
        self._taken = bytearray()
        self._size: int | None = None  # the next member's, where a pax header has said it
        self._began = False

    def feed(self, piece: Data) -> None:
        """Go on by some bytes.

        :raises DamageError: there is no header where one has to be.
        """
        view = memoryview(piece)
        while view and self._state != "end":
            some, view = view[: self._left], view[self._left :]
            self._began = True
            self._left -= len(some)
            if self._state != "contents":
                self._taken += some
            if not self._left:
                self._step()

    def finish(self) -> None:
        """Make sure that it was whole.

        :raises DamageError: it was not.
        """
        is_between = self._began and self._state == "header" and self._left == BLOCK
        if self._state != "end" and not is_between:
            raise DamageError("it ends too early")

    def _step(self) -> None:
        taken, self._taken = bytes(self._taken), bytearray()
        if self._state == "header":
            self._enter(taken)
            return
        if self._state == "records":
            self._size = _pax_size(taken)
        self._await("header", BLOCK)

    def _enter(self, block: bytes) -> None:
        if not block.strip(b"\0"):
            self._state = "end"
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise DamageError(f"it is no tar: {error}") from error
        if header.type == tarfile.GNUTYPE_SPARSE:
            self._state = "end"  # how that goes on is known to GNU tar alone
        elif header.type in _PAX_TYPES:
            self._await("records", header.size)
        elif header.type in _OTHER_HEADERS:
            self._await("contents", header.size)
        else:
            size = header.size if self._size is None else self._size
            self._size = None
            self._await("contents", 0 if header.type in _BARE_TYPES else size)

    def _await(self, state: Literal["header", "records", "contents"], size: int) -> None:
        if size < 0 or (state == "records" and size > _LARGEST_PAX_HEADER):
            raise DamageError(f"it has a header of {size} bytes")
        self._state = state if size else "header"
        self._left = size + -size % BLOCK or BLOCK


def _pax_size(records: bytes) -> int | None:
    """Find a member's size in the records of a pax header (POSIX.1-2017, *pax Extended Header*)."""
    found = None
    while records.strip(b"\0"):
        digits = records.partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) <= len(str(_LARGEST_PAX_HEADER)) else 0
        if not len(digits) < length <= len(records):
            raise DamageError("it has a pax header that cannot be read")
        key, _, value = records[len(digits) + 1 : length].removesuffix(b"\n").partition(b"=")
        if key == b"size":
            found = int(value[:20]) if value.isdigit() else -1
        records = records[length:]
    return found
