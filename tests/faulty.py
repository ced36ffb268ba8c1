"""A bucket that goes wrong when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from holdfast.errors import Unavailable
from holdfast.storage.bucket import Bucket, ObjectInfo

WRITES = frozenset({"put", "put_stream", "create", "delete"})
READS = frozenset({"get", "get_range", "open_stream", "piece", "size", "names", "objects", "exists"})
ALL = WRITES | READS


class FaultyBucket(Bucket):
    """Passes every operation on, and fails at the ``at``-th (from 1) of those in ``kinds``.

    ``how``: ``once`` fails that one before it does anything; ``lost`` does it and loses the answer; ``dead`` fails that
    one and whatever comes after; ``short`` gives back one byte less than was asked for.
    ``error`` makes the exception. ``calls`` lists what was asked for, ``hit`` says whether the fault came about.
    """

    def __init__(
        self,
        inner: Bucket,
        *,
        at: int = 0,
        kinds: frozenset[str] = ALL,
        how: str = "once",
        error: Callable[[], BaseException] = lambda: Unavailable("the line is dead"),
        matching: str = "",
    ) -> None:
        self.inner = inner
        self.url = inner.url
        self.at = at
        self.kinds = kinds
        self.how = how
        self.error = error
        self.matching = matching
        self.calls: list[tuple[str, str]] = []
        self.hit = False
        self.sent = 0
        self._count = 0
        self._lock = threading.Lock()

    def _do(self, kind: str, key: str, action):
        with self._lock:
            self.calls.append((kind, key))
            counts = kind in self.kinds and self.matching in key
            self._count += counts
            struck = bool(self.at) and counts and self._count == self.at
            dead = self.how == "dead" and self.hit
            self.hit = self.hit or struck
        if dead or (struck and self.how in ("once", "dead")):
            raise self.error()
        result = action()
        if struck and self.how == "lost":
            raise self.error()
        if struck and self.how == "short" and kind in ("get", "get_range"):
            return result[:-1]
        return result

    def put(self, key, data) -> None:
        self._do("put", key, lambda: self.inner.put(key, data))
        with self._lock:
            self.sent += len(data) if isinstance(data, bytes) else sum(map(len, data))

    def put_stream(self, key, data, label, *, expected_bytes=0) -> str:
        put = self.inner.put_stream
        return self._do("put_stream", key, lambda: put(key, self._sending(data), label, expected_bytes=expected_bytes))

    def _sending(self, data):
        for piece in data:
            with self._lock:
                self.sent += len(piece)
            yield piece

    def _put_stream(self, key, data, label, part_bytes) -> str:
        raise NotImplementedError  # put_stream is passed on whole

    def open_stream(self, key):
        opened = self._do("open_stream", key, lambda: self.inner.open_stream(key))
        return replace(opened, pieces=self._receiving(key, opened.pieces))

    def _receiving(self, key, pieces):
        for piece in pieces:
            yield self._do("piece", key, lambda piece=piece: piece)

    def create(self, key, data) -> None:
        self._do("create", key, lambda: self.inner.create(key, data))

    def get(self, key, *, limit):
        return self._do("get", key, lambda: self.inner.get(key, limit=limit))

    def get_range(self, key, offset, length):
        return self._do("get_range", key, lambda: self.inner.get_range(key, offset, length))

    def size(self, key):
        return self._do("size", key, lambda: self.inner.size(key))

    def objects(self, prefix) -> Iterator[ObjectInfo]:
        yield from self._do("objects", prefix, lambda: self.inner.objects(prefix))

    def names(self, prefix):
        return self._do("names", prefix, lambda: self.inner.names(prefix))

    def delete(self, key) -> None:
        self._do("delete", key, lambda: self.inner.delete(key))

    def exists(self) -> bool:
        return self._do("exists", "", self.inner.exists)

    def make(self) -> None:
        self.inner.make()


def blob_key(digest: str) -> str:
    """Where a blob lies in a bucket."""
    algorithm, _, text = digest.partition(":")
    return f"docker/registry/v2/blobs/{algorithm}/{text[:2]}/{text}/data"


def read(bucket: Bucket, key: str) -> bytes:
    """An object whole."""
    return bucket.get(key, limit=1 << 40)
