"""Zstandard frames. The only user of the zstandard library."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import zstandard

from holdfast.errors import DamageError

Data = bytes | memoryview

MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE = b"\x2a\x4d\x18"
"""What the frames that hold no content begin with, behind a byte from 0x50 to 0x5F (RFC 8878, 3.1.2)."""

_PIECE_BYTES = 1024 * 1024
_LARGEST_WINDOW = 128 * 1024 * 1024

_local = threading.local()


def compress(data: Data, level: int) -> bytes:
    """Make one frame, which states its content's size. Releases the GIL."""
    compressors: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if level not in compressors:
        compressors[level] = zstandard.ZstdCompressor(level=level)
    return compressors[level].compress(data)


def decompress(frame: Data, limit: int) -> bytes:
    """Open one frame of at most ``limit`` bytes of content.

    Never takes more memory than ``limit`` says, whatever the frame claims to be.

    :raises DamageError: it is no single frame, states no size, is larger than ``limit``, or its content is not whole.
    """
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= limit:
            raise DamageError(f"a compressed frame states {size} bytes of content where at most {limit} can be")
        if not hasattr(_local, "decompressor"):
            _local.decompressor = zstandard.ZstdDecompressor()
        data: bytes = _local.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamageError(f"a compressed frame cannot be opened: {error}") from error
    if len(data) != size:
        raise DamageError("a compressed frame is not whole")
    return data


def decompressed(data: Iterator[Data]) -> Iterator[bytes]:
    """Open a stream of any frames in a row, in pieces of at most 1 MiB, however much is packed into it.

    Memory: the window that a frame asks for, at most 128 MiB. A stream that ends within a frame is not noticed: who
    made it has said how long it is, and what it hashes to.

    :raises DamageError: it is no zstd stream, or asks for a larger window.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    try:
        # It asks for read() alone, whatever its stub says.
        source: Any = _Reader(data)
        with decompressor.stream_reader(source, read_size=_PIECE_BYTES, read_across_frames=True) as reader:
            while piece := reader.read(_PIECE_BYTES):
                yield piece
    except zstandard.ZstdError as error:
        raise DamageError(f"a zstd stream cannot be opened: {error}") from error


class _Reader:
    """Lets an iterator of buffers be read like a file."""

    def __init__(self, data: Iterator[Data]) -> None:
        self._data = data
        self._rest = memoryview(b"")

    def read(self, size: int) -> Data:
        while not self._rest:
            piece = next(self._data, None)
            if piece is None:
                return b""
            self._rest = memoryview(piece)
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken
