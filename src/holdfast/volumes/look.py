"""Looks into snapshots: what differs, where something is, and the contents of a file or directory as a stream."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from holdfast.archive import pages, tar
from holdfast.archive.metadata import kind_of, read_xattrs
from holdfast.archive.scan import Rules, open_root, scan
from holdfast.errors import DamageError, NotFoundError, UsageError
from holdfast.model.names import SourceName
from holdfast.model.snapshot import HOLE_LAYER, RECORD, Entry, sort_key
from holdfast.storage.cache import Cache
from holdfast.storage.store import Store
from holdfast.volumes.contents import Contents, grouped
from holdfast.volumes.snapshots import Snapshot, is_below, snapshot_tags, source_names

Change = Literal["added", "removed", "modified", "metadata"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One path that differs: from ``old`` to ``new``; ``size`` is the new one's in bytes (the old one's if removed)."""

    change: Change
    path: bytes
    kind: str
    size: int


@dataclass(slots=True)
class Version:
    """One version of a path that was searched for, and the tags of the snapshots that hold it, newest first."""

    name: SourceName
    path: bytes
    kind: str
    size: int
    mtime_ns: int
    tags: list[str] = field(default_factory=list)


def listing(snapshot: Snapshot, path: bytes = b"", *, deep: bool = False) -> Iterator[Entry]:
    """List a directory's entries (with ``deep`` all below it), or the one of a file.

    :raises NotFoundError: the path is not in the snapshot.
    """
    for entry in snapshot.select([path]):
        if entry.kind == "+":
            continue
        if entry.path == path:
            if entry.kind != "d" and path:
                yield entry
            continue
        rest = entry.path[len(path) + 1 :] if path else entry.path
        if deep or b"/" not in rest:
            yield entry


def differences(old: Iterator[Entry], new: Iterator[Entry], *, live: bool = False) -> Iterator[Difference]:
    """Compare two streams of entries in index order, path by path. Memory: one file's entries of each.

    ``live`` says that the new ones have no chunks: then a file of the same size and time counts as the same.
    """
    olds, news = grouped(old), grouped(new)
    a, b = next(olds, None), next(news, None)
    while a is not None or b is not None:
        if b is None or (a is not None and sort_key(a[0].path) < sort_key(b[0].path)):
            assert a is not None  # noqa: S101 - one of the two is there
            yield Difference("removed", a[0].path, a[0].kind, a[0].size)
            a = next(olds, None)
        elif a is None or sort_key(b[0].path) < sort_key(a[0].path):
            yield Difference("added", b[0].path, b[0].kind, b[0].size)
            b = next(news, None)
        else:
            change = _change(a, b, live=live)
            if change is not None:
                yield Difference(change, b[0].path, b[0].kind, b[0].size)
            a, b = next(olds, None), next(news, None)


def live_entries(source: bytes, rules: Rules) -> Iterator[Entry]:
    """Give a directory or file of this machine as entries without contents (``chunks`` empty)."""
    if not os.path.isdir(source):
        name = os.path.basename(source)
        try:
            yield _live(name, os.stat(source, follow_symlinks=False), source)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no {os.fsdecode(source)!r} to compare with") from error
        return
    root = open_root(source)
    links: dict[tuple[int, int], bytes] = {}
    try:
        for found in scan(root, rules, lambda _path, _error: None):
            status = found.status
            assert status is not None  # noqa: S101 - scan() was asked for it
            first = found.path
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                first = links.setdefault((status.st_dev, status.st_ino), found.path)
            place = os.fsencode(f"/proc/self/fd/{found.folder}/{found.name}")
            with suppress(OSError):  # it vanished
                yield _live(found.path, status, place, first)
    finally:
        os.close(root)


def _live(path: bytes, status: os.stat_result, place: bytes, first: bytes | None = None) -> Entry:
    """Give the entry of what stands at ``place``; ``first`` is the path under which its file was found before."""
    kind = kind_of(status.st_mode) or "f"
    target: bytes | list[int] | None = None
    if first is not None and first != path:
        kind, target = "h", first
    elif kind == "l":
        target = os.readlink(place)
    elif kind in "cb":
        target = list(tar.device_numbers(status.st_rdev))
    size = status.st_size if kind == "f" else 0
    mode, xattrs = stat.S_IMODE(status.st_mode), read_xattrs(os.fsdecode(place))
    return Entry(
        path, kind, mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, 0, status.st_ino, target, xattrs, b""
    )


def _change(old: list[Entry], new: list[Entry], *, live: bool) -> Change | None:
    a, b = old[0], new[0]
    if a.kind != b.kind or a.size != b.size:
        return "modified"
    if a.target != b.target:
        return "modified"
    if a.kind == "f" and (a.mtime_ns != b.mtime_ns if live else _names(old) != _names(new)):
        return "modified"
    if (a.mode, a.uid, a.gid, a.mtime_ns) != (b.mode, b.uid, b.gid, b.mtime_ns) and a.kind != "h":
        return "metadata"
    return "metadata" if a.xattrs != b.xattrs and a.kind != "h" else None


def _names(entries: list[Entry]) -> list[tuple[bytes, int]]:
    return [
        (name, offset if layer == HOLE_LAYER else length)
        for entry in entries
        for name, layer, offset, length in RECORD.iter_unpack(entry.chunks)
    ]


def find(store: Store, cache: Cache, pattern: str, name: SourceName | None = None) -> Iterator[Version]:
    """Find the paths that match a shell pattern in every snapshot of a source, or of all.

    A pattern without a slash matches the last component of a path, one with a slash the whole path. A page that many
    snapshots share is searched once.
    """
    matches = _matcher(pattern)
    for source in [name] if name is not None else source_names(store):
        versions: dict[tuple[bytes, str, int, int], Version] = {}
        searched: dict[bytes, list[Entry]] = {}
        for tag in reversed(snapshot_tags(store, source)):
            try:
                digest = store.resolve(source.repository, tag)
            except NotFoundError:
                continue  # a backup was killed between the tag's two links
            try:
                snapshot = Snapshot(store, cache, source.repository, digest)
            except DamageError:
                continue  # `snapshots` and `check` tell of it; here the others count
            for row in snapshot.header.pages:
                if row.blake3 not in searched:
                    entries = pages.decode_page(snapshot.page(row), row.blake3)
                    searched[row.blake3] = [entry for entry in entries if entry.kind != "+" and matches(entry.path)]
                for entry in searched[row.blake3]:
                    key = (entry.path, entry.kind, entry.size, entry.mtime_ns)
                    version = versions.setdefault(key, Version(source, *key))
                    version.tags.append(tag.name)
        yield from sorted(versions.values(), key=lambda version: (sort_key(version.path), -version.mtime_ns))


def _matcher(pattern: str) -> Callable[[bytes], object]:
    match = re.compile(fnmatch.translate(pattern), re.DOTALL).match
    if "/" in pattern:
        return lambda path: match(os.fsdecode(path))
    return lambda path: match(os.fsdecode(path.rpartition(b"/")[2]))


def dump(snapshot: Snapshot, path: bytes) -> Iterator[bytes | memoryview]:
    """Stream a file's contents, or a directory as a tar whose names are relative to it. Pieces of at most 1 MiB.

    :raises NotFoundError: the path is not in the snapshot.
    :raises UsageError: it is neither file nor directory.
    """
    groups = grouped(snapshot.select([path]) if path else snapshot.entries())
    first = next(groups, None)
    if first is None:
        raise NotFoundError(f"{snapshot.name}@{snapshot.tag} is empty")
    contents = Contents(snapshot)
    try:
        if first[0].kind == "d":
            yield from _dump_folder(snapshot, contents, path, first, groups)
            return
        if first[0].kind == "h":
            first = _group_of(snapshot, first[0].target)
        if first[0].kind != "f":
            raise UsageError(f"{os.fsdecode(path)!r} is neither a file nor a directory")
        yield from contents.stream(first)
    finally:
        contents.close()


def _dump_folder(
    snapshot: Snapshot, contents: Contents, path: bytes, first: list[Entry], groups: Iterator[list[Entry]]
) -> Iterator[bytes | memoryview]:
    placed: dict[bytes, bytes] = {}
    while first:
        entry = first[0]
        name = entry.path[len(path) + 1 :] if path else entry.path
        if entry.kind == "h" and isinstance(entry.target, bytes) and not is_below(entry.target, path):
            # The name it is linked to is not in this archive: the first link here becomes the file.
            place = placed.setdefault(entry.target, name)
            if place == name:
                first = _group_of(snapshot, entry.target)
                entry = first[0]
            else:
                entry = _renamed(entry, name, place)
        elif entry.kind == "h" and isinstance(entry.target, bytes) and path:
            entry = _renamed(entry, name, entry.target[len(path) + 1 :])
        yield tar.member_header(_renamed(entry, name, entry.target))
        if entry.kind == "f":
            yield from contents.stream(first)
            yield tar.padding(entry.size)
        first = next(groups, [])
    yield tar.END


def _renamed(entry: Entry, path: bytes, target: bytes | list[int] | None) -> Entry:
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
    return Entry(**{**fields, "path": path, "target": target})


def _group_of(snapshot: Snapshot, path: object) -> list[Entry]:
    wanted = path if isinstance(path, bytes) else b""
    return next(grouped(snapshot.select([wanted])))
