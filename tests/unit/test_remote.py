"""Another Holdfast server that is told to pull, and whatever else may listen on its port."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from holdfast.errors import EngineError, EngineUnavailable
from holdfast.images.remote import Server
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName
from holdfast.model.urls import BucketUrl
from holdfast.progress import Part
from servers import free_ports

STORE = BucketUrl.parse("s3://bucket/prefix?region=us-west-2")
IMAGE = ImageName.parse("team/app:1")
DIGEST = Digest.of(b"manifest")
GOOD = [
    {"status": "Pulling"},
    {"status": f"Digest: {DIGEST}"},
    {"status": "Downloaded newer image"},
    {"status": "Done"},
]
UP_TO_DATE = [{"status": f"Digest: {DIGEST}"}, {"status": "Image is up to date for app"}, {"status": "Done"}]


@pytest.fixture
def answering():
    """answering(body, status=200, raw=False): a server that says this to everybody, and what it was asked."""
    started = []

    def start(body, *, status=200, raw=False):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def _answer(self):
                asked.append((self.command, self.path, dict(self.headers)))
                if not raw:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = _answer  # noqa: N815 - http.server's own names

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        started.append((server, thread))
        return Server("127.0.0.1", server.server_port), asked

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


def _lines(events):
    return b"".join(json.dumps(event).encode() + b"\r\n" for event in events)


@pytest.mark.parametrize(
    ("engine", "server"),
    [
        ("tcp://h1:2375", "h1:22375"),
        ("tcp://10.0.0.7:2376", "10.0.0.7:22375"),
        ("tcp://[fe80::1]:2375", "fe80::1:22375"),
        ("unix:///var/run/docker.sock", "None"),
        ("tcp://", "None"),
    ],
)
def test_a_server_is_sought_beside_the_engine(engine, server):
    assert str(Server.beside(engine, 22375)) == server


@pytest.mark.parametrize(
    ("body", "status", "raw", "is_there"),
    [
        (b"OK", 200, False, True),
        (b"OK\n", 200, False, True),
        (b"OKAY", 200, False, False),
        (b"<html>OK</html>", 200, False, False),
        (b"OK", 404, False, False),
        (b"", 200, False, False),
        (b"no http\r\n\r\n", 200, True, False),
        (b"", 200, True, False),
    ],
)
def test_only_holdfast_is_taken_for_it(answering, body, status, raw, is_there):
    server, asked = answering(body, status=status, raw=raw)

    assert server.is_there() is is_there
    assert [(command, path) for command, path, _ in asked] == [("GET", "/status/check")]


def test_nobody_there_is_no_server():
    (port,) = free_ports(1)

    assert not Server("127.0.0.1", port).is_there()
    with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{port} broke off"):
        Server("127.0.0.1", port).pull(STORE, IMAGE, DIGEST, Part("host"))


@pytest.mark.parametrize(("events", "is_new"), [(GOOD, True), (UP_TO_DATE, False)])
def test_it_pulls_by_itself(answering, events, is_new, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "our-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "our-secret")
    server, asked = answering(_lines(events))

    assert server.pull(STORE, IMAGE, DIGEST, Part("host")) is is_new

    ((command, path, headers),) = asked
    assert command == "POST"
    assert urlsplit(path).path == "/v1.24/images/create"
    assert parse_qs(urlsplit(path).query) == {"fromImage": ["team/app"], "tag": ["1"]}
    told = base64.urlsafe_b64decode(headers["X-Registry-Auth"])
    assert json.loads(told) == {"email": str(STORE)}
    assert b"our-" not in told


def test_an_image_by_digest_is_asked_for_by_digest(answering):
    server, asked = answering(_lines(GOOD))

    server.pull(STORE, ImageName.parse(f"app@{DIGEST}"), DIGEST, Part("host"))

    assert parse_qs(urlsplit(asked[0][1]).query) == {"fromImage": ["app"], "tag": [str(DIGEST)]}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b'{"message": "this store is not served"}', 403, "this store is not served"),
        (b"<html>", 502, "it did not say why"),
        (b"[]", 500, "it did not say why"),
        (b"[" * 60_000, 500, "it did not say why"),
        (_lines([{"error": "x", "errorDetail": {"message": "no such image"}}]), 200, "no such image"),
        (_lines([*GOOD[:2], {"error": "disk full"}]), 200, "disk full"),
        (_lines([{"errorDetail": "what"}]), 200, "it did not say why"),
        (_lines([{"status": f"Digest: {Digest.of(b'other')}"}, {"status": "Done"}]), 200, "another image"),
        (_lines([{"status": "Done"}]), 200, "another image"),
    ],
)
def test_a_refusal_is_told_with_its_reason(answering, body, status, reason):
    server, _ = answering(body, status=status)

    with pytest.raises(EngineError, match=reason):
        server.pull(STORE, IMAGE, DIGEST, Part("host"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        _lines(GOOD[:-1]),
        _lines([*GOOD, {"status": "and on"}]),
        b"no json\n",
        b"[" * 60_000 + b"\n",
        b'{"status": "' + b"x" * 100_000 + b'"}\n' + _lines(GOOD),
        b"7\n" + _lines(GOOD[:-1]),
    ],
    ids=["nothing", "no end", "no clear end", "no json", "deep", "a long line", "a number"],
)
def test_one_that_breaks_off_or_talks_nonsense_is_told(answering, body):
    server, _ = answering(body)

    with pytest.raises(EngineUnavailable):
        server.pull(STORE, IMAGE, DIGEST, Part("host"))


def test_a_connection_that_is_cut_is_told(answering):
    server, _ = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + _lines(GOOD[:2]), raw=True)

    with pytest.raises(EngineUnavailable):
        server.pull(STORE, IMAGE, DIGEST, Part("host"))
