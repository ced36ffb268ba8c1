"""Other Holdfast servers: hosts that pull by themselves when they are told to, straight from the bucket.

They use their own credentials for their own store: none are sent to them.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

from holdfast.errors import EngineError, EngineUnavailable
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName
from holdfast.model.urls import BucketUrl
from holdfast.progress import Part

_CHECK_TIMEOUT_S = 1.0
_CHECK_AT_MOST_S = 3.0
_WORK_TIMEOUT_S = 1800.0
_LONGEST_LINE = 64 * 1024
_OK = b"OK"


@dataclass(frozen=True, slots=True)
class Server:
    """The engine face of a Holdfast server on another host."""

    host: str
    port: int

    @classmethod
    def beside(cls, engine: str, port: int) -> Server | None:
        """Name the server that would be on an engine's host; None where the engine is on this one."""
        parts = urlsplit(engine)
        return cls(parts.hostname, port) if parts.scheme == "tcp" and parts.hostname else None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def is_there(self) -> bool:
        """Whether one answers, within some seconds."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_CHECK_TIMEOUT_S)
        # A timeout is for each piece that comes, and they may come one by one.
        limit = threading.Timer(_CHECK_AT_MOST_S, lambda: _hang_up(connection))
        limit.daemon = True
        limit.start()
        try:
            connection.request("GET", "/status/check")
            response = connection.getresponse()
            return response.status == http.HTTPStatus.OK and response.read(16).strip() == _OK
        except (OSError, http.client.HTTPException, UnicodeError):  # a host's name that cannot be one
            return False
        finally:
            limit.cancel()
            connection.close()

    def pull(self, store: BucketUrl, name: ImageName, digest: Digest, part: Part) -> bool:
        """Have it pull an image, which must be the one of this digest; gives whether that was new to it.

        :raises EngineError: it cannot, or will not, or pulled another: its store is another one, perhaps.
        """
        query = urlencode({"fromImage": name.name, "tag": str(name.digest or name.tag)}, quote_via=quote)
        known = base64.urlsafe_b64encode(json.dumps({"email": str(store)}).encode()).decode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_WORK_TIMEOUT_S)
        try:
            connection.request("POST", f"/v1.24/images/create?{query}", headers={"X-Registry-Auth": known})
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise EngineError(f"the server at {self} refused to pull: {_message(response.read(_LONGEST_LINE))}")
            return self._follow(response, digest, part)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise EngineUnavailable(f"the server at {self} broke off: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()

    def _follow(self, response: http.client.HTTPResponse, digest: Digest, part: Part) -> bool:
        is_new, is_done, is_it = True, False, False
        for event in _events(response):
            if "error" in event or "errorDetail" in event:
                raise EngineError(f"the server at {self} could not pull: {_message(json.dumps(event).encode())}")
            status = str(event.get("status", ""))[:100]
            is_new = is_new and "up to date" not in status
            is_it = is_it or status == f"Digest: {digest}"
            is_done = status == "Done"
            part.state = "pulling by itself"
        if not is_done:
            raise EngineUnavailable(f"the server at {self} broke off")
        if not is_it:
            raise EngineError(f"the server at {self} pulled another image of this name")
        return is_new


def _hang_up(connection: http.client.HTTPConnection) -> None:
    if connection.sock is not None:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, object]]:
    while line := response.readline(_LONGEST_LINE):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise http.client.HTTPException("it sent what is no JSON") from error
        if isinstance(event, dict):
            yield event


def _message(body: bytes) -> str:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return "it did not say why"
    if not isinstance(document, dict):
        return "it did not say why"
    detail = document.get("errorDetail")
    told = detail.get("message") if isinstance(detail, dict) else None
    return str(told or document.get("message") or document.get("error") or "it did not say why")[:500]
