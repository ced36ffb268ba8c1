"""Writes entries below one directory, and never outside it.

Every path is reached one component at a time from the root's descriptor, with ``O_NOFOLLOW``: a symlink that stands in
the target is never followed, whoever planted it. A file is written beside its place and renamed over it, or straight
into place where its directory is new. Nothing is deleted here but by :meth:`Tree.remove`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from holdfast.archive.metadata import read_xattrs
from holdfast.errors import NoSpaceError, TargetError
from holdfast.model.snapshot import Entry, shown

TEMPORARY = b".holdfast-"
MARK = TEMPORARY + b"0" * 32
"""A file in the root of a target that says: this restore has not ended, and what is here is a part."""
_TEMPORARY_NAME = re.compile(re.escape(TEMPORARY) + rb"[0-9a-f]{32}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FOLDERS = 48
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_NOT_ALLOWED = (errno.EPERM, errno.EINVAL, errno.ENOTSUP)  # EINVAL: an owner that a user namespace does not know
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class Tree:
    """A directory of this machine that is written to. Safe to use from many threads.

    ``warn`` is given sentences about what cannot be done here (owners without privilege, attributes the file system
    does not know); the caller shows each once.
    """

    def __init__(self, root: int, warn: Callable[[str], None]) -> None:
        """``root`` is the open directory; the caller closes it after :meth:`close`."""
        self._root = root
        self.device = os.fstat(root).st_dev
        self._warn = warn
        self._user = os.geteuid()
        self._group = os.getegid()
        self._umask = _umask()
        self._local = threading.local()
        self._open: list[OrderedDict[bytes, int]] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the directories that are kept open."""
        with self._lock:
            for folders in self._open:
                for descriptor in folders.values():
                    os.close(descriptor)
                folders.clear()

    # Looking

    def folder(self, path: bytes) -> int:
        """Give a descriptor of a directory below the root, good until this thread asks for some others.

        :raises OSError: it is not there, or a symlink or file is in the way.
        """
        if not path:
            return self._root
        folders = self._folders()
        descriptor = folders.get(path)
        if descriptor is not None:
            folders.move_to_end(path)
            return descriptor
        missing = [path]
        while (above := missing[-1].rpartition(b"/")[0]) and above not in folders:
            missing.append(above)
        descriptor = folders[above] if above else self._root
        for step in reversed(missing):
            descriptor = os.open(step.rpartition(b"/")[2], _DIRECTORY, dir_fd=descriptor)
            folders[step] = descriptor
            if len(folders) > _OPEN_FOLDERS:
                os.close(folders.popitem(last=False)[1])
        return descriptor

    def names(self, path: bytes) -> set[bytes]:
        """List a directory."""
        return {os.fsencode(name) for name in os.listdir(self.folder(path))}

    def status(self, path: bytes) -> os.stat_result | None:
        """Give the status of a path itself, or None where there is nothing."""
        try:
            if not path:
                return os.fstat(self._root)
            above, _, name = path.rpartition(b"/")
            return os.stat(name, dir_fd=self.folder(above), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def readlink(self, path: bytes) -> bytes:
        """Give a symlink's target."""
        above, _, name = path.rpartition(b"/")
        return os.readlink(name, dir_fd=self.folder(above))

    @contextmanager
    def opened(self, path: bytes, *, folder: bool = False) -> Iterator[int]:
        """Open an existing file or directory for reading, itself."""
        above, _, name = path.rpartition(b"/")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_DIRECTORY if folder else 0)
        descriptor = os.open(name, flags, dir_fd=self.folder(above)) if path else os.dup(self._root)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    # Writing

    def make_folder(self, path: bytes) -> None:
        """Create a directory that only we can use, until its metadata is set."""
        above, _, name = path.rpartition(b"/")
        os.mkdir(name, 0o700, dir_fd=self.folder(above))
        descriptor = self.folder(path)
        os.fchmod(descriptor, 0o700)  # a set-group-ID directory above passes that bit on
        for attribute in os.listxattr(descriptor):
            if attribute in _ACLS:  # inherited from a directory that is not ours
                os.removexattr(descriptor, attribute)

    def make_other(self, entry: Entry) -> None:
        """Create a symlink, device or fifo beside its place, with its metadata, and rename it there."""
        above, _, name = entry.path.rpartition(b"/")
        folder = self.folder(above)
        beside = temporary_name()
        try:
            if entry.kind == "l":
                os.symlink(entry.target if isinstance(entry.target, bytes) else b"", beside, dir_fd=folder)
            elif entry.kind == "p":
                os.mkfifo(beside, 0o600, dir_fd=folder)
            else:
                major, minor = entry.target if isinstance(entry.target, list) else (0, 0)
                kind = stat.S_IFCHR if entry.kind == "c" else stat.S_IFBLK
                os.mknod(beside, 0o600 | kind, _device(major, minor), dir_fd=folder)
            self.set_metadata_at(folder, beside, entry)
            os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside, dir_fd=folder)
            raise

    def make_link(self, first: bytes, path: bytes) -> None:
        """Make ``path`` a further name of the file ``first``."""
        above, _, name = path.rpartition(b"/")
        first_above, _, first_name = first.rpartition(b"/")
        beside = temporary_name()
        folder = os.dup(self.folder(above))
        try:
            os.link(first_name, beside, src_dir_fd=self.folder(first_above), dst_dir_fd=folder, follow_symlinks=False)
            try:
                os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                with suppress(FileNotFoundError):  # a rename onto the same file leaves both names
                    os.unlink(beside, dir_fd=folder)
        finally:
            os.close(folder)

    def create(self, name: bytes, folder: int, entry: Entry) -> int:
        """Create a new file of an entry's mode, as far as the umask lets it."""
        return os.open(name, _NEW_FILE, entry.mode & 0o777 & ~0o022, dir_fd=folder)

    def finish_file(self, descriptor: int, entry: Entry, *, in_new_folder: bool) -> None:
        """Set a new file's metadata through its descriptor, times last."""
        created_mode = entry.mode & 0o777 & ~0o022 & ~self._umask
        mode = entry.mode
        if entry.uid != self._user or entry.gid != self._group or not in_new_folder:
            mode = self._own(entry, lambda uid, gid: os.fchown(descriptor, uid, gid))
            created_mode = -1
        if mode != created_mode:
            self._set_mode(descriptor, mode)
        if entry.xattrs or not in_new_folder:
            self._set_xattrs(descriptor, entry)
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))

    def set_metadata(self, entry: Entry, status: os.stat_result | None = None) -> None:
        """Set an existing directory's or file's metadata; ``status`` is that of the file that was judged.

        :raises OSError: something else stands there now.
        """
        with self.opened(entry.path, folder=entry.kind == "d") as descriptor:
            if status is not None and os.fstat(descriptor).st_ino != status.st_ino:
                raise OSError(errno.ESTALE, "another file took its place")
            mode = self._own(entry, lambda uid, gid: os.fchown(descriptor, uid, gid))
            self._set_mode(descriptor, mode)
            self._set_xattrs(descriptor, entry)
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))

    def set_metadata_at(self, folder: int, name: bytes, entry: Entry) -> None:
        """Set the metadata of something that must not be opened: a symlink, device or fifo."""
        mode = self._own(entry, lambda uid, gid: os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False))
        place = f"/proc/self/fd/{folder}/{os.fsdecode(name)}"
        if entry.kind != "l":
            os.chmod(name, mode, dir_fd=folder)  # our own, just made under a name that nobody can guess
        if entry.xattrs:
            self._set_xattrs(place, entry)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)

    def has_metadata(self, entry: Entry, status: os.stat_result) -> bool:
        """Whether what stands at an entry's path has its mode, owner, times and attributes already."""
        if entry.kind != "l" and stat.S_IMODE(status.st_mode) != entry.mode:
            return False
        if status.st_mtime_ns != entry.mtime_ns:
            return False
        if self._user == 0 and (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
            return False
        above, _, name = entry.path.rpartition(b"/")
        place = f"/proc/self/fd/{self.folder(above)}/{os.fsdecode(name)}" if entry.path else self._root
        return (read_xattrs(place) or []) == (entry.xattrs or [])

    def rename(self, old: bytes, path: bytes) -> None:
        """Rename within one directory; what stood at ``path`` is replaced."""
        above, _, name = path.rpartition(b"/")
        folder = self.folder(above)
        os.rename(old.rpartition(b"/")[2], name, src_dir_fd=folder, dst_dir_fd=folder)
        self.forget_folder(old)

    def forget_folder(self, path: bytes) -> None:
        """Close what this thread keeps open at or below a path that is being moved or removed."""
        folders = self._folders()
        for known in [known for known in folders if known == path or known.startswith(path + b"/")]:
            os.close(folders.pop(known))

    def remove(self, path: bytes, spares: Callable[[bytes, os.stat_result], bool]) -> None:
        """Remove a path and all below it, but what is spared (``spares`` is asked with each path) and its directories.

        A symlink is removed, never followed.
        """
        self.forget_folder(path)
        above, _, name = path.rpartition(b"/")
        _remove(self.folder(above), name, path, spares)

    def remove_mark(self) -> None:
        """Remove the mark of a restore that has not ended, where there is one."""
        with suppress(FileNotFoundError):
            os.unlink(MARK, dir_fd=self._root)

    def _folders(self) -> OrderedDict[bytes, int]:
        try:
            return self._local.folders  # type: ignore[no-any-return]
        except AttributeError:
            folders: OrderedDict[bytes, int] = OrderedDict()
            self._local.folders = folders
            with self._lock:
                self._open.append(folders)
            return folders

    def _own(self, entry: Entry, chown: Callable[[int, int], None]) -> int:
        """Set the owner, and give the mode to set then: without its own owner, nothing may be set-user-ID."""
        try:
            chown(entry.uid, entry.gid)
        except OSError as error:
            if error.errno not in _NOT_ALLOWED:
                raise
            self._warn("without privilege, owners cannot be restored: what is restored belongs to you")
            return entry.mode & 0o1777
        return entry.mode

    def _set_mode(self, descriptor: int, mode: int) -> None:
        try:
            os.fchmod(descriptor, mode)
        except OSError as error:
            if error.errno not in _NOT_ALLOWED:
                raise
            self._warn(f"modes cannot be restored here: {error.strerror}")
            return
        # chmod(2): without CAP_FSETID, the kernel drops this bit for a foreign group and reports success.
        if mode & stat.S_ISGID and not os.fstat(descriptor).st_mode & stat.S_ISGID:
            self._warn("without privilege, set-group-ID bits of foreign groups cannot be restored")

    def _set_xattrs(self, place: int | str, entry: Entry) -> None:
        follow = isinstance(place, int)
        wanted = entry.xattrs or []
        kept = {name for name, _ in wanted}
        for name, _ in read_xattrs(place) or []:
            if name not in kept:
                with suppress(OSError):
                    os.removexattr(place, name, follow_symlinks=follow)
        for name, value in wanted:
            try:
                os.setxattr(place, name, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno in _FATAL and error.errno != errno.ENOSPC:  # which an inode's room is said to be, too
                    raise
                self._warn(f"the extended attribute {shown(name)} cannot be restored here: {error.strerror}")


def temporary_name() -> bytes:
    """Give a name that nobody else uses, for what is being written beside its place."""
    return TEMPORARY + uuid.uuid4().hex.encode()


def aside_name() -> bytes:
    """Give a name for what is moved out of the way. No restore but the one that moved it takes it for a leftover."""
    return b".holdfast-aside-" + uuid.uuid4().hex.encode()


def is_temporary(name: bytes) -> bool:
    """Whether a name is one that :func:`temporary_name` gives."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def open_target(path: bytes, *, make: bool) -> int | None:
    """Open the directory to restore into, creating it where it is missing.

    :returns: None if it is missing and ``make`` is false.
    :raises TargetError: it cannot be made or opened, or is no directory.
    """
    try:
        if make:
            os.makedirs(path, mode=0o700, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise target_error(path, error) from error


def target_error(path: bytes, error: OSError) -> TargetError:
    """Translate what the target's file system said."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(
            f"no space left for {shown(path)!r}",
            hint="nothing was deleted; make room and run it again, what is there already is kept",
        )
    reason = error.strerror
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
        reason = "a file or a symlink stands where a directory is needed"
    return TargetError(f"cannot write {shown(path)!r}: {reason}")


def is_fatal(error: OSError) -> bool:
    """Whether it makes no sense to go on with other paths."""
    return error.errno in _FATAL


_Spares = Callable[[bytes, os.stat_result], bool]


def _remove(folder: int, name: bytes, path: bytes, spares: _Spares) -> None:
    """Remove what ``name`` is in the open ``folder``, with an own stack: trees can be deeper than Python's."""
    if _is_settled(folder, name, path, spares):
        return
    stack = [_Removal(folder, name, path)]
    try:
        while stack:
            top = stack[-1]
            if top.names:
                child = top.names.pop()
                below = top.path + b"/" + child
                if not _is_settled(top.descriptor, child, below, spares):
                    stack.append(_Removal(top.descriptor, child, below))
                continue
            stack.pop()
            os.close(top.descriptor)
            try:
                os.rmdir(top.name, dir_fd=top.folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    finally:
        for removal in stack:
            os.close(removal.descriptor)


class _Removal:
    """A directory on its way out: where it is, and the names in it that are still to be dealt with."""

    def __init__(self, folder: int, name: bytes, path: bytes) -> None:
        self.folder = folder
        self.name = name
        self.path = path
        self.descriptor = os.open(name, _DIRECTORY, dir_fd=folder)
        self.names = [os.fsencode(child) for child in os.listdir(self.descriptor)]


def _is_settled(folder: int, name: bytes, path: bytes, spares: _Spares) -> bool:
    """Remove anything but a directory, unless it is spared; False where it is a directory that is not."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if spares(path, status):
            return True
        if stat.S_ISDIR(status.st_mode):
            return False
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    return True


def _device(major: int, minor: int) -> int:
    try:
        return os.makedev(major, minor)
    except OverflowError as error:
        raise OSError(errno.EINVAL, "no device has such a number") from error


def _umask() -> int:
    """Read the umask without setting it, which would reach other threads."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o777
