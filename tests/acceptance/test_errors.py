"""What goes wrong is one sentence with a hint, the right exit code, and never a traceback or a secret."""

import http.server
import signal
import socket
import threading
from pathlib import Path

import pytest

from commandline import Holdfast
from servers import SECRET_KEY, free_ports
from trees import MIB, make_small, random_bytes, write

WRONG_SECRET = "AnOtherSecretThatNobodyMaySee0123456789+"


def _explained(ran, *words):
    """stderr is one sentence and one hint, and has these words in it."""
    lines = [line for line in ran.err.splitlines() if not line.startswith("warning: ")]
    assert [line.partition(" ")[0] for line in lines] == ["error:", "hint:"], ran.err
    for word in words:
        assert word in ran.err
    assert ran.out == b""


def test_what_does_not_exist_and_what_does(local, source, tmp_path):
    make_small(source)
    tag = local.backup(source)["tag"]
    nothing = tmp_path / "nothing"

    for command in (["restore"], ["snapshots"], ["ls"], ["diff"], ["find", "x"]):
        _explained(local.run(*command, nothing, code=4), "no snapshot of", str(source))
    _explained(local.run("dump", nothing, "x", code=4), str(source))
    _explained(local.run("ls", f"{source}@20200101T000000Z-000000", code=4), tag)
    _explained(local.run("restore", source, "no/such", code=4), "no/such", "holdfast ls")
    assert "nothing" in local.run("backup", nothing, code=4).err
    assert not nothing.exists()


@pytest.mark.parametrize("command", ["ls", "restore", "snapshots", "diff"])
def test_errors_are_json_too(command, local, source):
    document = local.run(command, source, "--json", code=4).json

    assert document["exit_code"] == 4
    assert str(source) in document["error"]
    assert document["hint"]


def test_an_empty_store_says_so(local, source):
    assert local.run("snapshots").out == b""
    assert local.run("snapshots", "--json").json == {"snapshots": []}
    assert "no snapshots at all" in local.run("restore", source, code=4).err
    assert not Path(local.store.removeprefix("file://")).exists()


@pytest.mark.parametrize(
    ("store", "word"),
    [
        ("ftp://x", "s3://"),
        ("s3://", "BUCKET"),
        ("file://relative/path", "absolute"),
        ("s3://b?regoin=x", "'region'"),
        ("s3://key:secret@bucket", "AWS_ACCESS_KEY_ID"),
        ("s3://b?create=perhaps", "true or false"),
        ("file:///tmp/x?layout=nonsense", "registry"),
    ],
)
def test_a_store_that_cannot_be(store, word):
    ran = Holdfast(store).run("snapshots", code=2)

    assert word in ran.err
    assert "secret" not in ran.err.replace("AWS_SECRET_ACCESS_KEY", "")


@pytest.mark.parametrize("how", ["zstd:99", "gzip", "zstd:", "none:1"])
def test_a_compression_that_cannot_be(how, local, source):
    source.mkdir()

    _explained(local.run("backup", source, "--compression", how, code=2), "zstd:LEVEL")


def test_a_wrong_key(s3_bucket, source):
    write(source / "file", "x")
    for env in ({"AWS_SECRET_ACCESS_KEY": WRONG_SECRET}, {"AWS_ACCESS_KEY_ID": "nobody"}):
        holdfast = Holdfast(s3_bucket.url, env)
        for command in (["backup", source], ["snapshots"], ["restore", source]):
            _explained(holdfast.run(*command, code=1), "refused access", "AWS_SECRET_ACCESS_KEY")
        traced = holdfast.run("--debug", "backup", source, code=1).err
        assert "Traceback" in traced
        assert WRONG_SECRET not in traced
        assert SECRET_KEY not in traced
    assert s3_bucket.keys() == []


def test_no_key_at_all(s3_bucket, source, monkeypatch):
    write(source / "file", "x")
    for name in s3_bucket.env:
        if "KEY" in name:
            monkeypatch.delenv(name)

    _explained(Holdfast(s3_bucket.url).run("backup", source, code=1), "no credentials", "profile")


def test_an_endpoint_where_nobody_answers(source, monkeypatch):
    """The two run side by side: each gives a restarting server its time."""
    write(source / "file", "x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG_SECRET)
    holdfast = Holdfast(f"s3://bucket?endpoint=http://127.0.0.1:{free_ports(1)[0]}")

    running = [holdfast.start("--debug", "backup", str(source)), holdfast.start("snapshots", "--json")]
    ended = [(*process.communicate(timeout=100), process.returncode) for process in running]

    for out, err, code in ended:
        assert code == 1
        assert b"error: " in err
        assert b"hint: check the endpoint" in err
        assert WRONG_SECRET.encode() not in out + err
    assert b"Traceback" in ended[0][1]
    assert b"Traceback" not in ended[1][1]
    assert b'"exit_code":1' in ended[1][0]


def test_a_missing_bucket_is_made_by_a_backup_and_by_nothing_else(make_s3_bucket, source):
    bucket = make_s3_bucket(create=False)
    write(source / "file", "x")
    holdfast = Holdfast(bucket.url)

    for command in (["snapshots"], ["ls", source], ["find", "x"], ["restore", source]):
        assert bucket.name in holdfast.run(*command, code=4).err
    assert "no bucket" in Holdfast(f"{bucket.url}&create=false").run("backup", source, code=4).err
    assert not bucket.exists()
    holdfast.backup(source)
    assert bucket.exists()
    assert len(holdfast.run("snapshots").lines) == 1


def test_create_false_refuses_a_missing_directory_too(source, tmp_path):
    write(source / "file", "x")

    _explained(Holdfast(f"file://{tmp_path}/store?create=false").run("backup", source, code=4), "create=false")

    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("region", "constraint"), [("eu-west-3", b"<LocationConstraint>eu-west-3<"), ("us-east-1", None)]
)
def test_a_bucket_is_made_in_its_region(region, constraint, source, monkeypatch):
    asked = {}

    class Stub(http.server.BaseHTTPRequestHandler):
        """Knows no bucket and makes none; remembers what it was asked for."""

        def do_PUT(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            made = self.path.strip("/").partition("?")[0] == "bucket"
            if made:
                asked["body"], asked["signed for"] = body, self.headers["Authorization"]
            code = "AccessDenied" if made else "NoSuchBucket"
            answer = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(403 if made else 404)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    write(source / "file", "x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG_SECRET)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"s3://bucket?endpoint=http://127.0.0.1:{server.server_port}&region={region}"
        ran = Holdfast(url).run("backup", source, code=1)
        server.shutdown()

    assert "cannot create the bucket" in ran.err
    assert f"/{region}/s3/" in asked["signed for"]
    assert (constraint in asked["body"]) if constraint else b"LocationConstraint" not in asked["body"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(stop, source, monkeypatch):
    """Against a server that takes connections and never answers, where it could otherwise wait for minutes."""
    write(source / "file", "x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG_SECRET)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(30)
        url = f"s3://bucket?endpoint=http://127.0.0.1:{mute.getsockname()[1]}"
        with Holdfast(url).start("backup", source, "--json") as running:
            connection, _ = mute.accept()
            with connection:
                running.send_signal(stop)
                out, err = running.communicate(timeout=20)

    assert running.returncode == 130
    assert b'"exit_code":130' in out
    assert err.startswith(b"error: interrupted\nhint: ")


def test_damage_is_named(local, source, tmp_path):
    write(source / "first", random_bytes(MIB, 1))
    write(source / "second", random_bytes(100, 2))
    local.backup(source)
    blob = max((tmp_path / "store").rglob("data"), key=lambda path: path.stat().st_size)
    with blob.open("r+b") as file:
        file.seek(MIB // 2)
        file.write(b"altered")

    ran = local.run("restore", source, "--target", tmp_path / "back", code=5)

    assert blob.parent.name in ran.err
    assert "first" in ran.err
    assert not (tmp_path / "back/first").exists()
    assert local.run("dump", source, "first", code=5).err.startswith("error: ")


def test_a_backup_of_what_is_no_tree(local):
    assert "neither a directory nor a file" in local.run("backup", "/dev/null", code=1).err
