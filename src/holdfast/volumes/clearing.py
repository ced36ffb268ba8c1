"""What has to go in a restore: moved aside where it is in the way, and removed only when all else is done."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from holdfast.archive.extract import MARK, Tree, aside_name, is_temporary
from holdfast.errors import BusyError
from holdfast.model.snapshot import shown
from holdfast.volumes.snapshots import is_below


def lock_target(root: int, target: bytes, *, single_file: bool = False) -> None:
    """Keep other restores out of an open directory, until it is closed.

    Restores of ``single_file`` keep out those of the directory alone: each touches a file of its own.

    :raises BusyError: another one is under way.
    """
    try:
        fcntl.flock(root, (fcntl.LOCK_SH if single_file else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BusyError(f"another restore into {shown(target)!r} is under way", hint="wait for it to end") from error
    except OSError:
        return  # a file system without locks


class Clearing:
    """The paths of a target that one restore does away with. Used by one thread."""

    def __init__(
        self,
        tree: Tree,
        target: bytes,
        spare: tuple[bytes, ...],
        is_left_out: Callable[[bytes, os.stat_result], bool],
        *,
        merges: bool,
    ) -> None:
        """``merges`` says that only what is in the way goes, and no directory that holds anything.

        ``spare`` are directories of this machine that stay, and all above them; ``is_left_out`` is asked which paths
        were never meant to be in what is restored.
        """
        self._tree = tree
        self._target = target
        self._merges = merges
        self._own = [os.path.realpath(path) for path in spare]
        self._is_left_out = is_left_out
        self._displaced: dict[bytes, bytes] = {}
        self.surplus: list[bytes] = []

    def add(self, path: bytes) -> bool:
        """Note a path that is to be removed in the end; False where it is spared. Our own leftovers never are.

        But the mark is: it goes when even the directories have their metadata (:meth:`Tree.remove_mark`).
        """
        if path == MARK:
            return False
        if not is_temporary(path.rpartition(b"/")[2]) and self._is_spared(path, self._tree.status(path)):
            return False
        self.surplus.append(path)
        return True

    def make_way(self, path: bytes, status: os.stat_result, *, for_folder: bool) -> None:
        """Move what cannot be replaced by a rename aside; it is removed with all else that goes, at the very end.

        :raises OSError: while merging, a directory that is not empty is in the way of what is none; or one in which a
            directory lies that must stay where it is.
        """
        is_folder = stat.S_ISDIR(status.st_mode)
        if is_folder == for_folder or not (is_folder or for_folder):
            return
        if is_folder and self._merges and self._tree.names(path):
            raise OSError(errno.EISDIR, "a directory that is not empty stands in its place (use replace)")
        if is_folder and self._holds_own(path):
            raise OSError(errno.EBUSY, "Holdfast's own directory lies in what stands in its place")
        above = path.rpartition(b"/")[0]
        aside = above + b"/" + aside_name() if above else aside_name()
        self._tree.rename(path, aside)
        self._displaced[aside] = path
        self.surplus.append(aside)

    def is_aside(self, path: bytes) -> bool:
        """Whether a path is where something was moved to, out of the way."""
        return path in self._displaced

    def remove(self, path: bytes) -> None:
        """Remove a path that was noted, and all below it but what is spared."""
        if is_temporary(path.rpartition(b"/")[2]):
            self._tree.remove(path, _spares_nothing)
            return
        # What was moved aside is judged by the name that it had.
        was = self._displaced.get(path, path)
        self._tree.remove(path, lambda below, status: self._is_spared(was + below[len(path) :], status))

    def put_back(self, *, undo: bool = False) -> list[bytes]:
        """Give back what was moved aside, where nothing has taken its place; give the paths where something had.

        With ``undo``, what took the place of something while replacing goes, for it is the restore's own.
        """
        undone = []
        for aside, path in reversed(self._displaced.items()):
            with suppress(OSError):
                if self._tree.status(path) is not None:
                    if self._merges:  # a file or an empty directory: what took its place has overwritten it
                        self.remove(aside)
                        continue
                    if not undo:
                        continue
                    self._tree.remove(path, _spares_nothing)
                    undone.append(path)
                self._tree.rename(aside, path)
        return undone

    def _is_spared(self, path: bytes, status: os.stat_result | None) -> bool:
        """Whether a path that is not in what is restored was never meant to be in it, and so is not removed."""
        if status is None or stat.S_ISSOCK(status.st_mode) or status.st_dev != self._tree.device:
            return True
        return self._holds_own(path) or self._is_left_out(path, status)

    def _holds_own(self, path: bytes) -> bool:
        return any(is_below(own, os.path.join(self._target, path)) for own in self._own)


def _spares_nothing(_path: bytes, _status: os.stat_result) -> bool:
    return False
