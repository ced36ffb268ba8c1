"""The index of a snapshot: its entries in pages, the pages in index blobs, and a header that says where all of it lies.

An index blob is ``HOLDFAST``, a version byte, the length of the header's frame (u32 LE), that frame, and page frames. A
page is a zstd frame around a msgpack array of entries and is named by the BLAKE3 of the uncompressed bytes, so that a
page which is the same as before is not stored again. Everything read is untrusted until its BLAKE3 was compared.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import pairwise
from zlib import crc32

import msgspec
from blake3 import blake3

from holdfast.archive import zstd
from holdfast.errors import DamageError, HoldfastError
from holdfast.model.snapshot import (
    RECORD_SIZE,
    Entry,
    IndexHeader,
    IndexRow,
    LayerRow,
    PageRow,
    is_safe,
    is_sound,
    shown,
    sort_key,
)

MAGIC = b"HOLDFAST\x01"
_LENGTH = struct.Struct("<I")
PREFIX_SIZE = len(MAGIC) + _LENGTH.size
LARGEST_HEADER = 64 * 1024 * 1024
LARGEST_PAGE = 16 * 1024 * 1024
FULL_PAGE = 4 * 1024 * 1024
BLOB_BYTES = 32 * 1024 * 1024
_PENDING_BYTES = 8 * 1024 * 1024
_ENTRIES_A_PAGE = 64
_CONTINUATIONS_A_PAGE = 8
_ENTRY_OVERHEAD = 80
_LEVEL = 3
_PLAIN_KINDS = frozenset("fd+")
_EARLIEST, _LATEST = -(1 << 63), (1 << 64) - 1  # the years 1677 and 2554: what msgpack can say in nanoseconds

_encoder = msgspec.msgpack.Encoder()
_page_decoder = msgspec.msgpack.Decoder(list[Entry])
_header_decoder = msgspec.msgpack.Decoder(IndexHeader)


def page_name(data: bytes) -> bytes:
    """Give the 32 bytes that name a page or header: the BLAKE3-256 of its uncompressed bytes."""
    return blake3(data).digest()


def _begins_page(entry: Entry) -> bool:
    """Whether a page begins with this entry: its path alone decides, and the offset where it continues a file."""
    if entry.kind == "+":
        return crc32(entry.path + entry.size.to_bytes(8, "little")) % _CONTINUATIONS_A_PAGE == 0
    return crc32(entry.path) % _ENTRIES_A_PAGE == 0


class IndexBlob:
    """An index blob on its way into the store: its parts, one after another, and what a header says of it."""

    def __init__(self, header: IndexHeader, frames: list[bytes]) -> None:
        self.header = header
        self.header_data = _encoder.encode(header)
        self.header_name = page_name(self.header_data)
        frame = zstd.compress(self.header_data, _LEVEL)
        self.header_length = len(frame)
        self.pages_start = PREFIX_SIZE + len(frame)
        self.parts = [MAGIC + _LENGTH.pack(len(frame)), frame, *frames]
        self.size = sum(map(len, self.parts))


class IndexWriter:
    """Cuts a stream of entries into pages and keeps those that are new.

    ``known`` are the pages of the parent's header: a page of the same name is referenced where it lies. ``spill`` is
    given an index blob whenever :data:`BLOB_BYTES` of new pages have come together, puts it, and returns its row: that
    bounds memory. ``keep`` is called with each page (name, uncompressed bytes), for a cache. ``pool`` compresses.
    """

    def __init__(
        self,
        *,
        known: IndexHeader | None,
        spill: Callable[[IndexBlob], IndexRow],
        keep: Callable[[bytes, bytes], None],
        pool: Executor,
    ) -> None:
        self._pool = pool
        self._known = {page.blake3: page for page in known.pages} if known else {}
        self._known_indexes = known.indexes if known else []
        self._spill = spill
        self._keep = keep
        self._entries: list[Entry] = []
        self._entries_size = 0
        self._pages: list[PageRow] = []
        self._indexes: list[IndexRow] = [IndexRow("", 0, 0)]
        self._numbers: dict[str, int] = {}
        self._frames: list[bytes] = []
        self._frames_size = 0
        self._pending: list[tuple[PageRow, Future[bytes]]] = []
        self._pending_size = 0
        self._spilled: set[int] = set()
        self._last_key: bytes | None = None
        self.new_pages = 0

    def add(self, entry: Entry) -> None:
        """Add the next entry in order."""
        size = len(entry.path) + len(entry.chunks) + _ENTRY_OVERHEAD
        if self._entries and (_begins_page(entry) or self._entries_size + size > FULL_PAGE):
            self._cut()
        self._entries.append(entry)
        self._entries_size += size
        if entry.xattrs:
            self._entries_size += sum(len(name) + len(value) for name, value in entry.xattrs)

    def finish(self, layers: list[LayerRow], reread: Callable[[PageRow], bytes]) -> IndexBlob:
        """Cut the last page and give the blob that holds the header.

        Older index blobs of which less than half is still in use, or that have become too many, are not referenced any
        more: ``reread`` gives such a page's uncompressed bytes, and it is written again.
        """
        self._cut()
        self._settle()
        self._drop_sparse_blobs(reread)
        self._settle()
        rows = [row for row in self._pages if row.index]
        used = sorted({row.index for row in rows})
        renumbered = {old: new for new, old in enumerate(used, 1)}
        for row in rows:
            row.index = renumbered[row.index]
        indexes = [self._indexes[0], *(self._indexes[old] for old in used)]
        blob = IndexBlob(IndexHeader(layers, indexes, self._pages), self._frames)
        if len(blob.header_data) > LARGEST_HEADER:
            raise HoldfastError(
                f"the source has too many paths for one snapshot ({len(self._pages)} pages)", hint="back it up in parts"
            )
        self._keep(blob.header_name, blob.header_data)
        return blob

    def check(self) -> None:
        """See that what is written could be read again: a snapshot that cannot be restored must not be committed.

        :raises HoldfastError: the walk gave paths out of order, or one twice.
        """
        paths = [entry.path for entry in self._entries if entry.kind != "+"]
        keys = [self._last_key, *map(sort_key, paths)] if self._last_key is not None else list(map(sort_key, paths))
        if any(after <= before for before, after in pairwise(keys)):
            raise HoldfastError("the paths of the source came out of order: nothing was committed, run it again")
        _check_paths(paths)
        if keys:
            self._last_key = keys[-1]

    def _cut(self) -> None:
        if not self._entries:
            return
        self.check()
        try:
            data = _encoder.encode(self._entries)
        except OverflowError:
            for entry in self._entries:
                entry.mtime_ns = min(max(entry.mtime_ns, _EARLIEST), _LATEST)
                entry.ctime_ns = min(max(entry.ctime_ns, 0), _LATEST)
            data = _encoder.encode(self._entries)
        first = self._entries[0].path
        self._entries = []
        self._entries_size = 0
        name = page_name(data)
        old = self._known.get(name)
        # The parent's own blob is number 0 in its header; the caller has put its digest there.
        if old is not None:
            number = self._number(self._known_indexes[old.index])
            self._pages.append(PageRow(first, name, number, old.offset, old.length))
            return
        self._pages.append(self._store(first, name, data))

    def _store(self, first: bytes, name: bytes, data: bytes) -> PageRow:
        if self._pending_size + len(data) > _PENDING_BYTES or self._frames_size > BLOB_BYTES:
            self._settle()
        if self._frames_size > BLOB_BYTES:
            self._flush()
        row = PageRow(first, name, 0, 0, 0)
        self._pending.append((row, self._pool.submit(self._seal, name, data)))
        self._pending_size += len(data)
        self.new_pages += 1
        return row

    def _seal(self, name: bytes, data: bytes) -> bytes:
        self._keep(name, data)
        return zstd.compress(data, _LEVEL)

    def _settle(self) -> None:
        """Wait for the pages that are being compressed: only then is known where each lies."""
        for row, future in self._pending:
            frame = future.result()
            row.offset, row.length = self._frames_size, len(frame)
            self._frames.append(frame)
            self._frames_size += len(frame)
        self._pending = []
        self._pending_size = 0

    def _flush(self) -> None:
        """Put the new pages so far as an index blob of their own, with an empty header."""
        blob = IndexBlob(IndexHeader([], [IndexRow("", 0, 0)], []), self._frames)
        number = self._number(self._spill(blob))
        self._spilled.add(number)
        for row in self._pages:
            if row.index == 0:
                row.index = number
        self._frames = []
        self._frames_size = 0

    def _number(self, row: IndexRow) -> int:
        if row.digest not in self._numbers:
            self._numbers[row.digest] = len(self._indexes)
            self._indexes.append(row)
        return self._numbers[row.digest]

    def _drop_sparse_blobs(self, reread: Callable[[PageRow], bytes]) -> None:
        live = [0] * len(self._indexes)
        for row in self._pages:
            live[row.index] += row.length
        dropped = blobs_to_drop(
            [(row.size - row.pages_start, used) for row, used in zip(self._indexes, live, strict=True)]
        )
        dropped -= self._spilled  # what was just written is no older blob
        for at, row in enumerate(self._pages):
            if row.index in dropped:
                self._pages[at] = self._store(row.first, row.blake3, reread(row))


MOST_BLOBS = 64


def blobs_to_drop(blobs: list[tuple[int, int]]) -> set[int]:
    """Choose the older index blobs to leave behind; number 0, the one being written, never is.

    ``blobs`` gives each one's bytes of pages and how many of them are in use. While all of them hold more than twice
    what is in use, the least used goes; where more than :data:`MOST_BLOBS` are left, so does the smaller half, so that
    a long chain of small backups stays short.
    """
    dropped = set()
    held = blobs[0][1] + sum(size for size, _ in blobs[1:])
    needed = sum(live for _, live in blobs)
    for number in sorted(range(1, len(blobs)), key=lambda n: blobs[n][1] / blobs[n][0] if blobs[n][0] else 0):
        size, live = blobs[number]
        if live and held <= 2 * needed:
            break
        dropped.add(number)
        held -= size - live  # what is in use of it is written again
    left = sorted((number for number in range(1, len(blobs)) if number not in dropped), key=lambda n: blobs[n][0])
    if len(left) > MOST_BLOBS:
        dropped.update(left[: len(left) // 2])
    return dropped


def decode_header(head: bytes | memoryview, name: bytes) -> bytes:
    """Open the beginning of an index blob, up to its pages, and give the uncompressed header.

    :raises DamageError: it is no index, or its header is not the one that ``name`` names.
    """
    if head[:PREFIX_SIZE] != MAGIC + _LENGTH.pack(len(head) - PREFIX_SIZE):
        raise DamageError("an index does not begin as one of this version")
    data = zstd.decompress(head[PREFIX_SIZE:], LARGEST_HEADER)
    if page_name(data) != name:
        raise DamageError("the header of an index is altered")
    return data


def parse_header(data: bytes) -> IndexHeader:
    """Read a header and check that its rows fit each other.

    :raises DamageError: it is malformed.
    """
    try:
        header = _header_decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DamageError(f"the header of an index is malformed: {error}") from error
    if not header.indexes or len({row.id for row in header.layers}) != len(header.layers):
        raise DamageError("the header of an index is malformed: layer ids repeat, or no index is named")
    for row in header.pages:
        if not 0 <= row.index < len(header.indexes) or row.offset < 0 or not 0 < row.length <= LARGEST_PAGE:
            raise DamageError("the header of an index is malformed: a page lies nowhere")
    return header


def decode_page(data: bytes, name: bytes) -> list[Entry]:
    """Read a page's uncompressed bytes and check them.

    :raises DamageError: it is not the page that ``name`` names, or holds what no snapshot may.
    """
    if page_name(data) != name:
        raise DamageError("a page of the index is altered")
    try:
        entries = _page_decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DamageError(f"a page of the index is malformed: {error}") from error
    _check_paths([entry.path for entry in entries])
    for entry in entries:
        if entry.kind not in _PLAIN_KINDS or entry.xattrs or len(entry.chunks) % RECORD_SIZE:
            if is_sound(entry):
                continue
            raise DamageError(f"the index is malformed at {shown(entry.path)!r}")
    return entries


def _check_paths(paths: list[bytes]) -> None:
    """See that no path leads out of the root. All at once, for that is many times faster than one by one."""
    joined = b"/" + b"/".join(filter(None, paths)) + b"/"
    if joined != b"//" and any(unsafe in joined for unsafe in (b"\0", b"//", b"/./", b"/../")):
        worst = next((path for path in paths if not is_safe(path)), b"")
        raise DamageError(f"the index holds a path that leads outside: {shown(worst)!r}")


def in_order(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Pass entries on, each after the one before in the order of an index.

    :raises DamageError: one is not, or a ``+`` follows no file.
    """
    last_key: bytes | None = None
    last: Entry | None = None
    for entry in entries:
        if entry.kind == "+":
            if last is None or last.kind not in "f+" or last.path != entry.path:
                raise DamageError(f"the index is malformed at {shown(entry.path)!r}: nothing goes on there")
        else:
            key = sort_key(entry.path)
            if last_key is not None and key <= last_key:
                raise DamageError(f"the index is out of order at {shown(entry.path)!r}")
            last_key = key
        last = entry
        yield entry


def pages_below(header: IndexHeader, path: bytes) -> list[PageRow]:
    """Give the pages that can hold ``path`` or anything below it, in order."""
    if not path:
        return header.pages
    keys = [sort_key(row.first) for row in header.pages]
    # A path's own page may begin with the path itself, and its continuations may fill the pages behind it.
    first = max(bisect_left(keys, sort_key(path)) - 1, 0)
    last = bisect_right(keys, sort_key(path) + b"\1")
    return header.pages[first:last]


def open_page(frame: bytes | memoryview, name: bytes) -> bytes:
    """Decompress a page's frame and check its name.

    :raises DamageError: it is not the page that ``name`` names.
    """
    data = zstd.decompress(frame, LARGEST_PAGE)
    if page_name(data) != name:
        raise DamageError("a page of the index is altered")
    return data
