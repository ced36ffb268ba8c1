"""The layout ``tarball``: one object for each path, a tar of a directory or of one file, gzipped or not.

It is micro-s3-persistence's own layout. Its older generation labelled objects differently, and kept a single file as it
was; objects that somebody uploaded by hand have no label at all. All of them are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from holdfast.errors import ObjectNotFound, Unavailable, UsageError
from holdfast.model.snapshot import is_safe, shown
from holdfast.storage.bucket import Bucket, Data, Label, ObjectStream

TAR_TYPE = "application/x-tar"
GZIPPED_TAR_TYPE = "application/x-gtar"
_GZIPPED_TYPES = (GZIPPED_TAR_TYPE, "application/x-gzip", "application/gzip")
_DEL = 0x7F
_LONGEST_KEY = 1024  # in bytes; S3 refuses what is longer

Body = Literal["tar", "raw", "unknown"]


@dataclass(frozen=True, slots=True)
class Tarball:
    """An object of this layout.

    ``size`` is in bytes, as stored. ``body`` is what its label says it holds: a ``tar``, a file's ``raw`` bytes, or
    ``unknown`` where it has no label; ``is_directory`` and ``is_compressed`` are None where the label does not say.
    """

    key: str
    size: int
    etag: str
    body: Body
    is_directory: bool | None
    is_compressed: bool | None


def key_of(path: bytes) -> str:
    """Give the key of an absolute path (or of a volume's name): the path itself, without the slashes at its ends.

    :raises UsageError: no object can be called that: the root, names with control characters or not in UTF-8, and paths
        of more than 1,024 bytes.
    """
    try:
        key = path.strip(b"/").decode()
    except UnicodeDecodeError:
        key = ""
    is_text = not any(ord(letter) < ord(" ") or ord(letter) == _DEL for letter in key)
    if not key or not is_text or not is_safe(path.strip(b"/")) or len(key.encode()) > _LONGEST_KEY:
        raise UsageError(
            f"{shown(path)!r} cannot be the name of an object", hint="use the layout registry for it, it takes any path"
        )
    return key


def keys_of(path: bytes) -> list[str]:
    """Give the keys that a path's object may have, the right one first.

    The others are the path as it stands in a URL: the old program took it from there as it was.
    """
    bare = path.strip(b"/")
    if not bare or not is_safe(bare):
        return []
    keys = [quote(bare, safe="/!$&'()*+,;=:@"), quote(bare, safe="/")]
    with suppress(UsageError):
        keys.insert(0, key_of(path))
    return [key for key in dict.fromkeys(keys) if len(key.encode()) <= _LONGEST_KEY]


def find(bucket: Bucket, path: bytes) -> Tarball | None:
    """Find the object of a path, or give None.

    :raises BucketError: the bucket cannot be asked; :class:`ObjectNotFound` is no error here.
    """
    for key in keys_of(path):
        try:
            return _tarball(key, bucket.open_stream(key))
        except ObjectNotFound:
            continue
    return None


def open_tarball(bucket: Bucket, tarball: Tarball) -> Iterator[Data]:
    """Read the bytes of a tarball that was found, as they are stored.

    :raises Unavailable: it is another one now, or cannot be read on.
    """
    try:
        opened = bucket.open_stream(tarball.key)
    except ObjectNotFound as error:
        raise _replaced(tarball, bucket) from error
    if (opened.etag, opened.size) != (tarball.etag, tarball.size):
        raise _replaced(tarball, bucket)
    return opened.pieces


def put(
    bucket: Bucket, key: str, data: Iterator[Data], *, is_directory: bool, is_compressed: bool, expected_bytes: int = 0
) -> str:
    """Store a tarball with the label that the old program gave it, and give its ETag. See :meth:`Bucket.put_stream`."""
    label = Label(
        GZIPPED_TAR_TYPE if is_compressed else TAR_TYPE,
        {"isdirectory": _said(is_directory), "iscompressed": _said(is_compressed)},
    )
    return bucket.put_stream(key, data, label, expected_bytes=expected_bytes)


def _tarball(key: str, found: ObjectStream) -> Tarball:
    label = found.label
    is_directory = _read(label, "isdirectory")
    if is_directory is not None:
        return Tarball(key, found.size, found.etag, "tar", is_directory, _read(label, "iscompressed"))
    is_directory = _read(label, "directory")
    if is_directory is None:
        return Tarball(key, found.size, found.etag, "unknown", None, None)
    is_compressed = _read(label, "compressed")
    if is_compressed is None:
        is_compressed = label.content_type in _GZIPPED_TYPES
    return Tarball(key, found.size, found.etag, "tar" if is_directory else "raw", is_directory, is_compressed)


def _replaced(tarball: Tarball, bucket: Bucket) -> Unavailable:
    return Unavailable(f"{tarball.key!r} in {bucket.url} was replaced meanwhile", hint="run it again")


def _said(value: bool) -> str:  # noqa: FBT001 - one value, in words
    return "true" if value else "false"


def _read(label: Label, name: str) -> bool | None:
    return {"true": True, "false": False}.get(label.metadata.get(name, "").lower())
