"""What an image is called, as Docker reads it (github.com/distribution/reference, *grammar*), and where it lies."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from holdfast.errors import UsageError
from holdfast.model.digest import Digest
from holdfast.model.names import Repository, Tag, escape, force_escape, unescape

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")
DEFAULT_HOST = "docker.io"
"""The host of names that have none."""
_DEFAULT_HOSTS = (DEFAULT_HOST, "index.docker.io")
_DEFAULT_FOLDER = "library/"
_LONGEST = 255
_NOT_IMAGES = ("volumes", "paths")
DEFAULT_TAG = Tag("latest")


@dataclass(frozen=True, slots=True)
class ImageName:
    """An image's name: ``[HOST[:PORT]/]PATH[:TAG][@DIGEST]``.

    ``name`` is the familiar one, as ``docker images`` shows it: without ``docker.io/`` and ``library/``. Without a
    digest there is always a tag, ``latest`` where none was given; with a digest alone there is none.
    """

    name: str
    tag: Tag | None
    digest: Digest | None = None

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Read a name as Docker does.

        :raises UsageError: it is none.
        """
        rest, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        head, colon, tag_text = rest.rpartition(":")
        if not colon or "/" in tag_text:  # a colon before a slash is a port's
            head, tag_text = rest, ""
        tag = Tag(tag_text) if tag_text else (None if digest else DEFAULT_TAG)
        if colon and not tag_text and head != rest:
            raise UsageError(f"not an image's name: {text[:300]!r}")
        return cls(_familiar(head, text), tag, digest)

    @property
    def host(self) -> str | None:
        """The registry's host, with its port; None for Docker's own."""
        first, slash, _ = self.name.partition("/")
        return first if slash and _is_host(first) else None

    def without_host(self) -> ImageName:
        """Give the name without its registry's host."""
        host = self.host
        return self if host is None else replace(self, name=self.name[len(host) + 1 :])

    @property
    def repository(self) -> Repository:
        """Where it lies in a store: under its own name.

        A component that OCI does not allow (a host with a port) becomes ``x--`` and its base32, and so does a first
        component that would take it among the snapshots, below ``volumes`` and ``paths``.
        """
        first, slash, rest = self.name.partition("/")
        begin = force_escape(first.encode()) if first in _NOT_IMAGES else escape(first.encode())
        following = b"/".join(escape(part.encode()) for part in rest.split("/")) if slash else b""
        return Repository((begin + (b"/" + following if slash else b"")).decode())

    @staticmethod
    def of_repository(repository: Repository) -> str | None:
        """Give the name of the images in a repository; None where it holds snapshots.

        What no image of ours could have led to is called by its repository.
        """
        parts = repository.name.split("/")
        if parts[0] in _NOT_IMAGES:
            return None
        try:
            name = "/".join(unescape(part.encode()).decode() for part in parts)
            return name if ImageName.parse(name).repository == repository else repository.name
        except (ValueError, UsageError):
            return repository.name


def image_id(text: str) -> str | None:
    """Give the hex digits of what may be an image's id or the beginning of one (4 to 64 digits); None for a name."""
    match = _ID.fullmatch(text)
    return match[1] if match else None


def _familiar(name: str, text: str) -> str:
    first, slash, rest = name.partition("/")
    if slash and _is_host(first):
        host, path = first, rest
        if not _HOST.fullmatch(host):
            raise UsageError(f"not an image's name: {text[:300]!r}", hint="it begins with what is no host")
    else:
        host, path = "", name
    if not _PATH.fullmatch(path) or len(name) > _LONGEST:
        hint = "names are in lower case" if path != path.lower() else "write it as NAME[:TAG], as in team/app:1.2"
        raise UsageError(f"not an image's name: {text[:300]!r}", hint=hint)
    if host in _DEFAULT_HOSTS:
        first, slash, _ = path.partition("/")
        host = DEFAULT_HOST if slash and _is_host(first) else ""  # else it would be read as another host's
    if not host and path.count("/") == 1:
        path = path.removeprefix(_DEFAULT_FOLDER)
    return f"{host}/{path}" if host else path


def _is_host(first: str) -> bool:
    return "." in first or ":" in first or first == "localhost" or first != first.lower()
