"""Layers of images as blobs: compressed on all processors on their way into a file, and opened whoever packed them.

What is packed here is what snapshots' layers are too (``archive.frames``): zstd frames of 4 MiB with a seek table
behind, which says how large the layer is before anybody opens it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO, Literal

from holdfast.archive import gzip, zstd
from holdfast.archive.frames import FRAME_BYTES, FrameTable, seek_table
from holdfast.errors import DamageError
from holdfast.model.digest import Digest
from holdfast.model.oci import GZIP_LAYER_TYPE, LAYER_TYPE, ZSTD_LAYER_TYPE

Data = bytes | memoryview
Compression = Literal["zstd", "gzip", "none"]

_FRAMES_AT_ONCE = 4
_LONGEST_MAGIC = 4
MEDIA_TYPES: dict[Compression, str] = {"zstd": ZSTD_LAYER_TYPE, "gzip": GZIP_LAYER_TYPE, "none": LAYER_TYPE}


@dataclass(frozen=True, slots=True)
class Packed:
    """A layer in a file. ``digest`` and ``size`` (bytes) are the blob's, ``diff_id`` and ``raw_size`` its content's."""

    digest: Digest
    size: int
    diff_id: Digest
    raw_size: int


def pack(pieces: Iterator[Data], file: BinaryIO, *, compression: Compression, level: int, pool: Executor) -> Packed:
    """Write a layer into a file, compressed. ``level`` is zstd's.

    Memory: a handful of frames of 4 MiB. What ``pieces`` raises comes out as it is.
    """
    packer = _Packer(file, _compressor(compression, level), pool)
    for frame in _frames(pieces):
        packer.add(frame)
    return packer.finish(with_table=compression == "zstd")


class _Packer:
    """Compresses frames side by side, and writes them in their order."""

    def __init__(self, file: BinaryIO, compress: Callable[[bytes], bytes], pool: Executor) -> None:
        self._file = file
        self._compress = compress
        self._pool = pool
        self._raw = hashlib.sha256()
        self._hashed = hashlib.sha256()
        self._waiting: deque[tuple[Future[bytes], int]] = deque()
        self._frames: list[tuple[int, int]] = []
        self._size = 0

    def add(self, frame: bytes) -> None:
        self._waiting.append((self._pool.submit(self._compress, frame), len(frame)))
        self._raw.update(frame)
        if len(self._waiting) > _FRAMES_AT_ONCE:
            self._write_next()

    def finish(self, *, with_table: bool) -> Packed:
        while self._waiting:
            self._write_next()
        raw_size = sum(raw for _, raw in self._frames)
        if with_table:
            self._write(seek_table(self._frames))
        self._file.flush()
        return Packed(_sha256(self._hashed), self._size, _sha256(self._raw), raw_size)

    def _write_next(self) -> None:
        future, raw_size = self._waiting.popleft()
        frame = future.result()
        self._frames.append((len(frame), raw_size))
        self._write(frame)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hashed.update(data)
        self._size += len(data)


def _frames(pieces: Iterator[Data]) -> Iterator[bytes]:
    """Cut a stream into frames: all but the last of 4 MiB."""
    held: list[Data] = []
    size = 0
    for piece in pieces:
        rest = memoryview(piece)
        while size + len(rest) >= FRAME_BYTES:
            held.append(rest[: FRAME_BYTES - size])
            rest = rest[FRAME_BYTES - size :]
            yield b"".join(held)
            held, size = [], 0
        if rest:
            held.append(bytes(rest))  # its maker may use the buffer again
            size += len(rest)
    if size:
        yield b"".join(held)


def _compressor(compression: Compression, level: int) -> Callable[[bytes], bytes]:
    if compression == "zstd":
        return lambda frame: zstd.compress(frame, level)
    if compression == "gzip":  # one member for each frame: all readers take several in a row (RFC 1952, 2.2)
        return lambda frame: b"".join(gzip.compressed(iter([frame])))
    return lambda frame: frame


def unpacked(pieces: Iterator[Data]) -> Iterator[Data]:
    """Open a layer, which may be compressed with zstd or gzip or not at all: it tells by itself.

    Memory: what one piece becomes in steps of 1 MiB, and the window that zstd asks for.

    :raises DamageError: it is not what it seems to be.
    """
    begin, pieces = peek(pieces)
    kind = kind_of(begin)
    if kind == "zstd":
        yield from zstd.decompressed(pieces)
    else:
        yield from gzip.decompressed(pieces) if kind == "gzip" else pieces


def kind_of(begin: bytes) -> Compression:
    """Tell from its first bytes (four, if there are as many) how a layer is compressed."""
    if begin[:4] == zstd.MAGIC or (begin[1:4] == zstd.SKIPPABLE and 0x50 <= begin[0] <= 0x5F):
        return "zstd"
    return "gzip" if begin[:2] == gzip.MAGIC else "none"


def peek(pieces: Iterator[Data]) -> tuple[bytes, Iterator[Data]]:
    """Look at the first bytes of a stream: four, if there are as many. Gives them, and the whole stream."""
    begin = b""
    for piece in pieces:
        begin += piece
        if len(begin) >= _LONGEST_MAGIC:
            break
    return begin[:_LONGEST_MAGIC], chain([begin], pieces)


def raw_size(tail: Data, size: int) -> int | None:
    """Read out of the last bytes of a zstd blob of ``size`` bytes how large it is uncompressed, if it says so.

    Whoever made the blob may have stated anything.
    """
    try:
        return FrameTable.of_tail(tail, size).tar_bytes
    except DamageError:
        return None


def checked(pieces: Iterator[Data], digest: Digest, size: int, what: str) -> Iterator[Data]:
    """Pass a stream on, and make sure of it: its end only comes out if all was as it should be.

    :raises DamageError: it is longer or shorter than ``size`` bytes, or hashes to something else; names ``what``.
    """
    hashed = hashlib.new(digest.algorithm)
    left = size
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise DamageError(f"{what} is longer than the {size} bytes that it should have")
        hashed.update(piece)
        if left == 0 and hashed.hexdigest() != digest.hex:
            break
        yield piece
    if left > 0:
        raise DamageError(f"{what} ends after {size - left} of {size} bytes")
    if hashed.hexdigest() != digest.hex:
        raise DamageError(f"{what} is altered: its bytes hash to {digest.algorithm}:{hashed.hexdigest()}")


def _sha256(hashed: hashlib._Hash) -> Digest:
    return Digest("sha256", hashed.hexdigest())
