"""The web floor without a network: paths, the edge, what is told of an error, and the event loop's own doings."""

import asyncio
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.config import Secret
from holdfast.errors import HTTP_STATUS, BusyError, NotFoundError, Unavailable, UsageError
from holdfast.web.edge import Edge
from holdfast.web.metrics import Metrics
from holdfast.web.persist import named

TOKEN = "a-token-of-some-length"


def _scope(method="GET", path=b"/data", headers=(), query=b""):
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": os.fsdecode(path),
        "raw_path": path,
        "query_string": query,
        "headers": [(name.lower().encode(), value) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
    }


async def _nothing_more():
    return {"type": "http.disconnect"}


class Sent:
    """What an application sent."""

    def __init__(self):
        self.messages = []

    async def __call__(self, message):
        self.messages.append(message)

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def json(self):
        return json.loads(b"".join(message.get("body", b"") for message in self.messages))


def _edge(answer, token=None):
    return Edge("persist", answer, Metrics(), token)


def _answered(answer, *, token=None, send=None, **scope):
    sent = send or Sent()
    asyncio.run(_edge(answer, token)(_scope(**scope), _nothing_more, sent))
    return sent


def _raising(error):
    async def answer(request):
        raise error

    return answer


async def _never(request):
    raise AssertionError("it was asked")


# Paths


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"/var/www", b"/var/www"),
        (b"/var/www/", b"/var/www"),
        (b"//var///www", b"/var/www"),
        (b"/var/./www/.", b"/var/www"),
        (b"/var/x/../www", b"/var/www"),
        (b"/var/x/%2e%2e/www", b"/var/www"),
        (b"/var%2Fwww", b"/var/www"),
        (b"/a%20b/%C3%A9/%ff", b"/a b/\xc3\xa9/\xff"),
        (b"/a%3Fb%23c;d", b"/a?b#c;d"),
        (b"/%252e%252e/etc", b"/%2e%2e/etc"),
        (b"/..%5c..%5cetc", b"/..\\..\\etc"),
        (b"/%c0%ae%c0%ae/etc", b"/\xc0\xae\xc0\xae/etc"),
        (b"/.../..x/x..", b"/.../..x/x.."),
        (b"/%zz%2", b"/%zz%2"),
        (b"/", b"/"),
        (b"", b"/"),
    ],
)
def test_a_path_means_what_it_says_after_one_decoding(raw, name):
    assert named(raw).name == name


@pytest.mark.parametrize(
    "raw",
    [
        b"/..",
        b"/%2e%2e",
        b"/a/../..",
        b"/a/%2e./%2E%2e/etc",
        b"/a%00",
        b"/%00",
        b"/..%2f..",
        b"/" + b"a" * 65_536,
        b"\0",
    ],
)
def test_a_path_that_climbs_or_holds_a_nul_or_has_no_end(raw):
    with pytest.raises(UsageError):
        named(raw)


@given(
    st.lists(
        st.sampled_from([b"/", b"..", b".", b"a", b"%2e", b"%2F", b"%00", b"%", b"\\", b"\xff", b"%25"]), max_size=30
    )
)
def test_whatever_is_asked_for_is_a_normal_path_or_refused(parts):
    try:
        name = named(b"/" + b"".join(parts)).name
    except UsageError:
        return
    assert name.startswith(b"/")
    assert name == os.path.normpath(name)
    assert b"\0" not in name


# The edge


@pytest.mark.parametrize("error", HTTP_STATUS)
def test_an_error_is_told_with_its_status(error):
    sent = _answered(_raising(error("this is wrong", hint="do that")))

    assert sent.status == HTTP_STATUS[error]
    assert sent.json == {"error": "this is wrong", "hint": "do that"}
    assert ("retry-after" in sent.headers) == error.retryable


def test_a_bug_is_told_without_its_insides():
    sent = _answered(_raising(ZeroDivisionError("at 0xdeadbeef")))

    assert sent.status == 500
    assert "deadbeef" not in sent.json["error"]


@pytest.mark.parametrize(
    ("given_token", "status"),
    [
        (None, 401),
        (b"", 401),
        (b"Bearer", 401),
        (b"Bearer wrong", 401),
        (b"Basic " + TOKEN.encode(), 401),
        (TOKEN.encode(), 401),
        (b"Bearer " + TOKEN.encode() + b"x", 401),
        (b"Bearer \xff\xfe\x80", 401),
        (b"Bearer " + TOKEN.encode(), 404),
        (b"bearer   " + TOKEN.encode(), 404),
    ],
)
@pytest.mark.parametrize("path", [b"/data", b"/-/metrics", b"/-/snapshots/data", b"/%2d/health", b"/x/../-/health"])
def test_a_token_is_asked_for(given_token, status, path):
    headers = [("Authorization", given_token)] if given_token is not None else []

    sent = _answered(_raising(NotFoundError("nothing")), token=Secret(TOKEN), path=path, headers=headers)

    assert sent.status == status
    assert ("www-authenticate" in sent.headers) == (status == 401)
    assert TOKEN not in repr(sent.messages)


def test_a_host_header_does_not_stand_for_a_path():
    """Who is asked for is in the path alone: a Host that ends in one must not pass as the health check."""
    headers = [("Host", b"x/-/health?")]

    assert _answered(_never, token=Secret(TOKEN), headers=headers).status == 401


@pytest.mark.parametrize(
    "header",
    [
        ("Origin", b"null"),
        ("Origin", b"http://a"),
        ("Sec-Fetch-Site", b"cross-site"),
        ("Sec-Fetch-Site", b"same-origin"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
def test_a_web_page_may_not_use_its_readers_network(header, method):
    assert _answered(_never, method=method, headers=[header]).status == 403


def test_what_a_person_opens_in_a_browser_is_answered():
    sent = _answered(_raising(NotFoundError("nothing")), headers=[("Sec-Fetch-Site", b"none")])

    assert sent.status == 404


def test_a_request_that_the_stopping_server_gives_up_is_told_so():
    async def wait(request):
        await asyncio.Event().wait()

    async def given_up():
        sent = Sent()
        task = asyncio.create_task(_edge(wait)(_scope(), _nothing_more, sent))
        await asyncio.sleep(0)
        task.cancel()
        await task
        return sent

    sent = asyncio.run(given_up())

    assert sent.status == 503
    assert "retry-after" in sent.headers


def test_a_client_that_cannot_be_answered_is_no_error():
    async def refuse(message):
        raise RuntimeError("can't handle event type Response")

    _answered(_raising(BusyError("later")), send=refuse)


def test_a_line_is_logged_for_each_request_with_the_path_as_it_was_sent(caplog):
    caplog.set_level("INFO", "holdfast")

    _answered(_raising(Unavailable("no bucket")), path=b"/a%0a\xff b", query=b"token=secret")

    (record,) = caplog.records
    assert record.fields["path"] == "/a%0a%FF%20b"
    assert record.fields["status"] == 504
    assert "secret" not in str(record.fields)


# Metrics


def test_no_method_of_a_clients_own_becomes_a_series():
    metrics = Metrics()
    for number in range(100):
        metrics.answered("persist", f"M{number}", 405)

    text = metrics.response().body.decode()
    assert 'holdfast_requests_total{face="persist",method="other",status="405"} 100.0' in text
    assert "M7" not in text
