"""What is settled once, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from holdfast.config.secret import Secret
from holdfast.model.urls import BucketUrl

Layout = Literal["registry", "tarball"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one command. ``level`` is zstd's, None for no compression; ``layout`` is registry or tarball."""

    store: BucketUrl
    level: int | None
    layout: Layout = "registry"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a face listens. An empty ``host`` is every address of the machine; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Log:
    """How logs are written. ``format`` is text or json; ``level`` the least that is written: debug to error."""

    format: str
    level: str


@dataclass(frozen=True, slots=True)
class Serve:
    """What all faces share. ``grace_s``: seconds that running work has after SIGTERM."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Persist:
    """The persist face.

    ``verbs`` is get-saves or put-saves. ``roots`` are absolute paths without a slash at the end; none means: to be
    detected. ``jobs`` is how many saves and restores run at once. ``exclude`` holds globs as in a .gitignore.
    """

    listen: Address
    verbs: str
    roots: tuple[bytes, ...]
    token: Secret | None
    jobs: int
    exclude: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The engine face.

    ``registries`` maps a registry's host, as it stands in an image's name, to the store of its images. ``docker`` is
    the address of the engine that images are pulled into; None where the docker command would go. ``client_endpoints``:
    what a client's URL may name as its ``endpoint``. ``jobs`` is how many images are pulled at once. ``tempdir``: where
    large layers rest on their way; None for the system's.
    """

    listen: Address
    registries: tuple[tuple[str, BucketUrl], ...]
    docker: str | None
    client_endpoints: tuple[str, ...]
    token: Secret | None
    jobs: int
    tempdir: str | None


@dataclass(frozen=True, slots=True)
class Configuration:
    """All that ``holdfast serve`` is told.

    ``level`` is zstd's, None for no compression; ``gzip`` is whether layout ``tarball`` compresses; ``layout`` is
    registry or tarball, and says nothing where ``persist`` is None. A face that is None is not to be served.
    """

    store: BucketUrl
    level: int | None
    gzip: bool
    layout: Layout
    log: Log
    serve: Serve
    persist: Persist | None
    engine: EngineSettings | None = None
