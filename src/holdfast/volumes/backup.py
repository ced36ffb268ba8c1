"""Backs a directory or file up: what is new becomes layers, what is known is referenced, and one tag makes it visible.

Order is the whole safety of it: layers, index, config, manifest, tag, ``latest``. Until the manifest is there, nobody
sees anything; a backup that is killed leaves blobs that nothing references, and the next one goes on from them.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import platform
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from holdfast.archive.chunks import CHUNKER, ChunkMap
from holdfast.archive.frames import LAYER_BYTES, Layer, LayerWriter, layer_target
from holdfast.archive.metadata import kind_of
from holdfast.archive.pack import Packer, Vanished
from holdfast.archive.pages import IndexBlob, IndexWriter
from holdfast.archive.scan import Found, Rules, open_root, scan
from holdfast.config import DEFAULT_LEVEL
from holdfast.errors import DamageError, HoldfastError, NotFoundError, SourceError, Unavailable
from holdfast.model.digest import Digest
from holdfast.model.names import LATEST, SourceName, Tag
from holdfast.model.oci import MANIFEST_TYPE, Descriptor, Manifest
from holdfast.model.snapshot import (
    ARTIFACT_TYPE,
    CONFIG_TYPE,
    CREATED,
    FORMAT_VERSION,
    INDEX_HEADER,
    INDEX_TYPE,
    RECORD,
    RECORD_SIZE,
    SOURCE,
    Counts,
    Entry,
    IndexHeader,
    IndexRow,
    LayerRow,
    LeftOut,
    PageRow,
    PathError,
    SnapshotConfig,
    SourceInfo,
    shown,
    weight,
)
from holdfast.progress import Progress
from holdfast.storage.cache import Cache
from holdfast.storage.store import Store
from holdfast.volumes.budget import Budget
from holdfast.volumes.parent import Merge, find_parent, is_unchanged, layers_to_drop, machine_id, time_after
from holdfast.volumes.snapshots import Snapshot
from holdfast.volumes.unfinished import Note, Notes

_UPLOADS = 2
_COMPRESSORS = max(2, os.cpu_count() or 2)
_CHECKERS = 16
_TELL_EVERY = 256
_MOST_ERRORS = 1000


@dataclass(frozen=True, slots=True)
class Source:
    """What to back up: the user's name for it, and the path where it is read.

    ``opened`` is a descriptor of that directory, or of the one that the file is in, for who must be sure that it is the
    directory that was looked at. It stays the caller's.
    """

    name: SourceName
    path: bytes
    kind: Literal["directory", "file", "volume"] = "directory"
    opened: int | None = None

    def open_folder(self) -> int:
        """Open the directory, or the one that the file is in.

        :raises SourceError: it cannot be opened.
        """
        if self.opened is not None:
            return open_root(f"/proc/self/fd/{self.opened}".encode())
        return open_root(os.path.dirname(self.path) if self.kind == "file" else self.path)

    @classmethod
    def of_path(cls, path: bytes, name: SourceName | None = None) -> Source:
        """Take a directory or file of this machine, through a symlink if the user names one.

        :raises NotFoundError: there is nothing.
        :raises SourceError: it is neither directory nor file, or cannot be reached.
        """
        named = name or SourceName.of_path(path)
        try:
            real = os.path.realpath(path)
            mode = os.stat(real).st_mode
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no {os.fsdecode(path)!r} to back up") from error
        except OSError as error:
            raise SourceError(f"cannot read {os.fsdecode(path)!r}: {error.strerror}") from error
        if stat.S_ISDIR(mode):
            return cls(named, real, "directory")
        if stat.S_ISREG(mode):
            return cls(named, real, "file")
        raise SourceError(f"{os.fsdecode(path)!r} is neither a directory nor a file")


@dataclass(frozen=True, slots=True)
class Options:
    """How to back up. ``level`` is zstd's (1 to 19), or None to leave the archives uncompressed."""

    rules: Rules = field(default_factory=Rules)
    level: int | None = DEFAULT_LEVEL


@dataclass(frozen=True, slots=True)
class Done:
    """A backup that is in the store."""

    name: SourceName
    tag: Tag
    digest: Digest
    config: SnapshotConfig
    changed: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every path could be read."""
        return not self.config.errors

    def told(self) -> dict[str, object]:
        """Give what commands and faces tell of it, as plain values."""
        counts = self.config.counts
        return {
            "name": str(self.name),
            "tag": self.tag.name,
            "digest": str(self.digest),
            "files": counts.files,
            "directories": counts.directories,
            "others": counts.others,
            "bytes": counts.bytes,
            "bytes_read": counts.bytes_read,
            "bytes_new": counts.bytes_new,
            "bytes_stored": counts.bytes_stored,
            "seconds": counts.seconds,
            "complete": self.complete,
            "errors_total": counts.errors,
            "errors": [{"path": failed.path, "reason": failed.reason} for failed in self.config.errors],
            "changed": list(self.changed),
        }


def back_up(
    store: Store, cache: Cache, source: Source, *, options: Options | None = None, progress: Progress | None = None
) -> Done:
    """Back a source up and return what is in the store now.

    Memory does not grow with the size of a file: besides the three layers on their way (docs/adr/0009) and one
    directory's names, about 55 bytes for each chunk that is known or new, up to two million of them.

    :raises SourceError: the source cannot be read at all. Single paths that cannot be are noted in the config instead.
    :raises BucketError: the store fails; it is as it was before, but for blobs that the next backup will find.
    """
    options = options or Options()
    progress = progress or Progress()
    if not store.bucket.prepare_for_writing():
        progress.warn(
            f"{store} does not honour conditional writes: of two writers of one key the later wins, unnoticed"
        )
    parent = find_parent(store, cache, source.name, progress)
    lost: set[str] = set()
    for _ in range(3):
        run = _Run(store, cache, source, options, progress, parent, lost)
        try:
            return run.back_up()
        except DamageError as error:
            if parent is None:
                raise
            progress.warn(f"the snapshot before is damaged, so everything is stored anew: {error}")
            parent = None
        except _BlobsLost as error:
            lost |= error.digests
            if parent is not None and any(row.digest in lost for row in parent.header_as_parent().indexes):
                parent = None
            progress.warn(f"{len(error.digests)} blobs of the snapshot before are gone; what they held is stored again")
        finally:
            run.stop()
    raise Unavailable(
        f"blobs keep vanishing from {store} while they are in use", hint="is another program deleting them?"
    )


class _BlobsLost(Exception):
    """Blobs that the new snapshot would reference are not in the store any more."""

    def __init__(self, digests: set[str]) -> None:
        super().__init__()
        self.digests = digests


class _Run:
    """One attempt at a backup, from the first path to the tag."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        source: Source,
        options: Options,
        progress: Progress,
        parent: Snapshot | None,
        lost: set[str],
    ) -> None:
        self._store = store
        self._cache = cache
        self._source = source
        self._repository = source.name.repository
        self._options = options
        self._progress = progress
        self._parent = parent
        self._began = time.monotonic()
        self._created = time_after(parent)
        self._errors: list[PathError] = []
        self._errors_count = 0
        self._bare = 0
        self._compressors = ThreadPoolExecutor(_COMPRESSORS, "compress")
        self._uploaders = ThreadPoolExecutor(_UPLOADS, "upload")
        self._uploads: list[Future[None]] = []
        self._uploading = Budget(_UPLOADS * LAYER_BYTES)
        self._stored = 0
        self._files = 0
        self._folders = 0
        self._others = 0
        self._bytes = 0
        self._parent_pages: dict[bytes, PageRow] = {}
        self._fresh: dict[int, tuple[LayerRow, Descriptor]] = {}

        rows = [row for row, _ in parent.layers.values()] if parent else []
        bare = parent.config.counts.bare if parent else 0
        gone = {row.id for row in rows if row.digest in lost}
        self._dropped = layers_to_drop(rows, bare, layer_target(len(rows))) | gone
        self._old = {id_: pair for id_, pair in (parent.layers if parent else {}).items() if id_ not in self._dropped}
        self._live = {id_: row.live_bytes for id_, (row, _) in self._old.items()}
        first_id = max((row.id for row in rows), default=-1) + 1

        self._notes = Notes(cache, store, source.name)
        self._noted: dict[int, Note] = {}
        for note in self._notes.read():
            if note.layer.digest not in lost:
                self._noted[first_id] = note
                first_id += 1
        self._known = ChunkMap(self._known_records)
        self._layers = LayerWriter(
            level=options.level,
            pool=self._compressors,
            close=self._close_layer,
            first_id=first_id,
            layers=len(self._old),
        )
        self._packer = Packer(self._layers, self._known, self._tell, self._report)
        self._index = IndexWriter(
            known=parent.header_as_parent() if parent else None,
            spill=self._put_index,
            keep=lambda name, data: cache.put(name.hex(), data),
            pool=self._compressors,
        )

    def back_up(self) -> Done:
        for entry in self._entries():
            self._index.add(entry)
            if entry.kind == "f":
                self._files += 1
                self._bytes += entry.size
                self._bare += not entry.size
                if self._files % _TELL_EVERY == 0:
                    self._tell()
            elif entry.kind == "d":
                self._folders += 1
            elif entry.kind != "+":
                self._others += 1
        self._tell()
        if self._source.kind == "file" and not self._files:
            reason = self._errors[0].reason if self._errors else "it vanished"
            raise SourceError(f"cannot read {shown(self._source.path)!r}: {reason}")
        self._layers.flush()
        for upload in self._uploads:
            upload.result()
        return self._commit()

    def stop(self) -> None:
        """End the threads; what they still wait to do is dropped."""
        self._compressors.shutdown(wait=False, cancel_futures=True)
        self._uploaders.shutdown(wait=False, cancel_futures=True)
        # They hold most of the memory and know this run in turn: it must not wait for a collector of such circles.
        del self._packer, self._layers, self._index, self._known

    # What the source holds, against what the parent held

    def _entries(self) -> Iterator[Entry]:
        if self._parent is None:
            for found in self._found():
                yield from self._packed(found)
            return
        parent = Merge(self._parent.entries(), self._forget)
        for found in self._found():
            old, status = parent.at(found.path), found.status
            if old is not None and status is not None and is_unchanged(old, status, self._packer.first_name(status)):
                kept = parent.keep()
                if not self._dropped or all(map(self._is_there, kept)):
                    self._packer.keep_name(found.path, status)
                    yield from kept
                    continue
                for entry in kept:
                    self._forget(entry)
            yield from self._packed(found)
        parent.end()

    def _packed(self, found: Found) -> Iterable[Entry]:
        try:
            try:
                return self._packer.pack(found)
            except Vanished:
                return self._packed_as_it_is_now(found)
        except OSError as error:
            self._report(found.path, error)
            return ()

    def _packed_as_it_is_now(self, found: Found) -> Iterable[Entry]:
        """Look once more at a path that was something else, or gone, when it was to be read."""
        try:
            found.status = os.stat(found.name, dir_fd=found.folder, follow_symlinks=False)
        except FileNotFoundError:
            return ()
        if kind_of(found.status.st_mode) in (None, "d"):  # a directory's content is not in this walk
            raise OSError(errno.EAGAIN, "it became something else while it was read")
        try:
            return self._packer.pack(found)
        except Vanished as error:
            raise OSError(errno.EAGAIN, "it keeps becoming something else") from error

    def _found(self) -> Iterator[Found]:
        if self._source.kind == "file":
            yield from single_file(self._source)
            return
        root = self._source.open_folder()
        try:
            yield from scan(root, self._options.rules, self._report, stat_files=self._parent is not None)
        finally:
            os.close(root)

    def _is_there(self, old: Entry) -> bool:
        """Whether no chunk of an entry lies in a layer that is left behind."""
        return all(layer not in self._dropped for _, layer, _, _ in RECORD.iter_unpack(old.chunks))

    def _forget(self, old: Entry) -> None:
        """Take the references of an entry that is gone or changed off its layers."""
        for _, layer, _, length in RECORD.iter_unpack(old.chunks):
            if layer in self._live:
                self._live[layer] -= weight(length)

    def _known_records(self) -> Iterator[bytes]:
        """Give the chunks that need not be stored again: the parent's, and those an unfinished backup left."""
        if self._parent is not None:
            for chunks in self._parent.records():
                for at in range(0, len(chunks), RECORD_SIZE):
                    record = chunks[at : at + RECORD_SIZE]
                    if RECORD.unpack(record)[1] in self._old:
                        yield record
        for id_, note in self._noted.items():
            for name, _, offset, length in RECORD.iter_unpack(note.records):
                yield RECORD.pack(name, id_, offset, length)

    def _tell(self) -> None:
        self._progress.bytes_done = self._bytes + self._packer.packed.position
        self._progress.files_done = self._files

    def _report(self, path: bytes, error: OSError) -> None:
        self._errors_count += 1
        if len(self._errors) < _MOST_ERRORS:
            self._errors.append(PathError(shown(path), error.strerror or type(error).__name__))

    # Into the store

    def _close_layer(self, layer: Layer) -> None:
        done = [upload for upload in self._uploads if upload.done()]
        for upload in done:
            upload.result()
            self._uploads.remove(upload)
        self._uploading.take(layer.tar_bytes)
        self._uploads.append(self._uploaders.submit(self._put_layer, layer))
        self._uploading.wait()

    def _put_layer(self, layer: Layer) -> None:
        try:
            digest = layer.seal()
            descriptor = Descriptor(layer.media_type, str(digest), layer.size)
            sent = self._put_blob(digest, layer.parts)
            layer.parts.clear()
            self._fresh[layer.id] = (LayerRow(layer.id, str(digest), layer.tar_bytes, layer.live_bytes), descriptor)
            self._notes.add(Note(descriptor, layer.tar_bytes, bytes(layer.records)))
            self._progress.advance(stored=sent)
        finally:
            self._uploading.give_back(layer.tar_bytes)

    def _put_blob(self, digest: Digest, parts: bytes | list[bytes]) -> int:
        # With no parent to trust, a blob of the same name may be the very one that was found damaged.
        sent = self._store.put_blob(self._repository, digest, parts, rewrite=self._parent is None)
        self._stored += sent
        return sent

    def _put_index(self, blob: IndexBlob) -> IndexRow:
        digest = _digest_of(blob.parts)
        self._put_blob(digest, blob.parts)
        return IndexRow(str(digest), blob.pages_start, blob.size)

    def _commit(self) -> Done:
        missing = self._layers.ids - self._fresh.keys()
        if missing:
            raise HoldfastError(f"{len(missing)} layers were not stored: nothing was committed, run it again")
        rows, descriptors = self._layer_table()
        blob = self._index.finish(rows, self._reread)
        header = blob.header
        self._check_there([*descriptors, *self._older_indexes(header)])
        index = Descriptor(
            INDEX_TYPE,
            str(_digest_of(blob.parts)),
            blob.size,
            {INDEX_HEADER: f"{blob.header_length}:{blob.header_name.hex()}"},
        )
        self._put_blob(Digest.parse(index.digest), blob.parts)
        config = self._config()
        config_data = msgspec.json.encode(config)
        config_digest = Digest.of(config_data)
        self._put_blob(config_digest, config_data)
        manifest = Manifest(
            schema_version=2,
            media_type=MANIFEST_TYPE,
            artifact_type=ARTIFACT_TYPE,
            config=Descriptor(CONFIG_TYPE, str(config_digest), len(config_data)),
            layers=[index, *self._older_indexes(header), *descriptors],
            annotations={CREATED: config.created, SOURCE: shown(self._source.name.name)},
        )
        digest = self._store.put_manifest(self._repository, manifest.encode())
        tag = Tag.of_snapshot(self._created, digest.hex)
        self._store.set_tag(self._repository, tag, digest)
        self._store.set_tag(self._repository, LATEST, digest)
        self._notes.clear()
        self._cache.trim()
        return Done(self._source.name, tag, digest, config, tuple(map(shown, self._packer.packed.changed)))

    def _layer_table(self) -> tuple[list[LayerRow], list[Descriptor]]:
        """Give the rows of all the layers that the snapshot needs, by id, and their descriptors in the same order."""
        reused = self._packer.packed.reused
        table = dict(self._fresh)
        for id_, note in self._noted.items():
            if reused[id_]:
                table[id_] = (LayerRow(id_, note.layer.digest, note.tar_bytes, 0), note.layer)
        for id_, (row, descriptor) in self._old.items():
            table[id_] = (LayerRow(id_, row.digest, row.tar_bytes, self._live[id_]), descriptor)
        for id_, (row, _) in table.items():
            row.live_bytes = max(row.live_bytes + reused[id_], 0)
        ordered = [table[id_] for id_ in sorted(table)]
        return [row for row, _ in ordered], _without_repeats([descriptor for _, descriptor in ordered])

    def _older_indexes(self, header: IndexHeader) -> list[Descriptor]:
        return [Descriptor(INDEX_TYPE, row.digest, row.size) for row in header.indexes[1:]]

    def _check_there(self, descriptors: list[Descriptor]) -> None:
        """Make sure that every blob which this run did not write is still in the store, whole.

        :raises _BlobsLost: some are not.
        """
        fresh = {descriptor.digest for _, descriptor in self._fresh.values()}
        others = [descriptor for descriptor in descriptors if descriptor.digest not in fresh]
        with ThreadPoolExecutor(_CHECKERS, "check") as pool:
            sizes = pool.map(lambda descriptor: self._store.blob_size(descriptor.parsed()), others)
            lost = {d.digest for d, size in zip(others, sizes, strict=True) if size != d.size}
        if lost:
            raise _BlobsLost(lost)

    def _reread(self, row: PageRow) -> bytes:
        assert self._parent is not None  # noqa: S101 - only a parent's pages are ever written again
        if row.blake3 not in self._parent_pages:
            self._parent_pages.update({page.blake3: page for page in self._parent.header.pages})
        return self._parent.page(self._parent_pages[row.blake3])

    def _config(self) -> SnapshotConfig:
        packed = self._packer.packed
        rules = self._options.rules
        name = self._source.name.name
        shown_name = shown(name)
        return SnapshotConfig(
            format=FORMAT_VERSION,
            created=self._created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            source=SourceInfo(
                kind=self._source.kind,
                name=shown_name,
                path=shown(self._source.path),
                name_base64=None if shown_name.encode() == name else base64.b64encode(name).decode(),
            ),
            host=platform.node(),
            machine_id=machine_id(),
            parent=str(self._parent.digest) if self._parent else None,
            compression={"algorithm": "none"}
            if self._options.level is None
            else {"algorithm": "zstd", "level": self._options.level},
            chunker=CHUNKER,
            counts=Counts(
                files=self._files,
                directories=self._folders,
                others=self._others,
                bare=self._bare + self._folders + self._others,
                errors=self._errors_count,
                bytes=self._bytes,
                bytes_read=packed.bytes_read,
                bytes_new=packed.bytes_new,
                bytes_stored=self._stored,
                seconds=round(time.monotonic() - self._began, 3),
            ),
            left_out=LeftOut([shown(os.fsencode(glob)) for glob in rules.exclude], rules.caches, rules.one_file_system),
            errors=self._errors,
        )


def single_file(source: Source) -> Iterator[Found]:
    """Give the one file of a source that is a file. Its directory stays open until the next is asked for."""
    path = source.path
    folder = source.open_folder()
    name = os.path.basename(path)
    try:
        yield Found(name, os.fsdecode(name), folder, os.stat(name, dir_fd=folder, follow_symlinks=False))
    except OSError as error:
        raise SourceError(f"cannot read {os.fsdecode(path)!r}: {error.strerror}") from error
    finally:
        os.close(folder)


def _digest_of(parts: list[bytes]) -> Digest:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return Digest("sha256", hashed.hexdigest())


def _without_repeats(descriptors: list[Descriptor]) -> list[Descriptor]:
    return list({descriptor.digest: descriptor for descriptor in descriptors}.values())
