"""The engine face without a Docker Engine: what it answers, what it streams, and where a client may send it."""

import asyncio
import base64
import http.server
import json
import socket
import threading
from contextlib import contextmanager
from typing import ClassVar
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.config import Secret
from holdfast.errors import (
    AccessDenied,
    BucketError,
    DamageError,
    ForbiddenError,
    HoldfastError,
    NotFoundError,
    UsageError,
)
from holdfast.images.pull import HostResult, Pulled
from holdfast.images.serving import ClientStore, Origin, Pulls, Stores, Wanted
from holdfast.model.images import ImageName
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import Keys, open_bucket
from holdfast.web.edge import Edge
from holdfast.web.engine_api import NO_TOKEN, EngineFace, client_store, docker_error
from holdfast.web.metrics import Metrics

TOKEN = "a-token-of-some-length"
DIGEST = "sha256:" + "5" * 64
OWN = BucketUrl.parse("memory://own")


class Sent:
    """What an application sent; `seen` is called with each piece of a body."""

    def __init__(self, seen=lambda line: None):
        self.messages = []
        self._seen = seen

    async def __call__(self, message):
        self.messages.append(message)
        if message.get("body"):
            self._seen(message["body"])

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def lines(self):
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def states(self):
        return [line.get("status") for line in self.lines]


def _pulled(state="pulled"):
    return Pulled("hipache:latest", DIGEST, (HostResult("unix:///sock", state),), 1, 0.5)


class Rig:
    """A face over a pull that a test makes up."""

    def __init__(self, pull, *, jobs=2, token=None, **stores):
        self.wanted = []
        self.stores = Stores(stores.pop("own", OWN), stores.pop("registries", {}), **stores)
        self.metrics = Metrics()

        def note(wanted, progress):
            self.wanted.append(wanted)
            return pull(wanted, progress)

        self.pulls = Pulls(note, jobs)
        self.edge = Edge(
            "engine",
            EngineFace(self.stores, self.pulls, self.metrics).answer,
            self.metrics,
            token,
            body=docker_error,
            no_token=NO_TOKEN,
        )

    async def asked(self, path, method="GET", headers=(), sent=None):
        sent = sent or Sent()
        raw, _, query = path.partition("?")
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": raw,
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 22375),
        }
        await self.edge(scope, _nothing_more, sent)
        return sent

    def ask(self, *arguments, **options):
        return asyncio.run(self.asked(*arguments, **options))

    def create(self, image, tag=None, auth=None, version="/v1.41", sent=None, **more):
        query = "&".join(f"{name}={quote(value)}" for name, value in {"fromImage": image, **more}.items())
        query += f"&tag={quote(tag)}" if tag is not None else ""
        headers = [("X-Registry-Auth", auth)] if auth else []
        return self.ask(f"{version}/images/create?{query}", "POST", headers, sent)


async def _nothing_more():
    await asyncio.Event().wait()


def _auth(**values):
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


def _at_once(wanted, progress):
    return _pulled()


def _raising(error):
    def pull(wanted, progress):
        raise error

    return pull


# What clients ask before they pull


@pytest.mark.parametrize("path", ["/_ping", "/v1.24/_ping", "/v1.52/_ping", "/1.19/_ping"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_ping_tells_what_clients_choose_their_version_by(path, method):
    sent = Rig(_at_once).ask(path, method)

    assert sent.status == 200
    assert tuple(map(int, sent.headers["api-version"].split("."))) >= (1, 44)
    assert sent.headers["docker-experimental"] == "false"
    assert sent.headers["ostype"] == "linux"
    assert "no-cache" in sent.headers["cache-control"]
    assert "builder-version" not in sent.headers


@pytest.mark.parametrize("prefix", ["", "/v1.41", "/v1.52"])
def test_version_and_info_are_answered(prefix):
    rig = Rig(_at_once)

    assert rig.ask(f"{prefix}/version").json["ApiVersion"] == rig.ask("/_ping").headers["api-version"]
    assert rig.ask(f"{prefix}/info").json["IndexServerAddress"].startswith("https://")


def test_the_old_programs_own_check():
    rig = Rig(_at_once)

    assert rig.ask("/status/check").body == b"OK"
    assert rig.ask("/").status == 200


def test_health_and_metrics():
    rig = Rig(_at_once)
    assert rig.create("hipache").status == 200
    assert Rig(_raising(NotFoundError("no"))).create("hipache").status == 404

    assert rig.ask("/-/health").json == {"status": "ok", "running": 0, "waiting": 0}
    text = rig.ask("/-/metrics").body.decode()
    assert 'holdfast_pulls_total{result="pulled"} 1.0' in text
    assert 'holdfast_requests_total{face="engine",method="POST",status="200"} 1.0' in text
    assert "hipache" not in text


@pytest.mark.parametrize(
    "path", ["/containers/json", "/v1.41/images/json", "/v1.41/images/createx", "/images/create", "/x/images/create"]
)
def test_nothing_else_is_there(path):
    sent = Rig(_at_once).ask(path, "POST")

    assert sent.status == 404
    assert sent.json == {"message": "page not found"}


@pytest.mark.parametrize(("path", "method"), [("/v1.41/images/create?fromImage=x", "GET"), ("/_ping", "POST")])
def test_methods_that_mean_nothing(path, method):
    sent = Rig(_at_once).ask(path, method)

    assert sent.status == 405
    assert "message" in sent.json
    assert sent.headers["allow"]


def test_a_token_is_asked_for_in_dockers_words():
    rig = Rig(_at_once, token=Secret(TOKEN))

    refused = rig.create("hipache")
    assert refused.status == 403  # at 401 the docker command asks for a login, even where there is no terminal
    assert "token" in refused.json["message"]
    assert rig.wanted == []
    assert rig.ask("/-/health").status == 200
    assert rig.ask("/_ping", headers=[("Authorization", f"Bearer {TOKEN}")]).status == 200


def test_a_web_page_may_not_pull():
    rig = Rig(_at_once)

    sent = rig.ask("/v1.41/images/create?fromImage=x", "POST", [("Origin", "http://a")])
    assert sent.status == 403
    assert "web pages" in sent.json["message"]
    assert rig.wanted == []


# Which image


@pytest.mark.parametrize(
    ("image", "tag", "name"),
    [
        ("hipache", "latest", "hipache:latest"),
        ("hipache", None, "hipache:latest"),
        ("hipache", "", "hipache:latest"),
        ("hipache:1.2", None, "hipache:1.2"),
        ("hipache:1.2", "3", "hipache:3"),
        ("hipache", DIGEST, f"hipache@{DIGEST}"),
        (f"hipache@{DIGEST}", None, f"hipache@{DIGEST}"),
        ("docker.io/library/hipache", "1", "hipache:1"),
        ("opsgoodies.com/docker-repo/hipache", "latest", "opsgoodies.com/docker-repo/hipache:latest"),
        ("localhost:5000/a/b:c", None, "localhost:5000/a/b:c"),
    ],
)
@pytest.mark.parametrize("version", ["/v1.41", "/1.19"])
def test_an_image_is_named_as_docker_does(image, tag, name, version):
    rig = Rig(_at_once)

    assert rig.create(image, tag, version=version).status == 200
    assert [str(wanted.name) for wanted in rig.wanted] == [name]


@pytest.mark.parametrize(
    ("image", "tag"),
    [("", None), ("Hipache", None), ("../x", None), ("a b", None), ("x" * 2000, None), ("x", "-"), ("x", "sha256:0")],
)
def test_what_is_no_name_is_refused(image, tag):
    rig = Rig(_at_once)

    sent = rig.create(image, tag)
    assert sent.status == 400
    assert sent.json["message"]
    assert rig.wanted == []


@pytest.mark.parametrize("query", ["fromSrc=-", "fromSrc=http://127.0.0.1:1/x.tar&fromImage=x", ""])
def test_nothing_is_imported(query):
    rig = Rig(_at_once)

    assert rig.ask(f"/v1.41/images/create?{query}", "POST").status == 400
    assert rig.wanted == []


# What is streamed


def test_a_pull_is_told_as_docker_tells_it():
    is_seen = threading.Event()

    def pull(wanted, progress):
        known = progress.part("layer 0123456789ab", state="exists")
        part = progress.part("layer ba9876543210", state="reading", total=34_000_000)
        part.done = 12_000_000
        assert is_seen.wait(30)
        part.state, part.done = "done", part.total
        assert known.state == "exists"
        return _pulled()

    sent = Sent(lambda line: is_seen.set() if b"Downloading" in line else None)
    Rig(pull).create("opsgoodies.com/docker-repo/hipache", "1", sent=sent)

    assert sent.status == 200
    assert sent.headers["content-type"] == "application/json"
    bar = "[=================>" + " " * 32 + "] 12MB/34MB"
    assert sent.lines == [
        {"status": "Pulling from docker-repo/hipache", "id": "1"},
        {"status": "Already exists", "id": "0123456789ab"},
        {
            "status": "Downloading",
            "id": "ba9876543210",
            "progressDetail": {"current": 12_000_000, "total": 34_000_000},
            "progress": bar,
        },
        {"status": "Pull complete", "id": "ba9876543210"},
        {"status": f"Digest: {DIGEST}"},
        {"status": "Status: Downloaded newer image for opsgoodies.com/docker-repo/hipache:1"},
        {"status": "Done"},
    ]


def test_an_image_that_is_there():
    sent = Rig(lambda *_: _pulled("up to date")).create("hipache")

    assert sent.states[-2:] == ["Status: Image is up to date for hipache:latest", "Done"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("this"), 400),
        (NotFoundError("this"), 404),
        (AccessDenied("this"), 502),
        (BucketError("this"), 502),
        (DamageError("this"), 500),
    ],
)
def test_what_goes_wrong_at_once_has_its_status(error, status):
    error.hint = "do that"

    sent = Rig(_raising(error)).create("hipache")

    assert sent.status == status
    assert sent.json == {"message": "this (do that)"}


def test_keys_of_the_clients_own_that_are_refused_are_its_affair():
    auth = _auth(email="s3://theirs", username="key", password="secret")

    assert Rig(_raising(AccessDenied("no"))).create("hipache", auth=auth).status == 403


def test_what_goes_wrong_later_is_an_error_for_every_client():
    is_seen = threading.Event()

    def pull(wanted, progress):
        progress.part("layer 0123456789ab", state="reading")
        assert is_seen.wait(30)
        raise DamageError("layer 0123 is damaged", hint="push it again")

    sent = Sent(lambda line: is_seen.set())
    Rig(pull).create("hipache", sent=sent)

    message = "layer 0123 is damaged (push it again)"
    assert sent.status == 200
    assert sent.lines[-1] == {"error": message, "errorDetail": {"code": 500, "message": message}}
    assert "Done" not in sent.states


def test_a_bug_is_told_without_its_insides():
    sent = Rig(_raising(ZeroDivisionError("at 0xdeadbeef"))).create("hipache")

    assert sent.status == 500
    assert b"deadbeef" not in sent.body


def test_warnings_are_told():
    def pull(wanted, progress):
        progress.warn("the tag moved meanwhile")
        return _pulled()

    assert "Warning: the tag moved meanwhile" in Rig(pull).create("hipache").states


# Many at once


def test_the_same_image_asked_for_twice_is_pulled_once_and_others_wait_and_say_so():
    go_on = threading.Event()

    def pull(wanted, progress):
        progress.part("layer 0123456789ab", state="reading")
        assert go_on.wait(30)
        return _pulled()

    rig = Rig(pull, jobs=1)
    exact = f"a@sha256:{'1' * 64}"

    async def all_of_them():
        told = asyncio.Queue()
        sent = [Sent(told.put_nowait) for _ in range(3)]
        path = "/v1.41/images/create?fromImage="
        tasks = [
            asyncio.create_task(rig.asked(path + image, "POST", sent=one))
            for image, one in zip((exact, exact, "b"), sent, strict=True)
        ]
        while not all(one.body for one in sent) or b"Waiting" not in sent[2].body:
            await told.get()
        assert (rig.pulls.running, rig.pulls.waiting) == (1, 1)
        go_on.set()
        await asyncio.gather(*tasks)
        return sent

    sent = asyncio.run(all_of_them())
    assert [str(wanted.name) for wanted in rig.wanted] == [exact, "b:latest"]
    assert all(one.states[-1] == "Done" for one in sent)
    assert "Waiting for other pulls to end" in sent[2].states
    assert "Waiting for other pulls to end" not in sent[0].states


def test_who_asks_with_other_keys_joins_nobody():
    go_on = threading.Barrier(2, timeout=30)

    def pull(wanted, progress):
        go_on.wait()
        return _pulled()

    rig = Rig(pull)

    async def both():
        auths = [_auth(email="s3://b", username=key, password="secret") for key in ("one", "two")]
        path = "/v1.41/images/create?fromImage=a"
        await asyncio.gather(*(rig.asked(path, "POST", [("X-Registry-Auth", auth)]) for auth in auths))

    asyncio.run(both())
    assert {wanted.origin.keys.access for wanted in rig.wanted} == {"one", "two"}


def test_a_client_that_goes_away_stops_nothing():
    go_on, ended = threading.Event(), threading.Event()

    def pull(wanted, progress):
        progress.part("layer 0123456789ab", state="reading")
        assert go_on.wait(30)
        ended.set()
        return _pulled()

    rig = Rig(pull)

    async def leave():
        begun = asyncio.Event()
        task = asyncio.create_task(
            rig.asked("/v1.41/images/create?fromImage=a", "POST", sent=Sent(lambda _: begun.set()))
        )
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    assert rig.pulls.running == 1
    go_on.set()
    assert ended.wait(30)
    assert rig.pulls.stop(30)


def test_a_server_that_stops_takes_no_more_and_drops_what_waits():
    is_begun, go_on = threading.Event(), threading.Event()

    def pull(wanted, progress):
        is_begun.set()
        assert go_on.wait(30)
        return _pulled()

    pulls = Pulls(pull, 1)
    running, waiting = (pulls.ask(Wanted(ImageName.parse(name), Origin(OWN))) for name in "ab")
    assert is_begun.wait(30)

    assert not pulls.stop(0)
    with pytest.raises(HoldfastError, match="stopping"):
        pulls.ask(Wanted(ImageName.parse("c"), Origin(OWN)))
    assert "stopping" in str(waiting.done.exception(30))
    go_on.set()
    assert running.done.result(30)
    assert pulls.stop(30)


# Whose store


NAME = ImageName.parse("opsgoodies.com/docker-repo/hipache")


def _client(url, access="key", secret="secret"):
    return ClientStore(url, access, Secret(secret))


def test_a_registry_that_is_configured_comes_first():
    url = BucketUrl.parse("memory://registry")
    rig = Rig(_at_once, registries={"opsgoodies.com": url})

    rig.create("opsgoodies.com/x", auth=_auth(email="s3://theirs", username="a", password="b"))
    rig.create("other.com/x")
    assert [wanted.origin for wanted in rig.wanted] == [Origin(url), Origin(OWN)]


def test_names_without_a_host_have_dockers_own():
    url = BucketUrl.parse("memory://registry")

    assert Stores(OWN, {"docker.io": url}).origin(ImageName.parse("hipache"), None) == Origin(url)


@pytest.mark.parametrize("alphabet", [base64.urlsafe_b64encode, base64.b64encode])
@pytest.mark.parametrize("is_padded", [True, False])
def test_the_clients_store_and_keys_are_read_as_every_docker_sends_them(alphabet, is_padded):
    given_ = {"username": "AKIA", "password": "s/+?>~\xff~", "email": "s3://b/p?region=us-west-2", "x": 1}
    header = alphabet(json.dumps(given_, ensure_ascii=False).encode()).decode()

    found = client_store(header if is_padded else header.rstrip("="))
    assert found == ClientStore("s3://b/p?region=us-west-2", "AKIA", Secret("s/+?>~\xff~"))
    assert "s/+" not in repr(found)
    assert "AKIA" not in repr(found)


@pytest.mark.parametrize("header", ["", "e30=", "e30", _auth(username="a", password="b"), _auth(email="", x=None)])
def test_a_client_that_names_no_store_gets_the_servers(header):
    rig = Rig(_at_once)

    assert rig.create("hipache", auth=header).status == 200
    assert [wanted.origin for wanted in rig.wanted] == [Origin(OWN)]


def test_an_address_of_mail_names_no_store():
    assert Stores(OWN, {}).origin(NAME, _client("kelp@example.com")) == Origin(OWN)


@pytest.mark.parametrize(
    "header",
    [
        "***",
        "e30=e30=",
        "AAAA",
        "W10=",
        base64.b64encode(b'{"email": ["s3://b"]}').decode(),
        base64.b64encode(b'{"email": "s3://b", "username": {"a": 1}}').decode(),
        base64.b64encode(b"[" * 12_000).decode(),
        "A" * (64 * 1024 + 1),
    ],
)
def test_a_header_that_is_none_is_refused(header):
    rig = Rig(_at_once)

    sent = rig.create("hipache", auth=header)
    assert sent.status == 400
    assert "X-Registry-Auth" in sent.json["message"]
    assert rig.wanted == []


@given(st.one_of(st.text(max_size=50), st.binary(max_size=80).map(lambda data: base64.b64encode(data).decode())))
def test_whatever_the_header_holds_it_is_read_or_refused(header):
    try:
        client_store(header)
    except UsageError as error:
        assert len(header) < 5 or header not in str(error)


HOSTILE = [
    "file:///etc",
    "file://localhost/etc",
    "az://container",
    "gs://bucket",
    "memory://own",
    "http://127.0.0.1:1/",
    "s3://",
    "s3://b?endpoint=http://127.0.0.1:{port}",
    "s3://b?endpoint=http://127.0.0.1:{port}&region=us-east-1",
    "s3://b?Endpoint=http://127.0.0.1:{port}",
    "s3://b?endpoint=https://s3.amazonaws.com",
    "s3://b?profile=admin",
    "s3://b?anonymous=true",
    "s3://b?create=true",
    "s3://b?path_style=false",
    "s3://b?layout=tarball",
    "s3://b?region=us-east-1&region=us-west-2&profile=x",
    "s3://127.0.0.1:{port}",
    "s3://127.0.0.1:{port}/b",
    "s3://x.evil.example:80",
    "s3://key:secret@b",
    "s3://b@127.0.0.1:{port}",
    "s3://[::1]",
    "s3://[",
    "s3://b%2f..%2f",
    "s3://b/../other",
    "s3://b/%2e%2e/other",
    "s3://b/%00",
    "b/p",
    "//127.0.0.1:{port}/b",
    "s3://" + "b" * 3000,
]


@pytest.fixture
def listener():
    """A port that counts who comes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


def _nobody_came(listening):
    with pytest.raises(BlockingIOError):
        listening.accept()


@pytest.fixture
def servers_keys(monkeypatch):
    """All the ways in which the server may have credentials of its own."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "SERVERKEY",
        "AWS_SECRET_ACCESS_KEY": "server-secret",
        "AWS_SESSION_TOKEN": "server-token",
        "AWS_ACCESS_KEY": "SERVEROLD",
        "AWS_SECRET_KEY": "server-secret",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("servers_keys")
@pytest.mark.parametrize("url", HOSTILE)
def test_a_client_cannot_name_just_any_store(url, listener):
    url = url.replace("{port}", str(listener.getsockname()[1]))
    rig = Rig(lambda wanted, _: rig.stores.open(wanted.origin).bucket.get("x", limit=1))

    sent = rig.create("hipache", auth=_auth(email=url, username="key", password="secret"))
    assert sent.status == 400
    assert sent.json["message"]
    assert b"secret@" not in sent.body
    assert rig.wanted == []
    _nobody_came(listener)


@pytest.mark.usefixtures("servers_keys")
@pytest.mark.parametrize("region", ["evil.example/", "a.b", "x@y", "us-east-1#", "", "a b", "u\r\nx: y", "é"])
def test_a_region_is_no_way_to_an_address(region):
    rig = Rig(lambda wanted, _: rig.stores.open(wanted.origin) and _pulled())
    url = f"s3://bucket?region={quote(region)}"

    sent = rig.create("hipache", auth=_auth(email=url, username="key", password="secret"))
    if sent.status == 200:
        endpoint = rig.stores.open(rig.wanted[0].origin).bucket._store.config  # noqa: SLF001 - no request is sent
        assert endpoint["region"] == "eu-central-1"
    else:
        assert sent.status == 400


@pytest.mark.usefixtures("servers_keys")
@pytest.mark.parametrize(("access", "secret"), [("", ""), ("key", ""), ("", "secret"), (None, "secret")])
def test_without_both_keys_of_its_own_a_client_gets_nowhere(access, secret):
    rig = Rig(_at_once)

    sent = rig.create("hipache", auth=_auth(email="s3://theirs", username=access, password=secret))
    assert sent.status == 403
    assert "keys" in sent.json["message"]
    assert rig.wanted == []


@pytest.mark.parametrize(
    ("access", "secret"), [("a b", "secret"), ("key", "sec\nret"), ("key", "é"), ("k" * 2000, "s")]
)
def test_what_are_no_keys(access, secret):
    sent = Rig(_at_once).create("hipache", auth=_auth(email="s3://theirs", username=access, password=secret))

    assert sent.status == 400
    assert b"ret" not in sent.body
    assert b"kkk" not in sent.body


@pytest.mark.usefixtures("servers_keys")
def test_just_the_servers_own_store_is_opened_as_the_server_does():
    own = BucketUrl.parse("s3://own/images?region=us-west-2&endpoint=http://127.0.0.1:1")
    stores = Stores(own, {})

    for url in ("s3://own/images", "s3://own/images/?region=us-west-2", str(own)):
        assert stores.origin(NAME, _client(url, "", "")) == Origin(own)
    for url in ("s3://own", "s3://own/images/more", "s3://Own/images", "s3://own/images?region=us-east-1"):
        assert stores.origin(NAME, _client(url)).keys == Keys("key", Secret("secret"))
        with pytest.raises(ForbiddenError):
            stores.origin(NAME, _client(url, "", ""))
    for url in ("s3://own/images?endpoint=http://127.0.0.1:2", "s3://own/images?profile=x"):
        with pytest.raises(UsageError):
            stores.origin(NAME, _client(url))


def test_an_endpoint_that_the_configuration_allows():
    stores = Stores(OWN, {}, ["http://127.0.0.1:9000/"])

    found = stores.origin(NAME, _client("s3://b?endpoint=http://127.0.0.1:9000"))
    assert found.url.option("endpoint") == "http://127.0.0.1:9000"
    for other in ("http://127.0.0.1:90001", "http://127.0.0.1:9000/x", "https://127.0.0.1:9000", "http://127.0.0.1"):
        with pytest.raises(UsageError, match="endpoint="):
            stores.origin(NAME, _client(f"s3://b?endpoint={other}"))
    with pytest.raises(UsageError, match="endpoint="):
        stores.origin(NAME, _client("s3://b?endpoint=http://127.0.0.1:9000&endpoint=http://127.0.0.1:1"))


class _Nothing(http.server.BaseHTTPRequestHandler):
    """An S3 without an object, which notes how it was asked."""

    asked: ClassVar = []

    def do_GET(self):
        self.asked.append((self.path, self.headers))
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_PUT(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@contextmanager
def _s3():
    _Nothing.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.usefixtures("servers_keys")
@pytest.mark.parametrize("profile", [False, True])
def test_a_clients_bucket_is_looked_for_where_the_server_does_with_the_clients_keys(monkeypatch, home, profile):
    with _s3() as endpoint:
        if profile:  # in a file of AWS's, with keys beside it
            (home / ".aws").mkdir()
            (home / ".aws/config").write_text(f"[default]\nendpoint_url = {endpoint}\nregion = eu-north-1\n")
            (home / ".aws/credentials").write_text(
                "[default]\naws_access_key_id = SERVERFILE\naws_secret_access_key = x\n"
            )
        else:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        rig = Rig(lambda wanted, _: rig.stores.open(wanted.origin).bucket.get("x", limit=1))
        sent = rig.create("hipache", auth=_auth(email="s3://b/p", username="CLIENTKEY", password="client-secret"))

    assert sent.status == 404
    ((path, headers),) = _Nothing.asked
    assert path == "/b/p/x"
    assert "Credential=CLIENTKEY/" in headers["Authorization"]
    assert headers["x-amz-security-token"] is None
    assert "SERVER" not in str(headers)


@pytest.mark.usefixtures("servers_keys")
def test_what_is_made_with_given_keys_is_made_with_no_others(monkeypatch):
    with _s3() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        bucket = open_bucket(BucketUrl.parse("s3://b"), Keys("CLIENTKEY", Secret("client-secret")))
        with pytest.raises(HoldfastError):
            bucket.make()

    assert _Nothing.asked
    for _, headers in _Nothing.asked:
        assert "Credential=CLIENTKEY/" in headers["Authorization"]
        assert headers["x-amz-security-token"] is None


def test_keys_are_shown_nowhere():
    assert "kelp" not in repr(Keys("key", Secret("kelp")))


@pytest.mark.parametrize("url", ["memory://x", "file:///x", "s3://b?profile=x"])
def test_keys_are_for_s3_alone(url):
    with pytest.raises(UsageError):
        open_bucket(BucketUrl.parse(url), Keys("key", Secret("kelp")))


def test_nothing_of_a_clients_store_is_logged_but_its_name(caplog):
    caplog.set_level("DEBUG", "holdfast")

    auth = _auth(email="s3://theirs", username="CLIENTKEY", password="client-secret")
    Rig(_raising(NotFoundError("no"))).create("hipache", auth=auth)
    Rig(_at_once).create("hipache", auth=auth)

    shown = str([(record.getMessage(), record.__dict__) for record in caplog.records])
    assert "s3://theirs" in shown
    assert "CLIENTKEY" not in shown
    assert "client-secret" not in shown
    assert auth not in shown
