"""Images in the layout ``dogestry``: what lies there as engines of today load it, and the way back.

There an image is a chain: one v1 image for each layer (moby, image/spec/v1.md), each naming its parent. Engines of
today want one config and layers that are named by their content. So a chain is read to its bottom, each layer once, and
a config is made of it, unless the exact one lies in the bucket: an image that Holdfast wrote carries it in its own
``json``, and engines from 1.10 to 24 saved it beside the chain.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import msgspec

from holdfast.archive.blobs import checked
from holdfast.errors import DamageError, NotFoundError, UsageError
from holdfast.images.layerfile import LayerFile
from holdfast.images.spool import Spool
from holdfast.model.digest import Digest
from holdfast.model.oci import LAYER_TYPE, Descriptor, ImageConfig, Manifest
from holdfast.progress import Part, Progress
from holdfast.storage.dogestry import LARGEST_JSON, DogestryLayout

Data = bytes | memoryview
_T = TypeVar("_T")

EMPTY_LAYER = bytes(1024)
"""The layer of an image that changes no file: a tar without members."""

CONFIG_KEY = "io.holdfast.config"
"""Where the top image's ``json`` holds the exact config, in base64."""

_EMPTY = Digest.of(EMPTY_LAYER)
_DOMAIN = "io.holdfast.dogestry.v1"
_ID = re.compile(r"[0-9a-f]{64}")
_LONGEST_CHAIN = 1000
_READERS = 8
_EPOCH = "1970-01-01T00:00:00Z"
_NO_TIME = "0001-01-01T00:00:00Z"  # how an engine writes a time that it does not know
_OF_THE_CHAIN = ("id", "parent", "Size", "parent_id", "layer_id", "throwaway", "rootfs", "history")
_RUN_FIELDS = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
)  # those of image-spec 1.1, config.md; engines left others out, or wrote them differently


@dataclass(frozen=True, slots=True)
class LegacyLayer:
    """A layer, uncompressed: its digest, its size in bytes, and how to read it, as often as wanted.

    What ``open`` gives may raise :class:`DamageError` after its last buffer: nothing of it counts before the end.
    """

    diff_id: Digest
    size: int
    open: Callable[[], Iterator[Data]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LegacyImage:
    """An image as engines of today know it; its layers are bottom first.

    ``bytes_read`` is what was read of layers so far. A temporary file that holds them goes with the last of them.
    """

    config: bytes
    layers: tuple[LegacyLayer, ...]
    bytes_read: int = 0


# Reading


def read_image(layout: DogestryLayout, image_id: str, spool_dir: str | None, progress: Progress) -> LegacyImage:
    """Make of a chain what engines of today load.

    An image of Holdfast's own is read when its layers are opened, and checked against the digests that its id covers.
    Of any other, each layer is read here, once, into an unnamed temporary file in ``spool_dir`` (None: where temporary
    files go), because its digest is known only then. Disk: all layers, uncompressed. Memory: a few buffers and 8
    configs of at most 4 MiB.

    :raises NotFoundError: there is no such image.
    :raises DamageError: the chain is broken, endless or not what it should be; the message names the image.
    :raises NoSpaceError: the temporary file has no room.
    :raises TargetError: there can be no temporary file.
    """
    top = layout.image(image_id)
    _opened(layout, image_id, top)
    with _named(image_id, layout):
        config = trusted_config(top)
    if config is not None:
        return _our_own(layout, image_id, config)
    images = _chain(layout, image_id, top)
    file = LayerFile(Spool(spool_dir))
    layers = [_read_layer(layout, image_id, image, file, progress) for image in images]
    exact = _exact_config(layout, top, [layer.diff_id for layer in layers])
    if exact is None:
        with _named(image_id, layout):
            exact = _made_config(top, images, layers)
        layers = [layer for layer in layers if layer.diff_id != _EMPTY]
    return LegacyImage(exact, tuple(layers), file.bytes_taken)


class _Command(msgspec.Struct):
    cmd: list[str] | str | None = msgspec.field(default=None, name="Cmd")


class _Image(msgspec.Struct):
    """What is needed of a v1 image's ``json``."""

    id: str = ""
    parent: str | None = None
    created: str | None = None
    author: str | None = None
    comment: str | None = None
    container_config: _Command | None = None


class _History(msgspec.Struct, frozen=True, omit_defaults=True):
    created: str | None = None
    author: str = ""
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True)
class _Link:
    """An image of a chain."""

    id: str
    history: _History


def _chain(layout: DogestryLayout, image_id: str, top: bytes) -> list[_Link]:
    """Follow the parents down; give the images, bottom first."""
    found: dict[str, _Link] = {}
    size = 0
    json = top
    while True:
        image = _opened(layout, image_id, json)
        link = _Link(image_id, _history(image))
        found[image_id] = link
        size += len(msgspec.json.encode(link.history))
        if not image.parent:
            return list(reversed(found.values()))
        with _named(image_id, layout):
            if not _ID.fullmatch(image.parent):
                raise DamageError(f"its parent is no image's id: {image.parent[:200]!r}")
            if image.parent in found:
                raise DamageError(f"its parents go in a circle, back to {image.parent}")
            if len(found) == _LONGEST_CHAIN or size > LARGEST_JSON:
                raise DamageError(f"there are more images below another than any engine makes ({len(found)} and more)")
        json = _parent(layout, image_id, image.parent)
        image_id = image.parent


def _parent(layout: DogestryLayout, image_id: str, parent: str) -> bytes:
    try:
        return layout.image(parent)
    except NotFoundError as error:
        raise DamageError(f"image {image_id} in {layout}: its parent {parent} is missing") from error


def _history(image: _Image) -> _History:
    command = image.container_config.cmd if image.container_config else None
    created_by = command if isinstance(command, str) else " ".join(command or ())
    return _History(image.created, image.author or "", created_by, image.comment or "")


def _read_layer(layout: DogestryLayout, top: str, image: _Link, file: LayerFile, progress: Progress) -> LegacyLayer:
    opened = layout.open_layer(image.id)
    part = progress.part(f"layer {image.id[:12]}", state="reading", total=opened.size)
    try:
        layer = file.take(_counted(opened.pieces, part))
    except DamageError as error:
        part.state = "failed"
        raise DamageError(f"the layer {image.id} of image {top} in {layout} is damaged: {error}") from error
    part.state = "done"
    return LegacyLayer(layer.diff_id, layer.size, partial(file.pieces, layer))


def _counted(pieces: Iterator[Data], part: Part) -> Iterator[Data]:
    for piece in pieces:
        part.done += len(piece)
        yield piece


class _Run(msgspec.Struct):
    """What tells configs of the same layers apart."""

    architecture: str = ""
    os: str = ""
    created: str | None = None
    config: dict[str, object] | None = None

    def essence(self) -> tuple[object, ...]:
        run = {name: value for name in _RUN_FIELDS if (value := (self.config or {}).get(name))}
        return self.architecture, self.os, self.created or _NO_TIME, run


def _exact_config(layout: DogestryLayout, top: bytes, diff_ids: list[Digest]) -> bytes | None:
    """Find the config that the engine saved beside the chain: of these layers, and run like the top image."""
    names = layout.configs()
    if not names:
        return None
    essence = _decoded(top, _Run).essence()
    with ThreadPoolExecutor(_READERS, "configs") as pool:
        for start in range(0, len(names), _READERS):
            for config in pool.map(layout.config, names[start : start + _READERS]):
                if config is not None and _is_of(config, diff_ids, essence):
                    return config
    return None


def _is_of(config: bytes, diff_ids: list[Digest], essence: tuple[object, ...]) -> bool:
    try:
        same = list(_decoded(config, ImageConfig).diff_ids) == diff_ids
        return same and _decoded(config, _Run).essence() == essence
    except DamageError:
        return False


def _made_config(top: bytes, images: Sequence[_Link], layers: Sequence[LegacyLayer]) -> bytes:
    """Make a config as engines do that load a chain (moby, image/v1/imagev1.go), key by key.

    An image that changes no file has no layer in it, only its place in the history.
    """
    history = [
        msgspec.structs.replace(image.history, empty_layer=layer.diff_id == _EMPTY)
        for image, layer in zip(images, layers, strict=True)
    ]
    diff_ids = [str(layer.diff_id) for layer in layers if layer.diff_id != _EMPTY]
    said = _decoded(top, dict[str, msgspec.Raw])
    values: dict[str, object] = {name: value for name, value in said.items() if name not in _OF_THE_CHAIN}
    run = _decoded(top, _Run)
    values["architecture"] = run.architecture or "amd64"  # the one there was before images said it
    values["os"] = run.os or "linux"
    values["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    values["history"] = history
    config = msgspec.json.format(msgspec.json.encode(dict(sorted(values.items()))), indent=-1)
    for letter in (b"&", b"<", b">"):  # as engines write them, so that the id is the one that they give
        config = config.replace(letter, b"\\u%04x" % ord(letter))
    if len(config) > LARGEST_JSON:
        raise DamageError(f"its history takes more than {LARGEST_JSON} bytes")
    return config


def plain_manifest(config: bytes, layers: Sequence[tuple[Digest, int]]) -> bytes:
    """Give an image of this layout the manifest that it never had: its layers, by digest and size, uncompressed."""
    return Manifest.of_image(config, [Descriptor(LAYER_TYPE, str(digest), size) for digest, size in layers]).encode()


# Images of Holdfast's own


def layer_ids(config: Digest, diff_ids: Sequence[Digest]) -> list[str]:
    """Name the images of a chain, bottom first: by their layers, the top one by the config as well.

    An image without layers is a chain of one, whose layer is :data:`EMPTY_LAYER`.
    """
    ids: list[str] = []
    for number, diff_id in enumerate(diff_ids or [_EMPTY]):
        words = [_DOMAIN, ids[-1] if ids else "", str(diff_id) if diff_ids else ""]
        if number >= len(diff_ids) - 1:
            words.append(str(config))
        ids.append(hashlib.sha256("\n".join(words).encode()).hexdigest())
    return ids


def image_json(ids: Sequence[str], number: int, config: bytes, size: int) -> bytes:
    """Write the ``json`` of image ``number`` (from 0, the bottom one) of a chain, whose layer has ``size`` bytes.

    Only the top one depends on the config: images that share layers share the images below.

    :raises DamageError: ``config`` is no config.
    :raises UsageError: it is too large for this layout.
    """
    values: dict[str, object] = {"id": ids[number]}
    if number:
        values["parent"] = ids[number - 1]
    if number < len(ids) - 1:
        values |= {"created": _EPOCH, "container_config": {}, "Size": size}
        return msgspec.json.encode(values)
    said = _decoded(config, dict[str, msgspec.Raw])
    values |= {"created": _EPOCH, "container_config": {}, "config": {}, "Size": size}
    copied = ("created", "author", "architecture", "os", "config")
    values |= {name: said[name] for name in copied if name in said and bytes(said[name]) != b"null"}
    values[CONFIG_KEY] = base64.b64encode(config).decode()
    json = msgspec.json.encode(values)
    if len(json) > LARGEST_JSON:
        raise UsageError(
            f"a config of {len(config)} bytes is too large for the layout dogestry", hint="use the layout registry"
        )
    return json


class _Own(msgspec.Struct):
    id: str = ""
    config: str | None = msgspec.field(default=None, name=CONFIG_KEY)


def trusted_config(json: bytes) -> bytes | None:
    """Read back the exact config out of a top image's ``json``; None where Holdfast has not written it.

    :raises DamageError: there is one, and it is not that of this very id.
    """
    own = _decoded(json, _Own)
    if own.config is None:
        return None
    try:
        config = base64.b64decode(own.config, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DamageError("its config is not in base64") from error
    diff_ids = _decoded(config, ImageConfig).diff_ids
    if len(diff_ids) > _LONGEST_CHAIN or layer_ids(Digest.of(config), diff_ids)[-1] != own.id:
        raise DamageError("its config is altered: it is not the one that the image is named by")
    return config


def _our_own(layout: DogestryLayout, image_id: str, config: bytes) -> LegacyImage:
    diff_ids = ImageConfig.decode(config).diff_ids
    ids = layer_ids(Digest.of(config), diff_ids)[: len(diff_ids)]
    with ThreadPoolExecutor(_READERS, "layers") as pool:
        sizes = list(pool.map(layout.layer_size, ids))
    layers = []
    for layer_id, diff_id, size in zip(ids, diff_ids, sizes, strict=True):
        if size is None:
            raise DamageError(f"the layer {layer_id} of image {image_id} is missing from {layout}")
        layers.append(LegacyLayer(diff_id, size, partial(_checked, layout, image_id, layer_id, diff_id, size)))
    return LegacyImage(config, tuple(layers))


def _checked(layout: DogestryLayout, image_id: str, layer_id: str, diff_id: Digest, size: int) -> Iterator[Data]:
    what = f"the layer {layer_id} of image {image_id} in {layout}"
    yield from checked(layout.open_layer(layer_id).pieces, diff_id, size, what)


# What is read


@contextmanager
def _named(image_id: str, layout: DogestryLayout) -> Iterator[None]:
    """Say which image it is that is damaged."""
    try:
        yield
    except DamageError as error:
        raise DamageError(f"image {image_id} in {layout}: {error}") from error


def _decoded(json: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(json, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DamageError(f"its json cannot be read: {error}") from error


def _opened(layout: DogestryLayout, image_id: str, json: bytes) -> _Image:
    with _named(image_id, layout):
        image = _decoded(json, _Image)
        if image.id not in ("", image_id):
            raise DamageError(f"its json is that of another image: {image.id[:200]!r}")
    return image
