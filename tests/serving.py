"""The server as its users meet it: a process, its port, and requests as raw as a test wants them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import Server, answers, free_ports

TIMEOUT_S = 100


@dataclass(frozen=True)
class Answer:
    """What came of a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """The documents of an NDJSON body."""
        return [json.loads(line) for line in self.body.splitlines()]


class Serving:
    """`holdfast serve` with one face on a free port, ended with the test."""

    def __init__(self, folder: Path, env: Mapping[str, str], *arguments: str, face: str = "persist") -> None:
        self.port = free_ports(1)[0]
        self.log = folder / f"serve-{self.port}.log"
        settings = {f"HOLDFAST_{face.upper()}_LISTEN": f"127.0.0.1:{self.port}", "HOLDFAST_LOG_FORMAT": "json", **env}
        self.server = Server(
            [sys.executable, "-m", "holdfast", "serve", *arguments], self.log, {**os.environ, **settings}
        )
        try:
            self.server.wait_until(lambda: answers(f"http://127.0.0.1:{self.port}/-/health"))
        except BaseException:
            self.server.stop()
            raise

    @property
    def pid(self) -> int:
        return self.server.pid

    def workers(self) -> set[int]:
        """The processes that it has started."""
        found: set[int] = set()
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(FileNotFoundError), open(f"/proc/{self.pid}/task/{thread}/children") as file:
                found.update(map(int, file.read().split()))
        return found

    def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        """Send one request; `path` goes on the wire as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def logged(self) -> list[dict[str, Any]]:
        """The lines of the log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def end(self, how: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        os.kill(self.pid, how)
        return self.wait()

    def wait(self) -> int:
        return self.server.wait(TIMEOUT_S)

    def stop(self) -> None:
        self.server.stop()
