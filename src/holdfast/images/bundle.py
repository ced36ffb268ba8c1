"""What engines save and load: a tar with an image in it, in the two shapes that there are.

Engines to 24 save ``manifest.json`` with ``<id>/layer.tar`` and ``<hex>.json`` (moby, image/spec/v1.2.md; a layer that
comes twice is a symlink). From 25 on it is an OCI layout as well (image-spec 1.1, image-layout.md): ``index.json``,
``blobs/sha256/<hex>``. What is in the tar tells, whoever made it.

What is loaded is both at once, and layers that the engine has may be left out of it.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from holdfast.archive import tar
from holdfast.archive.blobs import peek
from holdfast.archive.untar import Untar
from holdfast.errors import DamageError, UsageError
from holdfast.model.digest import Digest
from holdfast.model.oci import INDEX_TYPE, LARGEST_MANIFEST, Descriptor, IndexEntry
from holdfast.model.snapshot import Entry, shown

Data = bytes | memoryview

SMALL_BYTES = LARGEST_MANIFEST
"""What is at most this large may be held in memory: manifests, configs, and small layers."""

_LAYER_BYTES = 256 * 1024
"""From here on a member is held only if it can be JSON: an image may have a hundred layers of some MiB."""

_MOST_SMALL_BYTES = 64 * 1024 * 1024
_MOST_MEMBERS = 100_000
_BLOB = re.compile(r"blobs/(sha256|sha512)/([0-9a-f]+)")
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class SavedImage(msgspec.Struct, rename="pascal"):
    """An entry of ``manifest.json``: paths of members. ``layers`` are bottom first."""

    config: str
    layers: list[str] | None = None


class SavedIndex(msgspec.Struct, rename="camel"):
    """``index.json``."""

    manifests: list[IndexEntry]


@dataclass(slots=True)
class Saved:
    """What a saved tar held, once it is read to its end.

    ``small`` are the contents of small members by path, ``large`` what the reader's ``take`` made of the others,
    ``links`` the symlinks among them.
    """

    small: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, object] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    _small_bytes: int = 0

    @property
    def images(self) -> list[SavedImage]:
        """Give what ``manifest.json`` lists; nothing where there is none.

        :raises DamageError: it cannot be read.
        """
        return self._json("manifest.json", list[SavedImage]) or []

    @property
    def roots(self) -> list[IndexEntry]:
        """Give what ``index.json`` lists; nothing where there is none.

        :raises DamageError: it cannot be read.
        """
        index = self._json("index.json", SavedIndex)
        return index.manifests if index else []

    def path(self, name: str) -> str:
        """Follow a member's symlinks."""
        for _ in range(len(self.links) + 1):
            if name not in self.links:
                return name
            name = self.links[name]
        raise DamageError(f"the engine's archive has symlinks in a circle: {name}")

    def blob(self, digest: Digest) -> bytes | None:
        """Give the content of a small blob, None where it is not there."""
        return self.small.get(blob_path(digest))

    def _json(self, name: str, kind: Any) -> Any:  # noqa: ANN401 - as msgspec has it
        data = self.small.get(name)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise DamageError(f"the engine's archive has a {name} that cannot be read: {error}") from error

    def _keep(self, path: str, data: bytes) -> None:
        self._small_bytes += len(data)
        if self._small_bytes > _MOST_SMALL_BYTES:
            raise DamageError(f"the engine's archive has more than {_MOST_SMALL_BYTES} bytes of small members")
        self.small[path] = data


Take = Callable[[str, int, Iterator[Data]], object]


def read_saved(stream: Iterator[Data], take: Take) -> Saved:
    """Read a saved tar once, from its beginning to its end.

    ``take`` is given each layer of more than 256 KiB, and whatever is of more than :data:`SMALL_BYTES`: its path, its
    size and its content, of which it need not read anything. All else is held in memory, at most 64 MiB, and checked
    against the digest that its path states.

    :raises DamageError: it is no whole tar, or holds what cannot be in one that an engine has saved.
    """
    saved = Saved()
    archive = Untar(stream)
    for number, entry in enumerate(archive.members()):
        if number > _MOST_MEMBERS:
            raise DamageError(f"the engine's archive has more than {_MOST_MEMBERS} members")
        path = shown(entry.path)
        if entry.kind == "l":
            saved.links[path] = _target(entry)
        elif entry.kind == "f":
            begin, contents = peek(archive.contents(entry)) if entry.size else (b"", iter(()))
            if entry.size > SMALL_BYTES or (entry.size > _LAYER_BYTES and not begin.lstrip().startswith((b"{", b"["))):
                saved.large[path] = take(path, entry.size, contents)
                continue
            data = b"".join(contents)
            digest = digest_of_path(path)
            if digest is not None and not digest.matches(data):
                raise DamageError(f"the engine's archive is damaged: {path} is not what its name says")
            saved._keep(path, data)  # noqa: SLF001 - its maker
    return saved


def digest_of_path(path: str) -> Digest | None:
    """Give the digest that the path of a blob states; None for what is no blob.

    :raises DamageError: it states what is no digest.
    """
    match = _BLOB.fullmatch(path)
    try:
        return Digest.parse(f"{match[1]}:{match[2]}") if match else None
    except UsageError as error:
        raise DamageError(f"the engine's archive names a blob badly: {error}") from error


def blob_path(digest: Digest) -> str:
    """Give the path of a blob in an image layout."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _target(entry: Entry) -> str:
    target = entry.target if isinstance(entry.target, bytes) else b""
    return shown(os.path.normpath(os.path.join(os.path.dirname(entry.path), target)))


@dataclass(frozen=True, slots=True)
class LoadedLayer:
    """A layer of a tar to be loaded: the digest of what is in the tar, and how to read it, with its size in bytes.

    ``open`` is None where the layer is left out.
    """

    digest: Digest
    open: Callable[[], tuple[int, Iterator[Data]]] | None


def write_loaded(
    *, root: Descriptor | None, blobs: Mapping[Digest, bytes], config: Digest, layers: Sequence[LoadedLayer]
) -> Generator[bytes, None, None]:
    """Give the tar that makes an engine have one image, without any name.

    ``blobs`` are the image's small blobs: its config, and its manifest (and index) if ``root`` names it: the tar is an
    image layout too, then. What makes the tar valid comes last, so that one that breaks off is never taken for whole.
    """
    if root is not None:
        yield _small("oci-layout", _LAYOUT)
    for digest, data in blobs.items():
        yield _small(blob_path(digest), data)
    written = set()
    for layer in layers:
        if layer.open is None or layer.digest in written:
            continue
        written.add(layer.digest)
        size, pieces = layer.open()
        yield _header(blob_path(layer.digest), size)
        for piece in pieces:
            yield piece if isinstance(piece, bytes) else bytes(piece)
        yield tar.padding(size)
    if root is not None:
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [root]}
        yield _small("index.json", msgspec.json.encode(index))
    listed = {"Config": blob_path(config), "RepoTags": None, "Layers": [blob_path(layer.digest) for layer in layers]}
    yield _small("manifest.json", msgspec.json.encode([listed]))
    yield tar.END


def _small(path: str, data: bytes) -> bytes:
    return _header(path, len(data)) + data + tar.padding(len(data))


def _header(path: str, size: int) -> bytes:
    return tar.header(path.encode(), "f", 0o644, 0, 0, size, 0)
