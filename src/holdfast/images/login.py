"""Writes keys to the bucket where the docker command looks for a registry's: its ``config.json``.

Its shape is github.com/docker/cli's, ``cli/config/configfile``: ``auths`` holds, by registry, ``auth`` (base64 of
``USER:PASSWORD``) and ``email``. Here they are the access key, the secret key, and the bucket's URL.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from holdfast.config import Secret
from holdfast.errors import NoSpaceError, TargetError, UsageError
from holdfast.model.images import ImageName
from holdfast.model.urls import BucketUrl

_FILE = "config.json"
_LARGEST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Login:
    """What was written: for ``registry``, into the file ``path``.

    ``hidden_by`` is the credentials helper that the docker command asks instead, None where it reads the file.
    """

    registry: str
    path: str
    hidden_by: str | None

    def told(self) -> dict[str, Any]:
        """Give it as plain values, for JSON."""
        return {"registry": self.registry, "path": self.path, "hidden_by": self.hidden_by}


def docker_directory(environment: Mapping[str, str]) -> str:
    """Say where the docker command keeps its configuration: ``DOCKER_CONFIG``, or ``~/.docker``."""
    return environment.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")


def login(registry: str, access_key: str, secret_key: Secret, s3_url: str, *, directory: str) -> Login:
    """Write the keys for a registry into ``config.json`` in ``directory``, with mode 0600.

    ``registry`` is what :func:`registry_host` takes. All else in the file stays, in its order; what was there for this
    registry is replaced. The file is replaced as a whole or not at all (where it is a symlink, what it leads to), and
    logins at the same time wait for one another. Holds the file in memory: at most 4 MiB.

    :raises UsageError: registry, keys or URL cannot be; or the file holds what docker would not have written.
    :raises TargetError: the file cannot be read or replaced.
    """
    host = registry_host(registry)
    entry = _entry(access_key, secret_key, s3_url)
    with _translated(directory):
        os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.realpath(os.path.join(directory, _FILE))
    with _translated(path), _alone(os.path.dirname(path)) as folder:
        document = _read(path)
        document["auths"] = {**(document.get("auths") or {}), host: entry}
        _replace(path, json.dumps(document, indent="\t").encode() + b"\n", folder)
    return Login(host, path, _helper(document, host))


def registry_host(registry: str) -> str:
    """Take the host out of what may be a registry's URL. It is one that docker would ask for an image of that name.

    :raises UsageError: there is none, or it is Docker's own.
    """
    host = registry.strip().rpartition("://")[2].partition("/")[0]
    try:
        understood = ImageName.parse(f"{host}/image").host
    except UsageError:
        understood = None
    if understood is None or understood != host:
        raise UsageError(
            f"not the name of a registry: {registry[:300]!r}",
            hint="write it as HOST[:PORT], with a dot or a port in it, as in opsgoodies.com; not Docker's own registry,"
            " which would be sent the keys",
        )
    return host


def _entry(access_key: str, secret_key: Secret, s3_url: str) -> dict[str, str]:
    if not access_key or ":" in access_key or not access_key.isprintable():
        raise UsageError("AWS_ACCESS_KEY is empty, or has a colon or a control character in it")
    if not secret_key.value or not secret_key.value.isprintable():
        raise UsageError("AWS_SECRET_KEY is empty, or has a control character in it")
    if not s3_url.startswith("s3://"):  # not shown: it may be a key that came in its place
        raise UsageError("S3_URL does not begin with s3://", hint="write it as s3://BUCKET/PREFIX?region=REGION")
    BucketUrl.parse(s3_url)
    auth = base64.b64encode(f"{access_key}:{secret_key.value}".encode()).decode()
    return {"auth": auth, "email": s3_url}


@contextmanager
def _alone(directory: str) -> Iterator[int]:
    """Open a directory, and be the only one that is in here with it."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(folder)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
    except FileNotFoundError:
        return {}
    if len(data) > _LARGEST_BYTES:
        raise UsageError(f"{path!r} is longer than {_LARGEST_BYTES >> 20} MiB", hint="it should hold docker's settings")
    try:
        document = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        # Not chained: that error holds the content, keys and all.
        raise _not_understood(path, "is not JSON") from None
    if not isinstance(document, dict):
        raise _not_understood(path, "is no JSON object")
    if not isinstance(document.get("auths"), dict | None):
        raise _not_understood(path, "has no object as its 'auths'")
    return document


def _not_understood(path: str, what: str) -> UsageError:
    return UsageError(f"{path!r} {what}, so nothing was changed", hint="repair it, or move it out of the way")


def _replace(path: str, data: bytes, folder: int) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{_FILE}.", dir=os.path.dirname(path))  # mode 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            _keep_owner(path, file.fileno())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    os.fsync(folder)


def _keep_owner(path: str, descriptor: int) -> None:
    """Leave the file to whom it belongs: root may run this in somebody else's home."""
    with suppress(FileNotFoundError, PermissionError):
        status = os.stat(path)
        os.fchown(descriptor, status.st_uid, status.st_gid)


def _helper(document: dict[str, Any], host: str) -> str | None:
    """Name the program that docker asks for this registry's credentials, in place of the file.

    An empty name in ``credHelpers`` is the file, whatever ``credsStore`` says.
    """
    helpers = document.get("credHelpers")
    helper = helpers[host] if isinstance(helpers, dict) and host in helpers else document.get("credsStore")
    return helper if isinstance(helper, str) and helper else None


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"no space left for {path!r}", hint="nothing was changed; make room") from error
        reason = os.strerror(error.errno or 0).lower()
        raise TargetError(
            f"cannot change {path!r}: {reason}", hint="nothing was changed; DOCKER_CONFIG names another directory"
        ) from error
