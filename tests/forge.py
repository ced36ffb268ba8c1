"""Snapshots made by hand, as an attacker who can write in the bucket would make them."""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from blake3 import blake3

from backups import Rig
from holdfast.archive import pages, tar, zstd
from holdfast.model.digest import Digest
from holdfast.model.names import LATEST, SourceName, Tag
from holdfast.model.oci import MANIFEST_TYPE, ZSTD_LAYER_TYPE, Descriptor, Manifest
from holdfast.model.snapshot import (
    ARTIFACT_TYPE,
    CONFIG_TYPE,
    INDEX_HEADER,
    INDEX_TYPE,
    RECORD,
    Entry,
    IndexHeader,
    IndexRow,
    LayerRow,
    PageRow,
)
from holdfast.storage.store import Store
from holdfast.volumes.snapshots import Snapshot

TAG = Tag("20261120T060501Z-3fa9c1")


def digest_of(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


def entry(path: bytes, kind: str = "f", **given) -> Entry:
    fields = {
        "mode": 0o755 if kind == "d" else 0o644,
        "uid": 0,
        "gid": 0,
        "size": 0,
        "mtime_ns": 1_700_000_000_000_000_000,
        "ctime_ns": 0,
        "inode": 0,
        "target": None,
        "xattrs": None,
        "chunks": b"",
    }
    return Entry(path, kind, **(fields | given))


ROOT = entry(b"", "d")


@dataclass
class LayerMaker:
    """A layer that holds what it is told to; ``rows`` of its seek table may lie."""

    id: int = 0
    frames: list[tuple[bytes, int]] = field(default_factory=list)
    tar_bytes: int = 0
    media_type: str = ZSTD_LAYER_TYPE

    def add(self, content: bytes) -> bytes:
        """Put contents into a frame of their own; gives their record."""
        head = tar.header(b"x", "f", 0o644, 0, 0, len(content), 0)
        member = head + content + tar.padding(len(content))
        record = RECORD.pack(blake3(content).digest(), self.id, self.tar_bytes + len(head), len(content))
        self.frames.append((zstd.compress(member, 3), len(member)))
        self.tar_bytes += len(member)
        return record

    def blob(self) -> bytes:
        body = b"".join(struct.pack("<II", len(frame), size) for frame, size in self.frames)
        body += struct.pack("<IBI", len(self.frames), 0, 0x8F92EAB1)
        table = struct.pack("<II", 0x184D2A5E, len(body)) + body
        return b"".join(frame for frame, _ in self.frames) + table


def page_frame(entries: Iterable[Entry] | bytes) -> tuple[bytes, bytes]:
    """A page's name and its frame; bytes are taken for the page as it is."""
    data = entries if isinstance(entries, bytes) else msgspec.msgpack.encode(list(entries))
    return blake3(data).digest(), zstd.compress(data, 3)


def forge(
    store: Store,
    name: SourceName,
    tree: list[Entry],
    *,
    layers: Iterable[LayerMaker] = (),
    parent: Snapshot | None = None,
    kind: str = "directory",
) -> Digest:
    """Write a snapshot of any entries through the index's own writer, and tag it."""

    def put(blob):
        digest = digest_of(b"".join(blob.parts))
        store.put_blob(name.repository, digest, blob.parts)
        return IndexRow(str(digest), blob.pages_start, blob.size)

    rows, descriptors = put_layers(store, name, layers)
    old = {row.blake3: row for row in parent.header.pages} if parent else {}
    with ThreadPoolExecutor(2) as pool:
        writer = pages.IndexWriter(
            known=parent.header_as_parent() if parent else None, spill=put, keep=lambda _name, _data: None, pool=pool
        )
        writer.check = lambda: None  # what no snapshot may hold is what these are for
        for one in tree:
            writer.add(one)
        blob = writer.finish(rows, lambda row: parent.page(old[row.blake3]))
    index = put(blob)
    annotation = f"{blob.header_length}:{blob.header_name.hex()}"
    older = [Descriptor(INDEX_TYPE, row.digest, row.size) for row in blob.header.indexes[1:]]
    return seal(store, name, index.digest, index.size, annotation, [*older, *descriptors], kind=kind)


def put_layers(store: Store, name: SourceName, layers: Iterable[LayerMaker]) -> tuple[list[LayerRow], list[Descriptor]]:
    rows, descriptors = [], []
    for layer in layers:
        blob = layer.blob()
        digest = digest_of(blob)
        store.put_blob(name.repository, digest, blob)
        rows.append(LayerRow(layer.id, str(digest), layer.tar_bytes, layer.tar_bytes))
        descriptors.append(Descriptor(layer.media_type, str(digest), len(blob)))
    return rows, descriptors


def forge_raw(
    store: Store,
    name: SourceName,
    page_frames: list[tuple[bytes, bytes]],
    *,
    header: IndexHeader | None = None,
    header_frame: bytes | None = None,
    header_data: bytes | None = None,
    layers: Iterable[LayerMaker] = (),
    descriptors: list[Descriptor] | None = None,
) -> Digest:
    """Write a snapshot whose pages' frames, header, or header's frame are just these bytes."""
    rows, own = put_layers(store, name, layers)
    offset, page_rows = 0, []
    for page_name, frame in page_frames:
        page_rows.append(PageRow(b"", page_name, 0, offset, len(frame)))
        offset += len(frame)
    header = header or IndexHeader(rows, [IndexRow("", 0, 0)], page_rows)
    data = header_data if header_data is not None else msgspec.msgpack.encode(header)
    frame = header_frame if header_frame is not None else zstd.compress(data, 3)
    blob = pages.MAGIC + struct.pack("<I", len(frame)) + frame + b"".join(f for _, f in page_frames)
    digest = digest_of(blob)
    store.put_blob(name.repository, digest, blob)
    annotation = f"{len(frame)}:{blake3(data).hexdigest()}"
    return seal(store, name, str(digest), len(blob), annotation, own if descriptors is None else descriptors)


def seal(
    store: Store,
    name: SourceName,
    index: str,
    size: int,
    annotation: str,
    others: list[Descriptor],
    *,
    kind: str = "directory",
    config: bytes | None = None,
) -> Digest:
    """Write config and manifest, and tag them."""
    if config is None:
        config = msgspec.json.encode(plain_config(name, kind))
    config_digest = Digest.of(config)
    store.put_blob(name.repository, config_digest, config)
    manifest = Manifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        artifact_type=ARTIFACT_TYPE,
        config=Descriptor(CONFIG_TYPE, str(config_digest), len(config)),
        layers=[Descriptor(INDEX_TYPE, index, size, {INDEX_HEADER: annotation}), *others],
    )
    digest = store.put_manifest(name.repository, manifest.encode())
    for tag in (TAG, LATEST):
        store.set_tag(name.repository, tag, digest)
    return digest


def plain_config(name: SourceName, kind: str = "directory") -> dict:
    """The config of a backup of nothing, under another name."""
    return _config_of_nothing() | {"source": {"kind": kind, "name": str(name), "path": str(name)}}


@functools.cache
def _config_of_nothing() -> dict:
    with TemporaryDirectory() as folder:
        return msgspec.to_builtins(Rig(Path(folder)).backup().config)
