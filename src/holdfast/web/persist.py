"""The persist face: any URL path is a path of this machine, saved and restored by a request's verb."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote_to_bytes

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from holdfast import logs
from holdfast.errors import HoldfastError, UsageError, http_status
from holdfast.model.names import SourceName
from holdfast.volumes.keeper import Outcome
from holdfast.volumes.persist import Persistence
from holdfast.volumes.schedule import Job
from holdfast.volumes.snapshots import moment
from holdfast.web.edge import HEALTH, Json, asked_path, scope_path, told
from holdfast.web.metrics import Metrics

Verb = Literal["save", "replace", "merge"]

DIALECTS: dict[str, dict[str, Verb]] = {
    "get-saves": {"GET": "save", "PUT": "replace", "POST": "merge"},
    "put-saves": {"GET": "merge", "PUT": "save", "POST": "replace"},
}
"""What each verb does: the two generations of micro-s3-persistence do not agree."""

_OWN = b"/-/"
_METRICS = b"/-/metrics"
_SNAPSHOTS = b"/-/snapshots/"
_NDJSON = "application/x-ndjson"
_TELL_EVERY_S = 0.5
_LONGEST_PATH = 8192


class PersistFace:
    """Answers the requests of the persist face."""

    def __init__(self, persistence: Persistence, verbs: str, metrics: Metrics) -> None:
        self._persistence = persistence
        self._verbs = DIALECTS[verbs]
        self._metrics = metrics
        metrics.count_jobs(persistence.schedule)
        persistence.schedule.watch(self._ended)

    async def answer(self, request: Request) -> Response:
        """Answer one request.

        :raises HoldfastError: what is to be told instead.
        """
        path = scope_path(request)
        if path.startswith(_OWN):
            return await self._answer_about(request, path)
        verb = self._verbs.get(request.method)
        if verb is None:
            return _not_allowed(*self._verbs)
        name = named(path)
        chosen = _chosen(request, verb)
        job = await run_in_threadpool(self._asked, name, verb, chosen)
        if _NDJSON in request.headers.get("accept", ""):
            return StreamingResponse(_told_live(job), media_type=_NDJSON)
        return await _told_at_end(job)

    async def _answer_about(self, request: Request, path: bytes) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _not_allowed("GET", "HEAD")
        if path == HEALTH:
            schedule = self._persistence.schedule
            return Json({"status": "ok", "running": schedule.running, "waiting": schedule.waiting})
        if path == _METRICS:
            return self._metrics.response()
        if path.startswith(_SNAPSHOTS):
            name = named(path[len(_SNAPSHOTS) - 1 :])
            return Json(await run_in_threadpool(self._history, name))
        return Json({"error": f"there is no {asked_path(request.scope)}"}, HTTPStatus.NOT_FOUND)

    def _asked(self, name: SourceName, verb: Verb, chosen: dict[str, Any]) -> Job:
        if verb == "save":
            return self._persistence.save(name)
        return self._persistence.restore(name, verb, **chosen)

    def _history(self, name: SourceName) -> dict[str, Any]:
        snapshots, tarball = self._persistence.history(name)
        return {
            "name": str(name),
            "repository": str(name.repository),
            "snapshots": [listed.told() for listed in snapshots],
            "tarball": tarball and {"key": tarball.key, "bytes": tarball.size, "ETag": tarball.etag},
        }

    def _ended(self, job: Job) -> None:
        """Log and count a job that ended."""
        name = SourceName(job.name)
        error = job.done.exception()
        if error is not None:
            self._metrics.ended(job, "failed", 0)
            what = f"{job.kind} failed"
            if isinstance(error, HoldfastError):
                logs.error(what, exception=None, path=str(name), **told(error))
            else:
                logs.error(what, exception=error, path=str(name), error=type(error).__name__)
            return
        outcome: Outcome = job.done.result()
        fields = {key: outcome.told.get(key) for key in ("tag", "files", "written", "seconds", "bytes_stored")}
        fields["deleted"] = len(outcome.told.get("deleted", ()))
        self._metrics.ended(job, "ok" if outcome.complete else "incomplete", fields["bytes_stored"] or 0)
        log = logs.info if outcome.complete else logs.warn
        log(f"{job.kind} done", path=str(name), complete=outcome.complete, **{k: v for k, v in fields.items() if v})
        for warning in job.progress.warnings:
            logs.warn(f"{job.kind} warned", path=str(name), warning=warning)


def named(raw: bytes) -> SourceName:
    """Take a URL's path, percent-encoded, as a path of this machine.

    :raises UsageError: it climbs above the root, holds a NUL, or is too long.
    """
    if len(raw) > _LONGEST_PATH:
        raise UsageError("the path is too long")
    parts: list[bytes] = []
    for part in unquote_to_bytes(raw).split(b"/"):
        if part == b"..":
            if not parts:
                raise UsageError("the path climbs above the root")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return SourceName(b"/" + b"/".join(parts))


def _chosen(request: Request, verb: Verb) -> dict[str, Any]:
    """Read which snapshot a restore is to take."""
    query = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    given = dict(query)
    unknown = given.keys() - {"snapshot", "at"}
    if unknown or len(given) != len(query):
        raise UsageError("a query names snapshot=TAG or at=TIME, once", hint="encode a ? in a path as %3F")
    if verb == "save" and given:
        raise UsageError("a save takes no snapshot= and no at=")
    if len(given) > 1:
        raise UsageError("snapshot= and at= cannot go together")
    at = given.get("at")
    return {"tag": given.get("snapshot"), "at": moment(at) if at is not None else None}


async def _told_at_end(job: Job) -> Response:
    # Shielded: a client that goes away takes neither the job nor the answer from the others who asked for it.
    outcome = await asyncio.shield(asyncio.wrap_future(job.done))
    status, document = _document(job, outcome)
    return Json(document, status)


async def _told_live(job: Job) -> AsyncIterator[bytes]:
    ended = asyncio.wrap_future(job.done)
    ended.add_done_callback(lambda it: it.cancelled() or it.exception())  # the client may have gone by then
    while not ended.done():
        yield _line({"progress": _progress(job)})
        await asyncio.wait({ended}, timeout=_TELL_EVERY_S)  # which cancels nothing: others may have asked as well
    try:
        status, document = _document(job, ended.result())
        document = document if status == HTTPStatus.OK else {**document, "status": status}
    except HoldfastError as error:
        document = {**told(error), "status": http_status(error)}
    except Exception:  # noqa: BLE001 - it was logged when the job ended
        document = {"error": "internal error: see the server's log", "status": HTTPStatus.INTERNAL_SERVER_ERROR}
    yield _line(document)


def _document(job: Job, outcome: Outcome) -> tuple[int, dict[str, Any]]:
    """Give the answer to a job that ended: a restore that left something out has failed whoever waits for its files."""
    data = {**outcome.told, "warnings": list(job.progress.warnings)}
    if job.kind == "restore" and not outcome.complete:
        error = "some paths could not be restored, and nothing was deleted: see data.errors"
        return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": error, "data": data}
    return HTTPStatus.OK, {"success": True, "data": data}


def _progress(job: Job) -> dict[str, int]:
    progress = job.progress
    return {
        "files_done": progress.files_done,
        "files_total": progress.files_total,
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "bytes_stored": progress.bytes_stored,
    }


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _not_allowed(*methods: str) -> Response:
    allowed = ", ".join(methods)
    return Json({"error": f"this path knows {allowed}"}, HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": allowed})
