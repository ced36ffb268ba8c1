"""Finds what a source holds, in the order of an index: siblings by their names' bytes, a directory before its content.

Directories are opened one below the other, relative to their parent's descriptor and never through a symlink, so that
nobody who can write in the source can make a backup read outside it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from os import fsencode

import msgspec
from pathspec import GitIgnoreSpec

from holdfast.errors import SourceError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FORMAT = 0o170000
_CACHE_TAG = "CACHEDIR.TAG"
_CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"


class Found(msgspec.Struct, gc=False):
    """One path of a source: relative to the root (itself empty), its name in the directory that ``folder`` has open.

    ``status`` is None for a regular file that was not asked about yet.
    """

    path: bytes
    name: str
    folder: int
    status: os.stat_result | None


@dataclass(frozen=True, slots=True)
class Rules:
    """What to leave out of a backup.

    ``exclude`` are patterns as in a .gitignore at the source's root; ``caches`` leaves out the content of directories
    that a CACHEDIR.TAG marks (bford.info/cachedir); ``one_file_system`` does not descend into other file systems;
    ``folders`` are (device, inode) of directories never to enter: the store's own, when it lies in the source.
    """

    exclude: tuple[str, ...] = ()
    caches: bool = False
    one_file_system: bool = False
    folders: frozenset[tuple[int, int]] = field(default=frozenset())


def open_root(source: bytes) -> int:
    """Open a source's directory.

    :raises SourceError: it cannot be opened.
    """
    try:
        return os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"cannot read {os.fsdecode(source)!r}: {error.strerror}") from error


def scan(  # noqa: C901 - one walk, and all that it leaves out
    root: int, rules: Rules, report: Callable[[bytes, OSError], None], *, stat_files: bool = True
) -> Iterator[Found]:
    """Walk the tree below the open directory ``root``, itself first.

    Each ``folder`` stays open until the walk leaves it: use it before asking for the next path. What cannot be read is
    reported and passed over; what vanishes meanwhile is passed over. Memory: the names of the directories on the way
    down to the current one, each sorted. Without ``stat_files``, regular files are given without their status: who
    opens them anyway asks the descriptor, which is faster.
    """
    spec = GitIgnoreSpec.from_lines(rules.exclude) if rules.exclude else None
    status = os.fstat(root)
    yield Found(b"", ".", root, status)
    descriptor = os.dup(root)
    stack = [(descriptor, b"", iter(_list(descriptor, b"", rules, report)))]
    try:
        while stack:
            folder, base, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                os.close(folder)
                stack.pop()
                continue
            name = entry.name
            path = base + fsencode(name)
            try:
                if not stat_files and entry.is_file(follow_symlinks=False):
                    if spec is None or not spec.match_file(os.fsdecode(path)):
                        yield Found(path, name, folder, None)
                    continue
                found = entry.stat(follow_symlinks=False)
                kind = found.st_mode & _FORMAT
                if kind != stat.S_IFDIR:
                    if kind != stat.S_IFSOCK and (spec is None or not spec.match_file(os.fsdecode(path))):
                        yield Found(path, name, folder, found)
                    continue
                if _is_left_out(path, found, spec, rules):
                    continue
                yield Found(path, name, folder, found)
                if rules.one_file_system and found.st_dev != status.st_dev:
                    continue
                descriptor = os.open(name, _DIRECTORY, dir_fd=folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                report(path, error)
                continue
            stack.append((descriptor, path + b"/", iter(_list(descriptor, path, rules, report))))
    finally:
        for folder, _, _ in stack:
            os.close(folder)


def matcher(exclude: tuple[str, ...]) -> Callable[[bytes, bool], bool]:
    """Give what tells whether a path, which is a directory or not, matches one of the patterns."""
    spec = GitIgnoreSpec.from_lines(exclude)
    return lambda path, is_folder: spec.match_file(os.fsdecode(path) + ("/" if is_folder else ""))


def _is_left_out(path: bytes, status: os.stat_result, spec: GitIgnoreSpec | None, rules: Rules) -> bool:
    if spec is not None and spec.match_file(os.fsdecode(path) + "/"):
        return True
    return (status.st_dev, status.st_ino) in rules.folders


def _list(folder: int, path: bytes, rules: Rules, report: Callable[[bytes, OSError], None]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        if not path:
            raise SourceError(f"cannot list the source: {error.strerror}") from error
        report(path, error)
        return []
    if rules.caches and is_cache(folder):
        return [entry for entry in found if entry.name == _CACHE_TAG]
    names = [entry.name for entry in found]
    if len(set(names)) != len(names):  # some file systems list a name twice while it is being changed
        found = list({entry.name: entry for entry in found}.values())
    # Names sort by their bytes. That is how text sorts, but for the surrogates that stand for bytes which are no text.
    if "".join(names).isascii():
        found.sort(key=_by_name)
    else:
        found.sort(key=_by_bytes)
    return found


def _by_bytes(entry: os.DirEntry[str]) -> bytes:
    return fsencode(entry.name)


def _by_name(entry: os.DirEntry[str]) -> str:
    return entry.name


def is_cache(folder: int) -> bool:
    """Whether an open directory is marked as a cache (bford.info/cachedir)."""
    with suppress(OSError):
        descriptor = os.open(_CACHE_TAG, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        try:
            return os.read(descriptor, len(_CACHE_SIGNATURE)) == _CACHE_SIGNATURE
        finally:
            os.close(descriptor)
    return False


def estimate(source: bytes) -> tuple[int, int]:
    """Count the files below a directory and their bytes, roughly: for a progress bar, while the backup is under way."""
    files = size = 0
    pending = [source]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    files += 1
                    size += entry.stat(follow_symlinks=False).st_size
    return files, size
