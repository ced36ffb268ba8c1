"""What an engine says, and what becomes of it: over a socket, as docker-py speaks."""

import gc
import json
import socketserver
import tempfile
import threading
import warnings
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from holdfast.errors import DamageError, EngineError, EngineUnavailable, HoldfastError, UsageError
from holdfast.images.engine import Engine
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName
from holdfast.model.oci import Platform

A, B, C = (Digest.of(word) for word in (b"a", b"b", b"c"))
INFO = {"DriverStatus": [["Backing Filesystem", "extfs"]]}
CONTAINERD = {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
IMAGE = {
    "Id": str(A),
    "RepoTags": ["app:1", "team/app:latest", "<none>:<none>"],
    "RootFS": {"Type": "layers", "Layers": [str(B), str(C)]},
    "Architecture": "arm64",
    "Os": "linux",
    "Variant": "v8",
    "Size": 3,
}


class Docker(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers as it is told to: `answers` are bodies, or (status, body), by path; `asked` is what came."""

    daemon_threads = True

    def __init__(self, path):
        super().__init__(path, _Handler)
        self.path = path
        self.answers = {"/_ping": b"OK", "/version": _version("1.48"), "/info": INFO}
        self.asked = []
        self.received = {}

    def get_request(self):
        request, _ = super().get_request()
        return request, ("local", 0)

    def handle_error(self, *_):
        pass  # a client that went away


def _version(api):
    return {"Version": "28.5.0", "ApiVersion": api, "MinAPIVersion": "1.24", "Os": "linux", "Arch": "amd64"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self):
        path = urlsplit(self.path).path
        path = "/" + path.split("/", 2)[2] if path.startswith("/v1.") else path
        self.server.asked.append((self.command, unquote(path), parse_qs(urlsplit(self.path).query)))
        self.server.received[path] = self._body()
        answer = self.server.answers.get(unquote(path), (404, {"message": "page not found"}))
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json")
        if path == "/images/load" and status == 200:  # what an engine tells bit by bit
            self.send_header("Transfer-Encoding", "chunked")
            data = b"".join(b"%x\r\n%s\r\n" % (len(line), line) for line in [*data.splitlines(keepends=True), b""])
        else:
            self.send_header("Content-Length", str(len(data) + self.server.answers.get("lacking", 0)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    do_GET = do_POST = do_HEAD = _answer  # noqa: N815 - http.server's own names

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def log_message(self, *_):
        pass


@pytest.fixture
def docker():
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
        server = Docker(f"{folder}/sock")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def engine(docker):
    engine = Engine.open(f"unix://{docker.path}")
    yield engine
    for client in (engine.__dict__.get("_client"), engine.__dict__.get("_worker")):
        if client is not None:
            client.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)


# Its address


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("unix:///var/run/docker.sock", "unix:///var/run/docker.sock"),
        ("/var/run/docker.sock", "unix:///var/run/docker.sock"),
        ("tcp://h1:2376", "tcp://h1:2376"),
        ("tcp://h1", "tcp://h1:2375"),
        ("tcp://h1/", "tcp://h1:2375"),
        ("h1", "tcp://h1:2375"),
        ("h1:4000", "tcp://h1:4000"),
        ("http://h1:4000", "tcp://h1:4000"),
        ("tcp://[::1]", "tcp://[::1]:2375"),
        ("tcp://[::1]:4000", "tcp://[::1]:4000"),
        (None, "unix:///var/run/docker.sock"),
    ],
)
def test_an_address_is_read_as_docker_reads_it(address, shown):
    assert str(Engine.open(address)) == shown


@pytest.mark.parametrize("address", ["ftp://h1", "tcp://h1:port", "ssh://h1", "npipe:////./pipe/x", "fd://"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UsageError) as refused:
        Engine.open(address)
    assert refused.value.hint


def test_without_an_address_the_environment_says_where(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://h7:2375")

    assert str(Engine.open()) == "tcp://h7:2375"
    assert str(Engine.open("tcp://h8:2375")) == "tcp://h8:2375"


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_password_in_an_address_is_refused_and_never_shown(monkeypatch, by):
    address = "tcp://user:hunter2@h1:2375"
    if by == "environment":
        monkeypatch.setenv("DOCKER_HOST", address)

    with pytest.raises(UsageError) as refused:
        Engine.open(address if by == "argument" else None)
    assert "hunter2" not in f"{refused.value} {refused.value.hint}"


def test_a_context_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("DOCKER_CONTEXT", "nosuch")

    with pytest.raises(UsageError, match=r"nosuch|context"):
        Engine.open()


def test_certificates_that_cannot_be_read_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path / "nosuch"))

    with pytest.raises(UsageError, match=r"nosuch has not all of ca\.pem, cert\.pem and key\.pem"):
        Engine.open("tcp://h1:2376")


def test_nothing_is_asked_before_it_is_needed(docker, engine):
    assert docker.asked == []


# What it is


@pytest.mark.parametrize(
    ("api", "info", "keeps_blobs", "reads_zstd"),
    [
        ("1.41", INFO, False, False),
        ("1.42", INFO, False, True),
        ("1.48", CONTAINERD, True, True),
        ("1.48", {}, False, True),
        ("1.48", {"DriverStatus": None}, False, True),
        ("1.48", {"DriverStatus": [["odd"], ["driver-type", "io.containerd.snapshotter.v1"]]}, True, True),
    ],
)
def test_what_it_is_like(docker, engine, api, info, keeps_blobs, reads_zstd):
    docker.answers |= {"/version": _version(api), "/info": info}

    assert (engine.traits.keeps_blobs, engine.traits.reads_zstd) == (keeps_blobs, reads_zstd)
    assert engine.traits.platform == Platform("amd64", "linux")


@pytest.mark.parametrize("version", [b"hello", b"[]", {}, {"ApiVersion": "new"}, {"ApiVersion": None}])
def test_what_is_no_engine_is_told_as_such(docker, engine, version):
    docker.answers["/version"] = version

    _, sentence, _ = _refusal(engine)

    assert str(engine) in sentence


@pytest.mark.parametrize("path", ["/nonexistent/sock", "/etc/passwd"])
def test_nobody_there_is_told_as_such(path):
    kind, sentence, hint = _refusal(Engine.open(f"unix://{path}"))

    assert kind is EngineUnavailable
    assert path in sentence
    assert "Error" not in sentence
    assert hint


def _refusal(engine):
    """What is raised when it is asked what it is like: its type, its sentence and its hint."""
    with warnings.catch_warnings():  # docker-py leaves its socket to the garbage collector then
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            _ = engine.traits
        except EngineError as error:
            told = type(error), str(error), error.hint
        else:
            pytest.fail("it answers")
        gc.collect()
        return told


# Its images


def test_an_image_is_described(docker, engine):
    docker.answers["/images/app:1/json"] = IMAGE

    image = engine.inspect("app:1")

    assert (image.id, image.names, image.diff_ids) == (A, ("app:1", "team/app:latest"), (B, C))
    assert str(image.platform) == "linux/arm64/v8"
    assert image.is_whole


def test_one_that_is_not_there_is_none(docker, engine):
    docker.answers["/images/app:1/json"] = (404, {"message": "No such image: app:1"})

    assert engine.inspect("app:1") is None


@pytest.mark.parametrize("lacking", ["RepoTags", "RootFS", "Variant"])
def test_an_image_may_lack_much(docker, engine, lacking):
    docker.answers["/images/app:1/json"] = IMAGE | {lacking: None}

    assert engine.inspect("app:1").id == A


@pytest.mark.parametrize(
    "told", [{}, IMAGE | {"Id": "what"}, IMAGE | {"RootFS": {"Layers": ["x"]}}, b"no json", b"[]", b"null"], ids=str
)
def test_what_is_no_description_is_told(docker, engine, told):
    docker.answers["/images/app:1/json"] = told

    with pytest.raises(EngineError, match=r"engine|Engine"):
        engine.inspect("app:1")


def _manifest(digest, *, available=True, unpacked=7, kind="image"):
    return {"ID": str(digest), "Kind": kind, "Available": available, "ImageData": {"Size": {"Unpacked": unpacked}}}


def test_containerd_tells_which_manifests_it_has_whole(docker, engine):
    docker.answers["/info"] = CONTAINERD
    entries = [_manifest(A), _manifest(B, available=False), _manifest(C, kind="attestation")]
    docker.answers["/images/app:1/json"] = IMAGE | {"Manifests": entries}

    image = engine.inspect("app:1")

    assert image.is_whole
    assert image.manifests == (A,)
    assert docker.asked[-1][2] == {"manifests": ["1"]}


def test_containerd_tells_what_is_missing(docker, engine):
    docker.answers["/info"] = CONTAINERD
    docker.answers["/images/app:1/json"] = IMAGE | {"Manifests": [_manifest(A, available=False)]}

    assert not engine.inspect("app:1").is_whole


def test_all_images_are_looked_at_once(docker, engine):
    docker.answers["/images/json"] = [{"Id": str(A)}, {"Id": str(A)}, {"Id": str(B)}]
    docker.answers[f"/images/{A}/json"] = IMAGE
    docker.answers[f"/images/{B}/json"] = (404, {"message": "No such image"})

    assert [image.id for image in engine.images()] == [A]


def test_a_name_cannot_ask_for_something_else(docker, engine):
    docker.answers["/images/../info?x=1#y/json"] = (404, {"message": "No such image"})

    assert engine.inspect("../info?x=1#y") is None

    assert all(path.startswith(("/images/", "/version", "/info", "/_ping")) for _, path, _ in docker.asked)
    assert {"x"}.isdisjoint(query for _, _, query in docker.asked for query in query)


# Saving and loading


def test_an_image_is_saved_in_pieces(docker, engine):
    data = bytes(3_000_000)
    docker.answers[f"/images/{A}/get"] = data

    pieces = list(engine.save(str(A)))

    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 1024 * 1024


def test_a_save_that_is_cut_is_never_taken_for_whole(docker, engine):
    docker.answers |= {f"/images/{A}/get": bytes(100_000)}
    _ = engine.traits
    _ = engine._worker  # noqa: SLF001 - it asks for the version, which must not be cut
    docker.answers["lacking"] = 5_000

    with pytest.raises(EngineUnavailable):
        list(engine.save(str(A)))


@pytest.mark.parametrize("status", [404, 500, 403])
def test_a_refusal_is_told_with_the_engines_own_words(docker, engine, status):
    refusal = (status, {"message": "disk is on fire\nand more"})
    docker.answers |= {f"/images/{A}/get": refusal, "/images/load": refusal, f"/images/{A}/tag": refusal}

    for act in (
        lambda: list(engine.save(str(A))),
        lambda: engine.load(iter([b"x"]), print),
        lambda: engine.tag(A, ImageName.parse("app:1")),
    ):
        with pytest.raises(HoldfastError) as refused:
            act()
        assert isinstance(refused.value, EngineError)
        assert str(engine) in str(refused.value)
        assert "and more" not in str(refused.value)


def test_what_is_loaded_arrives_and_what_is_said_is_told(docker, engine):
    docker.answers["/images/load"] = b'{"status": "Loading layer"}\r\n{"stream": "Loaded image ID"}\r\n'
    told = []

    engine.load(iter([b"one", b"two" * 100_000, b""]), told.append)

    assert docker.received["/images/load"] == b"one" + b"two" * 100_000
    assert [event.get("status") for event in told] == ["Loading layer", None]


@pytest.mark.parametrize(
    "event",
    [
        {"error": "no space left on device"},
        {"errorDetail": {"message": "no space left on device"}},
        {"error": "no space left on device\nat line 7", "errorDetail": {"code": 1}},
    ],
)
def test_a_load_that_fails_halfway_is_told(docker, engine, event):
    docker.answers["/images/load"] = b'{"status": "x"}\r\n' + json.dumps(event).encode() + b"\r\n"

    with pytest.raises(EngineError, match=r"no space left on device$"):
        engine.load(iter([b"x"]), lambda event: None)


@pytest.mark.parametrize("error", [DamageError("layer 7 is altered"), OSError("bad disk"), ValueError("odd")], ids=str)
def test_what_its_source_raises_comes_out_as_it_is(docker, engine, error):
    def source():
        yield b"one"
        raise error

    with pytest.raises(type(error)) as raised:
        engine.load(source(), lambda event: None)
    assert raised.value is error


def test_an_image_is_tagged(docker, engine):
    docker.answers[f"/images/{A}/tag"] = (201, b"")

    engine.tag(A, ImageName.parse("localhost:5000/app:1"))

    assert docker.asked[-1][2] == {"repo": ["localhost:5000/app"], "tag": ["1"], "force": ["1"]}
    assert Path(docker.path).exists()
