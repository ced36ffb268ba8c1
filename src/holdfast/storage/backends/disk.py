"""A bucket in a directory of this machine, as durable as an object store.

An object is written under a temporary name, synced, and renamed (or linked, for a conditional write); then its folder
is synced. A crash leaves at most a temporary file, in a folder of their own that listings never show.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO

import msgspec

from holdfast.errors import AccessDenied, AlreadyExists, BucketError, BucketFull, ObjectNotFound, Unavailable
from holdfast.model.urls import BucketUrl
from holdfast.storage.bucket import Bucket, Data, Label, ObjectInfo, ObjectStream

_TEMPORARY = ".holdfast-tmp"
_MOST_REMEMBERED = 4096
_STALE_S = 24 * 3600
_PIECE_BYTES = 1024 * 1024
_LABEL = "user.holdfast.label"
_HINT_BOTH = "a directory cannot hold an object and others below it; an object store can, and layout registry"
_MOST_BUFFERS = 512  # below IOV_MAX (1024) on every system


class DiskBucket(Bucket):
    """Objects are files below a directory; keys are their relative paths."""

    def __init__(self, url: BucketUrl) -> None:
        self.url = url
        self._root = url.directory
        self._synced: set[str] = set()
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes | Sequence[Data]) -> None:
        with self._translated(key), self._temporary([_buffers(data)]) as temporary:
            path = self._path(key)
            self._make_folders(os.path.dirname(path))
            os.replace(temporary, path)
            _sync_folder(os.path.dirname(path))

    def _put_stream(self, key: str, data: Iterator[Data], label: Label, part_bytes: int) -> str:  # noqa: ARG002 - a disk knows no parts
        with self._translated(key), self._temporary(([piece] for piece in data), label) as temporary:
            path = self._path(key)
            etag = _etag(os.stat(temporary))
            self._make_folders(os.path.dirname(path))
            try:
                os.replace(temporary, path)
            except IsADirectoryError as error:
                raise BucketError(
                    f"cannot store {self._named(key)}: other objects lie below that key",
                    hint=_HINT_BOTH,
                ) from error
            _sync_folder(os.path.dirname(path))
        return etag

    def open_stream(self, key: str) -> ObjectStream:
        with self._translated(key), self._opened(key) as file:
            status = os.fstat(file.fileno())
            label = _read_label(file.fileno())
        return ObjectStream(status.st_size, _etag(status), label, self._pieces(key, status))

    def _pieces(self, key: str, status: os.stat_result) -> Iterator[Data]:
        with self._translated(key):
            file = self._opened(key)
        with file:
            left = status.st_size
            if _etag(os.fstat(file.fileno())) != _etag(status):
                raise Unavailable(f"{self._named(key)} was replaced meanwhile", hint="nothing was lost, run it again")
            while left:
                with self._translated(key):
                    piece = file.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise Unavailable(f"{self._named(key)} ends before its size")
                left -= len(piece)
                yield piece

    def _opened(self, key: str) -> FileIO:
        try:
            return open(self._path(key), "rb", buffering=0)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ENAMETOOLONG):  # there are objects below that key, or cannot be any
                raise ObjectNotFound(f"there is no {self._named(key)}") from error
            raise

    def create(self, key: str, data: bytes) -> None:
        with self._translated(key), self._temporary([[data]]) as temporary:
            path = self._path(key)
            self._make_folders(os.path.dirname(path))
            os.link(temporary, path)
            _sync_folder(os.path.dirname(path))

    def get(self, key: str, *, limit: int) -> bytes:
        with self._translated(key), open(self._path(key), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise BucketError(f"{self._named(key)} is larger than {limit} bytes")
        return data

    def get_range(self, key: str, offset: int, length: int) -> Data:
        with self._translated(key), self._opened(key) as file:
            return os.pread(file.fileno(), length, offset)

    def size(self, key: str) -> int | None:
        with self._translated(key):
            try:
                return os.stat(self._path(key)).st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        folders, objects = self.names(prefix)
        base = f"{prefix}/" if prefix else ""
        for name in objects:
            size = self.size(base + name)
            if size is not None:
                yield ObjectInfo(base + name, size)
        for name in folders:
            yield from self.objects(base + name)

    def names(self, prefix: str) -> tuple[list[str], list[str]]:
        folders: list[str] = []
        objects: list[str] = []
        with self._translated(prefix):
            try:
                with os.scandir(self._path(prefix)) as entries:
                    for entry in entries:
                        if entry.name != _TEMPORARY:
                            (folders if entry.is_dir(follow_symlinks=False) else objects).append(entry.name)
            except (FileNotFoundError, NotADirectoryError):
                return [], []
        return sorted(folders), sorted(objects)

    def delete(self, key: str) -> None:
        with self._translated(key), suppress(FileNotFoundError):
            path = self._path(key)
            os.unlink(path)
            _sync_folder(os.path.dirname(path))

    def exists(self) -> bool:
        return os.path.isdir(self._root)

    def make(self) -> None:
        with self._lock:
            self._synced.clear()  # somebody may have removed it
        with self._translated(""):
            self._make_folders(self._root)

    def make_if_missing(self) -> None:
        super().make_if_missing()
        self._remove_stale()

    def prepare_for_writing(self) -> bool:
        honours = super().prepare_for_writing()
        self._remove_stale()
        return honours

    def _path(self, key: str) -> str:
        parts = key.split("/") if key else []
        if any(part in ("", ".", "..", _TEMPORARY) or "\0" in part for part in parts):
            raise BucketError(f"not a key: {key!r}")
        return os.path.join(self._root, *parts)

    @contextmanager
    def _temporary(self, batches: Iterable[Sequence[Data]], label: Label | None = None) -> Iterator[str]:
        """Write ``batches`` of buffers to a synced temporary file; it is gone afterwards unless it was renamed."""
        folder = os.path.join(self._root, _TEMPORARY)
        self._make_folders(folder)
        path = os.path.join(folder, uuid.uuid4().hex)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                for batch in batches:
                    _write_all(descriptor, batch)
                if label is not None:
                    _write_label(descriptor, label)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            yield path
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _make_folders(self, folder: str) -> None:
        """Create a folder and its parents, each synced into its own parent."""
        if folder in self._synced:
            return
        if not os.path.isdir(folder):
            parent = os.path.dirname(folder)
            self._make_folders(parent)
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                if not os.path.isdir(folder):
                    reason = f"cannot store in {self.url}: {folder!r} is no directory"
                    raise BucketError(reason, hint=_HINT_BOTH) from None
            _sync_folder(parent)
        with self._lock:
            if len(self._synced) > _MOST_REMEMBERED:
                self._synced.clear()
            self._synced.add(folder)

    def _remove_stale(self) -> None:
        """Remove what killed writers left, once it is surely no living writer's."""
        folder = os.path.join(self._root, _TEMPORARY)
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.stat().st_mtime < time.time() - _STALE_S:
                    os.unlink(entry.path)

    def _named(self, key: str) -> str:
        return f"{key!r} in {self.url}" if key else str(self.url)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectNotFound(f"there is no {self._named(key)}") from error
        except FileExistsError as error:
            raise AlreadyExists(f"{self._named(key)} exists already") from error
        except PermissionError as error:
            raise AccessDenied(f"no permission for {self._named(key)}: {error.strerror}") from error
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise BucketError(f"a name in {self._named(key)} is too long for its file system") from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise BucketFull(
                    f"no space left for {self._named(key)}", hint="free some space on the disk that holds the store"
                ) from error
            raise Unavailable(f"cannot reach {self._named(key)}: {error.strerror}") from error


def _buffers(data: bytes | Sequence[Data]) -> Sequence[Data]:
    return [data] if isinstance(data, bytes) else data


def _write_label(descriptor: int, label: Label) -> None:
    """Keep a label beside the bytes, where the file system can: what reads the object must do without as well."""
    with suppress(OSError):
        os.setxattr(descriptor, _LABEL, msgspec.json.encode(label))


def _read_label(descriptor: int) -> Label:
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(os.getxattr(descriptor, _LABEL), type=Label)
    return Label("")


def _etag(status: os.stat_result) -> str:
    """Give what tells one version of a file from the next."""
    return f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"'


def _write_all(descriptor: int, buffers: Sequence[Data]) -> None:
    pending = [memoryview(buffer) for buffer in buffers if len(buffer)]
    start = 0
    while start < len(pending):
        written = os.writev(descriptor, pending[start : start + _MOST_BUFFERS])
        while written:
            if written < len(pending[start]):
                pending[start] = pending[start][written:]
                break
            written -= len(pending[start])
            start += 1


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
