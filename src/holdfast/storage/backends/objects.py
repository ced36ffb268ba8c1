"""Buckets in an object store, by obstore: what they have in common, Google Cloud Storage, Azure, and memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from holdfast.errors import (
    AccessDenied,
    AlreadyExists,
    BucketError,
    ObjectNotFound,
    Unavailable,
    UsageError,
)
from holdfast.model.urls import BucketUrl
from holdfast.storage.bucket import PROBE_KEY, Bucket, Data, Label, ObjectInfo, ObjectStream, Readers

# About 20 s of retries with nothing listening.
RETRIES: Any = {
    "max_retries": 8,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}

_CONTENT_TYPE = "Content-Type"
_PARTS_AT_ONCE = 2
_PIECE_BYTES = 4 * 1024 * 1024
_READ_ATTEMPTS = 3

_memory_stores: dict[str, Any] = {}
_memory_lock = threading.Lock()


def open_object_bucket(url: BucketUrl) -> Bucket:
    """Give the bucket of a ``gs``, ``az`` or ``memory`` URL."""
    if url.scheme == "memory":
        return ObjectBucket(url, _memory_store(url.bucket))
    return ObjectBucket(url, _passed_through(url))


def _memory_store(name: str) -> Any:
    with _memory_lock:
        if name not in _memory_stores:
            _memory_stores[name] = obstore.store.MemoryStore()
        return _memory_stores[name]


def _passed_through(url: BucketUrl) -> Any:
    """Open gs:// and az:// as obstore does, credentials from their own environment variables."""
    options = {name: value for name, value in url.options if name not in ("create", "layout")}
    try:
        return obstore.store.from_url(f"{url.scheme}://{url.bucket}", retry_config=RETRIES, **options)  # type: ignore[call-overload]
    except (BaseError, ValueError, TypeError) as error:
        raise UsageError(f"cannot open {url}: {first_line(error)}") from error


class ObjectBucket(Bucket):
    """A bucket behind an obstore store."""

    def __init__(self, url: BucketUrl, store: Any) -> None:
        self.url = url
        self._store = store
        self._base = f"{url.prefix}/" if url.prefix else ""

    def put(self, key: str, data: bytes | Sequence[Data]) -> None:
        with self._translated(key):
            obstore.put(self._store, self._base + key, data, use_multipart=False)

    def _put_stream(self, key: str, data: Iterator[Data], label: Label, part_bytes: int) -> str:
        begin: list[Data] = []
        size = 0
        for piece in data:
            begin.append(bytes(piece))  # its maker may use the buffer again
            size += len(piece)
            if size >= part_bytes:
                break
        with self._translated(key):
            done = obstore.put(
                self._store,
                self._base + key,
                chain(begin, data),
                attributes={_CONTENT_TYPE: label.content_type, **label.metadata},
                use_multipart=size >= part_bytes,  # what fits into one part needs none
                chunk_size=part_bytes,
                max_concurrency=_PARTS_AT_ONCE,
            )
        return done["e_tag"] or ""

    def open_stream(self, key: str) -> ObjectStream:
        with self._translated(key):
            found = obstore.get(self._store, self._base + key, options={"head": True})
        attributes = {str(name): value for name, value in found.attributes.items()}
        label = Label(
            attributes.get(_CONTENT_TYPE, ""),
            {name.lower(): value for name, value in attributes.items() if name != _CONTENT_TYPE},
        )
        size, etag = found.meta["size"], found.meta["e_tag"] or ""
        return ObjectStream(size, etag, label, self._pieces(key, size, etag))

    def _pieces(self, key: str, size: int, etag: str) -> Iterator[Data]:
        """Read an object range by range, the next one while its reader is busy with this one.

        One long answer would be cut off by a server that tires of a slow reader.
        """
        with Readers(1, "read") as pool:
            coming = [pool.submit(self._piece, key, 0, min(size, _PIECE_BYTES), etag)] if size else []
            for start in range(0, size, _PIECE_BYTES):
                piece = coming.pop().result()
                after = start + _PIECE_BYTES
                if after < size:
                    coming.append(pool.submit(self._piece, key, after, min(size - after, _PIECE_BYTES), etag))
                yield piece

    def _piece(self, key: str, start: int, length: int, etag: str) -> Data:
        """Read one range of one version of an object, again where it does not come whole."""
        options: Any = {"range": (start, start + length)} | ({"if_match": etag} if etag else {})
        reason: Exception | None = None
        for _ in range(_READ_ATTEMPTS):
            try:
                with self._translated(key):
                    found = obstore.get(self._store, self._base + key, options=options)
            except (AlreadyExists, ObjectNotFound) as error:
                raise Unavailable(
                    f"{self._named(key)} was replaced while it was read", hint="nothing was lost, run it again"
                ) from error
            try:
                with self._translated(key):
                    piece = memoryview(found.bytes())
            except Unavailable as error:  # only this: obstore tries a request again by itself, not always its body
                reason = error
                continue
            if len(piece) == length:
                return piece
        raise Unavailable(f"{self._named(key)} does not come whole", hint="nothing was lost, run it again") from reason

    def create(self, key: str, data: bytes) -> None:
        with self._translated(key):
            obstore.put(self._store, self._base + key, data, mode="create")

    def get(self, key: str, *, limit: int) -> bytes:
        with self._translated(key):
            result = obstore.get(self._store, self._base + key)
            if result.meta["size"] > limit:
                raise BucketError(f"{self._named(key)} is larger than {limit} bytes")
            return bytes(result.bytes())

    def get_range(self, key: str, offset: int, length: int) -> Data:
        if length == 0:
            return b""
        try:
            with self._translated(key):
                return memoryview(obstore.get_range(self._store, self._base + key, start=offset, length=length))
        except Unavailable:
            size = self.size(key)  # a range behind the end is refused like any other failure: look whether it is one
            if size is not None and offset >= size:
                return b""
            raise

    def size(self, key: str) -> int | None:
        try:
            with self._translated(key):
                return int(obstore.head(self._store, self._base + key)["size"])
        except ObjectNotFound:
            return None

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._translated(prefix, listing=True):
            for page in obstore.list(self._store, prefix=(self._base + prefix).rstrip("/") or None):
                for item in page:
                    yield ObjectInfo(item["path"][len(self._base) :], item["size"])

    def names(self, prefix: str) -> tuple[list[str], list[str]]:
        with self._translated(prefix, listing=True):
            found = obstore.list_with_delimiter(self._store, prefix=(self._base + prefix).rstrip("/") or None)
        folders = sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])
        return folders, sorted(item["path"].rpartition("/")[2] for item in found["objects"])

    def delete(self, key: str) -> None:
        try:
            with self._translated(key):
                obstore.delete(self._store, self._base + key)
        except ObjectNotFound:
            return

    def exists(self) -> bool:
        try:
            with self._translated("", listing=True):
                next(iter(obstore.list(self._store, prefix=self._base + "holdfast", chunk_size=1)), None)
        except ObjectNotFound:
            return False
        return True

    def make(self) -> None:
        raise ObjectNotFound(f"there is no bucket {self.url}", hint="create it with the provider's own tools")

    def _named(self, key: str) -> str:
        return f"{key!r} in {self.url}" if key else str(self.url)

    @contextmanager
    def _translated(self, key: str, *, listing: bool = False) -> Iterator[None]:
        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            raise ObjectNotFound(f"there is no {self._named(key)}") from error
        except (AlreadyExistsError, PreconditionError) as error:
            raise AlreadyExists(f"{self._named(key)} exists already") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._denied() from error
        except BaseError as error:
            raise self._unlisted(error) if listing else self._unavailable(key, error) from error
        except ValueError as error:
            raise BucketError(f"no object can be named {self._named(key)}") from error

    def _denied(self) -> AccessDenied:
        if self.url.flag("anonymous", default=False):
            return AccessDenied(f"{self.url} is not open to everybody", hint="leave anonymous=true out of the URL")
        return AccessDenied(
            f"the object store refused access to {self.url}",
            hint="check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, profile or role), "
            "and what they may do in this bucket",
        )

    def _unavailable(self, key: str, error: Exception) -> Unavailable:
        return Unavailable(
            f"the object store did not serve {self._named(key)}: {first_line(error)}",
            hint="check the endpoint, the region and the network; nothing was lost, run it again",
        )

    def _unlisted(self, error: Exception) -> BucketError:
        """Find out why a listing failed: obstore reports every such failure alike, a HEAD it tells apart."""
        try:
            obstore.head(self._store, self._base + PROBE_KEY)
        except (NotFoundError, FileNotFoundError):
            return ObjectNotFound(f"there is no bucket {self.url}", hint="check its name, the endpoint and the region")
        except (PermissionDeniedError, UnauthenticatedError):
            return self._denied()
        except BaseError as second:
            return self._unavailable("", second)
        return self._unavailable("", error)


def first_line(error: Exception) -> str:
    """Shorten a third party's message to the part behind its URL, timings and XML body."""
    line = str(error).partition("\n")[0]
    return line.rpartition(" - ")[2].partition(": <")[0].strip()[:300]
