"""Restores that are for empty places only, as at the start of a container.

A restore that is killed leaves a part of the files behind. Without a sign of that, the next start would take the part
for the whole. So the target holds a mark from the first file to the last. Every restore that has done all removes it.
"""

from __future__ import annotations

import os
from contextlib import suppress

from holdfast.archive.extract import MARK, open_target, target_error
from holdfast.errors import TargetError

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
    return MARK in names or names <= _NO_CONTENT


def mark(folder: bytes) -> None:
    """Mark a directory, made where it is missing, before anything is restored into it.

    :raises TargetError: it cannot be made or written.
    """
    opened = open_target(folder, make=True)
    assert opened is not None  # noqa: S101 - it was made
    try:
        os.close(os.open(MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=opened))
    except OSError as error:
        raise target_error(folder, error) from error
    finally:
        os.close(opened)


def unmark(folder: bytes) -> None:
    """Take the mark away, should it still be there: a restore of some paths leaves it.

    :raises TargetError: it cannot be removed.
    """
    try:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, MARK))
    except OSError as error:
        raise target_error(folder, error) from error
