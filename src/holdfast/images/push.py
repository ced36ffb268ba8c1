"""Push: an image out of an engine into a store. Only what is missing there is read, compressed and sent."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

from holdfast.archive.blobs import Compression, Data, Packed, checked, pack, unpacked
from holdfast.config import DEFAULT_LEVEL
from holdfast.errors import DamageError, NotFoundError, UsageError
from holdfast.images.bundle import SMALL_BYTES, Saved, digest_of_path, read_saved
from holdfast.images.engine import Engine, EngineImage
from holdfast.images.spool import Spool
from holdfast.images.target import DogestryTarget, RegistryTarget, Target
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName, image_id
from holdfast.model.oci import ImageConfig, Index, read_manifest
from holdfast.progress import Part, Progress
from holdfast.storage.dogestry import DogestryLayout
from holdfast.storage.store import Store

_UPLOADS_AT_ONCE = 2
_SHORT = 12


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How to push. ``level`` is zstd's; ``tempdir`` is where large layers rest on their way, None for the system's."""

    compression: Compression = "zstd"
    level: int = DEFAULT_LEVEL
    tempdir: str | None = None


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did. ``image_id`` is the engine's own; ``digest`` names the manifest (or index) in the store.

    ``read_engine`` is False where all was known and nothing was read but what the engine says of the image.
    """

    names: tuple[str, ...]
    image_id: str
    digest: str
    layers_sent: int
    layers_known: int
    bytes_sent: int
    read_engine: bool
    seconds: float

    def told(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {
            "names": list(self.names),
            "image_id": self.image_id,
            "digest": self.digest,
            "layers_sent": self.layers_sent,
            "layers_known": self.layers_known,
            "bytes_sent": self.bytes_sent,
            "read_engine": self.read_engine,
            "seconds": round(self.seconds, 3),
        }


def push(store: Store, engine: Engine, image: str, options: PushOptions, progress: Progress) -> Pushed:
    """Push an image, named by its name, tag, digest or id, and tag it in the store.

    By id or digest it gets all the names that the engine has for it.

    :raises NotFoundError: the engine has no such image.
    :raises UsageError: it has no name under which it could be stored.
    :raises DamageError: what the engine gives is not what it should be.
    """
    began = time.monotonic()
    if image_id(image) is None:
        ImageName.parse(image)
    found = engine.inspect(image)
    if found is None:
        raise NotFoundError(
            f"there is no image {image} in the engine at {engine}", hint="docker images shows what there is"
        )
    names = _names(image, found)
    layout = store.bucket.url.option("layout", "registry")
    if layout not in ("registry", "dogestry"):
        raise UsageError(f"images cannot be kept in layout {layout}", hint="leave layout= out of the store's URL")
    target: Target
    pushing: _Blobs | _Layers
    if layout == "dogestry":
        store.bucket.make_if_missing()
        for name in names:
            if name.tag and store.tag_digest(name.repository, name.tag) is not None:
                progress.warn(
                    f"{store} has {name} in layout registry too: that is the one which is pulled by this name"
                )
        target = DogestryTarget(DogestryLayout(store.bucket), names, found.diff_ids, progress)
        pushing = _Layers(engine, found, target, options, progress)
    else:
        store.bucket.prepare_for_writing()
        target = RegistryTarget(store, names, options.compression, progress)
        pushing = (_Blobs if engine.traits.keeps_blobs else _Layers)(engine, found, target, options, progress)
    with target:
        digest = pushing.publish_known()
        reads = digest is None
        if digest is None:
            digest = pushing.publish_read()
    return Pushed(
        names=tuple(str(name) for name in names),
        image_id=str(found.id),
        digest=str(digest),
        layers_sent=target.layers_sent,
        layers_known=max(len(found.diff_ids) - target.layers_sent, 0),
        bytes_sent=progress.bytes_stored,
        read_engine=reads,
        seconds=time.monotonic() - began,
    )


def _names(image: str, found: EngineImage) -> list[ImageName]:
    digits = image_id(image)
    is_id = digits is not None and found.id.hex.startswith(digits) and f"{image}:latest" not in found.names
    if not is_id:
        name = ImageName.parse(image)
        if name.tag is not None:
            return [ImageName(name.name, name.tag)]
    if not found.names:
        raise UsageError(f"the image {image} has no name", hint=f"give it one: docker tag {image} NAME:TAG")
    return [ImageName.parse(name) for name in found.names]


class _Pushing:
    """One image on its way. Layers are put by threads of their own while the next ones are read."""

    def __init__(self, engine: Engine, found: EngineImage, options: PushOptions, progress: Progress) -> None:
        self._engine = engine
        self._found = found
        self._options = options
        self._progress = progress
        self._spool = Spool(options.tempdir)
        self._puts: list[Future[None]] = []

    def _read(self, take: Callable[[str, int, Iterator[Data]], object]) -> Saved:
        """Read what the engine saves, to its end, and wait until all is put."""
        with ThreadPoolExecutor(_UPLOADS_AT_ONCE, "put") as self._putting:
            try:
                saved = read_saved(self._counted(self._engine.save(str(self._found.id))), take)
            except BaseException:
                self._putting.shutdown(wait=False, cancel_futures=True)
                raise
            self._wait()
            return saved

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._progress.advance(size=len(piece))
            yield piece

    def _put(self, part: Part, put: Callable[[], None], file: BinaryIO) -> None:
        """Begin to put a file, and see what has become of what was begun before. ``put`` closes it."""
        for done in [future for future in self._puts if future.done()]:
            self._puts.remove(done)
            done.result()
        part.state = "uploading"

        def work() -> None:
            put()
            part.state = "done"
            part.done = part.total
            self._progress.advance(files=1)

        future = self._putting.submit(work)
        future.add_done_callback(lambda done: file.close() if done.cancelled() else None)
        self._puts.append(future)

    def _wait(self) -> None:
        while self._puts:
            self._puts.pop().result()


class _Layers(_Pushing):
    """Layers as the engine has them, which is uncompressed, packed for the store; the config as it is."""

    def __init__(
        self, engine: Engine, found: EngineImage, target: Target, options: PushOptions, progress: Progress
    ) -> None:
        super().__init__(engine, found, options, progress)
        self._target = target
        self._have: dict[Digest, int] = {}
        self._known_sizes: frozenset[int] = frozenset()
        self._guesses = True

    def publish_known(self) -> Digest | None:
        """Publish the image if nothing of it is missing in the store; None if something is."""
        found = self._found
        config_digest = None if self._engine.traits.keeps_blobs else found.id
        self._have = dict(self._target.known(config_digest, found.diff_ids))
        self._known_sizes = frozenset(self._have.values())
        if config_digest is None or not set(found.diff_ids) <= self._have.keys():
            return None
        config = self._target.config(config_digest, found.diff_ids)
        if config is None or ImageConfig.decode(config).diff_ids != found.diff_ids:
            return None
        for diff_id in found.diff_ids:
            self._progress.part(_called(diff_id.hex), state="exists")
        return self._target.publish(config, found.diff_ids)

    def publish_read(self) -> Digest:
        """Read the image from the engine, put what is missing, and publish it."""
        with ThreadPoolExecutor(os.cpu_count() or 1, "compress") as self._pool:
            saved = self._read(self._take)
            config = self._config(saved)
            diff_ids = ImageConfig.decode(config).diff_ids
            paths = self._pack_small(saved, config)
            if not set(diff_ids) <= self._have.keys() and self._guesses:  # a size was no proof
                self._guesses = False
                self._read(self._take)
        self._make_sure(diff_ids, paths)
        return self._target.publish(config, diff_ids)

    def _take(self, path: str, size: int, content: Iterator[Data]) -> None:
        digest = digest_of_path(path)
        part = self._progress.part(_called(digest.hex if digest else path), state="reading", total=size)
        if digest in self._have or (digest is None and self._is_likely_known(size)):
            part.state = "exists"
            return
        self._pack(content if digest is None else checked(content, digest, size, path), size, part)

    def _is_likely_known(self, size: int) -> bool:
        """Whether a layer that nothing names is of the size of one that is there.

        It is that one, then. Should it be another, that other is missing in the end, and all is read again.
        """
        return self._guesses and size in self._known_sizes

    def _pack(self, content: Iterator[Data], size: int, part: Part) -> None:
        file = io.BytesIO() if size <= SMALL_BYTES else self._spool.open()
        with ExitStack() as unless_put:
            unless_put.enter_context(file)
            with self._spool.translated():
                packed = pack(
                    unpacked(_followed(content, part)),
                    file,
                    compression=self._target.compression,
                    level=self._options.level,
                    pool=self._pool,
                )
            if packed.diff_id in self._have:
                part.state = "exists"
                return
            self._have[packed.diff_id] = packed.raw_size
            self._put(part, lambda: self._store(packed, file), file)
            unless_put.pop_all()

    def _store(self, packed: Packed, file: BinaryIO) -> None:
        with ExitStack() as closing:
            closing.enter_context(file)
            if not self._target.put_layer(packed, file):
                closing.pop_all()

    def _config(self, saved: Saved) -> bytes:
        """Find the image's config: what its id names, or with the other kind of store what its manifest does."""
        for image in saved.images:
            config = saved.small.get(saved.path(image.config))
            if config is not None and self._is_its(config):
                return config
        raise DamageError(f"what the engine at {self._engine} saves does not hold the config of {self._found.id}")

    def _is_its(self, config: bytes) -> bool:
        if not self._engine.traits.keeps_blobs:
            return self._found.id.matches(config)
        return ImageConfig.decode(config).diff_ids == self._found.diff_ids

    def _pack_small(self, saved: Saved, config: bytes) -> list[str]:
        """Pack the layers that were small enough to be held; give the paths of all of the image's layers."""
        paths = next((image.layers for image in saved.images if _is_config(saved, image.config, config)), None) or []
        with ThreadPoolExecutor(_UPLOADS_AT_ONCE, "put") as self._putting:
            for name in dict.fromkeys(saved.path(path) for path in paths):
                if name in saved.small:
                    data = saved.small[name]
                    part = self._progress.part(_called(name), state="reading", total=len(data))
                    self._pack(iter([data]), len(data), part)
            self._wait()
        return paths

    def _make_sure(self, diff_ids: Sequence[Digest], paths: Sequence[str]) -> None:
        """See that no layer is missing."""
        missing = [str(diff_id) for diff_id in diff_ids if diff_id not in self._have]
        if missing or len(paths) != len(diff_ids):
            raise DamageError(
                f"what the engine at {self._engine} saves does not hold the layers of {self._found.id}: "
                f"{', '.join(missing) or 'their number is another'}"
            )


class _Blobs(_Pushing):
    """Manifests and blobs as the engine has them, so that the image has the same digest wherever it comes."""

    def __init__(
        self, engine: Engine, found: EngineImage, target: RegistryTarget, options: PushOptions, progress: Progress
    ) -> None:
        super().__init__(engine, found, options, progress)
        self._target = target

    def publish_known(self) -> Digest | None:
        """Publish the image if nothing of it is missing in the store; None if something is."""
        found = self._found
        root = self._target.read_manifest(found.id)
        if root is None or (not found.manifests and isinstance(read_manifest(root), Index)):
            return None  # engines before 28 do not say which images of an index they have
        if not self._target.publish_tree(found.id, self._target.read_manifest, needed=found.manifests):
            return None
        for diff_id in found.diff_ids:
            self._progress.part(_called(diff_id.hex), state="exists")
        return found.id

    def publish_read(self) -> Digest:
        """Read the image from the engine, put what is missing, and publish it."""
        saved = self._read(self._take)
        if not self._target.publish_tree(self._found.id, saved.blob, needed=self._found.manifests):
            raise DamageError(f"what the engine at {self._engine} saves does not hold all of {self._found.id}")
        return self._found.id

    def _take(self, path: str, size: int, content: Iterator[Data]) -> None:
        digest = digest_of_path(path)
        part = self._progress.part(_called(digest.hex if digest else path), state="reading", total=size)
        if digest is None or self._target.has_blob(digest, size):
            part.state = "exists"
            return
        file = self._spool.open()
        with ExitStack() as unless_put:
            unless_put.enter_context(file)
            with self._spool.translated():
                for piece in _followed(checked(content, digest, size, path), part):
                    file.write(piece)
                file.flush()
            self._put(part, lambda: self._store(digest, size, file), file)
            unless_put.pop_all()

    def _store(self, digest: Digest, size: int, file: BinaryIO) -> None:
        with file:
            self._target.put_blob(digest, size, file)


def _followed(pieces: Iterator[Data], part: Part) -> Iterator[Data]:
    for piece in pieces:
        part.done += len(piece)
        yield piece


def _is_config(saved: Saved, path: str, config: bytes) -> bool:
    return saved.small.get(saved.path(path)) == config


def _called(name: str) -> str:
    """Call a layer as docker does: by the first digits of what names it."""
    return f"layer {name.removeprefix('blobs/sha256/')[:_SHORT]}"
