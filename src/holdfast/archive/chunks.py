"""Chunks: where file contents are cut, what they are called, and which are known already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from blake3 import blake3
from pyfastcdc import FastCDC

from holdfast.model.snapshot import RECORD_SIZE

SMALL_FILE = 1024 * 1024
"""A file up to this many bytes is one chunk."""
MIN_CHUNK = 64 * 1024
AVERAGE_CHUNK = 192 * 1024  # FastCDC's parameter; with the minimum skipped, chunks come out near 256 KiB
MAX_CHUNK = 1024 * 1024
CHUNKER: dict[str, str | int] = {
    "algorithm": "fastcdc2020",
    "min": MIN_CHUNK,
    "average": AVERAGE_CHUNK,
    "max": MAX_CHUNK,
    "normalization": 2,
}


def chunk_name(data: bytes | memoryview) -> bytes:
    """Give the 32 bytes that name a chunk: its BLAKE3-256."""
    return blake3(data).digest()


class Chunker:
    """Cuts a stream of bytes by content: the same bytes give the same cuts, whatever the sizes of the reads."""

    def __init__(self) -> None:
        self._cutter = FastCDC(AVERAGE_CHUNK, min_size=MIN_CHUNK, max_size=MAX_CHUNK, normalized_chunking=2)

    def cut(self, data: bytes | memoryview, *, last: bool) -> Iterator[int]:
        """Give the lengths of the chunks at the beginning of ``data`` that are certain; with ``last`` of all of it.

        ``data`` begins where the chunk before ended. A cut is certain once :data:`MAX_CHUNK` bytes follow the cut
        before it, for the chunker looks no further.
        """
        end = len(data)
        for chunk in self._cutter.cut_buf(data):
            if not last and end - chunk.offset < MAX_CHUNK:
                return
            yield chunk.length


class ChunkMap:
    """Which chunks are known and where they lie: name → packed RECORD.

    An open-addressing table over the packed records themselves, about 55 bytes a chunk: a tenth of what dictionaries of
    Python objects take. Names are hashes, so their own bytes place them. Past ``limit`` chunks it stops learning,
    which costs deduplication, never correctness.
    """

    def __init__(self, fill: Callable[[], Iterable[bytes]] | None = None, limit: int = 2_000_000) -> None:
        """``fill`` gives the records to begin with; it is asked once, and not before a chunk is looked for."""
        self._fill = fill
        self._limit = limit
        self._records = bytearray()
        self._count = 0
        self._clear_table(1 << 12)

    def __len__(self) -> int:
        return self._count

    def get(self, name: bytes) -> bytes | None:
        """Give the record of a chunk of that name, or None."""
        if self._fill is not None:
            self._filled()
        table, records, mask = self._table, self._records, self._mask
        slot = int.from_bytes(name[:8], "little") & mask
        while number := table[slot]:
            at = (number - 1) * RECORD_SIZE
            if records[at : at + 32] == name:
                return bytes(records[at : at + RECORD_SIZE])
            slot = (slot + 1) & mask
        return None

    def add(self, record: bytes) -> bytes:
        """Learn a record, unless its name is known: gives the record that is known of that name now."""
        if self._fill is not None:
            self._filled()
        name = record[:32]
        table, records, mask = self._table, self._records, self._mask
        slot = int.from_bytes(name[:8], "little") & mask
        while number := table[slot]:
            at = (number - 1) * RECORD_SIZE
            if records[at : at + 32] == name:
                return bytes(records[at : at + RECORD_SIZE])
            slot = (slot + 1) & mask
        if self._count >= self._limit:
            return record
        records += record
        self._count += 1
        table[slot] = self._count
        if self._count * 3 > mask * 2:
            self._grow()
        return record

    def _filled(self) -> None:
        fill, self._fill = self._fill, None
        if fill is not None:
            for record in fill():
                self.add(record)

    def _clear_table(self, slots: int) -> None:
        self._mask = slots - 1
        self._table = memoryview(bytearray(4 * slots)).cast("I")

    def _grow(self) -> None:
        self._clear_table(2 * (self._mask + 1))
        table, records, mask = self._table, self._records, self._mask
        for number in range(1, self._count + 1):
            at = (number - 1) * RECORD_SIZE
            slot = int.from_bytes(records[at : at + 8], "little") & mask
            while table[slot]:
                slot = (slot + 1) & mask
            table[slot] = number
