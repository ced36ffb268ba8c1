"""The directories of this machine that requests may read and write, and nothing beside them.

A path is resolved first, then walked again from its root, one component at a time and without following a symlink:
whoever exchanges a directory for a symlink in between gets an error, and never another place.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from holdfast.errors import ForbiddenError, NotFoundError, SourceError, TargetError, UsageError
from holdfast.model.names import lies_in
from holdfast.model.snapshot import shown

Kind = Literal["directory", "file"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ON_THE_WAY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # may be a directory that we cannot list
_NEW_FOLDER_MODE = 0o755

# What an engine mounts into every container, and where secrets and our own settings lie. A volume is none of these.
_KERNELS = (b"/proc", b"/sys", b"/dev")
_NO_VOLUMES = (*_KERNELS, b"/run", b"/var/run", b"/etc/holdfast", b"/tmp/.X11-unix")
_NO_VOLUME_TYPES = frozenset(
    ("proc", "sysfs", "devpts", "devtmpfs", "mqueue", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs", "bpf")
)
_ESCAPED = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Place:
    """A path below a root, where it is now.

    ``path`` is where it leads, symlinks resolved. ``folder`` is an open descriptor: of the directory itself, or of the
    one that the file is in.
    """

    path: bytes
    kind: Kind
    folder: int


class Roots:
    """Directories, and how to come below them."""

    def __init__(self, roots: Sequence[bytes], not_below: Sequence[bytes] = ()) -> None:
        """``roots`` are absolute paths; one that does not exist holds nothing, until it does.

        What lies in ``not_below`` is none of theirs: our own directories. Symlinks in both are followed now, once:
        later on, who can write in one root could lead another one anywhere.
        """
        self.roots = tuple(os.path.normpath(root) for root in roots)
        self._real = tuple(map(os.path.realpath, self.roots))
        self._not_below = tuple(map(os.path.realpath, not_below))

    @classmethod
    def of_container(cls, not_below: Sequence[bytes] = (), mounts: bytes | None = None) -> Roots:
        """Take the directories that are mounted into this container; ``not_below`` are our own.

        :raises UsageError: this is no container, or nothing is mounted.
        """
        if mounts is None:
            if not is_container():
                raise UsageError(
                    "no root is named, and this is no container whose volumes could be it",
                    hint="set persist.roots or HOLDFAST_PERSIST_ROOTS to the directories that may be saved",
                )
            mounts = Path("/proc/self/mountinfo").read_bytes()
        spared = (*_NO_VOLUMES, *not_below)
        found = [path for path in mounted(mounts) if not any(lies_in(path, folder) for folder in spared)]
        if not found:
            raise UsageError(
                "no volume is mounted into this container",
                hint="start it with --volumes-from or --volume, or set HOLDFAST_PERSIST_ROOTS",
            )
        return cls(found, not_below)

    def __str__(self) -> str:
        return ", ".join(map(shown, self.roots))

    def check(self, path: bytes) -> bytes:
        """Give where a path leads, if that is below a root; it need not exist.

        :raises ForbiddenError: it is not.
        """
        return self._resolve(path)[1]

    @contextmanager
    def existing(self, path: bytes) -> Iterator[Place]:
        """Open what is to be read.

        :raises NotFoundError: there is nothing.
        :raises UsageError: it is neither directory nor file.
        :raises ForbiddenError: it is not below a root.
        :raises SourceError: it cannot be opened.
        """
        root, real = self._resolve(path)
        with ExitStack() as opened:
            try:
                above, name = opened.enter_context(_walked(root, real, make=False))
                status = os.stat(name, dir_fd=above, follow_symlinks=False) if name else os.fstat(above)
                if stat.S_ISDIR(status.st_mode):
                    place = Place(real, "directory", opened.enter_context(_opened(name, above)))
                elif stat.S_ISREG(status.st_mode):
                    place = Place(real, "file", above)
                else:
                    raise UsageError(f"{shown(path)!r} is neither a directory nor a file")
            except (FileNotFoundError, NotADirectoryError) as error:
                raise NotFoundError(f"there is no {shown(path)!r}") from error
            except OSError as error:
                raise _translated(path, error, SourceError) from error
            yield place

    @contextmanager
    def writable(self, path: bytes, kind: Kind) -> Iterator[Place]:
        """Open what is to be written, and make the directories on the way: to a directory, or to a file's.

        :raises ForbiddenError: it is not below a root.
        :raises TargetError: it cannot be made or opened.
        """
        root, real = self._resolve(path)
        if kind == "file" and real == root:
            raise TargetError(f"{shown(path)!r} is a directory here, not a file")
        with ExitStack() as opened:
            try:
                above, name = opened.enter_context(_walked(root, real, make=True))
                if kind == "file":
                    place = Place(real, "file", above)
                else:
                    if name:
                        with suppress(FileExistsError):
                            os.mkdir(name, _NEW_FOLDER_MODE, dir_fd=above)
                    place = Place(real, "directory", opened.enter_context(_opened(name, above)))
            except OSError as error:
                raise _translated(path, error, TargetError) from error
            yield place

    def _resolve(self, path: bytes) -> tuple[bytes, bytes]:
        """Give the root that a path is below, and where the path leads, both resolved."""
        try:
            real = os.path.realpath(path)
        except OSError as error:
            raise _translated(path, error, SourceError) from error
        if any(lies_in(real, folder) for folder in self._not_below):
            raise ForbiddenError(f"{shown(path)!r} is Holdfast's own: the store or the cache")
        for root in self._real:
            if lies_in(real, root) and (root != b"/" or not any(lies_in(real, folder) for folder in _KERNELS)):
                return root, real
        raise ForbiddenError(f"{shown(path)!r} is not below a root of this server", hint=f"its roots are {self}")


@contextmanager
def _walked(root: bytes, real: bytes, *, make: bool) -> Iterator[tuple[int, bytes]]:
    """Open the directory above a path, from its root on; give it and the last component, empty for the root itself."""
    parts = real[len(root.rstrip(b"/")) :].strip(b"/").split(b"/")
    descriptor = _open_root(root)
    try:
        for part in parts[:-1]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, _NEW_FOLDER_MODE, dir_fd=descriptor)
            below = os.open(part, _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor, parts[-1]
    finally:
        os.close(descriptor)


def _open_root(root: bytes) -> int:
    """Open a root, through no symlink on the way to it: it may lie in another one."""
    descriptor = os.open(b"/", _ON_THE_WAY)
    try:
        for part in filter(None, root.split(b"/")):
            below = os.open(part, _ON_THE_WAY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        return os.open(b".", _DIRECTORY, dir_fd=descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _opened(name: bytes, above: int) -> Iterator[int]:
    descriptor = os.open(name or b".", _DIRECTORY, dir_fd=above)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _translated(
    path: bytes, error: OSError, kind: type[SourceError | TargetError]
) -> SourceError | TargetError | UsageError | ForbiddenError:
    if error.errno == errno.ENAMETOOLONG:
        return UsageError("a name in this path is too long")
    if isinstance(error, PermissionError):
        return ForbiddenError(f"no permission to open {shown(path)!r}", hint="run the server as a user who may")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return kind(f"cannot open {shown(path)!r}: a file or a symlink stands where a directory is needed")
    return kind(f"cannot open {shown(path)!r}: {error.strerror}")


def mounted(mountinfo: bytes) -> list[bytes]:
    """Read the directories that volumes may be mounted at out of a ``/proc/PID/mountinfo`` (proc(5)), sorted."""
    found = set()
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(b" - ")
        kind = rest.partition(b" ")[0].decode("ascii", "replace")
        parts = fields.split(b" ")
        if len(parts) < 6 or kind in _NO_VOLUME_TYPES:  # noqa: PLR2004 - its fixed fields
            continue
        path = _ESCAPED.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), parts[4])
        if path != b"/" and os.path.isdir(path):
            found.add(path)
    return sorted(found)


def is_container() -> bool:
    """Whether this process runs in a container, as far as engines leave signs of it."""
    signs = ("/.dockerenv", "/run/.containerenv")
    return any(map(os.path.exists, signs)) or bool({"container", "KUBERNETES_SERVICE_HOST"} & os.environ.keys())
