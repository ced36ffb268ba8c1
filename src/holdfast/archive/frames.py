"""Layers: tar members in frames, each a zstd frame of its own, with the seek table of the zstd seekable format behind.

The format is Zstandard's contrib/seekable_format/zstd_seekable_compression_format.md, without checksums: every chunk
has its BLAKE3 in the index. A frame holds at most :data:`FRAME_BYTES` of the tar stream and a chunk never straddles two
frames, so that one ranged read and one decompression give a chunk. A layer is a list of frames from its first byte to
its upload; it is never copied together.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from queue import SimpleQueue

from holdfast.archive import tar, zstd
from holdfast.errors import DamageError
from holdfast.model.digest import Digest
from holdfast.model.oci import LAYER_TYPE, ZSTD_LAYER_TYPE
from holdfast.model.snapshot import weight

FRAME_BYTES = 4 * 1024 * 1024
LAYER_BYTES = 48 * 1024 * 1024
LARGEST_CHUNK = 1024 * 1024
_LAYERS_A_SIZE = 4096
_LARGEST_LAYER = 1024 * 1024 * 1024
_FRAME_BUFFERS = 5
_FRAME_FULL = FRAME_BYTES - 4 * tar.BLOCK  # leaves room for padding and the end of the archive

_TABLE_MAGIC = 0x184D2A5E
_FOOTER_MAGIC = 0x8F92EAB1
_TABLE_HEAD = struct.Struct("<II")
_TABLE_ROW = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
TABLE_TAIL = 64 * 1024
"""Bytes at a layer's end within which the seek table of any layer that this version writes lies."""


def layer_target(layers: int) -> int:
    """Give the tar bytes at which to close a layer of a snapshot that has ``layers`` already.

    48 MiB, doubled for every 4,096 layers, so that the largest volumes stay within some ten thousand layers.
    """
    return min(LAYER_BYTES << (layers // _LAYERS_A_SIZE), _LARGEST_LAYER)


@dataclass(slots=True)
class Layer:
    """A layer on its way into the store.

    ``records`` are the chunks in it (packed RECORD), ``live_bytes`` what they weigh; ``frames`` its compressed frames,
    in order, each with its size uncompressed. After :meth:`seal` the blob is ``parts`` one after another, and
    ``digest`` names it.
    """

    id: int
    compressed: bool
    frames: list[tuple[Future[bytes], int]] = field(default_factory=list)
    records: bytearray = field(default_factory=bytearray)
    tar_bytes: int = 0
    live_bytes: int = 0
    parts: list[bytes] = field(default_factory=list)
    digest: Digest | None = None
    size: int = 0

    @property
    def media_type(self) -> str:
        """Give the media type that its descriptor states."""
        return ZSTD_LAYER_TYPE if self.compressed else LAYER_TYPE

    def seal(self) -> Digest:
        """Wait for the frames, hash them in order, and add the seek table."""
        hashed = hashlib.sha256()
        rows = []
        for future, raw_size in self.frames:
            frame = future.result()
            hashed.update(frame)
            self.parts.append(frame)
            rows.append((len(frame), raw_size))
        self.frames.clear()
        if self.compressed:
            table = seek_table(rows)
            hashed.update(table)
            self.parts.append(table)
        self.size = sum(map(len, self.parts))
        self.digest = Digest("sha256", hashed.hexdigest())
        return self.digest


def buffer(size: int) -> memoryview:
    """Give ``size`` bytes to write to, zero at first.

    Their pages come one by one as they are written; a bytearray fills them all at once, and lets no other thread of
    Python's run meanwhile: tens of milliseconds for the largest of ours.
    """
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class LayerWriter:
    """Puts tar members into frames and frames into layers.

    Used by one thread, which writes straight into the open frame: it asks for a place, fills it, and commits it, or
    leaves it. ``pool`` compresses; ``close`` is called with each full layer, once nothing will be added to it. Besides
    the compressed frames of the open layer, it holds :data:`_FRAME_BUFFERS` frames of :data:`FRAME_BYTES`.
    """

    def __init__(
        self, *, level: int | None, pool: Executor, close: Callable[[Layer], None], first_id: int, layers: int
    ) -> None:
        """``level`` is zstd's, None for none; ``first_id`` the first layer's id; ``layers`` how many there are."""
        self._level = level
        self._pool = pool
        self._close = close
        self.ids: set[int] = set()
        self._next_id = first_id
        self._count = layers
        self._buffers: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(_FRAME_BUFFERS):
            self._buffers.put(buffer(FRAME_BYTES))
        self._frame = self._buffers.get()
        self._filled = 0
        self._layer: Layer | None = None
        self._room = 0

    def begin(self, size: int) -> Layer:
        """Begin a member of ``size`` bytes, headers and padding included, in a layer that has room for all of it."""
        layer = self._layer
        if layer is not None and (size <= self._room or not layer.tar_bytes):
            return layer
        self.flush()
        self._layer = layer = Layer(self._next_id, compressed=self._level is not None)
        self._room = layer_target(self._count)
        self._next_id += 1
        self._count += 1
        return layer

    def place(self, size: int) -> memoryview:
        """Give the next ``size`` bytes of the layer that was begun, all in one frame. What is in them is arbitrary.

        ``size`` is at most 3 MiB.
        """
        start = self._filled
        if start + size > _FRAME_FULL:
            self._close_frame()
            start = 0
        return self._frame[start : start + size]

    def commit(self, layer: Layer, size: int, record: bytes = b"", chunk: int = 0) -> None:
        """Keep the place that was given; ``record`` is that of the chunk of ``chunk`` bytes in it, if it holds one."""
        self._filled += size
        self._room -= size
        layer.tar_bytes += size
        if record:
            layer.records += record
            layer.live_bytes += weight(chunk)

    def write(self, layer: Layer, data: bytes | memoryview, record: bytes = b"") -> None:
        """Add bytes that are at hand, all in one frame."""
        size = len(data)
        self.place(size)[:] = data
        self.commit(layer, size, record, size)

    def flush(self) -> None:
        """Close the open layer, if there is one."""
        layer = self._layer
        if layer is None or not layer.tar_bytes:
            return
        size = len(tar.END)
        self._frame[self._filled : self._filled + size] = tar.END  # what place() keeps free
        self.commit(layer, size)
        self._close_frame()
        self._layer = None
        self.ids.add(layer.id)
        self._close(layer)

    def _close_frame(self) -> None:
        size, self._filled = self._filled, 0
        if not size or self._layer is None:
            return
        frame = self._frame
        self._layer.frames.append((self._pool.submit(self._compress, frame, size), size))
        self._frame = self._buffers.get()

    def _compress(self, frame: memoryview, size: int) -> bytes:
        try:
            return bytes(frame[:size]) if self._level is None else zstd.compress(frame[:size], self._level)
        finally:
            self._buffers.put(frame)


def seek_table(frames: Iterable[tuple[int, int]]) -> bytes:
    """Give the seek table of frames: the size of each as it lies there, and uncompressed."""
    rows = [_TABLE_ROW.pack(size, raw_size) for size, raw_size in frames]
    body = b"".join(rows) + _FOOTER.pack(len(rows), 0, _FOOTER_MAGIC)
    return _TABLE_HEAD.pack(_TABLE_MAGIC, len(body)) + body


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a frame lies: in the blob (what to read), and in the tar stream (what comes out)."""

    blob_offset: int
    blob_length: int
    tar_offset: int
    tar_length: int


class FrameTable:
    """Where the frames of one layer lie. Built from untrusted bytes, so every figure is bounded."""

    def __init__(self, extents: list[Extent], *, compressed: bool) -> None:
        self._extents = extents
        self._starts = [extent.tar_offset for extent in extents]
        self.compressed = compressed

    @classmethod
    def of_plain(cls, size: int) -> FrameTable:
        """Cut an uncompressed layer of ``size`` bytes into pieces to read, each with room for a chunk begun in it.

        :raises DamageError: no layer is that large.
        """
        if not 0 <= size <= 2 * _LARGEST_LAYER:
            raise DamageError(f"a layer of {size} bytes cannot be")
        extents = []
        for start in range(0, size, FRAME_BYTES):
            length = min(FRAME_BYTES + LARGEST_CHUNK, size - start)
            extents.append(Extent(start, length, start, length))
        return cls(extents, compressed=False)

    @classmethod
    def of_tail(cls, tail: bytes | memoryview, size: int) -> FrameTable:
        """Read the seek table out of the last bytes of a layer of ``size`` bytes.

        :raises DamageError: there is none, or it does not fit the layer.
        """
        tail = bytes(tail)
        if len(tail) < _FOOTER.size:
            raise DamageError("the layer is too short for a seek table")
        count, descriptor, magic = _FOOTER.unpack_from(tail, len(tail) - _FOOTER.size)
        row_size = _TABLE_ROW.size + (4 if descriptor & 0x80 else 0)
        body = count * row_size + _FOOTER.size
        start = len(tail) - body - _TABLE_HEAD.size
        if magic != _FOOTER_MAGIC or descriptor & 0x7C or start < 0:
            raise DamageError("the layer has no seek table at its end")
        if _TABLE_HEAD.unpack_from(tail, start) != (_TABLE_MAGIC, body):
            raise DamageError("the layer's seek table is malformed")
        extents, blob_at, tar_at = [], 0, 0
        for at in range(start + _TABLE_HEAD.size, start + _TABLE_HEAD.size + count * row_size, row_size):
            blob_length, tar_length = _TABLE_ROW.unpack_from(tail, at)
            if tar_length > FRAME_BYTES or blob_length > 2 * FRAME_BYTES:
                raise DamageError("the layer's seek table states a frame that is larger than frames are")
            extents.append(Extent(blob_at, blob_length, tar_at, tar_length))
            blob_at += blob_length
            tar_at += tar_length
        if blob_at + _TABLE_HEAD.size + body != size:
            raise DamageError("the layer's seek table does not fit its size")
        return cls(extents, compressed=True)

    def find(self, offset: int, length: int) -> int:
        """Give the number of the frame that holds ``length`` bytes of the tar stream from ``offset`` on.

        :raises DamageError: no frame holds all of them.
        """
        number = bisect_right(self._starts, offset) - 1
        if number < 0:
            raise DamageError("a chunk lies beyond its layer")
        extent = self._extents[number]
        if offset + length > extent.tar_offset + extent.tar_length:
            raise DamageError("a chunk lies beyond its layer or across two frames")
        return number

    @property
    def tar_bytes(self) -> int:
        """Give the size of all frames uncompressed, as the table states it."""
        return sum(extent.tar_length for extent in self._extents)

    def extent(self, number: int) -> Extent:
        """Give a frame's place."""
        return self._extents[number]

    def open(self, number: int, data: bytes | memoryview) -> bytes | memoryview:
        """Decompress what was read of a frame's place in the blob.

        :raises DamageError: it is not the frame that the table states.
        """
        if not self.compressed:
            return data
        content = zstd.decompress(data, FRAME_BYTES)
        if len(content) != self._extents[number].tar_length:
            raise DamageError("a frame is not as long as the layer's seek table states")
        return content
