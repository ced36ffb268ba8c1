"""The store: a bucket seen as blobs, repositories and tags, in CNCF Distribution's layout (docs/reference/format.md).

Order of writing, so that whatever a reader can reach is already there: blobs, their ``_layers`` links, the manifest's
blob, its revision link, the tag's index link, the tag's ``current`` link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import BinaryIO

import msgspec

from holdfast.errors import (
    AccessDenied,
    BucketError,
    DamageError,
    NotFoundError,
    ObjectNotFound,
    Unavailable,
    UsageError,
)
from holdfast.model.digest import Digest
from holdfast.model.names import Repository, Tag
from holdfast.model.oci import LARGEST_MANIFEST, Descriptor, Manifest
from holdfast.storage.bucket import Bucket, Data, Label, Readers

_ROOT = "docker/registry/v2"
_REPOSITORIES = f"{_ROOT}/repositories"
_LONGEST_LINK = 256
_LARGEST_OFFSET = (1 << 63) - 1
_KNOWN_LAYERS = "holdfast/layers"
_LONGEST_DESCRIPTOR = 4096
_PIECE_BYTES = 4 * 1024 * 1024
_PIECES_AT_ONCE = 4
_ATTEMPTS = 3
_BLOB = Label("application/octet-stream")


class KnownLayer(Descriptor, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """The blob that holds a layer; ``raw_size`` is the layer's in bytes, uncompressed."""

    raw_size: int = 0


class Store:
    """Blobs, manifests and tags in one bucket. Stateless and safe to use from many threads."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def __str__(self) -> str:
        return str(self.bucket.url)

    # Blobs

    def blob_size(self, digest: Digest) -> int | None:
        """Give a blob's size in bytes as it lies there, or None if it is not there."""
        return self.bucket.size(blob_key(digest))

    def put_blob(
        self, repository: Repository, digest: Digest, data: bytes | Sequence[Data], *, rewrite: bool = False
    ) -> int:
        """Store a blob under its digest, which the caller has computed over just these bytes, and link it.

        Writing a blob that exists is a no-op, unless ``rewrite`` says that the one there may be damaged. Returns the
        bytes that were sent: 0 if it existed.
        """
        size = len(data) if isinstance(data, bytes) else sum(map(len, data))
        sent = 0
        if rewrite or self.blob_size(digest) != size:
            self.bucket.put(blob_key(digest), data)
            sent = size
        self.link_blob(repository, digest)
        return sent

    def put_blob_file(self, repository: Repository, digest: Digest, file: BinaryIO, size: int) -> int:
        """Store what a file holds, ``size`` bytes that the caller has hashed, and link it. Memory: a few parts.

        Returns the bytes that were sent: 0 if the blob existed.
        """
        sent = 0
        if self.blob_size(digest) != size:
            file.seek(0)
            pieces = iter(lambda: file.read(_PIECE_BYTES), b"")
            self.bucket.put_stream(blob_key(digest), pieces, _BLOB, expected_bytes=size)
            sent = size
        self.link_blob(repository, digest)
        return sent

    def link_blob(self, repository: Repository, digest: Digest) -> None:
        """Make a blob that exists a part of a repository."""
        self.bucket.put(f"{_repository_key(repository)}/_layers/{_link_path(digest)}", str(digest).encode())

    def read_blob(self, digest: Digest, *, limit: int) -> bytes:
        """Read a small blob whole and check it against its digest.

        :raises DamageError: it is missing, larger than ``limit`` bytes, or not what its digest says.
        """
        try:
            data = self.bucket.get(blob_key(digest), limit=limit)
        except ObjectNotFound as error:
            raise DamageError(f"blob {digest} is missing from {self}") from error
        except (AccessDenied, Unavailable):
            raise
        except BucketError as error:
            raise DamageError(f"blob {digest} in {self} is not what it should be: {error}") from error
        if not digest.matches(data):
            raise DamageError(f"blob {digest} in {self} is altered: its bytes hash to {Digest.of(data)}")
        return data

    def read_blob_range(self, digest: Digest, offset: int, length: int) -> Data:
        """Read exactly ``length`` bytes of a blob. They are **not** checked: the caller knows what they must be.

        :raises DamageError: the blob is missing or too short.
        """
        if offset < 0 or length < 0 or offset + length > _LARGEST_OFFSET:
            raise DamageError(f"blob {digest} in {self} has no bytes {offset} to {offset + length}")
        try:
            data = self.bucket.get_range(blob_key(digest), offset, length)
        except ObjectNotFound as error:
            raise DamageError(f"blob {digest} is missing from {self}") from error
        if len(data) != length:
            raise DamageError(f"blob {digest} in {self} is truncated: it ends before byte {offset + length}")
        return data

    def open_blob(self, digest: Digest, size: int) -> Iterator[Data]:
        """Read a blob of ``size`` bytes in order, in pieces of 4 MiB, of which several are under way at once.

        They are **not** checked: the caller knows what they must be.

        :raises DamageError: the blob is missing or too short.
        """
        starts = iter(range(0, size, _PIECE_BYTES))
        with Readers(_PIECES_AT_ONCE, "read") as pool:
            coming: deque[Future[Data]] = deque()

            def ask() -> None:
                start = next(starts, None)
                if start is not None:
                    length = min(_PIECE_BYTES, size - start)
                    coming.append(pool.submit(self._piece, digest, start, length))

            for _ in range(_PIECES_AT_ONCE):
                ask()
            while coming:
                piece = coming.popleft().result()
                ask()
                yield piece

    def _piece(self, digest: Digest, start: int, length: int) -> Data:
        """Read a range, again where its body breaks off: obstore tries only the request again by itself."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return self.read_blob_range(digest, start, length)
            except Unavailable:
                continue
        return self.read_blob_range(digest, start, length)

    # Layers of images, by what they are uncompressed

    def known_layer(self, diff_id: Digest) -> KnownLayer | None:
        """Give the blob that holds a layer, if one is there. Its size is compared, its content is not."""
        try:
            data = self.bucket.get(f"{_KNOWN_LAYERS}/{diff_id.algorithm}/{diff_id.hex}", limit=_LONGEST_DESCRIPTOR)
            known = msgspec.json.decode(data, type=KnownLayer)
            return known if self.blob_size(known.parsed()) == known.size else None
        except (AccessDenied, Unavailable):
            raise
        except (BucketError, DamageError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return None  # it is not there; or, whatever is wrong with it, the layer is stored anew

    def note_layer(self, diff_id: Digest, layer: KnownLayer) -> None:
        """Note which blob holds a layer, once the blob is there."""
        key = f"{_KNOWN_LAYERS}/{diff_id.algorithm}/{diff_id.hex}"
        self.bucket.put(key, msgspec.json.encode(layer))

    # Manifests and tags

    def link_manifest(self, repository: Repository, digest: Digest) -> None:
        """Make a manifest whose blob is there a revision of a repository."""
        self.bucket.put(f"{_revisions_key(repository)}/{_link_path(digest)}", str(digest).encode())

    def has_manifest(self, repository: Repository, digest: Digest) -> bool:
        """Whether a manifest is a revision of a repository."""
        return self.bucket.size(f"{_revisions_key(repository)}/{_link_path(digest)}") is not None

    def put_manifest(self, repository: Repository, data: bytes, *, digest: Digest | None = None) -> Digest:
        """Store a manifest whose blobs are all there, and link it as a revision of its repository.

        ``digest`` is what it is known by elsewhere, with another algorithm than ours perhaps.
        """
        if len(data) > LARGEST_MANIFEST:
            raise BucketError(f"a manifest of {len(data)} bytes is larger than registries take ({LARGEST_MANIFEST})")
        digest = digest or Digest.of(data)
        self.bucket.put(blob_key(digest), data)
        self.link_manifest(repository, digest)
        return digest

    def read_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """Read a manifest and check it against its digest.

        :raises DamageError: it is missing, altered, or no image manifest.
        """
        try:
            return Manifest.decode(self.read_blob(digest, limit=LARGEST_MANIFEST))
        except DamageError as error:
            raise DamageError(f"manifest {digest} of {repository}: {error}") from error

    def set_tag(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        """Point a tag at a manifest that is there: its index link first, then ``current``."""
        base = f"{_tags_key(repository)}/{tag}"
        self.bucket.put(f"{base}/index/{_link_path(digest)}", str(digest).encode())
        self.bucket.put(f"{base}/current/link", str(digest).encode())

    def resolve(self, repository: Repository, tag: Tag) -> Digest:
        """Give the digest of the manifest that a tag points at.

        :raises NotFoundError: there is no such tag.
        :raises DamageError: the tag's link is not a digest.
        """
        key = f"{_tags_key(repository)}/{tag}/current/link"
        try:
            data = self.bucket.get(key, limit=_LONGEST_LINK)
        except ObjectNotFound as error:
            raise NotFoundError(f"{repository} has no tag {tag} in {self}") from error
        except (AccessDenied, Unavailable):
            raise
        except BucketError as error:
            raise DamageError(f"the link of tag {tag} of {repository} in {self} is not a digest") from error
        try:
            return Digest.parse(data.decode("ascii").strip())
        except (UsageError, UnicodeDecodeError) as error:
            raise DamageError(f"the link of tag {tag} of {repository} in {self} is not a digest") from error

    def tag_digest(self, repository: Repository, tag: Tag) -> Digest | None:
        """Give the digest that a tag points at, None where there is no such tag or its link is damaged."""
        try:
            return self.resolve(repository, tag)
        except (NotFoundError, DamageError):
            return None

    def tags(self, repository: Repository) -> list[Tag]:
        """List a repository's tags, sorted; empty where there is no such repository."""
        folders, _ = self.bucket.names(_tags_key(repository))
        return [Tag(name) for name in folders if _is_tag(name)]

    def repositories(self, below: str = "") -> Iterator[Repository]:
        """List the repositories whose names begin with the component(s) ``below``, in order."""
        pending = [below.strip("/")]
        while pending:
            name = pending.pop()
            folders, _ = self.bucket.names(f"{_REPOSITORIES}/{name}".rstrip("/"))
            if "_manifests" in folders and _is_repository(name):
                yield Repository(name)
            children = (folder for folder in folders if not folder.startswith("_"))
            pending.extend(sorted((f"{name}/{child}".lstrip("/") for child in children), reverse=True))


def blob_key(digest: Digest) -> str:
    """Give the key of a blob in the bucket."""
    return f"{_ROOT}/blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}/data"


def _repository_key(repository: Repository) -> str:
    return f"{_REPOSITORIES}/{repository}"


def _revisions_key(repository: Repository) -> str:
    return f"{_repository_key(repository)}/_manifests/revisions"


def _tags_key(repository: Repository) -> str:
    return f"{_repository_key(repository)}/_manifests/tags"


def _link_path(digest: Digest) -> str:
    return f"{digest.algorithm}/{digest.hex}/link"


def _is_tag(name: str) -> bool:
    try:
        Tag(name)
    except UsageError:
        return False
    return True


def _is_repository(name: str) -> bool:
    try:
        Repository(name)
    except UsageError:
        return False
    return True
