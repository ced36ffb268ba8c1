"""Docker Engines, over their API. The only user of docker-py; its exceptions, and those below it, end here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import docker
import requests
import urllib3
from docker.context import ContextAPI
from docker.errors import APIError, DockerException, ImageNotFound, TLSParameterError
from docker.utils import kwargs_from_env, parse_host

from holdfast.errors import EngineError, EngineUnavailable, UsageError
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName
from holdfast.model.oci import Platform
from holdfast.storage.bucket import Source

_CONNECT_TIMEOUT_S = 5
_ASK_TIMEOUT_S = 60
# An engine that unpacks a large layer is silent meanwhile.
_WORK_TIMEOUT_S = 1800
_PIECE_BYTES = 1024 * 1024
_ZSTD_SINCE = (1, 42)
_MANIFESTS_SINCE = (1, 48)
_KEEPS_BLOBS = "io.containerd.snapshotter."
_NO_NAME = "<none>"
_DEFAULT_PORT = 2375


@dataclass(frozen=True, slots=True)
class Traits:
    """What an engine is like.

    ``keeps_blobs``: it has the containerd image store, which keeps manifests and compressed layers as they came, and
    calls an image by its manifest's (or index's) digest; the classic store calls it by its config's.
    """

    version: str
    api: tuple[int, int]
    platform: Platform
    keeps_blobs: bool

    @property
    def reads_zstd(self) -> bool:
        """Whether it takes layers that are compressed with zstd."""
        return self.api >= _ZSTD_SINCE


@dataclass(frozen=True, slots=True)
class EngineImage:
    """An image in an engine.

    ``names`` are ``NAME:TAG``; ``diff_ids`` the digests of its layers uncompressed, bottom first. ``is_whole`` is False
    where the engine says that something of it is missing. ``manifests`` are those that it has whole, by their digests,
    where the engine tells. ``is_unpacked`` is False where it may not be ready to run, and where there is nothing to
    unpack: an image without a file.
    """

    id: Digest
    names: tuple[str, ...]
    diff_ids: tuple[Digest, ...]
    platform: Platform
    is_whole: bool
    manifests: tuple[Digest, ...] = ()
    is_unpacked: bool = True


class Engine:
    """One Docker Engine. Nothing is asked before it is needed. Each engine is used by one thread at a time."""

    def __init__(self, address: str, tls: Any = None) -> None:
        self.address = address
        self._tls = tls
        # Not functools.cached_property: before Python 3.12 its lock is one for all engines, of which one may be silent.
        self._traits: Traits | None = None
        self._connections: dict[int, Any] = {}

    def __str__(self) -> str:
        return self.address

    @classmethod
    def open(cls, address: str | None = None) -> Engine:
        """Name an engine: ``unix:///PATH``, ``tcp://HOST:PORT``; None where the docker command would go.

        As with that command, ``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH`` say how tcp:// is secured, and without an
        address ``DOCKER_HOST``, ``DOCKER_CONTEXT`` or the current context name it.

        :raises UsageError: it is no address that can be reached, or its certificates cannot be read.
        """
        if "@" in (address or os.environ.get("DOCKER_HOST") or ""):
            raise UsageError("the address of a Docker Engine holds no credentials", hint="tcp:// is secured by TLS")
        try:
            found, tls = _where(address)
            parse_host(found, tls=bool(tls))
        except TLSParameterError as error:
            place = os.environ.get("DOCKER_CERT_PATH") or os.path.expanduser("~/.docker")
            raise UsageError(
                f"TLS is asked for, but {place} has not all of ca.pem, cert.pem and key.pem",
                hint="DOCKER_CERT_PATH names where they are; without it and DOCKER_TLS_VERIFY there is no TLS",
            ) from error
        except (DockerException, ValueError, OSError) as error:
            raise UsageError(
                f"not the address of a Docker Engine: {address or os.environ.get('DOCKER_HOST') or 'its context'}",
                hint=f"{_sentence(error)}; write it as unix:///PATH or tcp://HOST:{_DEFAULT_PORT}",
            ) from error
        if found.startswith(("ssh:", "npipe:", "fd:")):
            raise UsageError(
                f"{found} cannot be reached: only unix:// and tcp:// are spoken here",
                hint="run holdfast on that host, or forward its socket: ssh -L /tmp/docker.sock:/var/run/docker.sock",
            )
        return cls(found, tls if found.startswith("tcp:") else None)

    def close(self) -> None:
        """End its connections; it may be asked again."""
        while self._connections:
            self._connections.popitem()[1].close()

    @property
    def traits(self) -> Traits:
        """Ask what it is like, once.

        :raises EngineUnavailable: it does not answer.
        """
        if self._traits is None:
            self._traits = self._ask_traits()
        return self._traits

    def _ask_traits(self) -> Traits:
        with self._translated("ask for its version"):
            told = self._client.version()
            info = self._client.info()
            drivers = dict(pair for pair in info.get("DriverStatus") or () if len(pair) == 2)  # noqa: PLR2004
            major, _, minor = str(told["ApiVersion"]).partition(".")
            return Traits(
                version=str(told.get("Version", "unknown")),
                api=(int(major), int(minor)),
                platform=Platform(str(told.get("Arch", "")), str(told.get("Os", ""))),
                keeps_blobs=str(drivers.get("driver-type", "")).startswith(_KEEPS_BLOBS),
            )

    def inspect(self, reference: str) -> EngineImage | None:
        """Look at an image, by its name, digest, id, or the beginning of its id; None if there is none."""
        with self._translated(f"inspect {reference}"):
            parameters = {"manifests": "1"} if self._tells_manifests else {}
            try:
                told = self._json("/images/{0}/json", reference, parameters)
            except ImageNotFound:
                return None
        return self._image(told)

    def images(self) -> Iterator[EngineImage]:
        """Look at each image that is not only a step on the way to another, and that the engine can tell of."""
        with self._translated("list its images"):
            found = self._client.images(quiet=True)
        for image_id in dict.fromkeys(found):
            try:
                image = self.inspect(str(image_id))
            except EngineUnavailable:
                raise
            except EngineError:
                continue  # it is damaged there, and none that could be built upon
            if image is not None:  # removed meanwhile
                yield image

    def save(self, reference: str) -> Iterator[bytes]:
        """Give an image as a tar, in pieces.

        :raises EngineError: there is none, or it breaks off.
        """
        with self._translated(f"save {reference}"):
            try:
                yield from self._worker.get_image(reference, chunk_size=_PIECE_BYTES)
            except ImageNotFound as error:
                raise EngineError(f"there is no image {reference} in the engine at {self}") from error

    def load(self, data: Iterator[bytes], told: Callable[[dict[str, Any]], None]) -> None:
        """Take images in from a tar; ``told`` gets what the engine says on the way.

        What ``data`` raises comes out as it is, and the engine then takes nothing in.

        :raises EngineError: the engine refused it.
        """
        source = Source(data)
        try:
            with self._translated("load the image"):
                for event in self._worker.load_image(source):
                    self._raise_if_told(event)
                    told(event)
        except EngineError:
            if source.error is not None:
                raise source.error from None
            raise

    def tag(self, image: Digest, name: ImageName) -> None:
        """Give an image a name; another that had it loses it."""
        with self._translated(f"tag {name}"):
            self._client.tag(str(image), name.name, str(name.tag), force=True)

    def _raise_if_told(self, event: dict[str, Any]) -> None:
        if "error" in event or "errorDetail" in event:
            reason = event.get("error") or (event.get("errorDetail") or {}).get("message")
            raise EngineError(f"the engine at {self} did not take the image: {_line(reason)}")

    @property
    def _tells_manifests(self) -> bool:
        return self.traits.keeps_blobs and self.traits.api >= _MANIFESTS_SINCE

    @property
    def _client(self) -> Any:
        return self._connected(_ASK_TIMEOUT_S)

    @property
    def _worker(self) -> Any:
        return self._connected(_WORK_TIMEOUT_S)

    def _connected(self, answer_timeout_s: int) -> Any:
        if answer_timeout_s not in self._connections:
            is_tcp = self.address.startswith("tcp:")
            timeout: Any = (_CONNECT_TIMEOUT_S, answer_timeout_s) if is_tcp else answer_timeout_s
            made = _Client(base_url=self.address, version="auto", tls=self._tls or False, timeout=timeout)
            self._connections[answer_timeout_s] = made
        return self._connections[answer_timeout_s]

    def _json(self, path: str, reference: str, parameters: dict[str, str]) -> dict[str, Any]:
        # docker-py knows these paths, but not all of their parameters.
        response = self._client._get(self._client._url(path, reference), params=parameters)  # noqa: SLF001
        result: dict[str, Any] = self._client._result(response, json=True)  # noqa: SLF001
        return result

    def _image(self, told: dict[str, Any]) -> EngineImage:
        try:
            layers = (told.get("RootFS") or {}).get("Layers")
            manifests = [one for one in told.get("Manifests") or () if one.get("Kind") == "image"]
            whole = [one for one in manifests if one.get("Available")]
            return EngineImage(
                id=Digest.parse(str(told["Id"])),
                names=tuple(name for name in told.get("RepoTags") or () if _NO_NAME not in name),
                diff_ids=tuple(Digest.parse(text) for text in layers or ()),
                platform=Platform(told.get("Architecture", ""), told.get("Os", ""), told.get("Variant") or ""),
                is_whole=bool(whole) or (not manifests and "Size" in told),
                manifests=tuple(Digest.parse(str(one["ID"])) for one in whole),
                is_unpacked=not whole or any(map(_is_unpacked, whole)),
            )
        except (AttributeError, KeyError, TypeError, UsageError) as error:
            raise EngineError(f"the engine at {self} describes an image in a way that is not understood") from error

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except APIError as error:
            raise EngineError(f"the engine at {self} failed to {doing}: {_line(error.explanation or error)}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unavailable(doing, error) from error
        except DockerException as error:
            raise self._unavailable(doing, error) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EngineError(f"what answers at {self} is no Docker Engine") from error

    def _unavailable(self, doing: str, error: Exception) -> EngineUnavailable:
        hint = "is it running, and may this user reach it?"
        if "ermission denied" in str(error):
            hint = "this user may not use its socket: be in the group docker, or root"
        return EngineUnavailable(f"cannot {doing} at the engine at {self}: {_sentence(error)}", hint=hint)


class _Client(docker.APIClient):  # type: ignore[misc]
    """Asks for the version as soon as it is made, and must not look into the environment even then.

    A bundle that ``REQUESTS_CA_BUNDLE`` names would come before the engine's own authority.
    """

    def _retrieve_server_version(self) -> Any:
        self.trust_env = False
        return super()._retrieve_server_version()


def _where(address: str | None) -> tuple[str, Any]:
    environment = kwargs_from_env()
    tls = environment.get("tls")
    named = address or os.environ.get("DOCKER_HOST")
    if named:
        return _with_scheme(named), tls
    context = ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT") or None)
    if context is None:
        raise ValueError(f"there is no context {os.environ.get('DOCKER_CONTEXT')!r}")
    return str(context.Host or "unix:///var/run/docker.sock").removeprefix("http+"), context.TLSConfig or tls


def _with_scheme(address: str) -> str:
    if "://" in address:
        scheme, _, rest = address.partition("://")
        if scheme == "https":
            raise ValueError("https:// is written tcp://, with DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH beside it")
        scheme = "tcp" if scheme == "http" else scheme
        return f"{scheme}://{_with_port(rest)}" if scheme == "tcp" else f"{scheme}://{rest}"
    return f"unix://{address}" if address.startswith("/") else f"tcp://{_with_port(address)}"


def _with_port(address: str) -> str:
    host = address.rstrip("/")
    return host if host.rpartition(":")[2].isdigit() and not host.endswith("]") else f"{host}:{_DEFAULT_PORT}"


def _is_unpacked(manifest: dict[str, Any]) -> bool:
    data = manifest.get("ImageData") or {}
    size = data.get("Size") or {}
    return bool(size.get("Unpacked", 1))


def _line(text: object) -> str:
    return str(text).strip().partition("\n")[0][:500]


def _sentence(error: BaseException) -> str:
    """Give the innermost reason: what surrounds it are names of classes."""
    while True:
        inner = error.__cause__ or error.__context__
        if not isinstance(inner, OSError | urllib3.exceptions.HTTPError | requests.RequestException):
            break
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _line(error)
