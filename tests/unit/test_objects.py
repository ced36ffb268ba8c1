import http.server
import threading
from typing import ClassVar

import obstore
import obstore.exceptions
import pytest

from backups import memory_bucket
from faulty import FaultyBucket, blob_key, read
from holdfast.errors import (
    AccessDenied,
    AlreadyExists,
    BucketError,
    DamageError,
    NotFoundError,
    ObjectNotFound,
    UsageError,
)
from holdfast.model.digest import Digest
from holdfast.model.names import Repository, Tag
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from holdfast.storage.store import Store


@pytest.fixture
def bucket():
    return memory_bucket()


def test_gives_back_what_it_took(bucket):
    bucket.put("a/b", [b"ke", memoryview(b"lp")])

    assert bucket.get("a/b", limit=4) == b"kelp"
    assert bytes(bucket.get_range("a/b", 1, 2)) == b"el"
    assert bucket.size("a/b") == 4


@pytest.mark.parametrize(("offset", "length", "given"), [(2, 100, b"lp"), (4, 1, b""), (100, 5, b""), (1, 0, b"")])
def test_a_range_past_the_end_is_shorter(bucket, offset, length, given):
    bucket.put("k", b"kelp")

    assert bytes(bucket.get_range("k", offset, length)) == given


def test_put_replaces_and_create_does_not(bucket):
    bucket.put("k", b"1")
    bucket.put("k", b"2")
    with pytest.raises(AlreadyExists):
        bucket.create("k", b"3")

    assert bucket.get("k", limit=1) == b"2"


def test_what_is_not_there(bucket):
    assert bucket.size("k") is None
    bucket.delete("k")
    for reading in (lambda: bucket.get("k", limit=1), lambda: bucket.get_range("k", 0, 1)):
        with pytest.raises(ObjectNotFound):
            reading()


def test_a_limit_is_kept(bucket):
    bucket.put("k", b"12345")

    with pytest.raises(BucketError):
        bucket.get("k", limit=4)


def test_listing_below_a_prefix():
    name = memory_bucket().url.bucket
    below, whole = (open_bucket(BucketUrl.parse(f"memory://{name}{rest}")) for rest in ("/p/q", ""))
    for key in ("a/1", "a/b/2", "ab/3"):
        below.put(key, b"x")

    assert sorted(o.key for o in below.objects("a")) == ["a/1", "a/b/2"]
    assert below.names("a") == (["b"], ["1"])
    assert below.names("") == (["a", "ab"], [])
    assert sorted(o.key for o in whole.objects("")) == ["p/q/a/1", "p/q/a/b/2", "p/q/ab/3"]


def test_a_memory_bucket_honours_conditional_writes(bucket):
    assert bucket.prepare_for_writing() is True


def test_without_credentials_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr("boto3.session.Session.get_credentials", lambda _self: None)

    with pytest.raises(AccessDenied) as caught:
        open_bucket(BucketUrl.parse("s3://b?region=us-east-1"))
    assert "AWS_ACCESS_KEY_ID" in (caught.value.hint or "")


def test_a_profile_that_is_not_there_is_the_users_mistake():
    with pytest.raises(UsageError):
        open_bucket(BucketUrl.parse("s3://b?profile=nobody"))


REPOSITORY = Repository("paths/x")


@pytest.fixture
def store(bucket):
    return Store(bucket)


def test_blobs_are_checked_when_they_are_read(store, bucket):
    digest = Digest.of(b"kelp")
    assert store.put_blob(REPOSITORY, digest, b"kelp") == 4
    assert store.put_blob(REPOSITORY, digest, [b"ke", b"lp"]) == 0
    assert store.read_blob(digest, limit=4) == b"kelp"

    (key,) = [o.key for o in bucket.objects("docker/registry/v2/blobs")]
    for damaged in (b"kelP", b"kel", b""):
        bucket.put(key, damaged)
        with pytest.raises(DamageError) as caught:
            store.read_blob(digest, limit=4)
        assert str(digest) in str(caught.value)
    bucket.delete(key)
    with pytest.raises(DamageError):
        store.read_blob(digest, limit=4)


def test_a_blob_of_another_size_is_written_again(store, bucket):
    digest = Digest.of(b"kelp")
    store.put_blob(REPOSITORY, digest, b"kelp")
    (key,) = [o.key for o in bucket.objects("docker/registry/v2/blobs")]
    bucket.put(key, b"kel")

    assert store.put_blob(REPOSITORY, digest, b"kelp") == 4
    assert store.read_blob(digest, limit=4) == b"kelp"


@pytest.mark.parametrize(("offset", "length"), [(0, 5), (4, 1), (100, 1), (2**63, 1), (2**64 - 1, 10), (-1, 2)])
def test_a_range_that_is_not_there_is_damage(store, offset, length):
    digest = Digest.of(b"kelp")
    store.put_blob(REPOSITORY, digest, b"kelp")

    with pytest.raises(DamageError) as caught:
        store.read_blob_range(digest, offset, length)
    assert str(digest) in str(caught.value)


def test_tags(store, bucket):
    with pytest.raises(NotFoundError) as caught:
        store.resolve(REPOSITORY, Tag("t"))
    assert "no tag t" in str(caught.value)
    one, two = (store.put_manifest(REPOSITORY, text) for text in (b"{}", b"[]"))
    store.set_tag(REPOSITORY, Tag("t"), one)
    store.set_tag(REPOSITORY, Tag("t"), two)

    assert store.resolve(REPOSITORY, Tag("t")) == two
    assert store.tags(REPOSITORY) == [Tag("t")]
    assert list(store.repositories()) == [REPOSITORY]
    assert list(store.repositories("volumes")) == []
    with pytest.raises(DamageError):
        store.read_manifest(REPOSITORY, one)


@pytest.mark.parametrize("link", [b"", b"sha256:xyz", b"\xff\xfe", b"sha256:" + b"0" * 63])
def test_a_link_that_is_no_digest_is_damage(store, bucket, link):
    store.set_tag(REPOSITORY, Tag("t"), store.put_manifest(REPOSITORY, b"{}"))
    bucket.put("docker/registry/v2/repositories/paths/x/_manifests/tags/t/current/link", link)

    with pytest.raises(DamageError):
        store.resolve(REPOSITORY, Tag("t"))


def test_a_manifest_that_registries_would_refuse_is_not_written(store, bucket):
    with pytest.raises(BucketError):
        store.put_manifest(REPOSITORY, bytes(4 * 1024 * 1024 + 1))
    assert list(bucket.objects("docker")) == []


def test_what_a_reader_can_reach_is_there_already():
    """The order of writing in docs/reference/format.md, key by key."""
    bucket = FaultyBucket(memory_bucket())
    store = Store(bucket)
    blob = Digest.of(b"kelp")
    store.put_blob(REPOSITORY, blob, b"kelp")
    manifest = store.put_manifest(REPOSITORY, b"{}")
    store.set_tag(REPOSITORY, Tag("t"), manifest)

    base = "docker/registry/v2/repositories/paths/x"
    assert [key for kind, key in bucket.calls if kind == "put"] == [
        blob_key(str(blob)),
        f"{base}/_layers/sha256/{blob.hex}/link",
        blob_key(str(manifest)),
        f"{base}/_manifests/revisions/sha256/{manifest.hex}/link",
        f"{base}/_manifests/tags/t/index/sha256/{manifest.hex}/link",
        f"{base}/_manifests/tags/t/current/link",
    ]
    assert read(bucket, f"{base}/_manifests/tags/t/current/link") == str(manifest).encode()


@pytest.mark.parametrize(
    ("url", "in_host"),
    [
        ("s3://backups", "true"),
        ("s3://backups.example.com", "false"),
        ("s3://backups?endpoint=https://s3.example.com", "false"),
        ("s3://backups.example.com?path_style=false", "true"),
    ],
)
def test_a_bucket_is_named_in_the_host_only_where_a_certificate_can_have_it(url, in_host, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    assert open_bucket(BucketUrl.parse(url))._store.config["virtual_hosted_style_request"] == in_host  # noqa: SLF001 - no request is sent


def test_a_system_without_certificates_is_told(monkeypatch):
    def refuse(*_arguments, **_options):
        raise obstore.exceptions.GenericError("No CA certificates were loaded from the system")

    monkeypatch.setattr(obstore.store, "S3Store", refuse)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-this-test")
    with pytest.raises(UsageError, match="No CA certificates") as caught:
        open_bucket(BucketUrl.parse("s3://bucket?endpoint=http://127.0.0.1:1"))
    assert "ca-certificates" in caught.value.hint


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-this-test")


@pytest.mark.usefixtures("keys")
def test_what_the_url_says_comes_before_obstores_own_variables(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Teapot) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = open_bucket(BucketUrl.parse(f"s3://bucket?endpoint=http://127.0.0.1:{server.server_port}"))
        opened.create("key", b"data")
        server.shutdown()

    assert _Teapot.asked[-1] == ("PUT", "/bucket/key", "*", True)


class _Teapot(http.server.BaseHTTPRequestHandler):
    """Takes every object, and notes how it was asked: method, path, If-None-Match, and whether it was signed."""

    asked: ClassVar = []

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(
            (self.command, self.path, self.headers["If-None-Match"], self.headers["Authorization"] is not None)
        )
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AWS_ENDPOINT_URL_S3", "127.0.0.1:8333", "not an endpoint"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:8333 ", "not an endpoint"),
        ("AWS_ENDPOINT_URL_S3", "http://", "not an endpoint"),
        ("AWS_DEFAULT_REGION", "us-east-1\r", "not a region"),
        ("AWS_ACCESS_KEY_ID", "some\r", "AWS_ACCESS_KEY_ID holds"),
        ("AWS_SECRET_ACCESS_KEY", '"secret of this test"', "AWS_SECRET_ACCESS_KEY holds"),
        ("AWS_SESSION_TOKEN", "token\r\n", "AWS_SESSION_TOKEN holds"),
    ],
)
def test_settings_that_cannot_be_are_refused(monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=words) as caught:
        open_bucket(BucketUrl.parse("s3://bucket"))
    assert "secret" not in str(caught.value)


def test_one_key_without_the_other_is_refused(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(AccessDenied) as caught:
        open_bucket(BucketUrl.parse("s3://bucket?endpoint=http://127.0.0.1:1"))
    assert "both" in caught.value.hint


@pytest.mark.parametrize("name", ["a b", "s3:", "", "-x", "x%20y"])
def test_names_that_no_bucket_has(name):
    with pytest.raises(UsageError):
        BucketUrl.parse(f"s3://{name}")
