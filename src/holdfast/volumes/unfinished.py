"""Notes of layers that a backup has stored, for the next backup of the source should this one not come to its end.

A note is worth something only until its backup commits. Notes are local, checked, and safe to lose.
"""

from __future__ import annotations

import os
import struct
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress

import msgspec
from blake3 import blake3

from holdfast.model.names import SourceName
from holdfast.model.oci import Descriptor
from holdfast.storage.cache import Cache
from holdfast.storage.store import Store

_FRAME = struct.Struct("<I32s")
_LARGEST_NOTE = 256 * 1024 * 1024


class Note(msgspec.Struct, array_like=True):
    """A layer in the store: its descriptor, its tar bytes, and its chunks as packed records."""

    layer: Descriptor
    tar_bytes: int
    records: bytes


class Notes:
    """The notes of one source in one store."""

    def __init__(self, cache: Cache, store: Store, name: SourceName) -> None:
        key = blake3(f"{store}\0".encode() + name.name).hexdigest()[:32]
        self._folder = cache.notes(key)
        self._path = self._folder / uuid.uuid4().hex
        self._read: list[str] = []
        self._lock = threading.Lock()

    def read(self) -> Iterator[Note]:
        """Give what earlier backups left, whole notes only."""
        with suppress(OSError):
            self._read = [os.path.join(self._folder, name) for name in sorted(os.listdir(self._folder))]
        for path in self._read:
            with suppress(OSError):
                yield from _notes(path)

    def add(self, note: Note) -> None:
        """Note a layer that is in the store now."""
        data = msgspec.msgpack.encode(note)
        with suppress(OSError), self._lock:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self._path, "ab") as file:
                file.write(_FRAME.pack(len(data), blake3(data).digest()) + data)

    def clear(self) -> None:
        """Remove what was read and what was added: the backup is committed."""
        for path in [*self._read, str(self._path)]:
            with suppress(OSError):
                os.unlink(path)
        with suppress(OSError):
            self._folder.rmdir()


def _notes(path: str) -> Iterator[Note]:
    with open(path, "rb") as file:
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            length, name = _FRAME.unpack(head)
            data = file.read(min(length, _LARGEST_NOTE))
            if len(data) != length or blake3(data).digest() != name:
                return
            with suppress(msgspec.MsgspecError):
                yield msgspec.msgpack.decode(data, type=Note)
