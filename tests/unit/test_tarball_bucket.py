"""Objects that are written and read as streams, in memory and on disk."""

import os

import pytest

from backups import memory_bucket
from holdfast.errors import BucketError, ObjectNotFound, Unavailable, UsageError
from holdfast.model.urls import BucketUrl
from holdfast.storage import tarballs
from holdfast.storage.backends import open_bucket
from holdfast.storage.bucket import Label

MIB = 1024 * 1024
LABEL = Label("application/x-gtar", {"isdirectory": "true", "iscompressed": "false"})


@pytest.fixture(params=["memory", "disk"])
def bucket(request, tmp_path):
    if request.param == "memory":
        return memory_bucket()
    return open_bucket(BucketUrl.parse(f"file://{tmp_path}/store"))


def _pieces(data, size=300_000):
    return iter([data[start : start + size] for start in range(0, len(data), size)])


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, 8 * MIB + 1, 20 * MIB])
def test_a_stream_comes_back_with_its_label(bucket, size):
    data = os.urandom(size)

    etag = bucket.put_stream("var/www", _pieces(data), LABEL)

    found = bucket.open_stream("var/www")
    assert (found.size, found.etag, found.label) == (size, etag, LABEL)
    pieces = list(found.pieces)
    assert b"".join(pieces) == data
    assert max(map(len, pieces), default=0) <= 8 * MIB
    assert bucket.put_stream("var/www", iter([b"other"]), LABEL) != etag


@pytest.mark.parametrize(
    "error", [ValueError("mine"), OSError(5, "mine"), FileNotFoundError("mine"), KeyboardInterrupt()]
)
def test_what_the_maker_of_a_stream_raises_comes_out_and_nothing_is_stored(bucket, error):
    bucket.put("var/www", b"before")

    def pieces():
        yield os.urandom(9 * MIB)
        raise error

    for key in ("var/www", "var/new"):
        with pytest.raises(type(error)) as raised:
            bucket.put_stream(key, pieces(), LABEL)
        assert raised.value is error

    assert [one.key for one in bucket.objects("")] == ["var/www"]
    assert bucket.get("var/www", limit=100) == b"before"


def test_an_object_that_is_not_there(bucket):
    bucket.put_stream("var/www/index.js", iter([b"x"]), LABEL)

    for key in ("var", "var/www", "nothing", "var/www/index.js/below"):
        with pytest.raises(ObjectNotFound):
            bucket.open_stream(key)


def test_an_object_that_is_replaced_while_it_is_read():
    bucket = memory_bucket()
    bucket.put_stream("var/www", _pieces(os.urandom(20 * MIB)), LABEL)
    pieces = bucket.open_stream("var/www").pieces
    next(pieces)
    bucket.put_stream("var/www", _pieces(os.urandom(20 * MIB)), LABEL)

    with pytest.raises(Unavailable, match="replaced"):
        list(pieces)


def test_on_disk_the_version_that_was_begun_is_read_to_its_end(tmp_path):
    bucket = open_bucket(BucketUrl.parse(f"file://{tmp_path}"))
    bucket.put_stream("var/www", iter([b"a" * 3 * MIB]), LABEL)
    pieces, others = bucket.open_stream("var/www").pieces, bucket.open_stream("var/www").pieces
    first = next(pieces)
    bucket.put_stream("var/www", iter([b"b"]), LABEL)

    assert first + b"".join(pieces) == b"a" * 3 * MIB
    with pytest.raises(Unavailable, match="replaced"):
        next(others)


def test_a_file_that_was_cut_short(tmp_path):
    bucket = open_bucket(BucketUrl.parse(f"file://{tmp_path}"))
    bucket.put_stream("var/www", iter([b"a" * 3 * MIB]), LABEL)
    pieces = bucket.open_stream("var/www").pieces
    next(pieces)
    os.truncate(tmp_path / "var" / "www", 2 * MIB)

    with pytest.raises(Unavailable, match="ends before"):
        list(pieces)


def test_a_file_without_a_label_is_read_all_the_same(tmp_path):
    bucket = open_bucket(BucketUrl.parse(f"file://{tmp_path}"))
    (tmp_path / "plain").write_bytes(b"x" * 10)

    found = bucket.open_stream("plain")

    assert found.label == Label("")
    assert b"".join(found.pieces) == b"x" * 10


def test_large_objects_are_sent_in_larger_parts(monkeypatch):
    bucket = memory_bucket()
    seen = []
    monkeypatch.setattr(type(bucket), "_put_stream", lambda _self, _key, _data, _label, part: seen.append(part) or "")

    for expected in (0, 5_000 * MIB, 9_000 * 8 * MIB + 1, 5_000_000 * MIB):
        bucket.put_stream("key", iter([]), LABEL, expected_bytes=expected)

    assert seen[:2] == [8 * MIB, 8 * MIB]
    assert all(part >= 8 * MIB for part in seen)
    assert 5_000_000 * MIB / seen[3] <= 9_000


def test_a_key_is_the_path_itself():
    assert tarballs.key_of(b"/var/www/") == "var/www"
    assert tarballs.key_of("/a b/ü#+~%41".encode()) == "a b/ü#+~%41"
    for path in (b"/", b"", b"/a/../b", b"/a//b", b"/a\nb", b"/a\x7f", b"/\xff", b"/a\0b"):
        with pytest.raises(UsageError):
            tarballs.key_of(path)


def test_the_keys_of_a_path_are_itself_and_how_urls_write_it():
    assert tarballs.keys_of(b"/var/www") == ["var/www"]
    assert tarballs.keys_of("/a b/ü+".encode()) == ["a b/ü+", "a%20b/%C3%BC+", "a%20b/%C3%BC%2B"]
    assert tarballs.keys_of(b"/a\n\xff") == ["a%0A%FF"]
    assert tarballs.keys_of(b"/a/../b") == tarballs.keys_of(b"/") == []


@pytest.mark.parametrize("key", ["a b", "a%b", "a#b", "a+b", "~", "ü", "a?b&c=d", "a*[b]", 'a"b', "<>|{}^`"])
def test_keys_are_taken_as_they_are(bucket, key):
    bucket.put_stream(key, iter([b"x"]), LABEL)

    assert [one.key for one in bucket.objects("")] == [key]
    assert b"".join(bucket.open_stream(key).pieces) == b"x"


def test_a_key_that_cannot_be(bucket):
    for key in ("a/../b", "a//b"):
        with pytest.raises(BucketError):
            bucket.put_stream(key, iter([b"x"]), LABEL)


def test_a_bucket_is_made_where_it_is_missing(tmp_path):
    bucket = open_bucket(BucketUrl.parse(f"file://{tmp_path}/store"))
    bucket.make_if_missing()
    assert bucket.exists()

    with pytest.raises(ObjectNotFound):
        open_bucket(BucketUrl.parse(f"file://{tmp_path}/other?create=false")).make_if_missing()
    assert not (tmp_path / "other").exists()


def test_a_directory_cannot_hold_an_object_above_others(tmp_path):
    bucket = open_bucket(BucketUrl.parse(f"file://{tmp_path}"))
    bucket.put_stream("var/www/index.js", iter([b"x"]), LABEL)

    with pytest.raises(BucketError, match="below that key"):
        bucket.put_stream("var/www", iter([b"y"]), LABEL)
    bucket.put_stream("var/lib", iter([b"z"]), LABEL)
    with pytest.raises(BucketError, match="no directory"):
        bucket.put_stream("var/lib/below", iter([b"y"]), LABEL)

    assert [one.key for one in bucket.objects("")] == ["var/lib", "var/www/index.js"]
