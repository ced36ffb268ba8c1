"""Docker Engines in memory, as Holdfast sees them: `images.engine.Engine` without a Docker.

Both kinds of store are there. Each really reads what it is told to load, and checks what real ones check: the classic
store knows layers by the chain of those below them and makes sure of each one's diff id (moby, image/tarexport);
containerd's keeps blobs under their digests and unpacks what is complete (containerd, core/images/archive).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import zstandard

from holdfast.errors import EngineError, EngineUnavailable
from holdfast.images.engine import EngineImage, Traits
from holdfast.model.digest import Digest
from holdfast.model.oci import (
    DOCKER_CONFIG_TYPE,
    GZIP_LAYER_TYPE,
    IMAGE_CONFIG_TYPE,
    INDEX_TYPE,
    LAYER_TYPE,
    MANIFEST_TYPE,
    ZSTD_LAYER_TYPE,
    Platform,
    chain_ids,
)

OLD_API, NEW_API = (1, 41), (1, 48)
AMD64, ARM64 = Platform("amd64", "linux"), Platform("arm64", "linux", "v8")
_PIECE_BYTES = 64 * 1024
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"


def layer_of(size: int, seed: object = 0) -> bytes:
    """A layer: a tar with one file, of about `size` bytes that compress to half, the same for the same seed."""
    half = size // 2
    return tar_of({f"file-{seed}": random.Random(str(seed)).randbytes(half) + bytes(size - half)})


def tar_of(members: dict[str, bytes | str]) -> bytes:
    """A tar of files; a string is where a symlink leads."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return packed.getvalue()


def config_of(layers: Sequence[bytes], platform: Platform = AMD64, **more: object) -> bytes:
    """The config of an image of these layers, uncompressed."""
    told = {
        "architecture": platform.architecture,
        "os": platform.os,
        "variant": platform.variant,
        "config": {"Cmd": ["/bin/app"]},
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]},
    }
    return json.dumps(told | more).encode()


@dataclass
class Blobs:
    """An image as blobs, as a registry or a containerd store has it. `root` is what its name leads to."""

    root: Digest
    root_type: str
    content: dict[Digest, bytes]

    def without(self, *digests: Digest) -> Blobs:
        """The same, where some blobs were never fetched."""
        return Blobs(self.root, self.root_type, {k: v for k, v in self.content.items() if k not in digests})


def gzipped(layer: bytes) -> bytes:
    """A layer as registries have most of them."""
    return gzip.compress(layer, 1, mtime=0)


def blobs_of(
    layers: Sequence[bytes], platform: Platform = AMD64, *, pack: Callable[[bytes], bytes] = gzipped, **more
) -> Blobs:
    """An image of one platform, its layers packed by somebody else."""
    content: dict[Digest, bytes] = {}

    def descriptor(data: bytes, media_type: str) -> dict[str, object]:
        content[Digest.of(data)] = data
        return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}

    config = descriptor(config_of(layers, platform, **more), IMAGE_CONFIG_TYPE)
    packed = [pack(layer) for layer in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config,
        "layers": [descriptor(data, _type_of(data)) for data in packed],
    }
    data = json.dumps(manifest).encode()
    descriptor(data, MANIFEST_TYPE)
    return Blobs(Digest.of(data), MANIFEST_TYPE, content)


def index_of(images: dict[Platform, Blobs], annotations: dict[str, str] | None = None) -> Blobs:
    """An index of images, one for each platform."""
    manifests = [
        {
            "mediaType": image.root_type,
            "digest": str(image.root),
            "size": len(image.content[image.root]),
            "platform": {"os": platform.os, "architecture": platform.architecture, "variant": platform.variant},
        }
        for platform, image in images.items()
    ]
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests, "annotations": annotations or {}}
    data = json.dumps(index).encode()
    content = {digest: blob for image in images.values() for digest, blob in image.content.items()}
    return Blobs(Digest.of(data), INDEX_TYPE, content | {Digest.of(data): data})


def _type_of(data: bytes) -> str:
    kinds = {b"\x1f\x8b": GZIP_LAYER_TYPE, b"\x28\xb5": ZSTD_LAYER_TYPE}
    return kinds.get(data[:2], LAYER_TYPE)


def opened(data: bytes) -> bytes:
    """A layer uncompressed, by other programs than Holdfast's own."""
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    return b"".join(_frames(data)) if data[:4] == _ZSTD_MAGIC or data[1:4] == _SKIPPABLE else data


def _frames(data: bytes) -> Iterator[bytes]:
    while data:
        if data[1:4] == _SKIPPABLE:  # one that holds no content
            data = data[8 + int.from_bytes(data[4:8], "little") :]
            continue
        frame = zstandard.ZstdDecompressor().decompressobj()
        yield frame.decompress(data)
        assert frame.eof, "the last frame is cut short"
        data = frame.unused_data


@dataclass
class FakeEngine:
    """One engine. What it shall do wrong is set from outside:

    `refuses_partial`: it takes no archive in which a layer is left out. `loses`: it says yes to so many loads, and
    keeps nothing of them. `dies_after`: it is gone once it was sent so many bytes. `before_load` is called first thing
    in a load, `after_load` last, `before_inspect` when it is asked for an image. `breaks_save_after` ends a save after
    so many bytes, `damages` alters what is saved.

    `loaded` are the paths of what each load was sent, `saves` counts how often the image was read.
    """

    address: str = "unix:///run/engine.sock"
    keeps_blobs: bool = False
    api: tuple[int, int] = NEW_API
    platform: Platform = AMD64
    old_shape: bool = False
    refuses_partial: bool = False
    loses: int = 0
    dies_after: int | None = None
    before_load: Callable[[], None] = lambda: None
    after_load: Callable[[], None] = lambda: None
    before_inspect: Callable[[], None] = lambda: None
    breaks_save_after: int | None = None
    damages: Callable[[dict[str, bytes | str]], dict[str, bytes | str]] = lambda members: members
    saves: int = 0
    loaded: list[list[str]] = field(default_factory=list)
    names: dict[str, Digest] = field(default_factory=dict)
    content: dict[Digest, bytes] = field(default_factory=dict)
    chains: dict[Digest, bytes] = field(default_factory=dict)
    roots: dict[Digest, None] = field(default_factory=dict)
    is_dead: bool = False
    _using: threading.Lock = field(default_factory=threading.Lock)

    def __str__(self) -> str:
        return self.address

    @cached_property
    def traits(self) -> Traits:
        self._alive()
        return Traits(version="0", api=self.api, platform=self.platform, keeps_blobs=self.keeps_blobs)

    # What a user does with it besides

    def build(self, name: str | None, layers: Sequence[bytes], *, config: bytes | None = None) -> Digest:
        """Have an image in the classic store."""
        config = config or config_of(layers, self.platform)
        image = Digest.of(config)
        self.content[image] = config
        diff_ids = [Digest.of(layer) for layer in layers]
        self.chains |= dict(zip(chain_ids(diff_ids), layers, strict=True))
        return self._have(image, name)

    def fetch(self, name: str | None, image: Blobs) -> Digest:
        """Have an image in containerd's store."""
        self.content |= image.content
        return self._have(image.root, name)

    def remove(self, name: str) -> None:
        """Forget an image, and the layers that no other one has."""
        image = self.names.pop(name)
        self.roots.pop(image)
        del self.content[image]
        kept = {chain for config in self.roots for chain in chain_ids(_diff_ids(self.content[config]))}
        self.chains = {chain: layer for chain, layer in self.chains.items() if chain in kept}

    def _have(self, image: Digest, name: str | None) -> Digest:
        self.roots[image] = None
        if name:
            self.names[name] = image
        return image

    def layers(self, name: str) -> list[bytes]:
        """What a container of this image would see, layer by layer."""
        image = self.names[name]
        if not self.keeps_blobs:
            return [self.chains[chain] for chain in chain_ids(_diff_ids(self.content[image]))]
        _, manifest = self._manifest(image)
        return [opened(self.content[_digest(layer)]) for layer in manifest["layers"]]

    # The engine's interface

    def inspect(self, reference: str) -> EngineImage | None:
        with self._alone():
            self.before_inspect()
            return self._inspect(reference)

    def images(self) -> Iterator[EngineImage]:
        with self._alone():
            found = [self._inspect(str(image)) for image in self.roots]
        yield from (image for image in found if image is not None)

    def save(self, reference: str) -> Iterator[bytes]:
        self._alive()
        self.saves += 1
        image = self._find(reference)
        if image is None:
            raise EngineError(f"there is no image {reference} in the engine at {self}")
        members = self._saved_blobs(image) if self.keeps_blobs else self._saved_layers(image)
        data = tar_of(self.damages(members))
        most = len(data) if self.breaks_save_after is None else self.breaks_save_after
        for start in range(0, most, _PIECE_BYTES):
            yield data[start : min(start + _PIECE_BYTES, most)]
        if self.breaks_save_after is not None:
            raise EngineUnavailable(f"cannot save at the engine at {self}: it broke off")

    def load(self, data: Iterator[bytes], told: Callable[[dict[str, object]], None]) -> None:
        with self._alone():
            self.before_load()
            members = self._received(data)
            self.loaded.append(sorted(members))
            told({"status": "Loading layer", "progressDetail": {"current": 1, "total": 2}})
            self._take_in(members)
            self.after_load()

    def tag(self, image: Digest, name) -> None:
        with self._alone():
            if image not in self.roots:
                raise EngineError(f"the engine at {self} failed to tag {name}: no such image")
            self.names[f"{name.name}:{name.tag}"] = image

    def _alive(self) -> None:
        if self.is_dead:
            raise EngineUnavailable(f"cannot reach the engine at {self}: Connection refused")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._alive()
        assert self._using.acquire(blocking=False), f"two threads use {self} at once"
        try:
            yield
        finally:
            self._using.release()

    # What it has

    def _find(self, reference: str) -> Digest | None:
        if f"{reference}:latest" in self.names or reference in self.names:
            return self.names.get(reference) or self.names[f"{reference}:latest"]
        digits = reference.rpartition("sha256:")[2]
        return next((image for image in self.roots if image.hex.startswith(digits)), None)

    def _inspect(self, reference: str) -> EngineImage | None:
        image = self._find(reference)
        if image is None:
            return None
        names = tuple(name for name, named in self.names.items() if named == image)
        if not self.keeps_blobs:
            return EngineImage(image, names, _diff_ids(self.content[image]), self.platform, is_whole=True)
        whole = [digest for digest, manifest in self._manifests(image) if self._is_whole(manifest)]
        _, manifest = self._manifest(image)
        config = self.content[_digest(manifest["config"])] if manifest else None
        return EngineImage(
            id=image,
            names=names,
            diff_ids=_diff_ids(config) if config else (),
            platform=self.platform,
            is_whole=bool(whole),
            manifests=tuple(whole) if self.api >= NEW_API else (),
        )

    def _manifests(self, root: Digest) -> list[tuple[Digest, dict]]:
        document = json.loads(self.content[root])
        if "manifests" not in document:
            return [(root, document)]
        below = [_digest(entry) for entry in document["manifests"]]
        return [(digest, json.loads(self.content[digest])) for digest in below if digest in self.content]

    def _manifest(self, root: Digest) -> tuple[Digest | None, dict]:
        """That of this engine's platform; another one that is whole where that is not."""
        whole = [(digest, manifest) for digest, manifest in self._manifests(root) if self._is_whole(manifest)]
        for digest, manifest in whole:
            config = json.loads(self.content[_digest(manifest["config"])])
            if config.get("architecture") == self.platform.architecture:
                return digest, manifest
        return whole[0] if whole else (None, {})

    def _is_whole(self, manifest: dict) -> bool:
        return all(_digest(blob) in self.content for blob in (manifest["config"], *manifest["layers"]))

    # What it gives

    def _saved_layers(self, image: Digest) -> dict[str, bytes | str]:
        config = self.content[image]
        diff_ids = _diff_ids(config)
        layers = [self.chains[chain] for chain in chain_ids(diff_ids)]
        return self._old_shape(image, diff_ids, layers) if self.old_shape else self._new_shape(image, layers)

    def _old_shape(self, image: Digest, diff_ids: Sequence[Digest], layers: Sequence[bytes]) -> dict[str, bytes | str]:
        members: dict[str, bytes | str] = {}
        first: dict[Digest, str] = {}
        paths = []
        for number, (diff_id, layer) in enumerate(zip(diff_ids, layers, strict=True)):
            folder = hashlib.sha256(f"{image}{number}".encode()).hexdigest()
            members[f"{folder}/VERSION"] = b"1.0"
            members[f"{folder}/json"] = json.dumps({"id": folder}).encode()
            members[f"{folder}/layer.tar"] = f"../{first[diff_id]}/layer.tar" if diff_id in first else layer
            first.setdefault(diff_id, folder)
            paths.append(f"{folder}/layer.tar")
        members[f"{image.hex}.json"] = self.content[image]
        listed = {"Config": f"{image.hex}.json", "RepoTags": None, "Layers": paths or None}
        return members | {"manifest.json": json.dumps([listed]).encode()}

    def _new_shape(self, image: Digest, layers: Sequence[bytes]) -> dict[str, bytes | str]:
        config = self.content[image]
        members: dict[str, bytes | str] = {_path(layer): layer for layer in layers}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": DOCKER_CONFIG_TYPE, "digest": str(image), "size": len(config)},
            "layers": [
                {"mediaType": LAYER_TYPE, "digest": str(Digest.of(layer)), "size": len(layer)} for layer in layers
            ],
        }
        data = json.dumps(manifest).encode()
        listed = {"Config": _path(config), "RepoTags": None, "Layers": [_path(layer) for layer in layers]}
        return members | {_path(config): config, _path(data): data} | _layout(Digest.of(data), data, [listed])

    def _saved_blobs(self, image: Digest) -> dict[str, bytes | str]:
        members: dict[str, bytes | str] = {_path(self.content[image]): self.content[image]}
        for digest, manifest in self._manifests(image):
            blobs = [digest, *(_digest(blob) for blob in (manifest["config"], *manifest["layers"]))]
            members |= {_path(self.content[blob]): self.content[blob] for blob in blobs if blob in self.content}
        _, manifest = self._manifest(image)
        listed = {
            "Config": f"blobs/sha256/{_digest(manifest['config']).hex}",
            "RepoTags": None,
            "Layers": [f"blobs/sha256/{_digest(layer).hex}" for layer in manifest["layers"]],
        }
        return members | _layout(image, self.content[image], [listed])

    # What it takes

    def _received(self, data: Iterable[bytes]) -> dict[str, bytes]:
        received = io.BytesIO()
        for piece in data:
            received.write(piece)
            if self.dies_after is not None and received.tell() > self.dies_after:
                self.is_dead = True
                raise EngineUnavailable(f"cannot load the image at the engine at {self}: Connection reset by peer")
        received.seek(0)
        try:
            with tarfile.open(fileobj=received, mode="r:") as tar:
                return {member.name: tar.extractfile(member).read() for member in tar if member.isreg()}
        except tarfile.TarError as error:
            raise EngineError(f"the engine at {self} did not take the image: {error}") from error

    def _take_in(self, members: dict[str, bytes]) -> None:
        listed = json.loads(members["manifest.json"])[0]
        if self.refuses_partial and not set(listed["Layers"]) <= members.keys():
            raise self._refusal("a layer is not in the archive")
        if self.loses:
            self.loses -= 1
        elif self.keeps_blobs:
            self._take_blobs(members)
        else:
            self._take_layers(members, listed)

    def _take_layers(self, members: dict[str, bytes], listed: dict) -> None:
        config = members[listed["Config"]]
        diff_ids = _diff_ids(config)
        if len(diff_ids) != len(listed["Layers"]):
            raise self._refusal("invalid manifest, layers length mismatch")
        for diff_id, chain, path in zip(diff_ids, chain_ids(diff_ids), listed["Layers"], strict=True):
            if chain in self.chains:
                continue
            if path not in members:
                raise self._refusal(f"open {path}: no such file or directory")
            if members[path][:4] == _ZSTD_MAGIC and self.api < (1, 42):
                raise self._refusal("archive/tar: invalid tar header")
            layer = opened(members[path])
            if Digest.of(layer) != diff_id:
                raise self._refusal(f"invalid diffID for {path}, expected {diff_id}, got {Digest.of(layer)}")
            self.chains[chain] = layer
        self.content[Digest.of(config)] = config
        self._have(Digest.of(config), None)

    def _take_blobs(self, members: dict[str, bytes]) -> None:
        root = _digest(json.loads(members["index.json"])["manifests"][0])
        for path, data in members.items():
            if path.startswith("blobs/"):
                digest = Digest.parse(path.removeprefix("blobs/").replace("/", ":"))
                if not digest.matches(data):
                    raise self._refusal(f"unexpected digest of {path}")
                self.content[digest] = data
        if root not in self.content:
            raise self._refusal(f"content digest {root}: not found")
        _, manifest = self._manifest(root)
        if not manifest:
            raise self._refusal("content digest: not found")
        config = self.content[_digest(manifest["config"])]
        packed = [self.content[_digest(layer)] for layer in manifest["layers"]]
        if [Digest.of(opened(data)) for data in packed] != list(_diff_ids(config)):
            raise self._refusal("wrong diff id calculated on extraction")
        self._have(root, None)

    def _refusal(self, reason: str) -> EngineError:
        return EngineError(f"the engine at {self} did not take the image: {reason}")


def _layout(root: Digest, data: bytes, listed: list[dict]) -> dict[str, bytes | str]:
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [{"mediaType": json.loads(data)["mediaType"], "digest": str(root), "size": len(data)}],
    }
    return {
        "index.json": json.dumps(index).encode(),
        "manifest.json": json.dumps(listed).encode(),
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
    }


def _path(data: bytes) -> str:
    return f"blobs/sha256/{Digest.of(data).hex}"


def _digest(descriptor: dict) -> Digest:
    return Digest.parse(descriptor["digest"])


def _diff_ids(config: bytes) -> tuple[Digest, ...]:
    return tuple(map(Digest.parse, json.loads(config)["rootfs"]["diff_ids"] or ()))
