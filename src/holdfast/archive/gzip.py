"""Gzip streams (RFC 1952), both ways. The only user of the isal library."""

from __future__ import annotations

from collections.abc import Iterator

from isal import igzip_lib, isal_zlib

from holdfast.errors import DamageError

Data = bytes | memoryview

MAGIC = b"\x1f\x8b"
_LEVEL = 1  # of 0 to 3
_WITH_GZIP_HEADER = 16 + 15
_PIECE_BYTES = 1024 * 1024
_BITE_BYTES = 256 * 1024  # what is not used yet of one bite is copied for each piece that comes out


def compressed(data: Iterator[Data]) -> Iterator[bytes]:
    """Compress buffers as they come, into one member. Memory: what one buffer becomes. Releases the GIL."""
    compressor = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _WITH_GZIP_HEADER)
    for piece in data:
        if out := compressor.compress(piece):
            yield out
    yield compressor.flush()


def decompressed(data: Iterator[Data]) -> Iterator[bytes]:
    """Open a stream of one member or several in a row, in pieces of at most 1 MiB, however much is packed into it.

    Zeros after the last member are passed over, as gzip does. What follows in ``data`` is read to its end.

    :raises DamageError: it is no gzip stream, ends too early, does not match its checksums, or has other bytes behind.
    """
    bites = _bites(data)
    rest = next(bites, b"")
    while rest:
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        while not member.eof:
            if member.needs_input and not rest:
                rest = next(bites, b"")
                if not rest:
                    raise DamageError("a gzip stream ends too early")
            try:
                out = member.decompress(rest, _PIECE_BYTES)
            except igzip_lib.error as error:  # type: ignore[misc]  # its stub calls it an instance
                raise DamageError(f"a gzip stream cannot be opened: {error}") from error
            rest = b""
            if out:
                yield out
        rest = _after_zeros(member.unused_data, bites)


def _bites(data: Iterator[Data]) -> Iterator[Data]:
    for piece in data:
        view = memoryview(piece)
        for start in range(0, len(view), _BITE_BYTES):
            yield view[start : start + _BITE_BYTES]


def _after_zeros(rest: Data, bites: Iterator[Data]) -> Data:
    """Give what comes after a member and any padding, or nothing at the end."""
    while True:
        found = bytes(rest).lstrip(b"\0")
        if found:
            return found
        rest = next(bites, b"")
        if not rest:
            return b""
