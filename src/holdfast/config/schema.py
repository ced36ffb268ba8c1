"""What can be set, under which name, and what each value must be."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from holdfast.config.document import Document, load
from holdfast.config.duration import parse_duration
from holdfast.config.secret import Secret, read_secret, read_secret_file
from holdfast.config.values import Address, EngineSettings, Persist
from holdfast.errors import UsageError
from holdfast.model.images import DEFAULT_HOST, ImageName
from holdfast.model.urls import BucketUrl

PREFIX = "HOLDFAST_"
OTHER_VARIABLES = ("HOLDFAST_CONFIG", "HOLDFAST_DEBUG")
"""Variables that are no settings: they say where the settings are, or how a command behaves."""

_FACES = ("persist", "engine")
_TOKENS = {face: f"{PREFIX}{face.upper()}_TOKEN" for face in _FACES}
_SECRETS = frozenset(name for token in _TOKENS.values() for name in (token, f"{token}_FILE"))
_MOST_JOBS = 64
_HIGHEST_PORT = 65535
_DEFAULT_HOST = "127.0.0.1"
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9._\-:\[\]]+")
_BETWEEN = re.compile(r"[\s,]+")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
# Near enough for a slip of the pen, and too far for what Kubernetes sets for a service named holdfast-persist.
_NEAR = 0.85


def _seconds(value: object) -> float:
    try:
        return parse_duration(str(value))
    except UsageError as error:
        raise ValueError("must be a duration: a number with ms, s, m or h, as in 30s") from error


def _address(value: object) -> Address:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    host = host if colon else _DEFAULT_HOST
    if not (port.isascii() and port.isdigit() and len(port) <= len(str(_HIGHEST_PORT)) and int(port) <= _HIGHEST_PORT):
        raise ValueError("must be an address to listen on: HOST:PORT, :PORT or PORT")
    if host.startswith("[") and host.endswith("]"):
        return Address(_ipv6(host[1:-1]), int(port))
    if host and not _HOST.fullmatch(host):
        raise ValueError("must be an address to listen on; IPv6 is written [::1]:PORT")
    return Address(host, int(port))


def _ipv6(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError as error:
        raise ValueError("must be an address to listen on, and what is in brackets is no IPv6") from error


def _root(text: str) -> bytes:
    path = os.fsencode(text)
    parts = path.split(b"/")
    if not path.startswith(b"/") or b"\0" in path or any(part in (b".", b"..") for part in parts):
        raise ValueError(f"must be absolute paths without '.' and '..', and {text!r} is not")
    return b"/" + b"/".join(part for part in parts if part)


def _list(value: object) -> object:
    """Take a list, or a text with ``:`` between what would be a list's items."""
    return [part for part in value.split(":") if part] if isinstance(value, str) else value


def _roots(value: object) -> tuple[bytes, ...]:
    items = _list(value)
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("must be a list of absolute paths")
    return tuple(_root(item) for item in items)


def _jobs(value: object) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,3}", value) and 1 <= int(value) <= _MOST_JOBS:
        return int(value)
    raise ValueError(f"must be a whole number from 1 to {_MOST_JOBS}")


def _registries(value: object) -> tuple[tuple[str, BucketUrl], ...]:
    """Take a mapping of hosts to stores, or a text with ``HOST=URL`` and spaces or commas between them."""
    if isinstance(value, str):
        pairs = [tuple(item.partition("=")[::2]) for item in _BETWEEN.split(value.strip()) if item]
    else:
        pairs = list(value.items()) if isinstance(value, dict) else [("", "")]
    if len({host for host, _ in pairs}) < len(pairs):
        raise ValueError("names a host twice")
    return tuple((_registry_host(host), _registry_store(host, url)) for host, url in pairs)


def _registry_host(host: object) -> str:
    try:
        found = ImageName.parse(f"{host}/x").host or DEFAULT_HOST
    except UsageError:
        found = ""
    if not host or host != found:
        raise ValueError("must name a store for each registry's host, as in opsgoodies.com: s3://ops-goodies")
    return found


def _registry_store(host: str, url: object) -> BucketUrl:
    try:
        store = BucketUrl.parse(str(url))
    except UsageError as error:
        raise ValueError(f"names no store for {host}: {error}") from error
    if store.scheme == "memory" or store.option("layout") == "tarball":
        raise ValueError(f"names for {host} a store that holds no images")
    return store


def _endpoints(value: object) -> tuple[str, ...]:
    items = _BETWEEN.split(value.strip()) if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) and _ENDPOINT.fullmatch(item) for item in items):
        raise ValueError("must be a list of http://HOST:PORT or https://HOST, without a path")
    return tuple(items)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class LogSection(_Section):
    """``log``."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warn", "error"] = "info"


class ServeSection(_Section):
    """``serve``."""

    grace: Annotated[float, PlainValidator(_seconds)] = 30.0


class PersistSection(_Section):
    """``persist``."""

    listen: Annotated[Address, PlainValidator(_address)] = Address(_DEFAULT_HOST, 8080)
    verbs: Literal["get-saves", "put-saves"] = "get-saves"
    roots: Annotated[tuple[bytes, ...], PlainValidator(_roots)] = ()
    token: SecretStr | None = None
    token_file: str | None = None
    jobs: Annotated[int, PlainValidator(_jobs)] = 4
    exclude: Annotated[tuple[str, ...], BeforeValidator(_list)] = ()

    def settled(self, token: Secret | None) -> Persist:
        """Give the section as what it means."""
        return Persist(self.listen, self.verbs, self.roots, token, self.jobs, self.exclude)


class EngineSection(_Section):
    """``engine``."""

    listen: Annotated[Address, PlainValidator(_address)] = Address(_DEFAULT_HOST, 22375)
    registries: Annotated[tuple[tuple[str, BucketUrl], ...], PlainValidator(_registries)] = ()
    docker: str | None = None
    client_endpoints: Annotated[tuple[str, ...], PlainValidator(_endpoints)] = ()
    token: SecretStr | None = None
    token_file: str | None = None
    jobs: Annotated[int, PlainValidator(_jobs)] = 2
    tempdir: str | None = None

    def settled(self, token: Secret | None) -> EngineSettings:
        """Give the section as what it means."""
        return EngineSettings(
            self.listen, self.registries, self.docker, self.client_endpoints, token, self.jobs, self.tempdir
        )


class Schema(BaseSettings):
    """All that can be set. A field of a section is ``HOLDFAST_SECTION_FIELD`` in the environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        enable_decoding=False,  # lists are no JSON
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    store: str | None = None
    compression: str | None = None
    layout: Literal["registry", "tarball", "dogestry"] | None = None
    log: LogSection = Field(default_factory=LogSection)
    serve: ServeSection = Field(default_factory=ServeSection)
    persist: PersistSection = Field(default_factory=PersistSection)
    engine: EngineSection = Field(default_factory=EngineSection)


def settings() -> dict[tuple[str, ...], str]:
    """Name every setting, as the keys that lead to it in the file, with its variable."""
    return {place: PREFIX + "_".join(place).upper() for place in _places()}


def read_file(path: str) -> Schema:
    """Read a file alone. No secret's file is opened.

    :raises UsageError: what is wrong with it.
    """
    return _settle(_load(path), {})


def read(path: str | None, environment: Mapping[str, str]) -> Schema:
    """Read a file, if there is one, and the environment, which wins. An empty variable counts as none.

    :raises UsageError: what is wrong with one of them. A variable that resembles one of ours is taken for a slip.
    """
    _check_variables(environment)
    return _settle(_load(path) if path else Document("", {}, {}), environment)


def faces(given: Schema, environment: Mapping[str, str]) -> set[str]:
    """Name the faces of which anything is said; ``persist`` where nothing is said of any."""
    told = {face for face in _FACES if face in given.model_fields_set}
    told |= {face for face, token in _TOKENS.items() if token in environment or environment.get(f"{token}_FILE")}
    return told or {"persist"}


def read_token(face: str, given: PersistSection | EngineSection, environment: Mapping[str, str]) -> Secret | None:
    """Read a face's token from the environment or else as the file says; None without one.

    :raises UsageError: it is given twice in one place, is empty, cannot be read, or could not stand in a header.
    """
    variable = _TOKENS[face]
    text = read_secret_file(environment, variable)
    if text is not None:
        return _token(text, f"{variable}_FILE")
    if variable in environment:
        return _token(environment[variable], variable)
    if given.token is not None and given.token_file is not None:
        raise UsageError(f"both {face}.token and {face}.token_file are set", hint="leave one of them out")
    if given.token_file is not None:
        return _token(read_secret(given.token_file, f"{face}.token_file"), f"{face}.token_file")
    return None if given.token is None else _token(given.token.get_secret_value(), f"{face}.token")


def _token(text: str, setting: str) -> Secret:
    if not text:
        raise UsageError(f"{setting} is empty", hint="give it a value, or leave it out to ask for no token")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(f"{setting}: a token has only ASCII letters, digits and marks, and no spaces")
    return Secret(text)


class _Environment(EnvSettingsSource):
    """The variables that are settings and no secrets, out of a given environment."""

    def __init__(self, settings_cls: type[BaseSettings], environment: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self.env_vars = {name.lower(): environment[name] for name in _given(environment)}


def _settle(document: Document, environment: Mapping[str, str]) -> Schema:
    class Given(Schema):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            *_: PydanticBaseSettingsSource,
            **__: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return _Environment(settings_cls, environment), InitSettingsSource(settings_cls, document.values)

    try:
        return Given()
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        raise _explained(details[0], document, environment) from error


def _explained(details: ErrorDetails, document: Document, environment: Mapping[str, str]) -> UsageError:
    place = details["loc"]
    names = tuple(str(part) for part in place if isinstance(part, str))
    if details["type"] == "extra_forbidden":
        return UsageError(f"{document.where(place)}: unknown key {_dotted(names)!r}", hint=_advice(names))
    variable = settings().get(names)
    if variable in _given(environment):
        return UsageError(f"{variable} {_reason(details)}")
    return UsageError(f"{document.where(place)}: {_dotted(names)} {_reason(details)}")


def _reason(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    match details["type"]:
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return f"must be {context['expected']}"
        case "string_type":
            return "must be a text"
        case "tuple_type":
            return "must be a list"
        case _:
            return "is not what it must be"


def _advice(names: tuple[str, ...]) -> str:
    """Name the known key that is nearest: in the same section, else in any."""
    known = [*settings(), *((section,) for section in _sections())]
    beside = {place[-1]: place for place in known if place[:-1] == names[:-1]}
    for pool in (beside, {place[-1]: place for place in reversed(known)}):
        near = difflib.get_close_matches(names[-1], pool, n=1)
        if near:
            return f"did you mean {_dotted(pool[near[0]])!r}?"
    return f"known here are {', '.join(beside)}"


def _check_variables(environment: Mapping[str, str]) -> None:
    known = {name.removeprefix(PREFIX): name for name in (*settings().values(), *OTHER_VARIABLES)}
    for name in environment:
        if not name.startswith(PREFIX) or name in known.values():
            continue
        near = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1, cutoff=_NEAR)
        if near:
            raise UsageError(f"unknown variable {name[:100]!r}", hint=f"did you mean {known[near[0]]}?")


def _given(environment: Mapping[str, str]) -> set[str]:
    return {name for name in settings().values() if name not in _SECRETS and environment.get(name)}


def _load(path: str) -> Document:
    return load(path, _sections())


def _places() -> Iterator[tuple[str, ...]]:
    sections = _sections()
    for name in Schema.model_fields:
        if name in sections:
            yield from ((name, field) for field in sections[name].model_fields)
        else:
            yield (name,)


def _sections() -> dict[str, type[_Section]]:
    kinds = {name: field.annotation for name, field in Schema.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, _Section)}


def _dotted(names: tuple[str, ...]) -> str:
    return ".".join(names)[:100]
