"""Which images a store holds: found by name, tag, digest or id, in whichever layout they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from holdfast.archive.blobs import Data, checked, raw_size
from holdfast.archive.frames import TABLE_TAIL
from holdfast.errors import DamageError, NotFoundError, ObjectNotFound, UsageError, WrongPlatform
from holdfast.images.dogestry import LegacyImage, LegacyLayer, plain_manifest, read_image
from holdfast.images.spool import Spool
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName, image_id
from holdfast.model.names import Repository, Tag
from holdfast.model.oci import (
    INDEX_TYPE,
    LARGEST_MANIFEST,
    LAYER_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    ImageConfig,
    ImageManifest,
    Index,
    IndexEntry,
    Platform,
    read_manifest,
)
from holdfast.progress import Progress
from holdfast.storage.bucket import Readers
from holdfast.storage.dogestry import DogestryLayout
from holdfast.storage.store import Store

_REQUESTS_AT_ONCE = 16
_MOST_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer in a store: the blob as it lies there (``digest``, ``size`` in bytes), and what it is uncompressed.

    ``open`` reads the blob once, in order, and makes sure of its digest. ``raw_size`` is what the blob states of its
    size uncompressed, None where it states nothing: whoever made it may have stated anything.
    """

    diff_id: Digest
    digest: Digest
    size: int
    media_type: str
    open: Callable[[], Iterator[Data]]
    raw_size: Callable[[], int | None]

    @property
    def is_plain_or_gzip(self) -> bool:
        """Whether every engine reads it as it is, by its media type."""
        return self.media_type.endswith((".tar", "gzip"))


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image for one platform.

    ``root`` is what the name leads to: the manifest, or the index that it is in. ``small`` holds the root,
    the manifest and the config, by their digests. ``layers`` are bottom first.
    """

    root: Descriptor
    small: Mapping[Digest, bytes]
    config: Digest
    layers: tuple[StoredLayer, ...]

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        """Give the digests of the layers uncompressed."""
        return tuple(layer.diff_id for layer in self.layers)


class Found:
    """What a name leads to in a store: an image, or an index of several.

    ``digest`` is the manifest's or index's; ``name`` is None where it was found by its id.
    """

    def __init__(
        self, what: str, digest: Digest, choose: Callable[[Platform], StoredImage], name: ImageName | None
    ) -> None:
        self.what = what
        self.name = name
        self.digest = digest
        self._choose = choose
        self._chosen: dict[Platform, StoredImage] = {}

    def image_for(self, platform: Platform) -> StoredImage:
        """Give the image for a platform; an image that is alone is for any.

        :raises WrongPlatform: an index has none for it.
        :raises DamageError: a manifest or config is missing, altered, or none.
        """
        if platform not in self._chosen:
            self._chosen[platform] = self._choose(platform)
        return self._chosen[platform]


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One tag of a store: with its manifest's ``digest`` in layout registry, its image's id in layout dogestry."""

    name: str
    tag: str
    layout: str
    digest: str | None = None
    image_id: str | None = None

    def told(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {
            "name": self.name,
            "tag": self.tag,
            "layout": self.layout,
            "digest": self.digest,
            "image_id": self.image_id,
        }


def list_images(store: Store) -> Iterator[ListedImage]:
    """List the images of a store by name and tag; what layout registry has of a name hides what dogestry has."""
    names = set()
    with Readers(_REQUESTS_AT_ONCE) as pool:
        for repository in store.repositories():
            name = ImageName.of_repository(repository)
            if name is None:
                continue
            tags = store.tags(repository)
            for tag, digest in zip(
                tags, pool.map(lambda tag, of=repository: store.tag_digest(of, tag), tags), strict=True
            ):
                names.add((name, str(tag)))
                yield ListedImage(name, str(tag), "registry", digest=str(digest) if digest else None)
    for name, tag_name, old_id in DogestryLayout(store.bucket).tags():
        if (name, tag_name) not in names:
            yield ListedImage(name, tag_name, "dogestry", image_id=old_id)


def find_image(store: Store, image: str, spool: Spool, progress: Progress) -> Found:
    """Find an image by ``NAME[:TAG]``, ``NAME@DIGEST``, its id or the beginning of it.

    :raises NotFoundError: there is none.
    :raises UsageError: it is no name, or the beginning of several ids.
    :raises DamageError: its tag or manifest is damaged.
    """
    digits = image_id(image)
    try:
        name: ImageName | None = ImageName.parse(image)
    except UsageError:
        if digits is None:
            raise
        name = None
    old = DogestryLayout(store.bucket)
    found = _by_name(store, old, name, spool, progress) if name else None
    if found is None and digits is not None:
        found = _by_id(store, old, image, digits, spool, progress)
    if found is None and not store.bucket.exists():
        raise ObjectNotFound(f"there is no bucket {store}", hint="check its name, the endpoint and the region")
    if found is None:
        raise NotFoundError(f"there is no image {name or image} in {store}", hint=f"holdfast list '{store}' shows them")
    return found


def _by_name(store: Store, old: DogestryLayout, name: ImageName, spool: Spool, progress: Progress) -> Found | None:
    for repository in _repositories(name):
        digest = _digest_in(store, repository, name)
        if digest is not None:
            return _in_registry(store, str(name), digest, name)
    if name.digest is not None:
        return None
    old_id = old.tag(name.name, str(name.tag))
    return None if old_id is None else _in_dogestry(old, str(name), old_id, name, spool, progress)


def _repositories(name: ImageName) -> list[Repository]:
    """Say where an image may lie: under its own name; registries keep Docker's own images under their long names."""
    own = name.repository
    return [own] if "/" in name.name else [own, Repository(f"library/{own}")]


def _digest_in(store: Store, repository: Repository, name: ImageName) -> Digest | None:
    if name.digest is not None:
        return name.digest if store.has_manifest(repository, name.digest) else None
    assert name.tag is not None  # noqa: S101 - a name without digest has one
    try:
        return store.resolve(repository, name.tag)
    except NotFoundError:
        return None


def _by_id(
    store: Store, old: DogestryLayout, image: str, digits: str, spool: Spool, progress: Progress
) -> Found | None:
    """Look through all tags for images whose config's or manifest's digest begins so."""
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        there = pool.map(lambda pair: _ids(store, *pair), _tagged(store))
        # One image may be there with several manifests, when its layers were packed in different ways.
        found = {ids[-1]: (name, ids[0]) for name, ids in there if any(one.hex.startswith(digits) for one in ids)}
    if len(found) > 1:
        named = ", ".join(sorted(name for name, _ in found.values())[:10])
        raise UsageError(
            f"several images have ids that begin with {digits}: {named}", hint="give more digits, or a name"
        )
    for _, digest in found.values():
        return _in_registry(store, image, digest, None)
    old_id = old.full_id(digits)
    return None if old_id is None else _in_dogestry(old, image, old_id, None, spool, progress)


def _tagged(store: Store) -> Iterator[tuple[Repository, Tag]]:
    for repository in store.repositories():
        if ImageName.of_repository(repository) is not None:
            yield from ((repository, tag) for tag in store.tags(repository))


def _ids(store: Store, repository: Repository, tag: Tag) -> tuple[str, list[Digest]]:
    """Give what the image of a tag may be called: its manifest's digest, and its config's."""
    name = f"{ImageName.of_repository(repository)}:{tag}"
    digest = store.tag_digest(repository, tag)
    if digest is None:
        return name, []
    try:
        manifest = read_manifest(store.read_blob(digest, limit=LARGEST_MANIFEST))
        config = [manifest.config.parsed()] if isinstance(manifest, ImageManifest) else []
    except DamageError:
        config = []
    return name, [digest, *config]


def layers_of(store: Store, manifest: Digest) -> set[Digest]:
    """Give the layers of a manifest, nothing where the store has no such manifest."""
    try:
        found = read_manifest(store.read_blob(manifest, limit=LARGEST_MANIFEST))
        return {layer.parsed() for layer in found.layers} if isinstance(found, ImageManifest) else set()
    except DamageError:
        return set()


def _in_registry(store: Store, what: str, digest: Digest, name: ImageName | None) -> Found:
    return Found(what, digest, lambda platform: _choose(store, what, digest, platform), name)


def _choose(store: Store, what: str, digest: Digest, platform: Platform) -> StoredImage:
    try:
        root_bytes = store.read_blob(digest, limit=LARGEST_MANIFEST)
        root = read_manifest(root_bytes)
        if isinstance(root, ImageManifest):
            described = Descriptor(root.media_type or MANIFEST_TYPE, str(digest), len(root_bytes))
            return _image(store, what, described, {digest: root_bytes}, root)
        chosen = _entry_for(store, what, root, platform)
        data = store.read_blob(chosen, limit=LARGEST_MANIFEST)
        described = Descriptor(root.media_type or INDEX_TYPE, str(digest), len(root_bytes))
        return _image(store, what, described, {digest: root_bytes, chosen: data}, read_manifest(data))
    except DamageError as error:
        raise DamageError(f"image {what}: {error}") from error


def _entry_for(store: Store, what: str, index: Index, platform: Platform) -> Digest:
    there = [
        (entry.parsed(), entry.platform or _platform_of(store, entry)) for entry in index.manifests[:_MOST_ENTRIES]
    ]
    fitting = [(digest, offered) for digest, offered in there if offered and _fits(offered, platform)]
    if not fitting:
        named = ", ".join(str(offered) for _, offered in there if offered) or "none"
        raise WrongPlatform(f"image {what} is not there for {platform}", hint=f"it is there for {named}")
    exact = [digest for digest, offered in fitting if offered.variant == platform.variant]
    return exact[0] if exact else fitting[0][0]


def _platform_of(store: Store, entry: IndexEntry) -> Platform | None:
    """Look for what an index need not say in the image's config; None where neither says."""
    try:
        manifest = read_manifest(store.read_blob(entry.parsed(), limit=LARGEST_MANIFEST))
        if not isinstance(manifest, ImageManifest) or not manifest.is_image:
            return None
        return ImageConfig.decode(store.read_blob(manifest.config.parsed(), limit=LARGEST_MANIFEST)).platform
    except DamageError:
        return None


def _fits(offered: Platform, wanted: Platform) -> bool:
    return (offered.os, offered.architecture) == (wanted.os, wanted.architecture)


def _image(
    store: Store, what: str, root: Descriptor, above: Mapping[Digest, bytes], manifest: ImageManifest | Index
) -> StoredImage:
    if not isinstance(manifest, ImageManifest):
        raise DamageError("its index leads to another index")
    if not manifest.is_image:
        kind = manifest.artifact_type or manifest.config.media_type
        raise UsageError(f"{what} is no image that an engine could run, but {kind[:200]}")
    config_digest = manifest.config.parsed()
    config = store.read_blob(config_digest, limit=LARGEST_MANIFEST)
    diff_ids = ImageConfig.decode(config).diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise DamageError(f"its manifest names {len(manifest.layers)} layers, its config {len(diff_ids)}")
    layers = tuple(_layer(store, what, *pair) for pair in zip(diff_ids, manifest.layers, strict=True))
    return StoredImage(root, {**above, config_digest: config}, config_digest, layers)


def _layer(store: Store, what: str, diff_id: Digest, blob: Descriptor) -> StoredLayer:
    digest, size = blob.parsed(), blob.size
    if size < 0:
        raise DamageError(f"its manifest states {size} bytes for layer {digest}")

    def tail() -> int | None:
        length = min(size, TABLE_TAIL)
        return raw_size(store.read_blob_range(digest, size - length, length), size)

    return StoredLayer(
        diff_id=diff_id,
        digest=digest,
        size=size,
        media_type=blob.media_type,
        open=lambda: checked(store.open_blob(digest, size), digest, size, f"layer {digest} of image {what} in {store}"),
        raw_size=tail,
    )


def _in_dogestry(
    old: DogestryLayout, what: str, old_id: str, name: ImageName | None, spool: Spool, progress: Progress
) -> Found:
    legacy = read_image(old, old_id, spool.directory, progress)
    stored = _of_legacy(legacy)
    return Found(what, stored.root.parsed(), lambda _: stored, name)


def _size(layer: LegacyLayer) -> int:
    return layer.size


def _of_legacy(legacy: LegacyImage) -> StoredImage:
    """Give an image of the old layout the manifest that it never had."""
    config = Digest.of(legacy.config)
    layers = tuple(
        StoredLayer(layer.diff_id, layer.diff_id, layer.size, LAYER_TYPE, layer.open, partial(_size, layer))
        for layer in legacy.layers
    )
    manifest = plain_manifest(legacy.config, [(layer.diff_id, layer.size) for layer in legacy.layers])
    digest = Digest.of(manifest)
    root = Descriptor(MANIFEST_TYPE, str(digest), len(manifest))
    return StoredImage(root, {digest: manifest, config: legacy.config}, config, layers)
