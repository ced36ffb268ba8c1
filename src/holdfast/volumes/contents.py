"""Reads file contents out of a snapshot's layers: which frame holds a chunk, and that frame's bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from holdfast.archive.chunks import chunk_name
from holdfast.archive.frames import TABLE_TAIL, FrameTable
from holdfast.errors import DamageError
from holdfast.model.digest import Digest
from holdfast.model.oci import LAYER_TYPE, ZSTD_LAYER_TYPE, Descriptor
from holdfast.model.snapshot import HOLE_LAYER, RECORD, Entry, shown
from holdfast.volumes.snapshots import Snapshot

_TABLES_AHEAD = 8
_FRAMES_KEPT = 8
_ZEROS = bytes(1024 * 1024)


class Chunk(NamedTuple):
    """A chunk as an entry's record states it; ``layer`` HOLE_LAYER stands for a hole of ``offset`` bytes."""

    name: bytes
    layer: int
    offset: int
    length: int


class Contents:
    """The layers of one snapshot, by frames. Safe to use from many threads."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._store = snapshot.store
        self._layers = snapshot.layers
        self._order = sorted(snapshot.layers)
        self._tables: dict[int, Future[FrameTable]] = {}
        self._ready: dict[int, FrameTable] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_TABLES_AHEAD, "tables")

    def close(self) -> None:
        """End the threads that read ahead."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def locate(self, chunk: Chunk) -> int:
        """Give the number of the frame that holds a chunk.

        :raises DamageError: the index names a layer or a place that does not exist, or the layer is damaged.
        """
        try:
            return self._table(chunk.layer).find(chunk.offset, chunk.length)
        except DamageError as error:
            raise DamageError(f"blob {self.blob(chunk.layer)}: {error}") from error

    def read(self, layer: int, frame: int) -> tuple[int, memoryview]:
        """Fetch and open a frame: the offset in the tar stream where it begins, and its bytes (at most 5 MiB).

        :raises DamageError: the blob is missing, cut short, or cannot be opened. What is in it is not checked yet.
        """
        table = self._table(layer)
        extent = table.extent(frame)
        blob = self.blob(layer)
        try:
            data = self._store.read_blob_range(blob, extent.blob_offset, extent.blob_length)
            return extent.tar_offset, memoryview(table.open(frame, data))
        except DamageError as error:
            raise DamageError(f"blob {blob}: {error}") from error

    def blob(self, layer: int) -> Digest:
        """Give a layer's digest.

        :raises DamageError: the index names a layer that the snapshot does not have.
        """
        return self._descriptor(layer).parsed()

    def stream(self, entries: list[Entry]) -> Iterator[bytes | memoryview]:
        """Give a file's contents from its first to its last byte, in pieces of at most 1 MiB, each checked."""
        kept: OrderedDict[tuple[int, int], tuple[int, memoryview]] = OrderedDict()
        for chunk in chunks_of(entries):
            if chunk.layer == HOLE_LAYER:
                left = chunk.offset
                while left:
                    yield _ZEROS[: min(left, len(_ZEROS))]
                    left -= min(left, len(_ZEROS))
                continue
            key = (chunk.layer, self.locate(chunk))
            if key not in kept:
                kept[key] = self.read(*key)
                if len(kept) > _FRAMES_KEPT:
                    kept.popitem(last=False)
            start, data = kept[key]
            piece = data[chunk.offset - start : chunk.offset - start + chunk.length]
            if chunk_name(piece) != chunk.name:
                raise DamageError(
                    f"blob {self.blob(chunk.layer)} is altered: {shown(entries[0].path)!r} is not what was backed up",
                    paths=(entries[0].path,),
                )
            yield piece

    def _descriptor(self, layer: int) -> Descriptor:
        try:
            return self._layers[layer][1]
        except KeyError as error:
            raise DamageError(f"the index names layer {layer}, which the snapshot does not have") from error

    def _table(self, layer: int) -> FrameTable:
        ready = self._ready.get(layer)
        if ready is None:
            ready = self._ready[layer] = self._awaited(layer)
        return ready

    def _awaited(self, layer: int) -> FrameTable:
        future = self._tables.get(layer)
        if future is None:
            self._descriptor(layer)
            with self._lock:
                at = self._order.index(layer)
                for ahead in self._order[at : at + _TABLES_AHEAD]:
                    if ahead not in self._tables:
                        self._tables[ahead] = self._pool.submit(self._read_table, ahead)
            future = self._tables[layer]
        return future.result()

    def _read_table(self, layer: int) -> FrameTable:
        _, descriptor = self._layers[layer]
        if descriptor.media_type == LAYER_TYPE:
            return FrameTable.of_plain(descriptor.size)
        if descriptor.media_type != ZSTD_LAYER_TYPE:
            raise DamageError(f"layer {descriptor.digest} has the unknown media type {descriptor.media_type!r}")
        length = min(TABLE_TAIL, descriptor.size)
        tail = self._store.read_blob_range(descriptor.parsed(), descriptor.size - length, length)
        return FrameTable.of_tail(tail, descriptor.size)


def chunks_of(entries: list[Entry]) -> Iterator[Chunk]:
    """Give the chunks of a file: its entry and those in which it goes on.

    :raises DamageError: they do not add up to the file's size.
    """
    first = entries[0]
    position = 0
    for entry in entries:
        if entry.kind == "+" and entry.size != position:
            raise DamageError(
                f"the index is malformed at {shown(first.path)!r}: a part of it is missing", paths=(first.path,)
            )
        for record in RECORD.iter_unpack(entry.chunks):
            chunk = Chunk._make(record)
            position += chunk.offset if chunk.layer == HOLE_LAYER else chunk.length
            if position > first.size:
                raise _wrong_size(first)
            yield chunk
    if position != first.size:
        raise _wrong_size(first)


def _wrong_size(file: Entry) -> DamageError:
    path = shown(file.path)
    return DamageError(f"the index is malformed: the chunks of {path!r} do not add up to its size", paths=(file.path,))


def grouped(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    """Put each entry together with the ``+`` entries in which it goes on."""
    group: list[Entry] = []
    for entry in entries:
        if entry.kind != "+" and group:
            yield group
            group = []
        group.append(entry)
    if group:
        yield group
