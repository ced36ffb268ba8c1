"""Restores a snapshot, or a part of one, into a directory: only what differs is written, and deletions come last.

One thread walks the index and plans; others fetch frames, check every chunk, and write the files that are in them. What
fails leaves the target as it was, or further on the way to the snapshot: never with less than it had.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from holdfast.archive.chunks import chunk_name
from holdfast.archive.extract import Tree, is_temporary, open_target, target_error
from holdfast.archive.scan import is_cache, matcher
from holdfast.errors import DamageError, UsageError
from holdfast.model.snapshot import HOLE_LAYER, Entry, PathError, shown
from holdfast.progress import Progress
from holdfast.volumes.clearing import Clearing, lock_target
from holdfast.volumes.contents import Contents, chunks_of, grouped
from holdfast.volumes.snapshots import Snapshot, is_below
from holdfast.volumes.writing import Failures, FileWriter

Mode = Literal["replace", "merge"]

_READ_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Options:
    """How to restore.

    ``paths`` are relative to the source's root, empty for all of it. ``spare`` are directories of this machine that are
    not removed with what the snapshot does not have: the store's own, when it lies in the target. Nor is ever removed
    what the backup left out by rule or could not read, a socket, or what another file system holds.

    ``opened`` is a descriptor of the target (for a snapshot of a file: of the directory it goes into), for who must be
    sure that it is the directory that was looked at. It stays the caller's; ``target`` only names it then.
    """

    target: bytes | None = None
    opened: int | None = None
    paths: tuple[bytes, ...] = ()
    mode: Mode = "replace"
    verify: bool = False
    dry_run: bool = False
    spare: tuple[bytes, ...] = ()

    def open_root(self, target: bytes) -> int | None:
        """Open the directory to restore into, made where it is missing; None where a dry run finds none.

        :raises TargetError: it cannot be made or opened, or is no directory.
        """
        if self.opened is not None:
            return open_target(f"/proc/self/fd/{self.opened}".encode(), make=False)
        return open_target(target, make=not self.dry_run)


@dataclass(slots=True)
class Restored:
    """What a restore did, or (``dry_run``) would do. ``deleted`` and ``failed`` are paths relative to the target."""

    target: str
    written: int = 0
    kept: int = 0
    folders: int = 0
    others: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    deleted: list[str] = field(default_factory=list)
    failed: list[PathError] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every path was restored."""
        return not self.failed

    def told(self) -> dict[str, object]:
        """Give what commands and faces tell of it, as plain values."""
        return {
            "target": self.target,
            "written": self.written,
            "kept": self.kept,
            "directories": self.folders,
            "others": self.others,
            "bytes_written": self.bytes_written,
            "deleted": self.deleted,
            "seconds": self.seconds,
            "complete": self.complete,
            "errors": [{"path": failed.path, "reason": failed.reason} for failed in self.failed],
        }


def restore(snapshot: Snapshot, options: Options, progress: Progress | None = None) -> Restored:
    """Restore a snapshot into a directory.

    Memory does not grow with the snapshot: the directories' entries, the hard links, one batch of files
    of contents by reference, and at most a dozen frames of 4 MiB.

    :raises TargetError: the target cannot be written; :class:`NoSpaceError` where it is full.
    :raises DamageError: some paths could not be restored, for what is stored of them is damaged. All others were, and
        nothing was deleted.
    :raises NotFoundError: a path is not in the snapshot.
    """
    target, mode = _target(snapshot, options)
    root = options.open_root(target)
    if root is None:
        return _restore_nowhere(snapshot, options, target)
    try:
        lock_target(root, target, single_file=snapshot.config.source.kind == "file")
        run = _Run(snapshot, options, mode, target, root, progress or Progress())
        try:
            return run.restore()
        finally:
            run.stop()
    finally:
        os.close(root)


def _target(snapshot: Snapshot, options: Options) -> tuple[bytes, Mode]:
    """Say into which directory to restore; beside a single file, nothing is ever deleted."""
    source = snapshot.config.source
    if options.target is not None:
        target = options.target if options.opened is not None else os.path.realpath(options.target)
    elif not snapshot.name.is_path:
        raise UsageError(
            f"{snapshot.name} is no path of this machine", hint="say where to restore it with --target DIR"
        )
    elif snapshot.name.repository != snapshot.repository:
        raise UsageError(
            f"this snapshot in {snapshot.repository} says that it is of {snapshot.name}",
            hint="say where to restore it with --target DIR",
        )
    else:
        target = os.path.realpath(snapshot.name.name)
        if source.kind == "file":
            target = _beside(snapshot, target)
    return target, "merge" if source.kind == "file" else options.mode


def _beside(snapshot: Snapshot, file: bytes) -> bytes:
    """Give the directory of a single file, which must be called as it was: its name may have been a symlink then."""
    entry = next(snapshot.entries(), None)
    if entry is None or entry.path != os.path.basename(file):
        was = shown(entry.path) if entry is not None else "nothing"
        raise UsageError(
            f"{snapshot.name} led to a file called {was!r}", hint="say where to restore it with --target DIR"
        )
    return os.path.dirname(file)


def _restore_nowhere(snapshot: Snapshot, options: Options, target: bytes) -> Restored:
    """Say what a restore into a directory that does not exist yet would do."""
    restored = Restored(shown(target))
    entries = snapshot.select(list(options.paths)) if options.paths else snapshot.entries()
    for entry in entries:
        if entry.kind == "f":
            restored.written += 1
            restored.bytes_written += entry.size
        elif entry.kind == "d":
            restored.folders += 1
        elif entry.kind != "+":
            restored.others += 1
    return restored


@dataclass(slots=True)
class _Folder:
    """A directory on the way down to where the walk is."""

    path: bytes
    is_new: bool
    extras: set[bytes] | None


class _Run:
    """One restore."""

    def __init__(
        self, snapshot: Snapshot, options: Options, mode: Mode, target: bytes, root: int, progress: Progress
    ) -> None:
        self._snapshot = snapshot
        self._options = options
        self._mode = mode
        self._target = target
        self._dry = options.dry_run
        config = snapshot.config
        self._left_out = config.left_out
        self._is_excluded = matcher(tuple(config.left_out.exclude))
        self._unread = {failed.path for failed in config.errors}
        if config.counts.errors > len(config.errors):
            # Not even the names of all that could not be read are known: then nothing can be told to be surplus.
            self._mode = "merge"
            progress.warn("the backup could not read so many paths that nothing is deleted")
        self._progress = progress
        self._tree = Tree(root, progress.warn)
        self._clearing = Clearing(self._tree, target, options.spare, self._was_left_out, merges=self._mode == "merge")
        self._contents = Contents(snapshot)
        self._failures = Failures(target)
        self._files = FileWriter(self._contents, self._tree, self._failures, progress)
        self._began = time.monotonic()
        self._result = Restored(shown(target))
        self._stack: list[_Folder] = []
        self._folders: list[Entry] = []
        self._links: list[Entry] = []
        self._link_places: dict[bytes, bytes] = {}
        self._skipped: bytes | None = None

    def restore(self) -> Restored:
        counts = self._snapshot.config.counts
        self._progress.bytes_total, self._progress.files_total = counts.bytes, counts.files
        try:
            for group in grouped(self._entries()):
                self._plan(group)
            self._leave(None)
            self._files.finish()
            for entry in self._links:
                self._try(self._link, entry)
        except BaseException:
            self._abandon()
            raise
        if self._failures:
            self._put_back()
        elif not self._dry:
            for path in self._clearing.surplus:
                self._try(self._clearing.remove, path)
        if not self._dry:
            self._set_folders()
        self._result.seconds = round(time.monotonic() - self._began, 3)
        self._result.failed = self._failures.failed
        if self._failures.damage:
            raise self._damage_error()
        return self._result

    def stop(self) -> None:
        """End the threads and close what is open."""
        self._files.stop()
        self._contents.close()
        self._tree.close()

    def _entries(self) -> Iterator[Entry]:
        self._stack.append(_Folder(b"", is_new=False, extras=None))
        if not self._options.paths:
            return self._snapshot.entries()
        return self._snapshot.select(list(self._options.paths))

    # Planning: in the order of the index, in one thread

    def _plan(self, group: list[Entry]) -> None:
        entry = group[0]
        if self._skipped is not None and is_below(entry.path, self._skipped):
            return
        self._leave(entry.path)
        try:
            self._enter_ancestors(entry.path)
        except DamageError as error:
            self._failures.note_damage(str(error), entry.path)
            return
        except OSError as error:
            raise target_error(_join(self._target, entry.path), error) from error
        self._try(self._plan_entry, entry, group)

    def _plan_entry(self, entry: Entry, group: list[Entry]) -> None:
        folder = self._stack[-1]
        if folder.extras is not None and entry.path:
            folder.extras.discard(entry.path.rpartition(b"/")[2])
        status = None if folder.is_new and entry.path else self._tree.status(entry.path)
        if entry.kind == "d":
            self._plan_folder(entry, status)
        elif entry.kind == "f":
            self._plan_file(group, status, in_new_folder=folder.is_new)
        elif entry.kind == "h":
            self._plan_link(entry, status, in_new_folder=folder.is_new)
        else:
            self._plan_other(entry, status)

    def _plan_folder(self, entry: Entry, status: os.stat_result | None) -> None:
        is_new = status is None or not stat.S_ISDIR(status.st_mode)
        if is_new and entry.path:
            self._clear_way(entry, status)
            if not self._dry:
                self._tree.make_folder(entry.path)
        self._result.folders += 1
        self._folders.append(entry)
        if not entry.path:
            self._stack.pop()
        self._stack.append(_Folder(entry.path, is_new, None if is_new else self._surplus_names(entry.path)))

    def _surplus_names(self, path: bytes) -> set[bytes]:
        """List an existing directory: in ``replace``, what is left of it in the end goes; else our own leftovers."""
        names = self._tree.names(path)
        spares_all = self._mode == "merge" or (self._left_out.caches and is_cache(self._tree.folder(path)))
        return set(filter(is_temporary, names)) if spares_all else names

    def _plan_file(self, group: list[Entry], status: os.stat_result | None, *, in_new_folder: bool) -> None:
        entry = group[0]
        if status is not None:
            if self._is_kept(group, status):
                self._result.kept += 1
                self._progress.advance(size=entry.size, files=1)
                return
            self._clear_way(entry, status)
        self._result.written += 1
        self._result.bytes_written += entry.size
        if self._dry:
            return
        self._files.add(group, in_new_folder=in_new_folder)

    def _is_kept(self, group: list[Entry], status: os.stat_result) -> bool:
        """Whether what stands there is the file already; its metadata is put right where only that differs."""
        entry = group[0]
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
            return False
        if self._options.verify:
            if not self._same_contents(group):
                return False
        elif status.st_mtime_ns != entry.mtime_ns:
            return False
        if status.st_nlink > 1:
            return False  # its other names may be none of the snapshot's
        if not self._tree.has_metadata(entry, status) and not self._dry:
            self._tree.set_metadata(entry, status)
        return True

    def _same_contents(self, group: list[Entry]) -> bool:
        with self._tree.opened(group[0].path) as descriptor:
            offset = 0
            for chunk in chunks_of(group):
                if chunk.layer == HOLE_LAYER:
                    if not _is_zero(descriptor, offset, chunk.offset):
                        return False
                    offset += chunk.offset
                    continue
                if chunk_name(os.pread(descriptor, chunk.length, offset)) != chunk.name:
                    return False
                offset += chunk.length
        return True

    def _plan_other(self, entry: Entry, status: os.stat_result | None) -> None:
        self._result.others += 1
        if status is not None:
            if self._is_same_other(entry, status):
                return
            self._clear_way(entry, status)
        if not self._dry:
            self._tree.make_other(entry)

    def _is_same_other(self, entry: Entry, status: os.stat_result) -> bool:
        formats = {"l": stat.S_IFLNK, "p": stat.S_IFIFO, "c": stat.S_IFCHR, "b": stat.S_IFBLK}
        if stat.S_IFMT(status.st_mode) != formats[entry.kind]:
            return False
        if entry.kind == "l" and self._tree.readlink(entry.path) != entry.target:
            return False
        if entry.kind in "cb" and [os.major(status.st_rdev), os.minor(status.st_rdev)] != entry.target:
            return False
        return self._tree.has_metadata(entry, status)

    def _plan_link(self, entry: Entry, status: os.stat_result | None, *, in_new_folder: bool) -> None:
        first = entry.target if isinstance(entry.target, bytes) else b""
        if self._options.paths and not any(is_below(first, path) for path in self._options.paths):
            place = self._link_places.setdefault(first, entry.path)
            if place == entry.path:
                self._plan_first_name(entry, first, status, in_new_folder=in_new_folder)
                return
            first = place
        self._links.append(Entry(entry.path, "h", 0, 0, 0, 0, 0, 0, 0, first, None, b""))

    def _plan_first_name(
        self, entry: Entry, first: bytes, status: os.stat_result | None, *, in_new_folder: bool
    ) -> None:
        """Restore a file under this name, for the one that the index has it under is not wanted."""
        group = next((g for g in grouped(self._snapshot.select([first])) if g[0].path == first), None)
        if group is None or group[0].kind in "hd":
            raise DamageError(f"the index is malformed at {shown(entry.path)!r}", paths=(entry.path,))
        renamed = [_with_path(part, entry.path) for part in group]
        if renamed[0].kind == "f":
            self._plan_file(renamed, status, in_new_folder=in_new_folder)
        else:
            self._plan_other(renamed[0], status)

    def _link(self, entry: Entry) -> None:
        first = entry.target if isinstance(entry.target, bytes) else b""
        status = self._tree.status(entry.path)
        self._result.others += 1
        if self._dry:
            return
        source = self._tree.status(first)
        if (
            source is not None
            and status is not None
            and (source.st_ino, source.st_dev) == (status.st_ino, status.st_dev)
        ):
            return
        if status is not None:
            self._clear_way(entry, status)
        self._tree.make_link(first, entry.path)

    def _clear_way(self, entry: Entry, status: os.stat_result | None) -> None:
        if status is not None and not self._dry:
            self._clearing.make_way(entry.path, status, for_folder=entry.kind == "d")

    def _leave(self, path: bytes | None) -> None:
        """Leave the directories that ``path`` is not below; what is left of their names is surplus."""
        while self._stack and (path is None or not _is_inside(path, self._stack[-1].path)):
            folder = self._stack.pop()
            for name in sorted(folder.extras or ()):
                surplus = _join(folder.path, name)
                if self._clearing.add(surplus) and not is_temporary(name):
                    self._result.deleted.append(shown(surplus))

    def _was_left_out(self, path: bytes, status: os.stat_result) -> bool:
        """Whether the backup left a path out by rule, or could not read it."""
        above = path
        while self._unread and above:  # a directory that could not be listed is in the snapshot as an empty one
            if shown(above) in self._unread:
                return True
            above = above.rpartition(b"/")[0]
        return self._is_excluded(path, stat.S_ISDIR(status.st_mode))

    def _enter_ancestors(self, path: bytes) -> None:
        """Come to the directory of a wanted path: make what is missing on the way as the snapshot has it.

        :raises DamageError: the index has a path whose directory it does not have.
        """
        above = path.rpartition(b"/")[0]
        if not path or self._stack[-1].path == above:
            return
        if path not in self._options.paths:
            raise DamageError(f"the index is malformed: {shown(path)!r} has no directory", paths=(path,))
        parts = above.split(b"/")
        for depth in range(1, len(parts) + 1):
            folder = b"/".join(parts[:depth])
            if is_below(self._stack[-1].path, folder):
                continue
            is_new = self._stack[-1].is_new or self._tree.status(folder) is None
            if is_new:
                entry = self._snapshot.find(folder)
                if entry is None or entry.kind != "d":
                    raise DamageError(f"the index is malformed: {shown(path)!r} has no directory", paths=(path,))
                if not self._dry:
                    self._tree.make_folder(folder)
                self._folders.append(entry)
            self._stack.append(_Folder(folder, is_new, None))

    # What goes wrong

    def _try(self, step: Callable[..., None], what: Entry | bytes, *rest: object) -> None:
        """Do one step; what goes wrong with one path is noted, what goes wrong with all of them is raised."""
        path = what.path if isinstance(what, Entry) else what
        try:
            step(what, *rest)
        except OSError as error:
            self._failures.note(path, error)
        except DamageError as error:
            self._failures.note_damage(str(error), path)
        else:
            return
        if isinstance(what, Entry) and what.kind == "d":
            self._skipped = path

    def _damage_error(self) -> DamageError:
        paths = tuple(path for paths in self._failures.damage.values() for path in paths)
        reasons = "; ".join(list(self._failures.damage)[:3])
        return DamageError(
            f"{len(paths)} paths of {self._snapshot.name}@{self._snapshot.tag} could not be restored: {reasons}",
            hint="everything else was restored and nothing was deleted; an older snapshot may have these paths whole; "
            "or, where the source is still there, delete the blob from the bucket and back up: it is stored anew",
            paths=paths,
        )

    def _abandon(self) -> None:
        """Leave no half-written file behind, and nothing moved aside."""
        self._files.abandon()
        self._result.deleted.clear()
        self._clearing.put_back(undo=True)

    def _put_back(self) -> None:
        self._result.deleted.clear()
        self._clearing.put_back()

    def _set_folders(self) -> None:
        """Set the directories' metadata, the deepest first, once nothing in them changes any more."""
        for entry in reversed(self._folders):
            try:
                if not entry.path and not self._failures:
                    self._tree.remove_mark()
                self._tree.set_metadata(entry)
            except OSError as error:
                self._failures.note(entry.path, error)


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _is_inside(path: bytes, folder: bytes) -> bool:
    return not folder or path.startswith(folder + b"/")


def _with_path(entry: Entry, path: bytes) -> Entry:
    return Entry(path, *(getattr(entry, name) for name in entry.__struct_fields__[1:]))


def _is_zero(descriptor: int, offset: int, length: int) -> bool:
    while length:
        data = os.pread(descriptor, min(length, _READ_BYTES), offset)
        if not data or data.count(0) != len(data):
            return False
        offset, length = offset + len(data), length - len(data)
    return True
