"""The engine face: as much of the Docker Engine API as ``docker pull`` needs, over a store instead of a registry."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

import holdfast
from holdfast import logs
from holdfast.config import Secret
from holdfast.errors import AccessDenied, HoldfastError, UsageError, http_status
from holdfast.images.pull import Pulled
from holdfast.images.serving import ClientStore, PullJob, Pulls, Stores, Wanted
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName
from holdfast.model.names import Tag
from holdfast.web.edge import HEALTH, Json, scope_path, told
from holdfast.web.metrics import Metrics

API_VERSION = "1.51"
"""The newest API that is spoken. Docker's command 29 wants 1.44 at least, and those before speak an older one."""
OLDEST_API_VERSION = "1.12"
NO_TOKEN = HTTPStatus.FORBIDDEN
"""The status of a request without the token. At 401 the docker command asks for a name and a password, and waits."""

_METRICS = b"/-/metrics"
_STATUS = (b"/status/check", b"/")
_VERSIONED = re.compile(rb"/v?[0-9]{1,3}\.[0-9]{1,3}(/.*)", re.DOTALL)
_CREATE = b"/images/create"
_AUTH = "x-registry-auth"
_LONGEST_AUTH = 64 << 10
_LONGEST_NAME = 1024
_TELL_EVERY_S = 0.2
_BEGIN_WITHIN_S = 5.0
_STARS = 50
_DOCKERS_INDEX = "https://index.docker.io/v1/"
_LAYER = "layer "
_LAYER_STATES = {"waiting": "Waiting", "reading": "Downloading", "exists": "Already exists", "done": "Pull complete"}
_ENGINE_STATES = {"loading": "Loading", "unpacking": "Unpacking", "pulled": "Loaded"}
_UNDER_WAY = ("reading", "loading")

_PING = {
    "Api-Version": API_VERSION,
    "Docker-Experimental": "false",
    "Ostype": "linux",
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Pragma": "no-cache",
}
_INTERNAL = "internal error: see the server's log"


def _ok() -> Response:
    return PlainTextResponse("OK")


def _ping() -> Response:
    return PlainTextResponse("OK", headers=_PING)


def _version() -> Response:
    version = {"Version": holdfast.__version__, "ApiVersion": API_VERSION, "MinAPIVersion": OLDEST_API_VERSION}
    return Json({**version, "Os": "linux"})


def _info() -> Response:
    """Give what the docker command before 23 asks for, to know whose password a name without a host goes with."""
    return Json({"IndexServerAddress": _DOCKERS_INDEX, "OSType": "linux", "ServerVersion": holdfast.__version__})


_ABOUT: dict[bytes, Callable[[], Response]] = {b"/_ping": _ping, b"/version": _version, b"/info": _info}


def docker_error(message: str, hint: str | None) -> dict[str, str]:
    """Give an error as Docker's clients take it before anything else is told."""
    return {"message": _sentence(message, hint)}


class EngineFace:
    """Answers the requests of the engine face."""

    def __init__(self, stores: Stores, pulls: Pulls, metrics: Metrics) -> None:
        self._stores = stores
        self._pulls = pulls
        self._metrics = metrics
        metrics.count_pulls(pulls)
        self._own = {HEALTH: self._health, _METRICS: metrics.response, **dict.fromkeys(_STATUS, _ok)}
        pulls.watch(self._ended)

    async def answer(self, request: Request) -> Response:
        """Answer one request.

        :raises HoldfastError: what is to be told instead.
        """
        path = scope_path(request)
        versioned = _VERSIONED.fullmatch(path)
        if versioned is not None and versioned[1] == _CREATE:
            return await self._create(request) if request.method == "POST" else _not_allowed("POST")
        make = self._own.get(path) or _ABOUT.get(versioned[1] if versioned else path)
        if make is None:
            return Json(docker_error("page not found", None), HTTPStatus.NOT_FOUND)
        return make() if request.method in ("GET", "HEAD") else _not_allowed("GET", "HEAD")

    def _health(self) -> Response:
        return Json({"status": "ok", "running": self._pulls.running, "waiting": self._pulls.waiting})

    async def _create(self, request: Request) -> Response:
        name, platform = _asked(request)
        client = client_store(request.headers.get(_AUTH, ""))
        job = self._pulls.ask(Wanted(name, self._stores.origin(name, client), platform))
        await _begun(job)
        failure = job.done.exception() if job.done.done() else None
        if failure is not None:
            status, message = _failure(job, failure)
            return Json({"message": message}, status)
        return StreamingResponse(_lines(job), media_type="application/json")

    def _ended(self, job: PullJob) -> None:
        """Log and count a pull that ended."""
        name, store = str(job.wanted.name), str(job.wanted.origin.url)
        error = job.done.exception()
        if error is None:
            pulled = job.done.result()
            self._metrics.pulled(job, pulled.hosts[0].state)
            fields: dict[str, str | int | float] = {"digest": pulled.digest, "bytes": pulled.bytes_read}
            seconds = round(pulled.seconds, 3)
            logs.info("pull done", image=name, store=store, state=pulled.hosts[0].state, seconds=seconds, **fields)
        else:
            self._metrics.pulled(job, "failed")
            if isinstance(error, HoldfastError):
                logs.error("pull failed", exception=None, image=name, store=store, **told(error))
            else:
                logs.error("pull failed", exception=error, image=name, store=store, error=type(error).__name__)
        for warning in job.progress.warnings:
            logs.warn("pull warned", image=name, warning=warning)


def client_store(header: str) -> ClientStore | None:
    """Read ``X-Registry-Auth``: JSON in base64, of either alphabet, with ``email`` a store's URL; None without one.

    :raises UsageError: it is none of this. The message shows nothing of it.
    """
    if len(header) > _LONGEST_AUTH:
        raise UsageError(f"X-Registry-Auth is longer than {_LONGEST_AUTH >> 10} KiB")
    if not header:
        return None
    text = header.translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        given = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
        values = [given.get(key) or "" for key in ("email", "username", "password")]
    except (binascii.Error, ValueError, AttributeError, RecursionError):
        values = [None]
    if not all(isinstance(value, str) for value in values):
        raise UsageError("X-Registry-Auth is not what it must be: a JSON object in base64") from None
    url, access, secret = values
    return ClientStore(url.strip(), access, Secret(secret)) if url.strip() else None


def _asked(request: Request) -> tuple[ImageName, str | None]:
    """Read which image is asked for: ``fromImage``, which may hold a tag or digest, and ``tag``, which wins."""
    query = dict(parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True))
    if "fromSrc" in query:
        raise UsageError("images are not imported here", hint="fromImage= names an image to pull")
    image, tag = query.get("fromImage", ""), query.get("tag", "")
    if not image:
        raise UsageError("no image is named", hint="fromImage= names an image to pull")
    if len(image) > _LONGEST_NAME:
        raise UsageError("the image's name is too long")
    name = ImageName.parse(image)
    if ":" in tag:
        name = replace(name, tag=None, digest=Digest.parse(tag))
    elif tag:
        name = replace(name, tag=Tag(tag), digest=None)
    return name, query.get("platform") or None


async def _begun(job: PullJob) -> None:
    """Wait until there is something to tell: an end, a layer, that it waits for others, or a while without any.

    So what goes wrong at the beginning has a status of its own.
    """
    ended = _end(job)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _BEGIN_WITHIN_S
    while not (ended.done() or job.waits or _has_layers(job)) and loop.time() < deadline:
        await asyncio.wait({ended}, timeout=_TELL_EVERY_S / 4)


async def _lines(job: PullJob) -> AsyncIterator[bytes]:
    ended = _end(job)
    name = job.wanted.name
    yield _line({"status": f"Pulling from {name.without_host().name}", "id": str(name.tag or name.digest)})
    if job.waits:
        yield _line({"status": "Waiting for other pulls to end"})
    shown: dict[int, tuple[str, int, int]] = {}
    while not ended.done():
        for line in _news(job, shown):
            yield line
        await asyncio.wait({ended}, timeout=_TELL_EVERY_S)  # which cancels nothing: others may have asked as well
    for line in _news(job, shown):
        yield line
    for document in _last(job):
        yield _line(document)


def _has_layers(job: PullJob) -> bool:
    return any(part.name.startswith(_LAYER) for part in list(job.progress.parts))


def _end(job: PullJob) -> asyncio.Future[Pulled]:
    ended = asyncio.wrap_future(job.done)
    ended.add_done_callback(lambda it: it.cancelled() or it.exception())  # the client may have gone by then
    return ended


def _news(job: PullJob, shown: dict[int, tuple[str, int, int]]) -> Iterator[bytes]:
    """Tell of each part what has changed since it was ``shown``."""
    for number, part in enumerate(list(job.progress.parts)):
        now = (part.state, part.done, part.total)
        if shown.get(number) != now:
            shown[number] = now
            document = _told_part(part.name, *now)
            if document is not None:
                yield _line(document)


def _told_part(name: str, state: str, done: int, total: int) -> dict[str, Any] | None:
    is_layer = name.startswith(_LAYER)
    status = (_LAYER_STATES if is_layer else _ENGINE_STATES).get(state)
    if status is None:
        return None
    document: dict[str, Any] = {"status": status, "id": name.removeprefix(_LAYER) if is_layer else "engine"}
    if done and total and state in _UNDER_WAY:
        document["progressDetail"] = {"current": done, "total": total}
        document["progress"] = _bar(done, total)
    return document


def _last(job: PullJob) -> Iterator[dict[str, Any]]:
    yield from ({"status": f"Warning: {warning}"} for warning in job.progress.warnings)
    error = job.done.exception()
    if error is not None:
        code, message = _failure(job, error)
        # Clients from 29 on read errorDetail alone, those before read either.
        yield {"errorDetail": {"code": code, "message": message}, "error": message}
        return
    pulled = job.done.result()
    is_new = pulled.hosts[0].state == "pulled"
    yield {"status": f"Digest: {pulled.digest}"}
    found = "Downloaded newer image" if is_new else "Image is up to date"
    yield {"status": f"Status: {found} for {job.wanted.name}"}
    yield {"status": "Done"}  # what clients of Dogestry wait for


def _failure(job: PullJob, error: BaseException) -> tuple[int, str]:
    """Give the status and the sentence of a pull's failure."""
    if not isinstance(error, HoldfastError):  # it was logged when the job ended
        return HTTPStatus.INTERNAL_SERVER_ERROR, _INTERNAL
    is_clients = isinstance(error, AccessDenied) and job.wanted.origin.keys is not None
    return HTTPStatus.FORBIDDEN if is_clients else http_status(error), _sentence(str(error), error.hint)


def _bar(done: int, total: int) -> str:
    stars = min(_STARS * done // total, _STARS)
    return f"[{'=' * stars}{'>' if stars < _STARS else ''}{' ' * (_STARS - stars - 1)}] {_size(done)}/{_size(total)}"


def _size(size: int) -> str:
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:  # noqa: PLR2004 - units are decimal
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.4g}{unit}"


def _sentence(message: str, hint: str | None) -> str:
    return f"{message} ({hint})" if hint else message


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _not_allowed(*methods: str) -> Response:
    allowed = ", ".join(methods)
    return Json(docker_error(f"this path knows {allowed}", None), HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": allowed})
