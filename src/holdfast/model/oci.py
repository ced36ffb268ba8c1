"""OCI manifests, indexes and image configs (image-spec 1.1), as far as Holdfast writes and reads them.

What Docker wrote before there was OCI (*Image Manifest V 2, Schema 2*) differs in its media types only.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.errors import DamageError, UsageError
from holdfast.model.digest import Digest

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
IMAGE_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
GZIP_LAYER_TYPE = f"{LAYER_TYPE}+gzip"
ZSTD_LAYER_TYPE = f"{LAYER_TYPE}+zstd"
DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX_TYPE = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_IMAGE_CONFIG_TYPES = (IMAGE_CONFIG_TYPE, DOCKER_CONFIG_TYPE)
LARGEST_MANIFEST = 4 * 1024 * 1024
"""Bytes; registries refuse larger ones (distribution-spec, *Pushing Manifests*)."""


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a manifest says of a blob. ``size`` is the blob's in bytes, compressed as it lies in the store."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None

    def parsed(self) -> Digest:
        """Give the digest as a value.

        :raises DamageError: it is none.
        """
        try:
            return Digest.parse(self.digest)
        except UsageError as error:
            raise DamageError(f"a manifest names a blob badly: {error}") from error


class Manifest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """An image manifest used as an artifact."""

    schema_version: int
    media_type: str
    artifact_type: str | None = None
    config: Descriptor
    layers: list[Descriptor]
    annotations: dict[str, str] | None = None

    def encode(self) -> bytes:
        """Give the JSON that is hashed and stored.

        ``schemaVersion`` and ``mediaType`` are always written; msgspec keeps the order of the fields.
        """
        return msgspec.json.format(msgspec.json.encode(self), indent=0)

    @classmethod
    def of_image(cls, config: bytes, layers: Sequence[Descriptor]) -> Manifest:
        """Make an image's manifest. ``layers`` are bottom first."""
        described = Descriptor(IMAGE_CONFIG_TYPE, str(Digest.of(config)), len(config))
        return cls(schema_version=2, media_type=MANIFEST_TYPE, config=described, layers=list(layers))

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read a manifest.

        :raises DamageError: it is not one.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise DamageError(f"not a manifest: {error}") from error


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an image runs on. ``variant`` is that of the processor: v7 of arm."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part) or "unknown"


class IndexEntry(Descriptor, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A manifest of an index."""

    platform: Platform | None = None


class ImageManifest(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A manifest as it is read: of an image, by whomever."""

    config: Descriptor
    stated_layers: list[Descriptor] | None = msgspec.field(name="layers")
    media_type: str = ""
    artifact_type: str = ""

    @property
    def layers(self) -> list[Descriptor]:
        """Give the layers, bottom first. Engines write null where there is none."""
        return self.stated_layers or []

    @property
    def is_image(self) -> bool:
        """Whether an engine can run it: all else are artifacts, which are kept and moved like images."""
        return self.config.media_type in _IMAGE_CONFIG_TYPES and not self.artifact_type


class Index(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Several manifests under one digest, one for each platform."""

    manifests: list[IndexEntry]
    media_type: str = ""


class _Kind(msgspec.Struct, rename="camel"):
    manifests: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    config: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    layers: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def read_manifest(data: bytes) -> ImageManifest | Index:
    """Read what a tag or an index points at.

    :raises DamageError: it is neither a manifest nor an index, or both.
    """
    try:
        kind = msgspec.json.decode(data, type=_Kind)
        is_index = kind.manifests is not msgspec.UNSET
        is_manifest = kind.config is not msgspec.UNSET or kind.layers is not msgspec.UNSET
        if is_index and is_manifest:
            raise DamageError("it is a manifest and an index at once")
        return msgspec.json.decode(data, type=Index) if is_index else msgspec.json.decode(data, type=ImageManifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DamageError(f"not a manifest: {error}") from error


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[str] | None = None


class ImageConfig(msgspec.Struct, frozen=True):
    """What Holdfast needs of an image's config. ``layers`` are the digests of its layers uncompressed, bottom first."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    rootfs: _RootFs = msgspec.field(default_factory=_RootFs)

    @classmethod
    def decode(cls, data: bytes) -> ImageConfig:
        """Read a config.

        :raises DamageError: it is none.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise DamageError(f"not an image's config: {error}") from error

    @property
    def platform(self) -> Platform:
        """Give what the image runs on."""
        return Platform(self.architecture, self.os, self.variant)

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        """Give the digests of the layers.

        :raises DamageError: one is none.
        """
        try:
            return tuple(Digest.parse(text) for text in self.rootfs.diff_ids or ())
        except UsageError as error:
            raise DamageError(f"an image's config names a layer badly: {error}") from error


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """Name each layer together with all below it (image-spec 1.1, config.md, *Layer ChainID*)."""
    chains: list[Digest] = []
    for diff_id in diff_ids:
        chains.append(Digest.of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains
