"""What every request passes on its way in and out: who may ask, what is logged, and how errors are told."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from holdfast import logs
from holdfast.config import Secret
from holdfast.errors import BusyError, HoldfastError, http_status
from holdfast.web.metrics import Metrics

Answer = Callable[[Request], Awaitable[Response]]
ErrorBody = Callable[[str, str | None], dict[str, str]]
"""What a face's clients take for an error: made of its message and its hint."""

HEALTH = b"/-/health"
_RETRY_AFTER_S = "10"


class Edge:
    """An ASGI application around a face's answers.

    One log line and one count for each request. With a token, all but the health check needs it; without one, what a
    web page sends through somebody's browser is refused. ``body`` is how errors are told, ``no_token`` the status of a
    request without the token.
    """

    def __init__(
        self,
        face: str,
        answer: Answer,
        metrics: Metrics,
        token: Secret | None,
        *,
        body: ErrorBody | None = None,
        no_token: HTTPStatus = HTTPStatus.UNAUTHORIZED,
    ) -> None:
        self._face = face
        self._answer = answer
        self._metrics = metrics
        self._token = token
        self._body = body or error_and_hint
        self._no_token = no_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        began = time.monotonic()
        sent = {"status": 0, "bytes": 0}

        async def count(message: Message) -> None:
            try:
                await send(message)
            except Exception as error:  # whatever uvicorn makes of it
                raise _Broken from error
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
            else:
                sent["bytes"] += len(message.get("body", b""))

        response = await self._respond(request)
        try:
            await response(scope, receive, count)
        except (_Broken, asyncio.CancelledError):
            return  # the stream breaks off: nobody takes it, or the grace is over
        finally:
            self._metrics.answered(self._face, request.method, sent["status"])
            log = logs.debug if scope_path(request) == HEALTH else logs.info
            log(
                "request",
                face=self._face,
                method=request.method,
                path=asked_path(scope),
                status=sent["status"],
                bytes=sent["bytes"],
                seconds=round(time.monotonic() - began, 3),
                client=request.client.host if request.client else None,
            )

    async def _respond(self, request: Request) -> Response:
        try:
            if scope_path(request) != HEALTH:
                refused = self._refused(request)
                if refused is not None:
                    return refused
            return await self._answer(request)
        except HoldfastError as error:
            return self._told(error)
        except asyncio.CancelledError:  # the grace is over; what the job stored until now is found by the next one
            return self._told(BusyError("the server stopped before this was done", hint="try again once it is back"))
        except Exception as error:  # noqa: BLE001 - a request's bug must not end the server
            logs.error("internal error", exception=error, path=asked_path(request.scope))
            return Json(self._body("internal error: see the server's log", None), HTTPStatus.INTERNAL_SERVER_ERROR)

    def _told(self, error: HoldfastError) -> Response:
        headers = {"Retry-After": _RETRY_AFTER_S} if error.retryable else None
        return Json(self._body(str(error), error.hint), http_status(error), headers)

    def _refused(self, request: Request) -> Response | None:
        if self._token is not None:
            given = request.headers.get("authorization", "")
            scheme, _, credentials = given.partition(" ")
            known = hmac.compare_digest(credentials.strip().encode(), self._token.value.encode())
            if scheme.lower() == "bearer" and known:
                return None
            return Json(
                self._body(
                    "this token is not the server's" if given else "this server wants a token",
                    "send it as Authorization: Bearer TOKEN",
                ),
                self._no_token,
                {"WWW-Authenticate": 'Bearer realm="holdfast"'},
            )
        if "origin" in request.headers or request.headers.get("sec-fetch-site", "none") != "none":
            return Json(self._body("requests of web pages need a token", None), HTTPStatus.FORBIDDEN)
        return None


class _Broken(Exception):
    """A client cannot be answered: it has sent, behind its request, what is no HTTP."""


class Json(JSONResponse):
    """A JSON document that ends with its line, so that it does not run into a terminal's prompt."""

    def render(self, content: object) -> bytes:
        """Give the bytes of the body."""
        return super().render(content) + b"\n"


def error_and_hint(message: str, hint: str | None) -> dict[str, str]:
    """Give an error as Holdfast's own clients take it."""
    return {"error": message, **({"hint": hint} if hint else {})}


def told(error: HoldfastError) -> dict[str, str]:
    """Give an error as plain values."""
    return error_and_hint(str(error), error.hint)


def scope_path(request: Request) -> bytes:
    """Give the path of a request as it was sent, percent-encoded. ``request.url`` takes the client's Host for true."""
    raw: bytes = request.scope["raw_path"]
    return raw


def asked_path(scope: Scope) -> str:
    """Give the path that a request named, as it was sent, for a log."""
    return quote(scope["raw_path"], safe="/%:@!$&'()*+,;=~")
