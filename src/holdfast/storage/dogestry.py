"""The layout ``dogestry``: a folder for each image of a chain, an object for each tag (docs/reference/format.md).

It is Dogestry's own layout. Here are keys and objects; what an image's ``json`` and its layer mean is not known here,
and nothing of it is trusted: what is read is bounded, ids are 64 hex digits, names cannot leave their folder.

Some versions of the old program wrote a checksum beside every object, named like it with ``.sum`` behind: they are
neither tags nor images.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from itertools import islice

from holdfast.errors import DamageError, NotFoundError, ObjectNotFound, UsageError
from holdfast.storage.bucket import Bucket, Data, Label, ObjectStream, Readers

LARGEST_JSON = 4 * 1024 * 1024
"""Bytes, of an image's ``json`` and of a config."""

_IMAGES = "images"
_TAGS = "repositories"
_VERSION = b"1.0"
_SUM = ".sum"
_LABEL = Label("application/octet-stream")
_LARGEST_TAG = 256
_ID = re.compile(r"[0-9a-f]{64}")
_CONFIG = re.compile(r"([0-9a-f]{64})\.json")
_PART = re.compile(r"[A-Za-z0-9._:-]+")
_TAGS_AT_ONCE = 8
_TAGS_AHEAD = 64
_MOST_CANDIDATES = 5


class DogestryLayout:
    """Images and tags of this layout in one bucket. Stateless and safe to use from many threads.

    Ids are 64 lower-case hex digits. Every method may raise what :class:`Bucket` raises.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def __str__(self) -> str:
        return str(self.bucket.url)

    def is_there(self) -> bool:
        """Whether the bucket has anything in this layout. Costs one listing of one level."""
        folders, _ = self.bucket.names("")
        return _TAGS in folders or _IMAGES in folders

    # Finding

    def tag(self, name: str, tag: str) -> str | None:
        """Give the id that a tag holds, or None where there is no such tag.

        :raises DamageError: the tag holds no id.
        """
        if not _is_tag(name, tag):
            return None
        try:
            data = self._read(_tag_key(name, tag), _LARGEST_TAG)
        except ObjectNotFound:
            return None
        found = _id_in(data)
        if found is None:
            raise DamageError(f"the tag {tag} of {name} in {self} holds no image's id")
        return found

    def tags(self) -> Iterator[tuple[str, str, str | None]]:
        """List all tags as name, tag and id; None for an id where the tag holds none. Memory: 64 tags.

        What lies among them and can be no tag (checksums, names that no image can have) is passed over.
        """
        keys = (item.key for item in self.bucket.objects(_TAGS))
        tags = (parts for parts in map(_taken_apart, keys) if parts is not None)
        with Readers(_TAGS_AT_ONCE, "tags") as pool:
            while batch := list(islice(tags, _TAGS_AHEAD)):
                for (name, tag), found in zip(batch, pool.map(self._listed, batch), strict=True):
                    yield name, tag, found

    def full_id(self, prefix: str) -> str | None:
        """Give the only id that begins with ``prefix``, or None where there is none. Memory: all ids of the bucket.

        :raises UsageError: there are several.
        """
        if _ID.fullmatch(prefix):
            return prefix if self.has_image(prefix) else None
        folders, _ = self.bucket.names(_IMAGES)
        found = [name for name in folders if name.startswith(prefix) and _ID.fullmatch(name)]
        if len(found) > 1:
            shown = ", ".join(name[: len(prefix) + 12] for name in found[:_MOST_CANDIDATES])
            more = " and others" if len(found) > _MOST_CANDIDATES else ""
            raise UsageError(f"{len(found)} images in {self} begin with {prefix!r}", hint=f"they are {shown}{more}")
        return found[0] if found else None

    # Reading

    def has_image(self, image_id: str) -> bool:
        """Whether the image's ``json`` is there."""
        return self.bucket.size(_image_key(image_id, "json")) is not None

    def image(self, image_id: str) -> bytes:
        """Read the image's ``json``, at most 4 MiB.

        :raises NotFoundError: there is no such image.
        :raises DamageError: it is larger.
        """
        try:
            return self._read(_image_key(image_id, "json"), LARGEST_JSON)
        except ObjectNotFound as error:
            raise NotFoundError(f"there is no image {image_id} in {self}") from error

    def has_layer(self, image_id: str) -> bool:
        """Whether the image's layer is there."""
        return self.layer_size(image_id) is not None

    def layer_size(self, image_id: str) -> int | None:
        """Give the size in bytes of the image's layer as it lies there, or None where there is none."""
        return self.bucket.size(_image_key(image_id, "layer.tar"))

    def open_layer(self, image_id: str) -> ObjectStream:
        """Open the image's layer for reading. Its bytes are **not** checked.

        :raises DamageError: it is missing.
        """
        try:
            return self.bucket.open_stream(_image_key(image_id, "layer.tar"))
        except ObjectNotFound as error:
            raise DamageError(
                f"image {image_id} in {self} has no layer.tar",
                hint="Dogestry lost a layer that came twice in an image; push the image again",
            ) from error

    def configs(self) -> list[str]:
        """List the configs that engines from 1.10 on saved beside their images: the hex of their digests."""
        _, names = self.bucket.names(_IMAGES)
        return [match[1] for match in map(_CONFIG.fullmatch, names) if match]

    def config(self, hexadecimal: str) -> bytes | None:
        """Read one of :meth:`configs`, at most 4 MiB; None where it is not there or not what its name says."""
        try:
            data = self._read(f"{_IMAGES}/{hexadecimal}.json", LARGEST_JSON)
        except (ObjectNotFound, DamageError):
            return None
        return data if hashlib.sha256(data).hexdigest() == hexadecimal else None

    # Writing: layer, json, tag, so that what can be reached is there

    def put_image(self, image_id: str, json: bytes, layer: Iterator[Data], size: int) -> None:
        """Store an image, its ``json`` last. ``size`` is about what the uncompressed layer takes, in bytes."""
        self.put_layer(image_id, layer, size)
        self.put_json(image_id, json)

    def put_layer(self, image_id: str, layer: Iterator[Data], size: int) -> None:
        """Store an image's layer whole, or not at all. See :meth:`Bucket.put_stream`."""
        self.bucket.put_stream(_image_key(image_id, "layer.tar"), layer, _LABEL, expected_bytes=size)

    def put_json(self, image_id: str, json: bytes) -> None:
        """Make an image of a layer that is there."""
        self.bucket.put(_image_key(image_id, "VERSION"), _VERSION)
        self.bucket.put(_image_key(image_id, "json"), json)

    def set_tag(self, name: str, tag: str, image_id: str) -> None:
        """Point a tag at an image that is there with all below it.

        A checksum that the old program left beside the tag is renewed: it believes it more than the tag.

        :raises UsageError: no tag can be called that.
        """
        if not _is_tag(name, tag):
            raise UsageError(f"{name}:{tag} cannot be the name of an image in the layout dogestry")
        key, data = _tag_key(name, tag), _checked(image_id).encode()
        if self.bucket.size(key + _SUM) is not None:
            self.bucket.put(key + _SUM, hashlib.sha1(data, usedforsecurity=False).hexdigest().encode())
        self.bucket.put(key, data)

    def _listed(self, tag: tuple[str, str]) -> str | None:
        try:
            return self.tag(*tag)
        except DamageError:
            return None

    def _read(self, key: str, limit: int) -> bytes:
        data = bytes(self.bucket.get_range(key, 0, limit + 1))
        if len(data) > limit:
            raise DamageError(f"{key!r} in {self} is larger than {limit} bytes")
        return data


def _image_key(image_id: str, name: str) -> str:
    return f"{_IMAGES}/{_checked(image_id)}/{name}"


def _checked(image_id: str) -> str:
    if not _ID.fullmatch(image_id):
        raise UsageError(f"not an image's id: {image_id[:200]!r}", hint="an id has 64 hex digits")
    return image_id


def _tag_key(name: str, tag: str) -> str:
    return f"{_TAGS}/{name}/{tag}"


def _taken_apart(key: str) -> tuple[str, str] | None:
    """Give name and tag of a key below ``repositories``; None where it can be no tag's."""
    name, slash, tag = key.removeprefix(f"{_TAGS}/").rpartition("/")
    return (name, tag) if slash and _is_tag(name, tag) else None


def _is_tag(name: str, tag: str) -> bool:
    parts = [*name.split("/"), tag]
    return not tag.endswith(_SUM) and all(_PART.fullmatch(part) and part not in (".", "..") for part in parts)


def _id_in(data: bytes) -> str | None:
    text = data.decode("ascii", "replace").strip()
    return text if _ID.fullmatch(text) else None
