"""Every error that Holdfast raises on purpose.

::

    HoldfastError
    ├── UsageError            the request itself is wrong: an option, a name, a URL
    ├── ForbiddenError        the request asks for what it may not touch
    ├── NotFoundError         what was asked for does not exist
    │   ├── ObjectNotFound    an object, or the bucket itself, is not there
    │   └── WrongPlatform     an image is there, but for other machines only
    ├── SourceError           the source of a backup cannot be read at all
    ├── TargetError           the target of a restore cannot be written
    │   └── NoSpaceError      … because the disk (or a quota) is full
    ├── DamageError           stored bytes are not what their name says
    ├── BusyError             somebody else holds what must be exclusive
    ├── EngineError           a Docker Engine refused, or failed at, what it was asked
    │   └── EngineUnavailable it does not answer, or broke off (retryable)
    ├── ProcessLost           a process that worked for us was killed
    ├── Interrupted           the user stopped it
    └── BucketError           the object store
        ├── AlreadyExists     a conditional write lost: the key is taken
        ├── AccessDenied      credentials are missing, wrong or not sufficient
        └── Unavailable       no answer, or none that made sense, after all retries (retryable)
            └── BucketFull    the disk that holds the store is full

Third-party exceptions are translated where they enter (``storage.bucket`` for object stores, ``images.engine`` for
Docker) and chained with ``from``.
A message names the thing; ``hint`` names the way out. Neither ever holds a secret.
"""

from __future__ import annotations


class HoldfastError(Exception):
    """The root. ``retryable`` says whether the same call may succeed later with nothing changed by the user."""

    retryable = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(HoldfastError):
    """The request itself is wrong."""


class ForbiddenError(HoldfastError):
    """The request asks for what it may not touch: a path outside of the roots."""


class NotFoundError(HoldfastError):
    """What was asked for does not exist."""


class WrongPlatform(NotFoundError):
    """An image is there, but for other machines only."""


class SourceError(HoldfastError):
    """The source of a backup cannot be read at all."""


class TargetError(HoldfastError):
    """The target of a restore cannot be written."""


class NoSpaceError(TargetError):
    """The disk that is written to, or a quota on it, is full."""


class DamageError(HoldfastError):
    """Stored bytes are not what their name says; ``paths`` are those of the snapshot that are touched."""

    def __init__(self, message: str, *, hint: str | None = None, paths: tuple[bytes, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.paths = paths


class BusyError(HoldfastError):
    """Somebody else holds what must be exclusive."""

    retryable = True


class EngineError(HoldfastError):
    """A Docker Engine refused, or failed at, what it was asked."""


class EngineUnavailable(EngineError):
    """A Docker Engine does not answer, or broke off."""

    retryable = True


class ProcessLost(HoldfastError):
    """A process that worked for us was killed."""

    retryable = True


class Interrupted(HoldfastError):
    """The user stopped it."""


class BucketError(HoldfastError):
    """The object store failed."""


class ObjectNotFound(NotFoundError, BucketError):
    """An object, or the bucket itself, is not there."""


class AlreadyExists(BucketError):
    """A conditional write lost: the key is taken."""


class AccessDenied(BucketError):
    """Credentials are missing, wrong or not sufficient."""


class Unavailable(BucketError):
    """No answer, or none that made sense, after all retries."""

    retryable = True


class BucketFull(Unavailable):
    """The disk that holds the store, or a quota on it, is full."""

    retryable = False


EXIT_CODES: dict[type[HoldfastError], int] = {
    UsageError: 2,
    ForbiddenError: 1,
    NotFoundError: 4,
    ObjectNotFound: 4,
    WrongPlatform: 4,
    SourceError: 1,
    TargetError: 1,
    NoSpaceError: 1,
    DamageError: 5,
    BusyError: 1,
    EngineError: 1,
    EngineUnavailable: 1,
    ProcessLost: 1,
    Interrupted: 130,
    BucketError: 1,
    AlreadyExists: 1,
    AccessDenied: 1,
    Unavailable: 1,
    BucketFull: 1,
}
"""The command line's exit code for each error. 0 is done, 3 done but incomplete: neither is an error."""

HTTP_STATUS: dict[type[HoldfastError], int] = {
    UsageError: 400,
    ForbiddenError: 403,
    NotFoundError: 404,
    ObjectNotFound: 404,
    WrongPlatform: 404,
    SourceError: 500,
    TargetError: 500,
    NoSpaceError: 507,
    DamageError: 500,
    BusyError: 503,
    EngineError: 502,
    EngineUnavailable: 504,
    ProcessLost: 503,
    Interrupted: 503,
    BucketError: 502,
    AlreadyExists: 502,
    AccessDenied: 502,
    Unavailable: 504,
    BucketFull: 507,
}
"""The HTTP status that a face answers each error with."""

INCOMPLETE = 3
"""Exit code of work that is done but incomplete: some files could not be read, some hosts failed."""


def exit_code(error: HoldfastError) -> int:
    """Look the error's exit code up, the nearest ancestor's where it has none of its own."""
    return next((EXIT_CODES[cls] for cls in type(error).__mro__ if cls in EXIT_CODES), 1)


def http_status(error: HoldfastError) -> int:
    """Look the error's HTTP status up, the nearest ancestor's where it has none of its own."""
    return next((HTTP_STATUS[cls] for cls in type(error).__mro__ if cls in HTTP_STATUS), 500)
