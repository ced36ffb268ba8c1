"""Takes a tree as it comes, member by member, into a directory that may hold another: nothing is lost on the way.

A file is written beside its place and renamed there, but straight into a directory that is new. What has to go is moved
aside, or stays, until everything came.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from holdfast.archive.extract import Tree, is_temporary, temporary_name
from holdfast.archive.scan import matcher
from holdfast.model.snapshot import Entry, PathError, shown
from holdfast.progress import Progress
from holdfast.storage.bucket import Data
from holdfast.volumes.clearing import Clearing
from holdfast.volumes.restore import Restored
from holdfast.volumes.writing import Failures

_FILE_MODE = 0o644
_FOLDER_MODE = 0o755


class Receiver:
    """One restore of a stream: a context, which is left with an error where not everything came.

    Leaving it does what must come last: hard links, deletions (if nothing failed), the directories' metadata. With an
    error, or where single paths failed, nothing is deleted, and what was moved aside is back in its place.
    Memory: the names of directories, and the entries of directories and hard links.
    """

    def __init__(
        self,
        root: int,
        target: bytes,
        spare: tuple[bytes, ...],
        progress: Progress,
        *,
        exclude: tuple[str, ...] = (),
        merges: bool,
    ) -> None:
        """``root`` is the open target, and stays the caller's. ``spare`` and ``merges`` are as in :class:`Clearing`.

        ``exclude`` are the patterns of what was left out of the stream, and so must not be deleted: it does not say it.
        """
        self.result = Restored(shown(target))
        self._progress = progress
        self._merges = merges
        self._tree = Tree(root, progress.warn)
        self._clearing = Clearing(self._tree, target, spare, _left_out(exclude), merges=merges)
        self._failures = Failures(target)
        self._began = time.monotonic()
        self._names: Mapping[bytes, str] | None = None
        self._ready = {b""}
        self._new: set[bytes] = set()
        self._folders: dict[bytes, Entry] = {}
        self._links: dict[bytes, Entry] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
            else:
                self._clearing.put_back(undo=True)
        finally:
            self._tree.close()

    def receive(self, entry: Entry, contents: Iterator[Data]) -> None:
        """Take one member; ``contents`` are those of a file. One that came before is replaced.

        :raises TargetError: nothing more can be written, the disk being full for one.
        """
        self._links.pop(entry.path, None)
        if entry.kind == "f":
            self.write(entry, contents)
        elif entry.kind == "h":
            self._links[entry.path] = entry  # in the end: its file may come once more
        elif entry.kind == "d":
            self.result.folders += 1
            self._try(entry.path, self._make_folder, entry)
        else:
            self.result.others += 1
            self._try(entry.path, self._make_other, entry)

    def write(self, entry: Entry, contents: Iterator[Data]) -> None:
        """Take one file, whose size may not be known before its end.

        :raises TargetError: as in :meth:`receive`.
        """
        self.result.written += 1
        self._try(entry.path, self._write_file, entry, contents)

    def replace_all(self, names: Mapping[bytes, str]) -> None:
        """Say that all came: what is not among these names is surplus."""
        self._names = names

    def like_the_one_before(self, name: bytes) -> Entry:
        """Give the entry of a file that comes without metadata: it takes over those of the file that it replaces."""
        mode, user, group = _FILE_MODE, os.geteuid(), os.getegid()
        status = self._tree.status(name)
        if status is not None and stat.S_ISREG(status.st_mode):
            mode, user, group = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        return Entry(name, "f", mode, user, group, 0, time.time_ns(), 0, 0, None, None, b"")

    # Into the tree

    def _write_file(self, entry: Entry, contents: Iterator[Data]) -> None:
        """Write a file beside its place, and rename it there; in a directory of our own straight into it."""
        above, _, name = entry.path.rpartition(b"/")
        self._make_ready(above)
        beside, descriptor = self._create(entry, above, name)
        try:
            try:
                for piece in contents:
                    _write_all(descriptor, piece)
                    self.result.bytes_written += len(piece)
                    self._progress.advance(size=len(piece))
                self._tree.finish_file(descriptor, entry, in_new_folder=above in self._new)
            finally:
                os.close(descriptor)
            if beside != name:
                self._make_way(entry)
                folder = self._tree.folder(above)
                os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside, dir_fd=self._tree.folder(above))
            raise
        self._progress.advance(files=1)

    def _create(self, entry: Entry, above: bytes, name: bytes) -> tuple[bytes, int]:
        """Create the file of an entry; give what it is called until it is whole, and its descriptor."""
        if above in self._new:
            with suppress(FileExistsError):  # it came before
                return name, self._tree.create(name, self._tree.folder(above), entry)
        beside = temporary_name()
        return beside, self._tree.create(beside, self._tree.folder(above), entry)

    def _make_folder(self, entry: Entry) -> None:
        self._make_ready(entry.path)
        self._folders[entry.path] = entry

    def _make_other(self, entry: Entry) -> None:
        self._make_ready(entry.path.rpartition(b"/")[0])
        self._make_way(entry)
        self._tree.make_other(entry)

    def _make_link(self, entry: Entry) -> None:
        first = entry.target if isinstance(entry.target, bytes) else b""
        self._make_ready(entry.path.rpartition(b"/")[0])
        self._make_way(entry)
        self._tree.make_link(first, entry.path)

    def _make_way(self, entry: Entry) -> None:
        status = self._tree.status(entry.path)
        if status is not None:
            self._clearing.make_way(entry.path, status, for_folder=False)

    def _make_ready(self, path: bytes) -> None:
        """Have directories down to ``path``, new ones where there are none."""
        if path in self._ready:
            return
        missing = [path]
        while (above := missing[-1].rpartition(b"/")[0]) not in self._ready:
            missing.append(above)
        for folder in reversed(missing):
            status = self._tree.status(folder)
            if status is None or not stat.S_ISDIR(status.st_mode):
                if status is not None:
                    self._clearing.make_way(folder, status, for_folder=True)
                self._tree.make_folder(folder)
                self._new.add(folder)
                self._folders[folder] = _unsaid(folder)
            self._ready.add(folder)

    # In the end

    def _finish(self) -> None:
        try:
            for entry in self._links.values():
                self.result.others += 1
                self._try(entry.path, self._make_link, entry)
            if self._names is not None and not self._failures:
                for folder in sorted(self._ready - self._new):
                    self._try(folder, self._find_surplus, folder)
        except BaseException:
            self._clearing.put_back(undo=True)
            raise
        if self._failures:
            self._put_back()
        else:
            for path in self._clearing.surplus:
                self._try(path, self._clearing.remove, path)
        self._set_folders()
        self.result.seconds = round(time.monotonic() - self._began, 3)
        self.result.failed = self._failures.failed

    def _find_surplus(self, folder: bytes) -> None:
        """Find what did not come, in a directory that was there before; while merging, only our own leftovers."""
        assert self._names is not None  # noqa: S101 - asked for only then
        for name in sorted(self._tree.names(folder)):
            path = _join(folder, name)
            if path in self._names or self._clearing.is_aside(path) or (self._merges and not is_temporary(name)):
                continue
            if self._clearing.add(path) and not is_temporary(name):
                self.result.deleted.append(shown(path))

    def _put_back(self) -> None:
        self.result.deleted.clear()
        for path in self._clearing.put_back(undo=True):
            reason = "what stood there stays, for not everything could be restored"
            self._failures.failed.append(PathError(shown(path), reason))

    def _set_folders(self) -> None:
        """Set the directories' metadata, the deepest first, once nothing in them changes any more."""
        for path in sorted(filter(None, self._folders), reverse=True):  # what lies below a path sorts behind it
            self._try(path, self._tree.set_metadata, self._folders[path])
        if self._names is not None and not self._failures:
            self._try(b"", self._tree.remove_mark)
        if b"" in self._folders:
            self._try(b"", self._tree.set_metadata, self._folders[b""])

    def _try(self, path: bytes, step: Callable[..., None], *rest: object) -> None:
        """Do one step; what goes wrong with one path is noted, what goes wrong with all of them is raised."""
        try:
            step(*rest)
        except OSError as error:
            self._failures.note(path, error)


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _left_out(exclude: tuple[str, ...]) -> Callable[[bytes, os.stat_result], bool]:
    """Give what tells which paths a save leaves out: by pattern, or because it cannot read them."""
    is_excluded = matcher(exclude)
    user, groups = os.geteuid(), {os.getegid(), *os.getgroups()}

    def is_left_out(path: bytes, status: os.stat_result) -> bool:
        return is_excluded(path, stat.S_ISDIR(status.st_mode)) or not _is_readable(status, user, groups)

    return is_left_out


def _is_readable(status: os.stat_result, user: int, groups: set[int]) -> bool:
    """Whether a file's owner and mode let a user read it. Of other kinds a save needs only the name."""
    if user == 0 or not stat.S_ISREG(status.st_mode):
        return True
    if status.st_uid == user:
        return bool(status.st_mode & stat.S_IRUSR)
    return bool(status.st_mode & (stat.S_IRGRP if status.st_gid in groups else stat.S_IROTH))


def _unsaid(path: bytes) -> Entry:
    """Give the entry of a directory that nobody described."""
    return Entry(path, "d", _FOLDER_MODE, os.geteuid(), os.getegid(), 0, time.time_ns(), 0, 0, None, None, b"")


def _write_all(descriptor: int, data: Data) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
