"""What several commands share: their options, and how they take stores, names, paths and times."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.config import Settings, read_settings
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.model.urls import BucketUrl
    from holdfast.storage.bucket import Bucket
    from holdfast.storage.cache import Cache
    from holdfast.storage.store import Store
    from holdfast.volumes.snapshots import Snapshot

# The use cases are imported where they are used, so that `holdfast --help` stays fast.
# ruff: noqa: PLC0415


class ProgressStyle(StrEnum):
    """How progress is shown."""

    AUTO = "auto"
    NONE = "none"
    PLAIN = "plain"
    JSON = "json"


StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The store: s3://BUCKET/PREFIX, file:///PATH, gs://, az://. [env: HOLDFAST_STORE]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")]
ProgressOption = Annotated[
    ProgressStyle,
    typer.Option("--progress", help="auto: a bar at a terminal, lines elsewhere; json: NDJSON on stderr."),
]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="What `backup` printed: an absolute path, or the name it was given.")
]
ReferenceArgument = Annotated[
    str, typer.Argument(metavar="NAME[@TAG]", help="A source's name; with @TAG one of its snapshots, else the latest.")
]


def open_store(settings: Settings) -> tuple[Store, Cache]:
    """Open the store that the settings name, and this user's cache."""
    from holdfast.storage.cache import Cache
    from holdfast.storage.store import Store

    return Store(open_lasting(settings.store)), Cache.of_user()


def open_lasting(url: BucketUrl) -> Bucket:
    """Open a bucket that is still there when this process is not."""
    from holdfast.storage.backends import open_bucket

    if url.scheme == "memory":
        raise UsageError("a memory:// store ends with the process", hint="use file:// and a directory")
    return open_bucket(url)


def open_named(store: str | None, reference: str) -> Snapshot:
    """Open the snapshot that a command's arguments name."""
    from holdfast.model.names import SourceName, split_reference
    from holdfast.volumes.snapshots import open_snapshot

    opened, cache = open_store(read_settings(store=store))
    name, tag = split_reference(reference)
    return open_snapshot(opened, cache, SourceName(source_name(name)), tag=tag)


def source_name(text: str) -> bytes:
    """Normalize a path as it was when it was backed up; leave a name as it is."""
    from holdfast.model.names import SourceName

    return (
        SourceName.of_path(os.fsencode(text)).name
        if text.startswith(("/", "./", "../")) or text in (".", "..")
        else os.fsencode(text)
    )


def path_inside(name: bytes, text: str) -> bytes:
    """Take a path in a source as the user writes it: relative to its root, or absolute and below it."""
    path = os.path.normpath(os.fsencode(text))
    if path in (b".", b"/", b"//"):
        return b""
    if name.startswith(b"/"):
        base = name.rstrip(b"/")
        if path == base:
            return b""
        if path.startswith(base + b"/"):
            return path[len(base) + 1 :]
    path = path.lstrip(b"/")
    if path == b".." or path.startswith(b"../"):
        raise UsageError(f"{text!r} leads out of the source")
    return path
