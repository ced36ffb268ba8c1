"""Small files that are named in a setting."""

from __future__ import annotations

import os

from holdfast.errors import UsageError


def read_small(path: str, limit_bytes: int, purpose: str) -> bytes:
    """Read all of a file of at most ``limit_bytes``. ``purpose`` begins the message of an error; contents are in none.

    :raises UsageError: it cannot be read, or is longer.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(limit_bytes + 1)
    except ValueError as error:  # a NUL
        raise UsageError(f"{purpose}: not a path: {path!r}") from error
    except OSError as error:
        raise UsageError(f"{purpose}: cannot read {path!r}: {os.strerror(error.errno or 0).lower()}") from error
    if len(data) > limit_bytes:
        raise UsageError(f"{purpose}: {path!r} is longer than {limit_bytes >> 10} KiB")
    return data
