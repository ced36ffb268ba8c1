"""Saves and restores in the layout ``tarball``: one object for a path, read and written as one stream.

A restore writes each file beside its place and renames it. What the archive does not have is deleted last, once the
archive was read to its end without an error: before, nothing that was there is ever missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from holdfast.archive import gzip
from holdfast.archive.scan import Rules, estimate, scan
from holdfast.archive.treetar import TreeTar, Written
from holdfast.archive.untar import Untar, is_header
from holdfast.errors import DamageError, SourceError, TargetError, UsageError
from holdfast.model.names import SourceName
from holdfast.model.snapshot import PathError, shown
from holdfast.progress import Progress
from holdfast.storage import tarballs
from holdfast.storage.bucket import Bucket, Data
from holdfast.volumes.backup import Source, single_file
from holdfast.volumes.clearing import lock_target
from holdfast.volumes.receiving import Receiver
from holdfast.volumes.restore import Options, Restored

_MOST_ERRORS = 1000
_HEADER_BYTES = 1024  # of a member, with its padding, roughly
_LOOK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Saved:
    """A tarball that is in the bucket. ``stored_bytes`` is its size there; ``errors`` are paths not whole in it."""

    name: SourceName
    key: str
    etag: str
    is_directory: bool
    is_compressed: bool
    counts: Written
    stored_bytes: int
    errors: tuple[PathError, ...]
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every path could be read."""
        return not self.errors

    def told(self) -> dict[str, object]:
        """Give what commands and faces tell of it, as plain values."""
        return {
            "name": str(self.name),
            "key": self.key,
            "files": self.counts.files,
            "directories": self.counts.directories,
            "others": self.counts.others,
            "bytes": self.counts.bytes,
            "bytes_stored": self.stored_bytes,
            "seconds": self.seconds,
            "complete": self.complete,
            "errors": [{"path": error.path, "reason": error.reason} for error in self.errors],
        }


@dataclass(frozen=True, slots=True)
class Tarball:
    """An object of the layout that was found: of which path, in which bucket, and what it holds.

    ``size`` is in bytes, as stored. A ``raw`` one is the file itself, with no tar around it.
    """

    name: SourceName
    bucket: Bucket
    found: tarballs.Tarball
    is_directory: bool
    is_compressed: bool
    is_raw: bool

    @property
    def key(self) -> str:
        """The object's key."""
        return self.found.key

    @property
    def size(self) -> int:
        """Its size in bytes, as it is stored."""
        return self.found.size

    @property
    def etag(self) -> str:
        """Its ETag."""
        return self.found.etag

    def contents(self) -> Iterator[Data]:
        """Read it from its beginning, decompressed.

        :raises Unavailable: the bucket fails, or has another object under this key now.
        :raises DamageError: it is no whole gzip stream.
        """
        stored = tarballs.open_tarball(self.bucket, self.found)
        return gzip.decompressed(stored) if self.is_compressed else stored


def save_tarball(
    bucket: Bucket,
    source: Source,
    *,
    compress: bool = True,
    rules: Rules | None = None,
    progress: Progress | None = None,
) -> Saved:
    """Save a directory or file as one object, over the one that was there.

    Memory does not grow with the source, but for the first name of each file that has several: besides it, some parts
    of an upload (see :meth:`Bucket.put_stream`).

    :raises UsageError: the path cannot be the name of an object.
    :raises SourceError: the source cannot be read at all. Single paths that cannot be are noted in ``errors`` instead.
    :raises BucketError: the bucket fails; what was there is there still.
    """
    began = time.monotonic()
    key = tarballs.key_of(source.name.name)
    bucket.make_if_missing()
    saving = _Saving(source, rules or Rules(), progress or Progress())
    is_directory = source.kind != "file"
    etag = tarballs.put(
        bucket,
        key,
        saving.stream(compress=compress),
        is_directory=is_directory,
        is_compressed=compress,
        expected_bytes=saving.expected_bytes,
    )
    seconds = round(time.monotonic() - began, 3)
    return Saved(
        source.name,
        key,
        etag,
        is_directory,
        compress,
        saving.tar.written,
        saving.stored_bytes,
        tuple(saving.errors),
        seconds,
    )


class _Saving:
    """A source on its way into a tarball."""

    def __init__(self, source: Source, rules: Rules, progress: Progress) -> None:
        self._source = source
        self._rules = rules
        self._progress = progress
        self.errors: list[PathError] = []
        self._report = _noting(self.errors)
        self.tar = TreeTar(self._report)
        self.stored_bytes = 0
        files, size = self._estimate()
        self.expected_bytes = size + files * _HEADER_BYTES
        progress.bytes_total, progress.files_total = self.expected_bytes, files

    def stream(self, *, compress: bool) -> Iterator[Data]:
        plain = self._folder() if self._source.kind != "file" else self._file()
        for piece in gzip.compressed(self._counted(plain)) if compress else self._counted(plain):
            self.stored_bytes += len(piece)
            self._progress.advance(stored=len(piece))
            yield piece

    def _estimate(self) -> tuple[int, int]:
        opened = self._source.opened
        path = self._source.path if opened is None else f"/proc/self/fd/{opened}".encode()
        if self._source.kind != "file":
            return estimate(path)
        for found in single_file(self._source):
            return 1, found.status.st_size if found.status is not None else 0
        return 1, 0

    def _folder(self) -> Iterator[Data]:
        root = self._source.open_folder()
        try:
            yield from self.tar.stream(scan(root, self._rules, self._report, stat_files=False))
        finally:
            os.close(root)

    def _file(self) -> Iterator[Data]:
        yield from self.tar.stream(single_file(self._source))
        if not self.tar.written.files:
            reason = self.errors[0].reason if self.errors else "it vanished"
            raise SourceError(f"cannot read {shown(self._source.path)!r}: {reason}")

    def _counted(self, plain: Iterator[Data]) -> Iterator[Data]:
        for piece in plain:
            self._progress.advance(size=len(piece))
            self._progress.files_done = self.tar.written.files
            yield piece


def _noting(errors: list[PathError]) -> Callable[[bytes, OSError], None]:
    """Give what notes errors. No method of who holds the buffers: they would be let go of by the collector only."""

    def note(path: bytes, error: OSError) -> None:
        if len(errors) < _MOST_ERRORS:
            errors.append(PathError(shown(path), error.strerror or type(error).__name__))

    return note


def find_tarball(bucket: Bucket, name: SourceName) -> Tarball | None:
    """Find the object of a path, whoever made it, or give None.

    What its label does not say is read off its first bytes; whether a tar is compressed, always. Only a file that was
    kept as it was is compressed or not as its label says: it may be a gzip file itself.

    :raises BucketError: the bucket cannot be read.
    """
    found = tarballs.find(bucket, name.name)
    if found is None:
        return None
    head = bytes(bucket.get_range(found.key, 0, min(found.size, _LOOK_BYTES)))
    is_gzip = head.startswith(gzip.MAGIC)
    if found.body == "raw":
        return Tarball(
            name, bucket, found, is_directory=False, is_compressed=is_gzip and bool(found.is_compressed), is_raw=True
        )
    if found.body == "tar":
        return Tarball(name, bucket, found, bool(found.is_directory), is_compressed=is_gzip, is_raw=False)
    plain = _opened_as_far_as_it_goes(head) if is_gzip else head
    if not is_header(plain):
        return Tarball(name, bucket, found, is_directory=False, is_compressed=False, is_raw=True)
    is_directory = not _begins_with_file(plain, os.path.basename(name.name.rstrip(b"/")))
    return Tarball(name, bucket, found, is_directory, is_compressed=is_gzip, is_raw=False)


def _opened_as_far_as_it_goes(head: bytes) -> bytes:
    plain = bytearray()
    with suppress(DamageError):
        for piece in gzip.decompressed(iter([head])):
            plain += piece
            if len(plain) >= _LOOK_BYTES:
                break
    return bytes(plain)


def _begins_with_file(plain: bytes, name: bytes) -> bool:
    """Whether an archive that nobody labelled begins with a file called as the path: then it is that file."""
    with suppress(DamageError):
        for entry in Untar(iter([plain])).members():
            return entry.kind == "f" and entry.path == name
    return False


def restore_tarball(
    tarball: Tarball,
    options: Options,
    file_name: bytes | None = None,
    exclude: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Restored:
    """Restore a tarball into a directory; that of a single file into the directory that the file goes into.

    ``file_name`` is what a single file is called there, its own name if it is not given: no other file is touched then.
    ``exclude`` are the patterns of what saves leave out: an archive does not say it, and it must not be deleted.
    ``options.verify`` changes nothing, for all is written anew. Memory: the archive's names, and its directories.

    :raises TargetError: the target cannot be written; :class:`NoSpaceError` where it is full.
    :raises DamageError: the archive is damaged, or holds what must not be restored. Nothing was deleted, and what was
        restored until then stays.
    :raises BucketError: the bucket fails; as above.
    :raises UsageError: ``options`` ask for what one stream cannot give.
    """
    if options.paths or options.dry_run:
        raise UsageError(f"{tarball.name} is kept as a tarball, which can only be restored whole")
    target = _target(tarball, options)
    root = options.open_root(target)
    if root is None:
        raise TargetError(f"there is no directory {shown(target)!r} any more")
    name = file_name or os.path.basename(tarball.name.name.rstrip(b"/"))
    try:
        lock_target(root, target, single_file=not tarball.is_directory)
        merges = options.mode == "merge" or not tarball.is_directory
        receiver = Receiver(root, target, options.spare, progress or Progress(), exclude=exclude, merges=merges)
        with receiver:
            _receive(tarball, receiver, name)
    except DamageError as error:
        what = f"{tarball.key!r} in {tarball.bucket.url} is damaged: {error}"
        raise DamageError(what, hint=error.hint, paths=error.paths) from error
    else:
        return receiver.result
    finally:
        os.close(root)


def _receive(tarball: Tarball, receiver: Receiver, file_name: bytes) -> None:
    if tarball.is_raw:
        receiver.write(receiver.like_the_one_before(file_name), tarball.contents())
        return
    archive = Untar(tarball.contents())
    if tarball.is_directory:
        for entry in archive.members():
            receiver.receive(entry, archive.contents(entry))
        receiver.replace_all(archive.names)
        return
    for number, entry in enumerate(archive.members()):
        if entry.kind != "f" or number:
            raise DamageError(
                f"it holds {shown(entry.path)!r}, where it should hold a single file",
                hint="nothing was deleted; look at the archive with tar",
            )
        entry.path = file_name
        receiver.write(entry, archive.contents(entry))


def _target(tarball: Tarball, options: Options) -> bytes:
    if options.target is not None:
        return options.target if options.opened is not None else os.path.realpath(options.target)
    if not tarball.name.is_path:
        raise UsageError(f"{tarball.name} is no path of this machine", hint="say where to restore it with --target DIR")
    path = os.path.realpath(tarball.name.name)
    return path if tarball.is_directory else os.path.dirname(path)
