"""Zstandard frames. The only user of the zstandard library."""

from __future__ import annotations

import threading

import zstandard

from holdfast.errors import DamageError

Data = bytes | memoryview

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
