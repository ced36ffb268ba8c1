"""Tar headers, made by hand: ustar (POSIX.1-2017, *pax*, ustar Interchange Format), or pax where ustar cannot say it.

Written so that any ``tar`` can read a layer; Holdfast itself restores from the index. The standard library's
``tarfile`` takes longer for a header than all the rest of a backup takes for a small file.
"""

from __future__ import annotations

import os
import struct
from zlib import adler32

from holdfast.model.snapshot import Entry

BLOCK = 512
END = bytes(2 * BLOCK)
_ZEROS = bytes(BLOCK)
PARTS = b".holdfast/parts/"

_TYPE = {"f": b"0", "h": b"1", "l": b"2", "c": b"3", "b": b"4", "d": b"5", "p": b"6"}
_LARGEST_ID = 0o7777777
_LARGEST_SIZE = 0o77777777777


def padding(size: int) -> bytes:
    """Give the zeros between a member's content of ``size`` bytes and the next header."""
    return _ZEROS[: -size % BLOCK]


def member_size(size: int) -> int:
    """Give the bytes that content of ``size`` bytes takes with its padding."""
    return size + -size % BLOCK


def part_name(path: bytes, offset: int) -> bytes:
    """Name the member that holds a run of a file's chunks from ``offset`` on."""
    return b"%s%s/%020d" % (PARTS, path, offset)


def header(  # noqa: PLR0913, PLR0917 - the fields of a tar header
    name: bytes,
    kind: str,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime_ns: int,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: list[tuple[bytes, bytes]] | None = None,
) -> bytes:
    """Give a member's header blocks: one of ustar, after those of a pax header where ustar cannot say it all.

    ``kind`` is an index entry's (f, d, l, h, c, b, p); ``target`` the link's; times are cut to seconds.
    """
    mtime = mtime_ns // 1_000_000_000
    prefix = b""
    fits = uid <= _LARGEST_ID and gid <= _LARGEST_ID and 0 <= mtime <= _LARGEST_SIZE and size <= _LARGEST_SIZE
    if fits and not xattrs and len(name) <= 100 and len(target) <= 100:
        if kind in "fd":
            return _plain(name, _TYPE[kind], mode, uid, gid, size, mtime)
        return _ustar(name, prefix, _TYPE[kind], mode, uid, gid, size, mtime, target, device)
    records = []
    split = _split(name)
    if split is None:
        records.append((b"path", name))
        short = name[-100:]
    else:
        prefix, short = split
    if len(target) > 100:
        records.append((b"linkpath", target))
    for key, value, largest in ((b"uid", uid, _LARGEST_ID), (b"gid", gid, _LARGEST_ID), (b"size", size, _LARGEST_SIZE)):
        if value > largest:
            records.append((key, b"%d" % value))
    if not 0 <= mtime <= _LARGEST_SIZE:
        records.append((b"mtime", b"%d" % mtime))
    records += [(b"SCHILY.xattr." + key, value) for key, value in xattrs or ()]
    blocks = b""
    if records:
        body = b"".join(_pax_record(key, value) for key, value in records)
        blocks = (
            _ustar(b"././@PaxHeader", b"", b"x", 0o644, 0, 0, len(body), 0, b"", (0, 0)) + body + padding(len(body))
        )
    return blocks + _ustar(
        short,
        prefix,
        _TYPE[kind],
        mode,
        uid if uid <= _LARGEST_ID else 0,
        gid if gid <= _LARGEST_ID else 0,
        size if size <= _LARGEST_SIZE else 0,
        mtime if 0 <= mtime <= _LARGEST_SIZE else 0,
        target[:100],
        device,
    )


def member_header(entry: Entry, *, part: bytes | None = None, size: int | None = None) -> bytes:
    """Give the tar header of an entry, or of a part of its contents."""
    kind, target, xattrs = entry.kind, entry.target, entry.xattrs
    name = part or entry.path or b"."
    if kind == "d":
        name += b"/"
    return header(
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


def _ustar(  # noqa: PLR0913, PLR0917 - the fields of a tar header
    name: bytes,
    prefix: bytes,
    typeflag: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    target: bytes,
    device: tuple[int, int],
) -> bytes:
    head = _head(name, mode, uid, gid, size, mtime)
    tail = _TAIL.pack(typeflag, target, b"ustar", b"00", *(b"%07o" % (number & 0o7777777) for number in device), prefix)
    return b"%b%06o\0 %b" % (head, _sum(head) + _sum(tail[:256]) + _sum(tail[256:]) + 8 * 32, tail)


def _plain(name: bytes, typeflag: bytes, mode: int, uid: int, gid: int, size: int, mtime: int) -> bytes:
    """Give the header of a plain file or directory, whose second half is always the same: most headers are these."""
    head = _head(name, mode, uid, gid, size, mtime)
    tail, total = _PLAIN_TAILS[typeflag]
    return b"%b%06o\0 %b" % (head, _sum(head) + total, tail)


def _head(name: bytes, mode: int, uid: int, gid: int, size: int, mtime: int) -> bytes:
    """Give the fields before the checksum."""
    return b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(100, b"\0"), mode & 0o7777, uid, gid, size, mtime)


def _sum(data: bytes) -> int:
    """Sum up to 256 bytes: adler32's low half is 1 + their sum modulo 65521, many times faster than adding integers."""
    return (adler32(data) & 0xFFFF) - 1


_TAIL = struct.Struct("c100s6s2s64x8s8s155s12x")
_PLAIN_TAILS = {
    flag: (tail, _sum(tail[:256]) + _sum(tail[256:]) + 8 * 32)
    for flag, tail in (
        (flag, _TAIL.pack(flag, b"", b"ustar", b"00", b"0000000", b"0000000", b"")) for flag in (b"0", b"5")
    )
}


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """Split a name at a slash into ustar's prefix (155 bytes) and name (100 bytes), or None where that cannot be."""
    if len(name) <= 100:
        return b"", name
    cut = name.rfind(b"/", 0, 156)
    if cut <= 0 or not 0 < len(name) - cut - 1 <= 100:
        return None
    return name[:cut], name[cut + 1 :]


def _pax_record(key: bytes, value: bytes) -> bytes:
    """Give ``LENGTH key=value`` and a line feed, where LENGTH counts its own digits too."""
    rest = len(key) + len(value) + 3
    length = rest + len(b"%d" % rest)
    length = rest + len(b"%d" % length)
    return b"%d %b=%b\n" % (length, key, value)


def device_numbers(rdev: int) -> tuple[int, int]:
    """Take a device number apart into major and minor."""
    return os.major(rdev), os.minor(rdev)
