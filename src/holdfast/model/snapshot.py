"""What a snapshot says: its entries, the header of its index, its config (docs/reference/format.md is normative)."""

from __future__ import annotations

import base64
import re
import struct
from typing import Annotated, Literal

import msgspec

from holdfast.errors import DamageError, UsageError
from holdfast.model.names import SourceName

ARTIFACT_TYPE = "application/vnd.holdfast.snapshot.v1"
CONFIG_TYPE = "application/vnd.holdfast.snapshot.config.v1+json"
INDEX_TYPE = "application/vnd.holdfast.index.v1"
CREATED = "org.opencontainers.image.created"
SOURCE = "io.holdfast.source"
INDEX_HEADER = "io.holdfast.index.header"
"""Annotation of the first layer's descriptor: ``LENGTH:BLAKE3``, the length and hash of the index header's frame."""

FORMAT_VERSION = 1

RECORD = struct.Struct("<32sIQI")
"""A chunk: BLAKE3-256, layer id, offset in the layer's tar stream, length in bytes."""
RECORD_SIZE = RECORD.size
HOLE_LAYER = 0xFFFFFFFF
"""The layer id of a record that stands for a hole: its offset field is the hole's length in bytes, all else is zero."""
MOST_CHUNKS = 1024
"""Chunks of one entry; a longer list goes on in ``+`` entries."""

Kind = Literal["f", "d", "l", "h", "c", "b", "p", "+"]
KINDS = frozenset("fdlhcbp+")

_UNSAFE = re.compile(rb"\0|(?:\A|/)\.{0,2}(?:/|\Z)")


_LARGEST_ID = 0xFFFFFFFF
_LARGEST_INT = (1 << 63) - 1
_DEVICE = 2  # major and minor


class Entry(msgspec.Struct, array_like=True, gc=False):
    """One path of a snapshot.

    ``path`` is relative to the source's root, which itself is the empty path. ``kind``: f file, d directory, l symlink,
    h hard link (``target`` = the path of the first one), c and b devices (``target`` = [major, minor]), p fifo, + the
    further chunks of the file before it (``size`` = the file offset where they go on). ``size`` is in bytes, times in
    nanoseconds since 1970; ``ctime_ns`` 0 means: read it again next time. ``xattrs`` are sorted by name.
    ``chunks`` are packed :data:`RECORD`.
    """

    path: bytes
    kind: str
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)]
    uid: Annotated[int, msgspec.Meta(ge=0, le=_LARGEST_ID)]
    gid: Annotated[int, msgspec.Meta(ge=0, le=_LARGEST_ID)]
    size: Annotated[int, msgspec.Meta(ge=0, le=_LARGEST_INT)]
    mtime_ns: int
    ctime_ns: int
    inode: int
    target: bytes | list[int] | None
    xattrs: list[tuple[bytes, bytes]] | None
    chunks: bytes


class LayerRow(msgspec.Struct, array_like=True, gc=False):
    """A layer of the header. ``tar_bytes`` is its size uncompressed; ``live_bytes`` what references to it weigh."""

    id: int
    digest: str
    tar_bytes: int
    live_bytes: int


class IndexRow(msgspec.Struct, array_like=True, gc=False):
    """An index blob that pages are taken from. Number 0 is the blob that the header is in: digest empty, sizes 0."""

    digest: str
    pages_start: int
    size: int


class PageRow(msgspec.Struct, array_like=True, gc=False):
    """A page: the path of its first entry, the BLAKE3 of its uncompressed bytes, and where its frame lies.

    ``offset`` counts from where the pages of that index blob start; ``length`` is the compressed frame's, in bytes.
    """

    first: bytes
    blake3: bytes
    index: int
    offset: int
    length: int


class IndexHeader(msgspec.Struct, array_like=True):
    """The header of a snapshot's index."""

    layers: list[LayerRow]
    indexes: list[IndexRow]
    pages: list[PageRow]


class SourceInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was backed up. ``name_base64`` holds the exact bytes where the name is not UTF-8."""

    kind: Literal["directory", "file", "volume"]
    name: str
    path: str
    name_base64: str | None = None

    @property
    def name_bytes(self) -> bytes:
        """Give the name's exact bytes."""
        return base64.b64decode(self.name_base64, validate=True) if self.name_base64 else self.name.encode()


class Counts(msgspec.Struct, frozen=True):
    """What a backup did. Bytes of file contents, except ``bytes_stored``: bytes sent into the bucket, compressed.

    ``bare`` counts the paths without contents: all but files that hold bytes. ``errors`` counts all paths that could
    not be read, also those that the config has no room to list.
    """

    files: int
    directories: int
    others: int
    bare: int
    errors: int
    bytes: int
    bytes_read: int
    bytes_new: int
    bytes_stored: int
    seconds: float


class PathError(msgspec.Struct, frozen=True):
    """A path that could not be read, or was not still while it was read, and why."""

    path: str
    reason: str


class LeftOut(msgspec.Struct, frozen=True):
    """What a backup left out by rule: gitignore patterns, contents of marked caches, other file systems.

    A restore that replaces spares what matches.
    """

    exclude: list[str]
    caches: bool
    one_file_system: bool


class Capsule(msgspec.Struct, frozen=True):
    """What a Docker volume was: enough to create it again."""

    driver: str
    options: dict[str, str]
    labels: dict[str, str]
    containers: list[str]
    compose_project: str | None
    image_digests: list[str]


class SnapshotConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The config document of a snapshot."""

    format: int
    created: str
    source: SourceInfo
    host: str
    machine_id: str
    parent: str | None
    compression: dict[str, str | int]
    chunker: dict[str, str | int]
    counts: Counts
    left_out: LeftOut
    errors: list[PathError]
    capsule: Capsule | None = None
    encryption: None = None

    @classmethod
    def decode(cls, data: bytes) -> SnapshotConfig:
        """Read a config.

        :raises DamageError: it is none, or one that only a newer (or encrypting) Holdfast can read.
        """
        try:
            config = msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise DamageError(f"not the config of a snapshot that this version reads: {error}") from error
        if config.format != FORMAT_VERSION:
            raise DamageError(
                f"the snapshot has format {config.format}, this version reads {FORMAT_VERSION}",
                hint="use a newer Holdfast",
            )
        try:
            SourceName(config.source.name_bytes)
        except (UsageError, ValueError) as error:
            raise DamageError(f"the config of a snapshot names its source badly: {error}") from error
        return config


def sort_key(path: bytes) -> bytes:
    """Give what the entries of an index are sorted by: siblings by their bytes, a directory before its content."""
    return path.replace(b"/", b"\0")


def is_safe(path: bytes) -> bool:
    """Whether a path of an index stays below the root: relative, no NUL, no empty, ``.`` or ``..`` component."""
    return not path or _UNSAFE.search(path) is None


def is_sound(entry: Entry) -> bool:
    """Whether what an entry points at, its attributes' names and its chunks can be those of a path of its kind."""
    kind, target = entry.kind, entry.target
    if kind not in KINDS or len(entry.chunks) % RECORD_SIZE:
        return False
    if entry.xattrs and any(not name or b"\0" in name for name, _ in entry.xattrs):
        return False
    if kind == "h":
        return isinstance(target, bytes) and bool(target) and is_safe(target)
    if kind == "l":
        return isinstance(target, bytes) and bool(target) and b"\0" not in target
    if kind in "cb":
        return isinstance(target, list) and len(target) == _DEVICE and all(0 <= part <= _LARGEST_ID for part in target)
    return True


def shown(path: bytes) -> str:
    r"""Give a path as text for people and JSON; bytes that are not UTF-8 read as ``\xNN``."""
    return path.decode("utf-8", "backslashreplace")


def weight(length: int) -> int:
    """Give what a reference to a chunk of ``length`` bytes counts in a layer's live bytes: a tar member of its size."""
    return 512 + (length + 511 & -512)
