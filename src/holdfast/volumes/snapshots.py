"""Finds snapshots of a source in a store, and opens them: manifest, config, and the entries of the index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, time
from itertools import dropwhile

from holdfast.archive import pages
from holdfast.errors import DamageError, NotFoundError, UsageError
from holdfast.model.digest import Digest
from holdfast.model.names import LATEST, Repository, SourceName, Tag
from holdfast.model.oci import Descriptor, Manifest
from holdfast.model.snapshot import (
    ARTIFACT_TYPE,
    INDEX_HEADER,
    INDEX_TYPE,
    Entry,
    IndexHeader,
    IndexRow,
    LayerRow,
    PageRow,
    SnapshotConfig,
    sort_key,
)
from holdfast.storage.bucket import Readers
from holdfast.storage.cache import Cache
from holdfast.storage.store import Store

_LARGEST_CONFIG = 16 * 1024 * 1024
_READ_AHEAD = 8 * 1024 * 1024
_READERS = 16
_SHOWN_NAMES = 8
_SHOWN_TAGS = 5
_NAME_SIZE = 32  # of a BLAKE3-256


@dataclass(frozen=True, slots=True)
class Listed:
    """One snapshot of a listing. Of a damaged one there is no config, but what is wrong with it."""

    name: SourceName
    tag: Tag
    digest: Digest | None
    config: SnapshotConfig | None
    damage: str | None = None

    def told(self) -> dict[str, object]:
        """Give what commands and faces tell of it, as plain values."""
        named = {"name": str(self.name), "tag": self.tag.name, "digest": self.digest and str(self.digest)}
        if self.config is None:
            return {**named, "damage": self.damage}
        counts = self.config.counts
        return {
            **named,
            "created": self.config.created,
            "host": self.config.host,
            "files": counts.files,
            "bytes": counts.bytes,
            "bytes_stored": counts.bytes_stored,
            "complete": not counts.errors,
        }


class Snapshot:
    """One snapshot, opened. Entries are read page by page; nothing is trusted before its hash was compared."""

    def __init__(
        self, store: Store, cache: Cache, repository: Repository, digest: Digest, tag: Tag | None = None
    ) -> None:
        """Read manifest, config and the header of the index. Without ``tag``, its own is told from its time and digest.

        :raises DamageError: one of them is missing or altered.
        """
        self.store = store
        self.repository = repository
        self.digest = digest
        self._cache = cache
        self.manifest = store.read_manifest(repository, digest)
        if self.manifest.artifact_type != ARTIFACT_TYPE:
            raise NotFoundError(f"{digest} of {repository} in {store} is no snapshot")
        self.config = _read_config(store, self.manifest)
        self.tag = tag or _tag_of(self.config, digest)
        self.header = self._read_header()
        self.layers = self._layer_rows()

    @property
    def name(self) -> SourceName:
        """Give the true name of the source."""
        return SourceName(self.config.source.name_bytes)

    def header_as_parent(self) -> IndexHeader:
        """Give the header as a later index can reference it: number 0, this snapshot's own blob, by its digest."""
        own = IndexRow(self.manifest.layers[0].digest, self._pages_start, self.manifest.layers[0].size)
        return IndexHeader(self.header.layers, [own, *self.header.indexes[1:]], self.header.pages)

    def entries(self, below: bytes = b"") -> Iterator[Entry]:
        """Give the entries in order; with ``below`` those that can be it or lie below it, and some of their neighbours.

        :raises DamageError: a page is missing or altered, or the order is wrong.
        """
        entries = self._entries(pages.pages_below(self.header, below))
        if below:  # the first page may go on with a file that began in the page before
            entries = dropwhile(lambda entry: entry.kind == "+", entries)
        return pages.in_order(entries)

    def records(self) -> Iterator[bytes]:
        """Give the packed records of all chunks and holes, an entry's at a time."""
        for entry in self._entries(self.header.pages):
            if entry.chunks:
                yield entry.chunks

    def select(self, paths: list[bytes]) -> Iterator[Entry]:
        """Give the entries of the paths and all below them, in order.

        :raises NotFoundError: one of the paths is not in the snapshot.
        """
        wanted = sorted(set(paths), key=sort_key)
        for path in wanted:
            if any(other != path and is_below(path, other) for other in wanted):
                continue
            found = False
            for entry in self.entries(path):
                if is_below(entry.path, path):
                    found = True
                    yield entry
            if not found:
                raise NotFoundError(
                    f"{self.name}@{self.tag} has no {os.fsdecode(path)!r}",
                    hint=f"`holdfast ls {self.name}` shows what it has",
                )

    def find(self, path: bytes) -> Entry | None:
        """Give the (first) entry of one path."""
        return next((entry for entry in self.entries(path) if entry.path == path), None)

    def page(self, row: PageRow) -> bytes:
        """Give the uncompressed bytes of a page, from the cache or the bucket."""
        return next(self._page_data([row]))[1]

    def _entries(self, rows: list[PageRow]) -> Iterator[Entry]:
        for row, data in self._page_data(rows):
            try:
                yield from pages.decode_page(data, row.blake3)
            except DamageError as error:
                raise DamageError(f"index blob {self._index_blob(row.index).digest}: {error}") from error

    def _page_data(self, rows: list[PageRow]) -> Iterator[tuple[PageRow, bytes]]:
        at = 0
        while at < len(rows):
            row = rows[at]
            data = self._cache.get(row.blake3.hex())
            if data is not None and pages.page_name(data) == row.blake3:
                yield row, data
                at += 1
                continue
            run = _contiguous(rows, at)
            yield from self._fetch(run)
            at += len(run)

    def _fetch(self, run: list[PageRow]) -> Iterator[tuple[PageRow, bytes]]:
        """Read pages that lie one behind the other in one request."""
        blob = self._index_blob(run[0].index)
        start = self.header.indexes[run[0].index].pages_start or self._pages_start
        length = run[-1].offset + run[-1].length - run[0].offset
        read = memoryview(self.store.read_blob_range(blob.parsed(), start + run[0].offset, length))
        for row in run:
            at = row.offset - run[0].offset
            try:
                data = pages.open_page(read[at : at + row.length], row.blake3)
            except DamageError as error:
                raise DamageError(f"index blob {blob.digest}: {error}") from error
            self._cache.put(row.blake3.hex(), data)
            yield row, data

    def _index_blob(self, number: int) -> Descriptor:
        if number == 0:
            return self.manifest.layers[0]
        digest = self.header.indexes[number].digest
        for descriptor in self.manifest.layers:
            if descriptor.digest == digest:
                return descriptor
        raise DamageError(f"manifest {self.digest} does not list the index blob {digest}")

    def _read_header(self) -> IndexHeader:
        layers = self.manifest.layers
        if not layers or layers[0].media_type != INDEX_TYPE:
            raise DamageError(f"manifest {self.digest} lists no index")
        length, name = _header_annotation(layers[0])
        self._pages_start = pages.PREFIX_SIZE + length
        data = self._cache.get(name.hex())
        if data is None or pages.page_name(data) != name:
            blob = layers[0].parsed()
            head = self.store.read_blob_range(blob, 0, self._pages_start)
            try:
                data = pages.decode_header(head, name)
            except DamageError as error:
                raise DamageError(f"index blob {blob}: {error}") from error
            self._cache.put(name.hex(), data)
        return pages.parse_header(data)

    def _layer_rows(self) -> dict[int, tuple[LayerRow, Descriptor]]:
        listed = {descriptor.digest: descriptor for descriptor in self.manifest.layers}
        try:
            return {row.id: (row, listed[row.digest]) for row in self.header.layers}
        except KeyError as error:
            raise DamageError(f"manifest {self.digest} does not list the layer {error}") from error


def is_below(path: bytes, above: bytes) -> bool:
    """Whether ``path`` is ``above`` or lies below it."""
    return not above or path == above or path.startswith(above + b"/")


def moment(text: str) -> datetime:
    """Read a time as a user writes it: ISO 8601, local where it names no zone; a date means its end.

    :raises UsageError: it is none.
    """
    try:
        found = datetime.fromisoformat(text)
        if len(text) in (len("20261120"), len("2026-11-20")):
            found = datetime.combine(found.date(), time.max)
        return found.astimezone()
    except (ValueError, OverflowError) as error:  # the latter where another zone's year would be 0 or 10000
        raise UsageError(f"not a time: {text!r}", hint="write it as 2026-11-20 or 2026-11-20T06:05:01Z") from error


def _contiguous(rows: list[PageRow], at: int) -> list[PageRow]:
    run = [rows[at]]
    size = rows[at].length
    for row in rows[at + 1 :]:
        last = run[-1]
        if row.index != last.index or row.offset != last.offset + last.length or size + row.length > _READ_AHEAD:
            break
        run.append(row)
        size += row.length
    return run


def _header_annotation(descriptor: Descriptor) -> tuple[int, bytes]:
    text = (descriptor.annotations or {}).get(INDEX_HEADER, "")
    length, _, name = text.partition(":")
    try:
        parsed = int(length), bytes.fromhex(name)
    except ValueError as error:
        raise DamageError(f"index blob {descriptor.digest} has a malformed annotation {INDEX_HEADER}") from error
    if not 0 < parsed[0] <= descriptor.size or len(parsed[1]) != _NAME_SIZE:
        raise DamageError(f"index blob {descriptor.digest} has a malformed annotation {INDEX_HEADER}")
    return parsed


def _tag_of(config: SnapshotConfig, digest: Digest) -> Tag:
    """Give a snapshot's own tag, whichever it was opened by."""
    try:
        return Tag.of_snapshot(datetime.fromisoformat(config.created), digest.hex)
    except ValueError as error:
        raise DamageError(f"the config of snapshot {digest} has no time: {config.created[:100]!r}") from error


def _read_config(store: Store, manifest: Manifest) -> SnapshotConfig:
    digest = manifest.config.parsed()
    try:
        return SnapshotConfig.decode(store.read_blob(digest, limit=_LARGEST_CONFIG))
    except DamageError as error:
        raise DamageError(f"config {digest}: {error}", hint=error.hint) from error


def snapshot_tags(store: Store, name: SourceName) -> list[Tag]:
    """List the tags of a source's snapshots, oldest first; without ``latest``.

    :raises NotFoundError: there are none; the error says which sources have some.
    """
    tags = [tag for tag in store.tags(name.repository) if tag.snapshot_time() is not None]
    if not tags:
        raise NotFoundError(f"there is no snapshot of {name} in {store}", hint=_names_hint(store))
    return tags


def open_snapshot(
    store: Store, cache: Cache, name: SourceName, *, tag: str | None = None, at: datetime | None = None
) -> Snapshot:
    """Open a source's snapshot: that of ``tag`` (or its unique beginning), the newest not after ``at``, or the latest.

    :raises NotFoundError: there is none; the error says which there are.
    """
    repository = name.repository
    if tag is not None and tag != LATEST.name:
        candidates = [_by_tag(snapshot_tags(store, name), tag, name)]
    elif at is not None:
        candidates = _by_time(snapshot_tags(store, name), at, name)
    else:
        candidates = [LATEST]
    found = _first_there(store, repository, candidates)
    if found is None and candidates == [LATEST]:
        found = _first_there(store, repository, snapshot_tags(store, name)[::-1])
    if found is None:
        raise NotFoundError(f"{repository} has no tag {candidates[0]} in {store}", hint=_names_hint(store))
    chosen, digest = found
    return Snapshot(store, cache, repository, digest, None if chosen == LATEST else chosen)


def _first_there(store: Store, repository: Repository, tags: list[Tag]) -> tuple[Tag, Digest] | None:
    """Resolve the first of some tags that names a manifest: a backup killed between a tag's two links left it empty."""
    for tag in tags:
        with suppress(NotFoundError):
            return tag, store.resolve(repository, tag)
    return None


def list_snapshots(store: Store, name: SourceName | None = None) -> Iterator[Listed]:
    """List the snapshots of a source, or of every one, those of each oldest first. Reads configs, in parallel.

    A damaged snapshot is listed as damaged; it does not hide the others.

    :raises NotFoundError: the source named has none.
    """
    if name is not None:
        pairs = [(name.repository, tag) for tag in snapshot_tags(store, name)]
    else:
        pairs = [
            (repository, tag)
            for repository in source_repositories(store)
            for tag in store.tags(repository)
            if tag.snapshot_time() is not None
        ]
    with Readers(_READERS, "list") as pool:
        for listed in pool.map(lambda pair: _listed(store, *pair), pairs):
            if listed is not None:
                yield listed


def _listed(store: Store, repository: Repository, tag: Tag) -> Listed | None:
    digest = None
    try:
        found = _first_there(store, repository, [tag])
        if found is None:
            return None
        digest = found[1]
        config = _read_config(store, store.read_manifest(repository, digest))
    except DamageError as error:
        name = SourceName.of_repository(repository) or SourceName(repository.name.encode())
        return Listed(name, tag, digest, None, str(error))
    return Listed(SourceName(config.source.name_bytes), tag, digest, config)


def source_repositories(store: Store) -> list[Repository]:
    """List the repositories that hold snapshots of paths and volumes."""
    return [repository for below in ("paths", "volumes") for repository in store.repositories(below)]


def source_names(store: Store) -> Iterator[SourceName]:
    """Give the names of all sources that have snapshots; one that is too long to be a repository's from a config."""
    for repository in source_repositories(store):
        tags = [tag for tag in store.tags(repository) if tag.snapshot_time() is not None]
        name = SourceName.of_repository(repository)
        if name is None:
            listed = (_listed(store, repository, tag) for tag in reversed(tags))
            name = next((found.name for found in listed if found is not None and found.config is not None), None)
        if tags and name is not None:
            yield name


def _names_hint(store: Store) -> str:
    names = [str(SourceName.of_repository(repository) or repository) for repository in source_repositories(store)]
    if not names:
        return "the store holds no snapshots at all: check its URL"
    more = f", and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"there are snapshots of {', '.join(names[:_SHOWN_NAMES])}{more}"


def _by_tag(tags: list[Tag], text: str, name: SourceName) -> Tag:
    matches = [tag for tag in tags if tag.name.startswith(text)]
    exact = [tag for tag in matches if tag.name == text]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    problem = f"{len(matches)} snapshots of {name} begin with" if matches else f"{name} has no snapshot"
    raise NotFoundError(f"{problem} {text!r}", hint=_tags_hint(matches or tags))


def _by_time(tags: list[Tag], at: datetime, name: SourceName) -> list[Tag]:
    """Give the tags of snapshots not after a time, the newest first."""
    older = [tag for tag in tags if (made := tag.snapshot_time()) is not None and made <= at]
    if not older:
        raise NotFoundError(f"{name} has no snapshot from {at.isoformat()} or before", hint=_tags_hint(tags))
    return older[::-1]


def _tags_hint(tags: list[Tag]) -> str:
    newest = ", ".join(tag.name for tag in reversed(tags[-_SHOWN_TAGS:]))
    return f"the newest are {newest}" if len(tags) > _SHOWN_TAGS else f"there are {newest}"
