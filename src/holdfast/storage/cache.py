"""What this machine remembers of a bucket: pages and headers by their BLAKE3, notes of unfinished backups.

Everything here can be deleted at any moment, by anybody; it costs time, never data. Nothing read from it is trusted
before its hash was checked, and a cache that cannot be written is no error.
"""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

_UNUSED_S = 30 * 24 * 3600
_TRIM_EVERY_S = 24 * 3600


class Cache:
    """Small immutable pieces by name, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_user(cls) -> Cache:
        """Give the cache in ``$XDG_CACHE_HOME/holdfast``."""
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return cls(Path(base) / "holdfast")

    def get(self, name: str) -> bytes | None:
        """Read a piece, whose hash the caller checks; None if it is not here."""
        try:
            with open(self._path(name), "rb") as file:
                return file.read()
        except OSError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Keep a piece; other processes see it whole or not at all."""
        path = self._path(name)
        temporary = f"{path}.{uuid.uuid4().hex}"
        try:
            try:
                _write(temporary, data)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                _write(temporary, data)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)

    def notes(self, name: str) -> Path:
        """Give the folder of notes that backups of one source in one bucket leave for each other."""
        return self.folder / "unfinished" / name

    def trim(self) -> None:
        """Once a day, remove what has not been written for thirty days."""
        marker = self.folder / "trimmed"
        with suppress(OSError):
            if marker.exists() and marker.stat().st_mtime > time.time() - _TRIM_EVERY_S:
                return
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            marker.touch()
            for folder, _, names in os.walk(self.folder):
                for name in names:
                    path = os.path.join(folder, name)
                    with suppress(OSError):
                        if os.stat(path).st_mtime < time.time() - _UNUSED_S:
                            os.unlink(path)

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, "pieces", name[:2], name)


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
