"""Brings one image into many engines, side by side: what each lacks, and no more."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from holdfast.archive.blobs import Data
from holdfast.errors import EngineError, EngineUnavailable, HoldfastError, Unavailable
from holdfast.images.bundle import LoadedLayer, write_loaded
from holdfast.images.catalog import Found, StoredImage, StoredLayer, layers_of
from holdfast.images.engine import Engine, EngineImage
from holdfast.images.feeds import Opened, SharedLayer, open_directly, unpacked_layer
from holdfast.images.remote import Server
from holdfast.images.spool import Spool
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName
from holdfast.model.oci import chain_ids
from holdfast.progress import Part, Progress
from holdfast.storage.store import Store

SERVER_PORT = 22375
_MOST_AT_ONCE = 64
_SHORT = 12
_PATIENCE_S = 3.0

State = Literal["pulled", "up to date", "failed"]


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How to pull. ``tempdir`` is where layers rest that several engines want, None for the system's place.

    ``check_hosts``: ask each host first whether it is there. ``force_local``: do not tell other Holdfast servers, which
    listen on ``server_port`` of the engines' hosts, to pull by themselves.
    """

    tempdir: str | None = None
    check_hosts: bool = True
    force_local: bool = False
    server_port: int = SERVER_PORT


@dataclass(frozen=True, slots=True)
class HostResult:
    """What became of one host. ``layers`` were sent to it, in ``bytes_sent``; ``by_server``: it pulled by itself."""

    host: str
    state: State
    image_id: str | None = None
    layers: int = 0
    bytes_sent: int = 0
    by_server: bool = False
    seconds: float = 0.0
    error: HoldfastError | None = None

    def told(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {
            "host": self.host,
            "state": self.state,
            "image_id": self.image_id,
            "layers": self.layers,
            "bytes_sent": self.bytes_sent,
            "by_server": self.by_server,
            "seconds": round(self.seconds, 3),
            **({"error": str(self.error), "hint": self.error.hint} if self.error else {}),
        }


@dataclass(slots=True)
class _Host:
    """One engine, and what it is to get: ``sends`` says of each layer of the image whether it is sent."""

    engine: Engine
    part: Part
    began: float = field(default_factory=time.monotonic)
    error: HoldfastError | None = None
    image: StoredImage | None = None
    id: Digest | None = None
    sends: tuple[bool, ...] = ()
    server: Server | None = None
    shares: bool = True
    left: set[tuple[Digest, bool]] = field(default_factory=set)
    is_done: bool = False
    is_new: bool = False
    sent_bytes: int = 0

    @property
    def wants(self) -> bool:
        """Whether it is to be sent the image from here."""
        return self.error is None and not self.is_done and self.server is None

    def wants_raw(self, layer: StoredLayer) -> bool:
        """Whether a layer must be uncompressed for it."""
        return not self.engine.traits.reads_zstd and not layer.is_plain_or_gzip

    def gets(self) -> dict[tuple[Digest, bool], StoredLayer]:
        """Give the layers that it gets, by digest and whether they must be uncompressed."""
        layers = self.image.layers if self.image else ()
        pairs = zip(layers, self.sends, strict=True)
        return {(layer.digest, self.wants_raw(layer)): layer for layer, sends in pairs if sends}

    def result(self) -> HostResult:
        """Say what has become of it."""
        state: State = "failed" if self.error else ("pulled" if self.is_new else "up to date")
        self.part.state = state
        return HostResult(
            host=str(self.engine),
            state=state,
            image_id=str(self.id) if self.id and not self.error else None,
            layers=sum(self.sends),
            bytes_sent=self.sent_bytes,
            by_server=self.server is not None,
            seconds=time.monotonic() - self.began,
            error=self.error,
        )


class Fleet:
    """One image for several engines."""

    def __init__(self, store: Store, found: Found, name: ImageName | None, spool: Spool, progress: Progress) -> None:
        self.bytes_read = 0
        self._store = store
        self._found = found
        self._name = name
        self._spool = spool
        self._progress = progress
        self._lock = threading.Lock()
        self._parts: dict[Digest, Part] = {}
        self._shared: dict[tuple[Digest, bool], SharedLayer] = {}

    def run(self, engines: Sequence[Engine], options: PullOptions) -> list[HostResult]:
        """Bring the image to all of them, side by side."""
        hosts = [_Host(engine, self._progress.part(str(engine))) for engine in engines]
        look = self._noting(partial(self._look, options))
        with ThreadPoolExecutor(2 * min(len(hosts), _MOST_AT_ONCE) or 1, "host") as pool:
            looks = {pool.submit(look, host): host for host in hosts}
            looked, _ = wait(looks, timeout=_PATIENCE_S)
            ready = [host for future, host in looks.items() if future in looked]
            wanting = [host for host in ready if host.wants]
            reads = {layer.digest: layer.size for host in wanting for layer in host.gets().values()}
            self._progress.bytes_total = sum(reads.values())
            reading = self._share(wanting) if len(wanting) > 1 else None
            late = [host for future, host in looks.items() if future not in looked]
            for host in late:
                host.shares = False  # nobody waits for it
            ends = [pool.submit(self._ended, future, host) for future, host in looks.items()]
        results = [end.result() for end in ends]
        if reading is not None:
            reading.join()
        return results

    def _noting(self, step: Callable[[_Host], None]) -> Callable[[_Host], None]:
        """Make a step for one host: what goes wrong is its own matter."""

        def noted(host: _Host) -> None:
            try:
                step(host)
            except HoldfastError as error:
                host.error = error
            except Exception as error:  # noqa: BLE001 - nothing that goes wrong with one host may touch the others
                host.error = EngineError(f"internal error with {host.engine}: {type(error).__name__}: {error}")
                host.error.__cause__ = error

        return noted

    def _ended(self, looked: Future[None], host: _Host) -> HostResult:
        """Give the result of a host as soon as there is one, whatever the others still do."""
        self._noting(partial(self._finish, looked))(host)
        return host.result()

    def _finish(self, looked: Future[None], host: _Host) -> None:
        looked.result()
        if host.server is not None:
            self._have_pulled(host, host.server)
        elif host.wants:
            self._bring(host)

    # What each one lacks

    def _look(self, options: PullOptions, host: _Host) -> None:
        host.part.state = "asking"
        if options.check_hosts and not options.force_local and self._name is not None:
            server = Server.beside(str(host.engine), options.server_port)
            is_elsewhere = self._store.bucket.url.scheme != "file"
            if is_elsewhere and server is not None and server.is_there():
                host.server = server
                return
        self._plan(host)

    def _plan(self, host: _Host) -> None:
        image = self._found.image_for(host.engine.traits.platform)
        host.image = image
        host.id = image.root.parsed() if host.engine.traits.keeps_blobs else image.config
        there = host.engine.inspect(str(host.id))
        if there is not None and _is_it(there, image) and there.is_unpacked:
            host.sends = (False,) * len(image.layers)
            self._name_it(host, there)
        else:
            find = self._blobs_of if host.engine.traits.keeps_blobs else self._chain_of
            has = find(host.engine, image)
            host.sends = tuple(layer.digest not in has for layer in image.layers)
        host.part.total = sum(layer.size for layer in host.gets().values())
        for layer, sends in zip(image.layers, host.sends, strict=True):
            self._part(layer).state = "waiting" if sends else "exists"

    def _chain_of(self, engine: Engine, image: StoredImage) -> set[Digest]:
        """Give the layers that an engine has in just this order from the bottom on: the others it could not use."""
        chains = chain_ids(image.diff_ids)
        has = {chain for there in engine.images() for chain in chain_ids(there.diff_ids)}
        known = next((number for number, chain in enumerate(chains) if chain not in has), len(chains))
        above = {layer.digest for layer in image.layers[known:]}
        return {layer.digest for layer in image.layers[:known]} - above

    def _blobs_of(self, engine: Engine, image: StoredImage) -> set[Digest]:
        """Give the layers that an engine keeps as the very same blobs: those of its images that the store has too."""
        has: set[Digest] = set()
        for there in engine.images():
            if there.is_whole and set(there.diff_ids) & set(image.diff_ids):
                for manifest in there.manifests or (there.id,):
                    has |= layers_of(self._store, manifest)
        return has

    # Bringing it there

    def _have_pulled(self, host: _Host, server: Server) -> None:
        """Have a server pull by itself; if it cannot, or not into this engine, bring the image there from here."""
        if self._name is None:
            return
        host.server, host.shares = None, False
        reason, is_new = None, False
        try:
            is_new = server.pull(self._store.bucket.url, self._name, self._found.digest, host.part)
        except EngineError as error:
            reason = str(error)
        try:
            self._plan(host)
        except EngineUnavailable as error:
            if reason is not None:
                raise
            self._progress.warn(f"the server at {server} says that it pulled; {error}")
            host.is_done = True
        if host.is_done and reason is None:
            host.server, host.is_new = server, is_new or host.is_new
            return
        if host.is_done:
            self._progress.warn(f"{reason}: {host.engine} has the image all the same")
            return
        reason = reason or f"the server at {server} pulled, but not into {host.engine}"
        self._progress.warn(f"{reason}: the image is sent to {host.engine} from here")
        self._bring(host)

    def _bring(self, host: _Host) -> None:
        there = self._brought(host)
        if there is None:
            # It could not do without what was left out; or else it went on with what a load before had left half done,
            # of bytes that were found to be altered. That is gone by now.
            host.sends = (True,) * len(host.sends)
            host.shares = False
            there = self._brought(host)
        if there is None:
            raise EngineError(
                f"the engine at {host.engine} took {self._found.what} in, but does not have it whole",
                hint="its own log may tell why",
            )
        host.is_new = True
        self._name_it(host, there)

    def _brought(self, host: _Host) -> EngineImage | None:
        """Load the image; None if the engine does not have it whole then, or could not do without what was left out."""
        try:
            self._load(host)
        except EngineUnavailable:
            raise
        except EngineError:
            if all(host.sends):
                raise
            return None
        finally:
            if host.shares:
                self._leave(host)
        there = host.engine.inspect(str(host.id))
        is_it = there is not None and host.image is not None and _is_it(there, host.image)
        return there if is_it else None

    def _load(self, host: _Host) -> None:
        image = host.image
        if image is None:
            raise AssertionError
        host.part.state = "loading"
        layers = [
            LoadedLayer(
                layer.diff_id if host.wants_raw(layer) else layer.digest,
                partial(self._open, host, layer) if sends else None,
            )
            for layer, sends in zip(image.layers, host.sends, strict=True)
        ]
        root = image.root if host.engine.traits.reads_zstd else None
        stream = write_loaded(root=root, blobs=image.small, config=image.config, layers=layers)
        with closing(stream):
            host.engine.load(stream, partial(_note_loading, host.part))

    def _open(self, host: _Host, layer: StoredLayer) -> Opened:
        raw = host.wants_raw(layer)
        shared = self._shared.get((layer.digest, raw)) if host.shares else None
        if shared is None:
            size, pieces = open_directly(layer, self._read(layer), self._spool, raw=raw)
        else:
            size, pieces = shared.open()
            pieces = self._leaving(host, (layer.digest, raw), pieces)
        host.part.total += size - layer.size
        return size, _sent(host, pieces)

    def _name_it(self, host: _Host, there: EngineImage) -> None:
        host.is_done = True
        name = self._name
        if (
            name is not None
            and name.tag is not None
            and name.digest is None
            and f"{name.name}:{name.tag}" not in there.names
        ):
            host.engine.tag(there.id, name)
            host.is_new = True

    # Reading it once

    def _share(self, hosts: Sequence[_Host]) -> threading.Thread:
        """Begin to read each layer that is wanted, once for all who want it."""
        layers: dict[Digest, StoredLayer] = {}
        readers: Counter[tuple[Digest, bool]] = Counter()
        for host in hosts:
            for key, layer in host.gets().items():
                layers[key[0]] = layer
                readers[key] += 1
        for (digest, raw), count in readers.items():
            also_unpacked = not raw and (digest, True) in readers
            size = _stated_size(layers[digest]) if raw else layers[digest].size
            self._shared[digest, raw] = SharedLayer(
                self._spool, readers=count + also_unpacked, size=size, what=f"layer {digest}"
            )
        reading = threading.Thread(target=self._read_shared, args=(layers.values(),), name="read")
        reading.start()
        return reading

    def _read_shared(self, layers: Iterable[StoredLayer]) -> None:
        reason = None
        try:
            for layer in layers:
                reason = self._fill(layer)
                if isinstance(reason, Unavailable):  # all retries are over: the next layer would be as long a wait
                    return
        finally:
            for shared in self._shared.values():
                shared.abandon(reason)

    def _fill(self, layer: StoredLayer) -> HoldfastError | None:
        """Read a layer for all who want it; gives what went wrong."""
        stored = self._shared.get((layer.digest, False))
        raw = self._shared.get((layer.digest, True))
        reason = stored.fill(self._read(layer)) if stored is not None else None
        if raw is None:
            return reason
        return raw.fill(_opened(layer, stored) if stored is not None else unpacked_layer(layer, self._read(layer)))

    def _leaving(self, host: _Host, key: tuple[Digest, bool], pieces: Iterator[Data]) -> Iterator[Data]:
        """Pass a shared layer on, and make room once it is through."""
        yield from pieces
        host.left.add(key)
        self._shared[key].leave()

    def _leave(self, host: _Host) -> None:
        """Say that the host wants no more of what is shared."""
        for key in host.gets():
            if key in self._shared and key not in host.left:
                self._shared[key].leave()

    def _read(self, layer: StoredLayer) -> Iterator[Data]:
        part = self._part(layer)
        part.state, part.done = "reading", 0
        for piece in layer.open():
            part.done += len(piece)
            with self._lock:
                self.bytes_read += len(piece)
            self._progress.advance(size=len(piece))
            yield piece
        part.state = "done"
        self._progress.advance(files=1)

    def _part(self, layer: StoredLayer) -> Part:
        with self._lock:
            if layer.digest not in self._parts:
                name = f"layer {layer.digest.hex[:_SHORT]}"
                self._parts[layer.digest] = self._progress.part(name, total=layer.size)
            return self._parts[layer.digest]


def _stated_size(layer: StoredLayer) -> int | None:
    """Ask a layer how large it is uncompressed; what is wrong with it is told to those who want it, when it is read."""
    try:
        return layer.raw_size()
    except HoldfastError:
        return None


def _is_it(there: EngineImage, image: StoredImage) -> bool:
    """Whether an engine has an image whole; of an index, it may have the image of another platform only."""
    return there.is_whole and there.diff_ids == image.diff_ids


def _opened(layer: StoredLayer, stored: SharedLayer) -> Iterator[Data]:
    try:
        yield from unpacked_layer(layer, stored.open()[1])
    finally:
        stored.leave()


def _sent(host: _Host, pieces: Iterator[Data]) -> Iterator[Data]:
    for piece in pieces:
        host.sent_bytes += len(piece)
        host.part.done += len(piece)
        yield piece


def _note_loading(part: Part, event: dict[str, Any]) -> None:
    if event.get("status"):
        part.state = "unpacking"
