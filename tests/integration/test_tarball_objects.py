"""Tarballs in a real object store: as the old program made them, and as other programs read them."""

import contextlib
import gzip
import io
import os
import socket
import subprocess
import tarfile
import threading

import pytest

from backups import contents
from holdfast.errors import AccessDenied, ObjectNotFound
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from holdfast.storage.bucket import Label
from tarball_rig import as_whole_seconds, bring_back, found, save
from trees import assert_same, fingerprint, make_rich, make_small, write

pytestmark = pytest.mark.needs("seaweedfs")

MIB = 1024 * 1024
LABEL = Label("application/x-gtar", {"isdirectory": "true", "iscompressed": "true"})


def _open(s3_bucket):
    return open_bucket(BucketUrl.parse(s3_bucket.url))


def _key(path):
    return str(path).strip("/")


def _tar(source, *, is_file=False):
    """What the old program's tar of a path holds: of a directory ``.`` and names relative to it, of a file its name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        made.add(source, source.name if is_file else ".")
    return out.getvalue()


@pytest.mark.parametrize("compress", [True, False])
def test_a_directory_as_the_old_program_saved_it(tmp_path, s3_bucket, compress):
    source = make_small(tmp_path / "www")
    (source / "a.txt").chmod(0o4750)
    data = _tar(source)
    s3_bucket.client.upload_fileobj(
        io.BytesIO(gzip.compress(data) if compress else data),
        s3_bucket.name,
        _key(source),
        ExtraArgs={
            "ContentType": "application/x-gtar" if compress else "application/x-tar",
            "Metadata": {"isdirectory": "true", "iscompressed": str(compress).lower()},
        },
    )

    bring_back(_open(s3_bucket), source, tmp_path / "back")

    old, new = (as_whole_seconds(fingerprint(path)) for path in (source, tmp_path / "back"))
    assert_same(old, new)


@pytest.mark.parametrize("compress", [True, False])
def test_a_file_as_the_old_program_saved_it(tmp_path, s3_bucket, compress):
    write(tmp_path / "www" / "index.js", os.urandom(50_000))
    source = tmp_path / "www" / "index.js"
    data = _tar(source, is_file=True)
    s3_bucket.client.put_object(
        Bucket=s3_bucket.name,
        Key=_key(source),
        Body=gzip.compress(data) if compress else data,
        ContentType="application/x-gtar" if compress else "application/x-tar",
        Metadata={"isdirectory": "false", "iscompressed": str(compress).lower()},
    )
    write(tmp_path / "back" / "other", "other")

    bring_back(_open(s3_bucket), source, tmp_path / "back")

    assert contents(tmp_path / "back") == {"index.js": source.read_bytes(), "other": b"other"}


@pytest.mark.parametrize("compress", [True, False])
def test_the_older_generation(tmp_path, s3_bucket, compress):
    source = make_small(tmp_path / "www")
    packed = gzip.compress if compress else bytes
    for path, data in ((source, _tar(source)), (source / "a.txt", (source / "a.txt").read_bytes())):
        s3_bucket.client.put_object(
            Bucket=s3_bucket.name,
            Key="www" if path == source else _key(path),
            Body=packed(data),
            ContentType="application/x-gzip" if compress else "application/octet-stream",
            Metadata={"directory": str(path == source).lower(), "compressed": str(compress).lower()},
        )
    bucket = _open(s3_bucket)

    bring_back(bucket, type(source)("/www"), tmp_path / "back")
    bring_back(bucket, source / "a.txt", tmp_path / "file")

    assert contents(tmp_path / "back") == contents(source)
    assert contents(tmp_path / "file") == {"a.txt": b"alpha\n"}


@pytest.mark.needs("tar")
@pytest.mark.parametrize("compress", [True, False])
def test_what_we_save_is_read_with_tar_and_labelled_as_ever(tmp_path, s3_bucket, compress):
    source = make_small(tmp_path / "a b" / "ü+%41~#")
    saved = save(_open(s3_bucket), source, compress=compress)
    old = as_whole_seconds(fingerprint(source))
    write(source / "one", "one")
    save(_open(s3_bucket), source / "one", compress=compress)
    (source / "one").unlink()

    for path, is_directory in ((source, "true"), (source / "one", "false")):
        answer = s3_bucket.client.get_object(Bucket=s3_bucket.name, Key=_key(path))
        assert answer["Metadata"] == {"isdirectory": is_directory, "iscompressed": str(compress).lower()}
        assert answer["ContentType"] == ("application/x-gtar" if compress else "application/x-tar")
        target = tmp_path / f"back-{is_directory}"
        target.mkdir()
        extract = ["tar", "-C", target, "-xpzf" if compress else "-xpf", "-"]
        subprocess.run(extract, input=answer["Body"].read(), check=True)
        if path == source:
            assert answer["ETag"] == saved.etag
            assert_same(old, as_whole_seconds(fingerprint(target)))
        else:
            assert contents(target) == {"one": b"one"}


@pytest.mark.parametrize("compress", [True, False])
def test_everything_there_and_back(tmp_path, s3_bucket, compress):
    source = make_rich(tmp_path / "source")
    bucket = _open(s3_bucket)

    save(bucket, source, compress=compress)
    bring_back(bucket, source, tmp_path / "back")

    old, new = (as_whole_seconds(fingerprint(path, lacking=("data",))) for path in (source, tmp_path / "back"))
    assert_same(old, new)


def test_a_bucket_with_a_prefix_that_is_not_there_yet(tmp_path, make_s3_bucket):
    s3_bucket = make_s3_bucket("some/where", create=False)
    source = make_small(tmp_path / "source")
    bucket = _open(s3_bucket)

    with pytest.raises(ObjectNotFound):
        save(open_bucket(BucketUrl.parse(s3_bucket.url + "&create=false")), source)
    save(bucket, source)

    assert s3_bucket.keys() == [_key(source)]
    assert found(bucket, source).size > 0


@pytest.mark.parametrize("error", [ValueError("mine"), OSError(5, "mine"), KeyboardInterrupt()], ids=str)
def test_a_source_that_fails_leaves_no_object_and_no_parts(s3_bucket, error):
    seen = []

    def pieces():
        for _ in range(30):
            yield os.urandom(MIB)
        seen.append(s3_bucket.client.list_multipart_uploads(Bucket=s3_bucket.name).get("Uploads"))
        raise error

    with pytest.raises(type(error)) as raised:
        _open(s3_bucket).put_stream("var/www", pieces(), LABEL)

    assert raised.value is error
    assert len(seen[0]) == 1  # it was under way
    assert s3_bucket.keys() == []
    assert not s3_bucket.client.list_multipart_uploads(Bucket=s3_bucket.name).get("Uploads")


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, 20 * MIB + 1])
def test_a_stream_there_and_back(s3_bucket, size):
    data = os.urandom(size)
    bucket = _open(s3_bucket)

    etag = bucket.put_stream("var/www", iter([data[at : at + 700_000] for at in range(0, size, 700_000)]), LABEL)

    found = bucket.open_stream("var/www")
    assert (found.size, found.etag, found.label) == (size, etag, LABEL)
    assert b"".join(found.pieces) == data


def test_keys_with_anything_in_them(s3_bucket):
    keys = ["a b", "a%20b", "a#b", "a+b", "~a", "ü/é", "a?b&c=d", "a*[b]", 'a"b', "<>|{}^`", "x/.y"]
    bucket = _open(s3_bucket)
    for key in keys:
        bucket.put_stream(key, iter([key.encode()]), LABEL)

    assert sorted(s3_bucket.keys()) == sorted(keys)
    for key in keys:
        assert b"".join(bucket.open_stream(key).pieces) == key.encode()
        s3_bucket.client.put_object(Bucket=s3_bucket.name, Key=key, Body=b"new " + key.encode())
        assert b"".join(bucket.open_stream(key).pieces) == b"new " + key.encode()


def test_wrong_keys_are_told_as_such(s3_bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-of-mine")
    bucket = _open(s3_bucket)

    for work in (
        lambda: bucket.put_stream("var/www", iter([b"x"]), LABEL),
        lambda: bucket.open_stream("var/www"),
    ):
        with pytest.raises(AccessDenied) as raised:
            work()
        assert "wrong-secret-of-mine" not in str(raised.value) + str(raised.value.hint)


class _CuttingProxy:
    """Passes connections on to a server, and cuts some of its long answers off half-way."""

    def __init__(self, endpoint, cuts):
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self._server = (host, int(port))
        self.cuts = cuts
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, source, target, cuts):
        passed = 0
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(65_536):
                passed += len(data)
                if cuts and passed > MIB and self.cuts:
                    self.cuts -= 1
                    source.shutdown(socket.SHUT_RDWR)
                    target.shutdown(socket.SHUT_RDWR)
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self):
        self._listening.close()


def test_a_server_that_hangs_up_in_the_middle_of_an_answer(s3_bucket):
    data = os.urandom(20 * MIB)
    _open(s3_bucket).put_stream("var/www", iter([data]), LABEL)
    proxy = _CuttingProxy(s3_bucket.endpoint, cuts=3)
    try:
        bucket = open_bucket(BucketUrl.parse(s3_bucket.url.replace(s3_bucket.endpoint, proxy.endpoint)))

        assert b"".join(bucket.open_stream("var/www").pieces) == data
        assert proxy.cuts == 0
    finally:
        proxy.close()


def test_a_file_and_the_directory_that_it_is_in(tmp_path, s3_bucket):
    """A store that keeps objects as files takes both, as long as they are small."""
    bucket = _open(s3_bucket)
    source = make_small(tmp_path / "www")
    for path in (source / "a.txt", source, source / "a.txt"):
        save(bucket, path)
    for path, target in ((source, "all"), (source / "a.txt", "one")):
        (tmp_path / target).mkdir()
        bring_back(bucket, path, tmp_path / target)

    assert contents(tmp_path / "all") == contents(source)
    assert contents(tmp_path / "one") == {"a.txt": (source / "a.txt").read_bytes()}
