"""Where a push goes: a store, as blobs, manifests and tags, or in Dogestry's layout."""

from __future__ import annotations

import io
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import BinaryIO, Self

from holdfast.archive.blobs import MEDIA_TYPES, Compression, Packed
from holdfast.errors import DamageError, NotFoundError
from holdfast.images.dogestry import EMPTY_LAYER, image_json, layer_ids, plain_manifest, trusted_config
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName
from holdfast.model.oci import LARGEST_MANIFEST, Descriptor, Index, Manifest, read_manifest
from holdfast.progress import Progress
from holdfast.storage.dogestry import DogestryLayout
from holdfast.storage.store import KnownLayer, Store

_REQUESTS_AT_ONCE = 8
_PIECE_BYTES = 4 * 1024 * 1024
_DEEPEST = 2
"""How many indexes an index may lie within: each can name others many times over."""
_NO_CONFIG = Digest.of(b"")

Read = Callable[[Digest], bytes | None]


class Target(ABC):
    """What a push writes to. Blobs are put from several threads at once; all else is called by one.

    ``compression`` is how layers are packed for it.
    """

    compression: Compression

    def __init__(self, progress: Progress) -> None:
        self.layers_sent = 0
        self._progress = progress
        self._lock = threading.Lock()

    @abstractmethod
    def known(self, config: Digest | None, diff_ids: Sequence[Digest]) -> dict[Digest, int]:
        """Give those layers that are there already, each with its size uncompressed, 0 where that is not known.

        ``config`` is the config's digest, if it is known yet.
        """

    @abstractmethod
    def config(self, digest: Digest, diff_ids: Sequence[Digest]) -> bytes | None:
        """Give a config that is there already, None if it is not."""

    @abstractmethod
    def put_layer(self, packed: Packed, file: BinaryIO) -> bool:
        """Store a layer. Tells whether the target is done with the file; if not, it closes it in the end."""

    @abstractmethod
    def publish(self, config: bytes, diff_ids: Sequence[Digest]) -> Digest:
        """Make the image of these layers, which are all there, be found by its names. Gives what it is found by."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - most keep nothing
        """Let go of what was kept for :meth:`publish`."""

    def _sent(self, size: int) -> None:
        with self._lock:
            self.layers_sent += 1
        self._progress.advance(stored=size)


class RegistryTarget(Target):
    """A store in the registry's layout. The names' repositories share their blobs."""

    def __init__(self, store: Store, names: Sequence[ImageName], compression: Compression, progress: Progress) -> None:
        super().__init__(progress)
        self.compression = compression
        self._store = store
        self._names = names
        self._repositories = list(dict.fromkeys(name.repository for name in names))
        self._layers: dict[Digest, KnownLayer] = {}

    def known(self, config: Digest | None, diff_ids: Sequence[Digest]) -> dict[Digest, int]:  # noqa: ARG002
        unique = list(dict.fromkeys(diff_ids))
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            found = zip(unique, pool.map(self._store.known_layer, unique), strict=True)
            self._layers |= {diff_id: layer for diff_id, layer in found if layer is not None}
        return {diff_id: layer.raw_size for diff_id, layer in self._layers.items()}

    def config(self, digest: Digest, diff_ids: Sequence[Digest]) -> bytes | None:  # noqa: ARG002
        try:
            return self._store.read_blob(digest, limit=LARGEST_MANIFEST)
        except DamageError:
            return None  # missing or altered, it is stored anew

    def put_layer(self, packed: Packed, file: BinaryIO) -> bool:
        sent = self._store.put_blob_file(self._repositories[0], packed.digest, file, packed.size)
        layer = KnownLayer(
            media_type=MEDIA_TYPES[self.compression],
            digest=str(packed.digest),
            size=packed.size,
            raw_size=packed.raw_size,
        )
        self._store.note_layer(packed.diff_id, layer)
        with self._lock:
            self._layers[packed.diff_id] = layer
        self._sent(sent)
        return True

    def publish(self, config: bytes, diff_ids: Sequence[Digest]) -> Digest:
        known = [self._layers[diff_id] for diff_id in diff_ids]
        layers = [Descriptor(layer.media_type, layer.digest, layer.size) for layer in known]
        manifest = Manifest.of_image(config, layers).encode()
        digest, config_digest = Digest.of(manifest), Digest.of(config)
        if not (self._is_tagged(digest) and self._holds(digest) and self._holds(config_digest)):
            self._store.put_blob(self._repositories[0], config_digest, config, rewrite=True)
            self._link([*(layer.parsed() for layer in layers), config_digest])
            self._tag([(digest, manifest)])
        return digest

    # Blobs as they are

    def has_blob(self, digest: Digest, size: int) -> bool:
        """Whether a blob is there."""
        return self._store.blob_size(digest) == size

    def put_blob(self, digest: Digest, size: int, file: BinaryIO) -> None:
        """Store a blob as it is."""
        self._sent(self._store.put_blob_file(self._repositories[0], digest, file, size))

    def read_manifest(self, digest: Digest) -> bytes | None:
        """Give a manifest or index that is there whole, None if it is not."""
        return self.config(digest, ())

    def publish_tree(self, root: Digest, read: Read, needed: Iterable[Digest] = ()) -> bool:
        """Make an image, or an index of several, be found by its names; ``read`` gives what is small.

        Manifests of an index that are not there, or not whole, are left out, but for those that are ``needed``: that is
        how engines keep them. Tells whether all this is whole; if not, nothing was changed but for blobs.

        :raises DamageError: a manifest is none.
        """
        tree = self._tree(root, read)
        if tree is None:
            return False
        manifests, blobs = tree
        if not set(needed) <= {digest for digest, _ in manifests}:
            return False
        if not (self._is_tagged(root) and self._has_all(manifests)):
            self._link(blobs)
            self._tag(manifests)
        return True

    def _tree(self, root: Digest, read: Read, depth: int = 0) -> tuple[list[tuple[Digest, bytes]], list[Digest]] | None:
        """Give the manifests below a root, which comes last, and their blobs; None where it is not whole."""
        data = read(root)
        if data is None:
            return None
        manifest = read_manifest(data)
        if isinstance(manifest, Index):
            if depth == _DEEPEST:
                raise DamageError(f"index {root} lies within {depth} others")
            below = dict.fromkeys(entry.parsed() for entry in manifest.manifests)
            parts = [self._tree(entry, read, depth + 1) for entry in below]
            whole = [part for part in parts if part is not None]
            if manifest.manifests and not whole:
                return None
            manifests = [one for part in whole for one in part[0]]
            return [*manifests, (root, data)], [blob for part in whole for blob in part[1]]
        if not self._is_there(manifest.config, read):
            return None
        for layer in manifest.layers:
            if not self._is_there(layer, read, is_layer=True):
                return None
        return [(root, data)], [blob.parsed() for blob in (manifest.config, *manifest.layers)]

    def _is_there(self, blob: Descriptor, read: Read, *, is_layer: bool = False) -> bool:
        digest = blob.parsed()
        is_small = blob.size <= LARGEST_MANIFEST
        if self.has_blob(digest, blob.size) if is_layer or not is_small else self.config(digest, ()) is not None:
            return True
        data = read(digest) if is_small else None
        if data is None or len(data) != blob.size:
            return False
        sent = self._store.put_blob(self._repositories[0], digest, data, rewrite=True)
        if is_layer and sent:
            self._sent(sent)
        else:
            self._progress.advance(stored=sent)
        return True

    def _holds(self, digest: Digest) -> bool:
        """Whether a small blob is there, and whole."""
        return self.config(digest, ()) is not None

    def _has_all(self, manifests: Iterable[tuple[Digest, bytes]]) -> bool:
        """Whether manifests are there, and belong to all repositories: an index may have had fewer of them before."""
        return all(
            self._holds(digest) and all(self._store.has_manifest(there, digest) for there in self._repositories)
            for digest, _ in manifests
        )

    def _is_tagged(self, digest: Digest) -> bool:
        """Whether all names lead to a manifest already: then all that it needs was there before."""
        return all(name.tag and self._store.tag_digest(name.repository, name.tag) == digest for name in self._names)

    def _link(self, blobs: Iterable[Digest]) -> None:
        pairs = [(repository, blob) for repository in self._repositories for blob in dict.fromkeys(blobs)]
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            list(pool.map(lambda pair: self._store.link_blob(*pair), pairs))

    def _tag(self, manifests: Sequence[tuple[Digest, bytes]]) -> None:
        """Put manifests, of which the last one is tagged."""
        digest = manifests[-1][0]
        for repository in self._repositories:
            for known_by, data in manifests:
                self._store.put_manifest(repository, data, digest=known_by)
        for name in self._names:
            if name.tag:
                self._store.set_tag(name.repository, name.tag, digest)


class DogestryTarget(Target):
    """A bucket in Dogestry's layout: an image for each layer, named by all below it, the top one by the config as well.

    So what is on top can be put once the config is known; it is kept until then.
    """

    compression: Compression = "none"

    def __init__(
        self, layout: DogestryLayout, names: Sequence[ImageName], diff_ids: Sequence[Digest], progress: Progress
    ) -> None:
        super().__init__(progress)
        self._layout = layout
        self._names = names
        self._diff_ids = list(diff_ids)
        self._below = layer_ids(_NO_CONFIG, diff_ids)[:-1]
        self._sizes: dict[Digest, int] = {}
        self._top: BinaryIO | None = None

    def known(self, config: Digest | None, diff_ids: Sequence[Digest]) -> dict[Digest, int]:
        ids = layer_ids(config, diff_ids) if config else self._below
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            sizes = list(pool.map(self._layout.layer_size, ids))
        lacking = {diff_id for diff_id, size in zip_longest(diff_ids, sizes) if size is None}
        there = {diff_id: size for diff_id, size in zip(diff_ids, sizes, strict=False) if size is not None}
        self._sizes = {diff_id: size for diff_id, size in there.items() if diff_id not in lacking}
        return self._sizes

    def config(self, digest: Digest, diff_ids: Sequence[Digest]) -> bytes | None:
        top = layer_ids(digest, diff_ids)[-1]
        try:
            return trusted_config(self._layout.image(top))
        except (NotFoundError, DamageError):
            return None

    def put_layer(self, packed: Packed, file: BinaryIO) -> bool:
        with self._lock:
            self._sizes[packed.diff_id] = packed.raw_size
        for below, diff_id in zip(self._below, self._diff_ids, strict=False):
            if diff_id == packed.diff_id and self._layout.layer_size(below) != packed.size:
                self._put(below, file, packed.size)
        if [packed.diff_id] != self._diff_ids[-1:]:
            return True
        self._top = file
        return False

    def publish(self, config: bytes, diff_ids: Sequence[Digest]) -> Digest:
        ids = layer_ids(Digest.of(config), diff_ids)
        sizes = [self._sizes[diff_id] for diff_id in diff_ids] or [len(EMPTY_LAYER)]
        if self._layout.layer_size(ids[-1]) != sizes[-1]:
            self._put(ids[-1], self._top or io.BytesIO(EMPTY_LAYER), sizes[-1])
        for number, size in enumerate(sizes):
            if number == len(ids) - 1 or not self._layout.has_image(ids[number]):
                self._layout.put_json(ids[number], image_json(ids, number, config, size))
        for name in self._names:
            if name.tag:
                self._layout.set_tag(name.name, str(name.tag), ids[-1])
        return Digest.of(plain_manifest(config, [(diff_id, self._sizes[diff_id]) for diff_id in diff_ids]))

    def close(self) -> None:
        if self._top is not None:
            self._top.close()

    def _put(self, image_id: str, file: BinaryIO, size: int) -> None:
        file.seek(0)
        self._layout.put_layer(image_id, iter(lambda: file.read(_PIECE_BYTES), b""), size)
        self._sent(size)
