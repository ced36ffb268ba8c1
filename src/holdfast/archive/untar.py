"""Reads a tar stream that anybody may have made: ustar and pax (POSIX.1-2017), and GNU's long names.

What comes out is safe to use below a directory: relative paths without ``..``, nothing below what is no directory, hard
links to files of the same archive only. All else is refused, and named. A header never takes more than 1 MiB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache

from holdfast.archive.tar import BLOCK
from holdfast.errors import DamageError
from holdfast.model.snapshot import Entry, is_safe, shown

Data = bytes | memoryview

_MOST_HEADER_BYTES = 1024 * 1024
_MOST_NAME_BYTES = 64 * 1024
_MOST_UNSAID_BYTES = 64 * 1024 * 1024  # one long name stands for as many directories as it has slashes
_LARGEST = (1 << 63) - 1
_LARGEST_ID = 0xFFFFFFFE  # the one above means: leave it as it is
_KINDS = {b"0": "f", b"\0": "f", b"7": "f", b"1": "h", b"2": "l", b"3": "c", b"4": "b", b"5": "d", b"6": "p"}
_LABEL = b"V"  # GNU's name of a whole archive: nothing to restore
_XATTR = b"SCHILY.xattr."
_NANOSECONDS = 1_000_000_000
_TIME = re.compile(rb"-?\d{1,20}(?:\.\d{0,30})?")
_OCTAL = re.compile(rb"[0-7]*")
_SLASHES = re.compile(rb"/(?:\./|/)+")


class Untar:
    """An archive that is being read, once, from its beginning to its end.

    ``names`` is what was read so far: each path's kind (as in an entry), the root being the empty path. Memory: these
    names, and one header.
    """

    def __init__(self, data: Iterator[Data]) -> None:
        """``data`` is the archive as it is when nothing is compressed, in buffers of any size."""
        self.names: dict[bytes, str] = {}
        self._unsaid_bytes = 0
        self._stream = _Stream(data)
        self._left = 0
        self._common: dict[bytes, bytes] = {}

    def members(self) -> Iterator[Entry]:
        """Give the members as entries without chunks, in the archive's order; then read the stream to its end.

        A name may come more than once: the later one counts. What of a member's :meth:`contents` was not taken is
        passed over.

        :raises DamageError: it is no whole archive, or holds what must not be restored; the message names the member.
        """
        while True:
            self._skip()
            entry = self._next()
            if entry is None:
                break
            self._left = entry.size + -entry.size % BLOCK
            self._note(entry)
            yield entry
        if not self.names:
            raise DamageError("the archive is empty")
        self._stream.drain()

    def contents(self, entry: Entry) -> Iterator[Data]:
        """Give the contents of the file that was given last, in the buffers that they came in.

        :raises DamageError: the archive ends before they do.
        """
        padding = -entry.size % BLOCK
        while self._left > padding:
            piece = self._stream.some(self._left - padding)
            self._left -= len(piece)
            yield piece

    def _skip(self) -> None:
        while self._left:
            self._left -= len(self._stream.some(self._left))

    def _next(self) -> Entry | None:
        """Read headers up to one that is a member's; None at the end of the archive."""
        records: dict[bytes, bytes] = {}
        while True:
            block = self._stream.exactly(BLOCK)
            if not block.strip(b"\0"):
                return None
            _check_sum(block)
            flag = block[156:157]
            size = _number(block[124:136])
            if flag in (b"x", b"X"):
                _add(records, _pax(self._body(size)))
            elif flag == b"g":
                _add(self._common, _without_attributes(_pax(self._body(size))))
            elif flag == b"L":
                records[b"path"] = self._body(size).partition(b"\0")[0]
            elif flag == b"K":
                records[b"linkpath"] = self._body(size).partition(b"\0")[0]
            elif flag == _LABEL:
                records = {}
            else:
                return _entry(block, flag, self._common | records)

    def _body(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise DamageError(f"the archive has a header of {size} bytes, where at most 1 MiB can be")
        body = self._stream.exactly(size)
        self._stream.exactly(-size % BLOCK)
        return body

    def _note(self, entry: Entry) -> None:
        """Remember a member, and make sure that it has its place in the tree."""
        path = entry.path
        if not path:
            if entry.kind != "d":
                raise _refused(path, "the root is no directory")
            self.names[path] = "d"
            return
        above = path.rpartition(b"/")[0]
        while above and above not in self.names:
            self.names[above] = "d"  # an archive may leave out the directories on the way
            self._unsaid_bytes += len(above)
            if self._unsaid_bytes > _MOST_UNSAID_BYTES:
                raise _refused(path, "it lies in too many directories that the archive leaves out")
            above = above.rpartition(b"/")[0]
        if above and self.names[above] != "d":
            raise _refused(path, "it lies below what is no directory")
        if entry.kind == "h":
            target = entry.target if isinstance(entry.target, bytes) else b""
            if self.names.get(target, "d") == "d" or target == path:
                raise _refused(path, f"it is a hard link to {shown(target)!r}, which is no file of the archive")
        before = self.names.get(path, entry.kind)
        if (before == "d") != (entry.kind == "d"):
            raise _refused(path, "it is a directory and something else")
        self.names[path] = entry.kind


class _Stream:
    """Takes bytes off a row of buffers."""

    def __init__(self, data: Iterator[Data]) -> None:
        self._data = data
        self._rest = memoryview(b"")

    def some(self, most: int) -> memoryview:
        """Take at least one byte, and at most ``most``, without copying."""
        while not self._rest:
            piece = next(self._data, None)
            if piece is None:
                raise DamageError("the archive ends too early")
            self._rest = memoryview(piece)
        taken, self._rest = self._rest[:most], self._rest[most:]
        return taken

    def exactly(self, count: int) -> bytes:
        """Take ``count`` bytes."""
        if count <= len(self._rest):
            taken, self._rest = bytes(self._rest[:count]), self._rest[count:]
            return taken
        found = bytearray()
        while len(found) < count:
            found += self.some(count - len(found))
        return bytes(found)

    def drain(self) -> None:
        """Read to the end: only there does a checksum tell."""
        self._rest = memoryview(b"")
        for _ in self._data:
            pass


def is_header(block: bytes) -> bool:
    """Whether these bytes begin with the header of a tar's member."""
    if len(block) < BLOCK or not block[:BLOCK].strip(b"\0"):
        return False
    try:
        _check_sum(block[:BLOCK])
    except DamageError:
        return False
    return True


def _check_sum(block: bytes) -> None:
    stated = _number(block[148:156])
    plain = block[:148] + b" " * 8 + block[156:]
    if stated != sum(plain) and stated != sum(plain) - 256 * sum(byte > 127 for byte in plain):  # some add signed bytes
        raise DamageError("the archive is no tar, or damaged: a header does not match its checksum")


def _add(records: dict[bytes, bytes], more: dict[bytes, bytes]) -> None:
    """Add the records of one header to those of others, bounded all the same."""
    records |= more
    if sum(len(key) + len(value) for key, value in records.items()) > _MOST_HEADER_BYTES:
        raise DamageError("the archive has headers of more than 1 MiB in a row")


def _entry(block: bytes, flag: bytes, records: dict[bytes, bytes]) -> Entry:
    name = records.get(b"path") or _name(block)
    path = _path(name)
    kind = _KINDS.get(flag)
    if kind is None or (records and any(key.startswith(b"GNU.sparse.") for key in records)):
        is_sparse = kind is not None or flag == b"S"
        raise _refused(name, "it is sparse as only GNU tar knows it" if is_sparse else f"its type is {shown(flag)!r}")
    if kind == "f" and flag != b"7" and name.endswith(b"/"):
        kind = "d"  # as tar wrote directories before there was ustar
    size = _whole(name, b"size", records, _number(block[124:136]), _LARGEST)
    xattrs = sorted((key[len(_XATTR) :], value) for key, value in records.items() if key.startswith(_XATTR))
    if any(not key or b"\0" in key for key, _ in xattrs):
        raise _refused(name, "an attribute has no name")
    target = _target(name, kind, block, records)
    return Entry(
        path,
        kind,
        _number(block[100:108]) & 0o7777,
        _whole(name, b"uid", records, _number(block[108:116]), _LARGEST_ID),
        _whole(name, b"gid", records, _number(block[116:124]), _LARGEST_ID),
        size if kind == "f" else 0,
        _mtime_ns(name, records, block),
        0,
        0,
        target,
        xattrs or None,
        b"",
    )


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _path(name: bytes) -> bytes:
    """Give a name as the path of an entry: relative, without ``./`` and a slash at its end.

    :raises DamageError: it leads out of the tree.
    """
    if len(name) > _MOST_NAME_BYTES:
        raise _refused(name[:100], "its name is too long")
    if name.startswith(b"/"):
        raise _refused(name, "its name is absolute")
    path = _SLASHES.sub(b"/", b"./" + name)[2:].rstrip(b"/")
    if path in (b"", b".") and name:
        return b""
    if path.endswith(b"/."):
        path = path[:-2]
    if not path or not is_safe(path):
        raise _refused(name, "its name leads out of the directory, or is none")
    return path


def _target(name: bytes, kind: str, block: bytes, records: dict[bytes, bytes]) -> bytes | list[int] | None:
    if kind in "cb":
        numbers = [_number(block[329:337]), _number(block[337:345])]
        if not all(0 <= number <= 0xFFFFFFFF for number in numbers):
            raise _refused(name, "its device number is none")
        return numbers
    if kind not in "hl":
        return None
    target = records.get(b"linkpath") or block[157:257].partition(b"\0")[0]
    if not target or b"\0" in target:
        raise _refused(name, "its link leads nowhere")
    return _path(target) if kind == "h" else target


def _whole(name: bytes, key: bytes, records: dict[bytes, bytes], plain: int, largest: int) -> int:
    text = records.get(key)
    if text is not None:
        if not text.isdigit() or len(text) > 20:
            raise _refused(name, f"its {key.decode()} is no number")
        plain = int(text)
    if not 0 <= plain <= largest:
        raise _refused(name, f"its {key.decode()} is no number that can be")
    return plain


def _mtime_ns(name: bytes, records: dict[bytes, bytes], block: bytes) -> int:
    text = records.get(b"mtime")
    if text is None:
        mtime_ns = _number(block[136:148]) * _NANOSECONDS
    elif _TIME.fullmatch(text):
        mtime_ns = int(Decimal(text.decode()) * _NANOSECONDS)
    else:
        raise _refused(name, "its time is no number")
    if abs(mtime_ns) > _LARGEST * _NANOSECONDS:
        raise _refused(name, "its time cannot be")
    return mtime_ns


@lru_cache(1024)  # modes and owners are the same again and again
def _number(field: bytes) -> int:
    """Read a number: octal digits, or binary as GNU tar writes what is too large for them."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        return value - (1 << bits) if field[0] & 0x40 else value - (1 << (bits - 1))
    text = field.partition(b"\0")[0].strip(b" ")
    if not _OCTAL.fullmatch(text):
        raise DamageError("the archive is no tar, or damaged: a header has a number that is none")
    return int(text or b"0", 8)


def _pax(body: bytes) -> dict[bytes, bytes]:
    """Read the records of a pax header: ``LENGTH key=value`` and a line feed each."""
    records = {}
    at = 0
    while at < len(body) and body[at : at + 1] != b"\0":
        digits, space, _ = body[at : at + 21].partition(b" ")
        end = at + int(digits) if space and digits.isdigit() else 0
        key, equals, value = body[at + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or not key or end > len(body) or body[end - 1 : end] != b"\n":
            raise DamageError("the archive is damaged: a pax header is malformed")
        records[key] = value
        at = end
    return records


def _without_attributes(records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Drop attributes that would be those of all members: no tar writes them, and each entry would hold them all."""
    return {key: value for key, value in records.items() if not key.startswith(_XATTR)}


def _refused(name: bytes, reason: str) -> DamageError:
    return DamageError(
        f"the archive's member {shown(name[:1000])!r} cannot be restored: {reason}",
        hint="nothing was deleted; look at the archive with tar",
        paths=(name[:1000],),
    )
