"""Reads a file that is more than one chunk: extent by extent, cut by content, new chunks in runs, holes noted.

Memory: a window of :data:`RUN_BYTES` and two reads, whatever the file's size.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import IO

from holdfast.archive import tar
from holdfast.archive.chunks import MAX_CHUNK, Chunker, ChunkMap, chunk_name
from holdfast.archive.frames import LayerWriter, buffer
from holdfast.model.snapshot import HOLE_LAYER, MOST_CHUNKS, RECORD, RECORD_SIZE, Entry, weight

RUN_BYTES = 16 * 1024 * 1024
"""New chunks of a longer file that are stored as one tar member, at most."""
_READ_BYTES = 4 * 1024 * 1024
_RECORDS_IN_MEMORY = 4 * 1024 * 1024
_FEWEST_CHUNKS = 256


@dataclass(slots=True)
class Packed:
    """What packing came to: bytes read, bytes that were new, and the paths that changed under the reader's eyes.

    ``position`` is where in a long file the reader is; ``reused`` is the weight of the references made to chunks that
    were known, by layer id.
    """

    bytes_read: int = 0
    position: int = 0
    bytes_new: int = 0
    reused: Counter[int] = field(default_factory=Counter)
    changed: list[bytes] = field(default_factory=list)

    def reuse(self, record: bytes) -> None:
        """Count a reference to a chunk that was known."""
        _, layer, _, length = RECORD.unpack(record)
        self.reused[layer] += weight(length)


class LongFiles:
    """Reads long files, one after another, through one window."""

    def __init__(self, layers: LayerWriter, known: ChunkMap, packed: Packed, tell: Callable[[], None]) -> None:
        """``tell`` is called now and then, while a file is read."""
        self._tell = tell
        self._layers = layers
        self._known = known
        self._packed = packed
        self._window: memoryview | None = None

    def read(self, descriptor: int, entry: Entry, *, sparse: bool) -> tuple[int, IO[bytes]]:
        """Read a file once: gives how many bytes of it there were, and the records of its chunks and holes.

        What is new is in a layer then, whatever becomes of the entry. The caller closes the records.
        """
        run = _Run(entry, self._layers, self._known, self._packed)
        try:
            end = 0
            for start, stop in _data_extents(descriptor, entry.size, sparse=sparse):
                run.hole(start - end)
                end = self._extent(descriptor, start, stop, run)
                if end < stop:
                    break
            else:
                run.hole(entry.size - end)
            return run.finish(), run.records
        except BaseException:
            run.records.close()
            raise
        finally:
            self._packed.position = 0

    def _extent(self, descriptor: int, start: int, stop: int, run: _Run) -> int:
        """Read and cut one stretch of data; returns the offset where it ended, before ``stop`` if the file shrank."""
        run.flush()
        if self._window is None:
            self._window = buffer(RUN_BYTES + 2 * _READ_BYTES)
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
            self._packed.bytes_read += got
            self._packed.position = at
            self._tell()
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

    def finish(self) -> int:
        """End the file and return how many bytes of it were read and noted."""
        if self._chunks and self._size == self._offset:
            self._member(None)
        self.flush()
        return self._offset

    def _member(self, part: bytes | None) -> None:
        head = tar.member_header(self._entry, part=part, size=self._size)
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


def _data_extents(descriptor: int, size: int, *, sparse: bool) -> Iterator[tuple[int, int]]:
    """Give the stretches of a file that hold data; all of it where it is not sparse or the file system cannot say."""
    if not sparse:
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
        try:
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            end = size  # it became shorter: reading on will show it
        yield start, end


def entries_of(entry: Entry, records: IO[bytes]) -> Iterator[Entry]:
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
