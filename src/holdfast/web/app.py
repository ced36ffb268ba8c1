"""Runs faces: each an ASGI application that listens somewhere, all in one event loop."""

from __future__ import annotations

import asyncio
import math
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from holdfast import logs
from holdfast.config import Address
from holdfast.errors import UsageError

_BACKLOG = 1024
_LAST_WORDS_S = 5.0
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Face:
    """One HTTP surface.

    ``stop`` is called with the seconds that work under way has; it says whether all has ended. ``give_up`` ends at once
    what has not.
    """

    name: str
    application: ASGIApp
    listen: Address
    stop: Callable[[float], bool]
    give_up: Callable[[], None]


def serve(faces: Sequence[Face], grace_s: float) -> bool:
    """Serve until SIGTERM or SIGINT. Then nothing new begins, and what is under way gets ``grace_s`` to end.

    :returns: whether all work has ended.
    :raises UsageError: an address cannot be listened on.
    """
    _allow_open_files()
    sockets = [_listening(face) for face in faces]
    try:
        return asyncio.run(_serve(faces, sockets, grace_s))
    finally:
        for listening in sockets:
            listening.close()


async def _serve(faces: Sequence[Face], sockets: Sequence[socket.socket], grace_s: float) -> bool:
    servers = [_Server(_config(face, grace_s)) for face in faces]
    deadline = math.inf

    def stop() -> None:
        nonlocal deadline
        if deadline < math.inf:  # the second signal
            for server in servers:
                server.force_exit = True
            deadline = time.monotonic()
            return
        logs.info("stopping", grace_s=grace_s)
        deadline = time.monotonic() + grace_s
        for face, server in zip(faces, servers, strict=True):
            face.stop(0)
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    for face, listening in zip(faces, sockets, strict=True):
        host, port = listening.getsockname()[:2]
        logs.info("listening", face=face.name, address=str(Address(host, port)))
    runs = [server.serve([listening]) for server, listening in zip(servers, sockets, strict=True)]
    await asyncio.gather(*runs)
    # Clients may have gone before their work ended; and a second signal moves the deadline meanwhile.
    while not await asyncio.to_thread(_have_ended, faces, _LOOK_EVERY_S):
        if time.monotonic() >= deadline:
            await asyncio.to_thread(_give_up, faces)
            return False
    return True


def _have_ended(faces: Sequence[Face], within_s: float) -> bool:
    return all(face.stop(within_s) for face in faces)


def _give_up(faces: Sequence[Face]) -> None:
    for face in faces:
        face.give_up()
        face.stop(_LAST_WORDS_S)


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: several run in one process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, which does not mind a client that breaks the protocol while it is being answered."""

    def send_400_response(self, msg: str) -> None:
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()  # too late for this answer: another has begun, or may have no body


def _allow_open_files() -> None:
    """Take as many open files as the system gives: a restore has up to 250 open, and there are connections besides."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _config(face: Face, grace_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        face.application,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        http=_Protocol,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(grace_s),
    )


def _listening(face: Face) -> socket.socket:
    host, port = face.listen.host, face.listen.port
    try:
        if not host and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {face.listen}: {error.strerror or error}",
            hint=f"set {face.name}.listen or HOLDFAST_{face.name.upper()}_LISTEN to another address",
        ) from error
