"""Restores that are for empty places only, as at the start of a container.

A restore that is killed leaves a part of the files behind. Without a sign of that, the next start would take the part
for the whole. So the target holds a mark from the first file to the last, under a name that every restore removes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from holdfast.archive.extract import TEMPORARY, open_target, target_error
from holdfast.errors import TargetError

_MARK = TEMPORARY + b"0" * 32
_NO_CONTENT = frozenset((b"lost+found",))


def is_empty(place: bytes) -> bool:
    """Whether nothing is at a path, or only what a restore that did not end has left there.

    :raises TargetError: it cannot be looked at.
    """
    try:
        names = set(os.listdir(place))
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False
    except OSError as error:
        raise TargetError(f"cannot look into {os.fsdecode(place)!r}: {error.strerror}") from error
    return _MARK in names or names <= _NO_CONTENT


@contextmanager
def marked(folder: bytes) -> Iterator[None]:
    """Mark a directory, made where it is missing, until what is done meanwhile has succeeded."""
    opened = open_target(folder, make=True)
    assert opened is not None  # noqa: S101 - it was made
    try:
        try:
            os.close(os.open(_MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=opened))
        except OSError as error:
            raise target_error(folder, error) from error
        yield
        with suppress(FileNotFoundError):
            os.unlink(_MARK, dir_fd=opened)
    finally:
        os.close(opened)
