"""OCI image manifests (image-spec 1.1, manifest.md), as far as Holdfast writes and reads them."""

from __future__ import annotations

import msgspec

from holdfast.errors import DamageError, UsageError
from holdfast.model.digest import Digest

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
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
    def decode(cls, data: bytes) -> Manifest:
        """Read a manifest.

        :raises DamageError: it is not one.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise DamageError(f"not a manifest: {error}") from error
