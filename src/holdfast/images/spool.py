"""Large things on their way rest in unnamed files, where the user wants them."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from typing import BinaryIO

from holdfast.errors import NoSpaceError, TargetError


class _File(io.BufferedRandom):
    """Can always be closed. On a full disk closing fails once more, and would hide what was told of it before."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class Spool:
    """Where temporary files go: ``directory``, or the system's place for them if that is None."""

    def __init__(self, directory: str | None) -> None:
        self.directory = directory

    def open(self) -> BinaryIO:
        """Give a new file, without a name: it is gone once it is closed.

        :raises NoSpaceError: there is no room for it.
        :raises TargetError: there can be none.
        """
        with self.translated():
            return _File(TemporaryFile(dir=self.directory, buffering=0))

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate what goes wrong with a file of the spool while it is written or read."""
        try:
            yield
        except OSError as error:
            where = self.directory or "the directory for temporary files"
            hint = "name another one with --tempdir"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpaceError(f"no space left in {where}", hint=f"free some space there, or {hint}") from error
            raise TargetError(f"cannot write to {where}: {error.strerror}", hint=hint) from error
