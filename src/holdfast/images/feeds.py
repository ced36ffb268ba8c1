"""Layers on their way to engines: each read from the bucket once, however many engines want it.

One engine gets what is read as it comes. For several, it goes into a file from which each engine takes at its own pace:
a slow one holds up nobody.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import BinaryIO

from holdfast.archive.blobs import Data, unpacked
from holdfast.errors import DamageError, HoldfastError, Unavailable
from holdfast.images.catalog import StoredLayer
from holdfast.images.spool import Spool

_PIECE_BYTES = 1024 * 1024

Opened = tuple[int, Iterator[Data]]
"""How many bytes come, and the bytes."""


def open_directly(layer: StoredLayer, pieces: Iterator[Data], spool: Spool, *, raw: bool) -> Opened:
    """Give a layer that is being read to the one who wants it; ``raw`` is uncompressed.

    Where a blob does not say how large it is uncompressed, that is found out first, by way of a file.
    """
    if not raw:
        return layer.size, pieces
    stated = layer.raw_size()
    if stated is not None:
        return stated, _as_long_as(unpacked_layer(layer, pieces), stated, layer)
    shared = SharedLayer(spool, readers=1, what=f"layer {layer.digest}")
    shared.fill(unpacked_layer(layer, pieces))
    try:
        size, opened = shared.open()
    except HoldfastError:
        shared.leave()
        raise
    return size, _left_after(opened, shared)


def unpacked_layer(layer: StoredLayer, pieces: Iterator[Data]) -> Iterator[Data]:
    """Open a layer; an error names it."""
    try:
        yield from unpacked(pieces)
    except DamageError as error:
        if str(layer.digest) in str(error):
            raise
        raise DamageError(f"layer {layer.digest}: {error}") from error


def _left_after(pieces: Iterator[Data], shared: SharedLayer) -> Iterator[Data]:
    try:
        yield from pieces
    finally:
        shared.leave()


def _as_long_as(pieces: Iterator[Data], size: int, layer: StoredLayer) -> Iterator[Data]:
    left = size
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left:
        raise DamageError(f"layer {layer.digest} is not of the {size} bytes that it states to be uncompressed")


class SharedLayer:
    """What one writes and several read, each at its own pace, behind the writer. It is gone once all have read it.

    ``size`` is how much will come, None if that is not known before the end.
    """

    def __init__(self, spool: Spool, *, readers: int, size: int | None = None, what: str = "a layer") -> None:
        self._spool = spool
        self._readers = readers
        self._what = what
        self._size = size
        self._written = 0
        self._ended = False
        self._error: HoldfastError | None = None
        self._file: BinaryIO | None = None
        self._changed = threading.Condition()

    def fill(self, pieces: Iterator[Data]) -> HoldfastError | None:
        """Write all of it. What goes wrong is told to the readers; it is returned, not raised."""
        try:
            with self._spool.translated():
                self._write(pieces)
            if self._size not in (None, self._written) and self._readers:
                raise DamageError(f"{self._what} is not of the {self._size} bytes that it states")
            self._end(None)
        except HoldfastError as error:
            self._end(error)
        return self._error

    def abandon(self, reason: HoldfastError | None = None) -> None:
        """Tell the readers that no more will come, if it has not all come yet, and why."""
        if not self._ended:
            self._end(reason or Unavailable(f"{self._what} was not read to its end"))

    def open(self) -> Opened:
        """Read it once; waits until its size is known."""
        with self._changed:
            self._changed.wait_for(lambda: self._size is not None or self._ended)
            if self._error is not None:
                raise self._error
            size = self._size or 0
        return size, self._pieces(size)

    def leave(self) -> None:
        """Say that one reader less wants it."""
        with self._changed:
            self._readers -= 1
            self._close_unless_wanted()

    def _write(self, pieces: Iterator[Data]) -> None:
        self._file = self._spool.open()
        for piece in pieces:
            if not self._readers:
                return
            self._file.write(piece)
            self._file.flush()
            with self._changed:
                self._written += len(piece)
                self._changed.notify_all()

    def _end(self, error: HoldfastError | None) -> None:
        with self._changed:
            self._error = error
            self._ended = True
            if error is None:
                self._size = self._written
            self._changed.notify_all()
            self._close_unless_wanted()

    def _close_unless_wanted(self) -> None:
        if self._readers <= 0 and self._ended and self._file is not None:
            self._file.close()

    def _pieces(self, size: int) -> Iterator[Data]:
        at = 0
        while at < size:
            most = min(self._wait_beyond(at), _PIECE_BYTES)
            piece = os.pread(self._descriptor(), most, at)
            at += len(piece)
            yield piece
        with self._changed:  # all may be here before its digest is found to be wrong
            self._changed.wait_for(lambda: self._ended)
            if self._error is not None:
                raise self._error

    def _wait_beyond(self, at: int) -> int:
        """Wait until there is more than ``at`` bytes; give how much more."""
        with self._changed:
            self._changed.wait_for(lambda: self._written > at or self._ended)
            if self._written <= at:
                raise self._error or DamageError(f"{self._what} ends too early")
            return self._written - at

    def _descriptor(self) -> int:
        if self._file is None:
            raise ValueError("nothing was written")
        return self._file.fileno()
