"""Names, parsed once at the edge: repositories, tags, sources, and the bijection between sources and repositories."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from holdfast.errors import UsageError

_COMPONENT = re.compile(rb"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_REPOSITORY = re.compile(rf"{_COMPONENT.pattern.decode()}(?:/{_COMPONENT.pattern.decode()})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SNAPSHOT_TAG = re.compile(r"(\d{8}T\d{6}Z)-[0-9a-f]{6}")
_LONGEST_REPOSITORY = 255
_ESCAPED = b"x--"
_HASHED = b"h--"
LATEST_NAME = "latest"


@dataclass(frozen=True, slots=True, order=True)
class Repository:
    """A repository's name, as the OCI distribution specification allows it (``<name>``, at most 255 characters)."""

    name: str

    def __post_init__(self) -> None:
        if len(self.name) > _LONGEST_REPOSITORY or not _REPOSITORY.fullmatch(self.name):
            raise UsageError(f"not a repository name: {self.name[:300]!r}")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class Tag:
    """A tag, as the OCI distribution specification allows it (``<reference>``)."""

    name: str

    def __post_init__(self) -> None:
        if not _TAG.fullmatch(self.name):
            raise UsageError(f"not a tag: {self.name[:200]!r}")

    def __str__(self) -> str:
        return self.name

    @classmethod
    def of_snapshot(cls, created: datetime, digest_hex: str) -> Tag:
        """Name a snapshot: UTC time to the second, then the first six hex digits of its manifest's digest."""
        return cls(f"{created.astimezone(UTC):%Y%m%dT%H%M%SZ}-{digest_hex[:6]}")

    def snapshot_time(self) -> datetime | None:
        """When the snapshot of this tag was made (UTC, to the second); None for any other tag."""
        match = _SNAPSHOT_TAG.fullmatch(self.name)
        if match is None:
            return None
        try:
            return datetime.strptime(match[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        except ValueError:
            return None


LATEST = Tag(LATEST_NAME)


@dataclass(frozen=True, slots=True)
class SourceName:
    """What a user calls a source: an absolute path, or a volume's (or given) name. Bytes: a path need not be UTF-8."""

    name: bytes

    def __post_init__(self) -> None:
        parts = self.name.strip(b"/").split(b"/")
        if not self.name or b"\0" in self.name or any(part in (b".", b"..") for part in parts):
            raise UsageError(f"not a name of a source: {os.fsdecode(self.name)!r}")
        if self.name != b"/" and (b"//" in self.name or self.name.endswith(b"/")):
            raise UsageError(f"not a normalized name: {os.fsdecode(self.name)!r}")

    def __str__(self) -> str:
        return self.name.decode("utf-8", "backslashreplace")

    @classmethod
    def of_path(cls, path: bytes) -> SourceName:
        """Name a path of this machine: made absolute and normalized, its symlinks as they are."""
        return cls(b"/" + os.path.abspath(path).lstrip(b"/"))

    @property
    def is_path(self) -> bool:
        """Whether it is an absolute path (and not a volume's name)."""
        return self.name.startswith(b"/")

    @property
    def repository(self) -> Repository:
        """Where its snapshots lie: ``paths/var/www`` for ``/var/www``, ``volumes/pgdata`` for ``pgdata``.

        A component that OCI does not allow becomes ``x--`` and the lower-case base32 of its bytes without padding.
        Where that makes a name longer than 255 characters, one component ``h--`` and the base32 of the whole name's
        SHA-256 stands for all of it; the true name is in the snapshot's config.
        """
        kind = b"paths" if self.is_path else b"volumes"
        parts = [b"/"] if self.name == b"/" else self.name.strip(b"/").split(b"/")
        mapped = b"/".join([kind, *map(escape, parts)])
        if len(mapped) > _LONGEST_REPOSITORY:
            mapped = kind + b"/" + _HASHED + _base32(hashlib.sha256(self.name).digest())
        return Repository(mapped.decode("ascii"))

    @classmethod
    def of_repository(cls, repository: Repository) -> SourceName | None:
        """Read the name back out of a repository's; None where it holds no snapshots or only a hash of the name."""
        kind, _, rest = repository.name.encode("ascii").partition(b"/")
        if kind not in (b"paths", b"volumes") or not rest:
            return None
        try:
            parts = [unescape(part) for part in rest.split(b"/")]
            name = b"/".join(parts) if kind == b"volumes" else b"/" + b"/".join(parts)
            source = cls(b"/" if parts == [b"/"] else name)
        except ValueError:
            return None
        except UsageError:
            return None
        return source if source.repository == repository else None


def lies_in(path: bytes, folder: bytes) -> bool:
    """Whether an absolute, normalized path is a directory's or lies below it."""
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def _base32(data: bytes) -> bytes:
    return base64.b32encode(data).rstrip(b"=").lower()


def escape(component: bytes) -> bytes:
    """Give a component as OCI allows it: as it is, or ``x--`` and the lower-case base32 of its bytes."""
    if _COMPONENT.fullmatch(component) and not component.startswith((_ESCAPED, _HASHED)):
        return component
    return force_escape(component)


def force_escape(component: bytes) -> bytes:
    """Give any component as ``x--`` and the lower-case base32 of its bytes."""
    return _ESCAPED + _base32(component)


def unescape(component: bytes) -> bytes:
    """Undo :func:`escape`.

    :raises ValueError: it is no component that was made so.
    """
    if component.startswith(_HASHED):
        raise ValueError("only a hash of the name")
    if not component.startswith(_ESCAPED):
        return component
    text = component[len(_ESCAPED) :].upper()
    return base64.b32decode(text + b"=" * (-len(text) % 8))


def split_reference(text: str) -> tuple[str, str | None]:
    """Split ``NAME@TAG`` at its last ``@``, where what follows can be a snapshot's tag; a name may hold one itself."""
    name, at, tag = text.rpartition("@")
    if at and name and (tag == LATEST_NAME or re.fullmatch(r"\d{8}T[0-9TZa-f-]*", tag)):
        return name, tag
    return text, None
